"""The application that composes the others and shows them."""

from django.apps import AppConfig


class JobsboardConfig(AppConfig):
    """Board, admin, HTTP API and demo."""

    name = "jobsboard"
    default_auto_field = "django.db.models.BigAutoField"
