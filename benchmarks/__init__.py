"""Measurements beside peers, in one run, as ratios. Nothing here is a test."""
