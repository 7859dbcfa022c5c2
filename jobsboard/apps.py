"""The application that composes the others and shows them."""

from django.apps import AppConfig


class JobsboardConfig(AppConfig):
    """Board, admin, HTTP API and demo."""

    name = "jobsboard"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register checks and services; nothing is imported before the models exist."""
        from jobsboard import accounts, annotations, checks
        from queues.scheduler import Service, register

        checks.connect()

        register(Service(name="login-attempts", every_seconds=3600.0, run_once=accounts.forget_attempts))
        register(Service(name="annotations", every_seconds=3600.0, run_once=annotations.forget_old))
