"""Alerts: rules, engine, webhooks."""
