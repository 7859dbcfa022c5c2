"""Jobsboard: composition of the apps and their faces (board, API, admin, demo)."""

from jobsboard.celery import app as celery_app

__all__ = ["celery_app"]
