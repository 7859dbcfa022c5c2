"""Alerts that reach someone: rules, what they find, one alert for one cause, and webhooks that carry it out.

Everything runs in the scheduler, never in the workers that it watches, and needs no broker.
"""
