"""The dead-letter application."""

from django.apps import AppConfig


class DlqConfig(AppConfig):
    """Dead letters: why they died, whether a replay is safe, and replays in bulk."""

    name = "dlq"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register services; nothing is imported before the models exist."""
        from dlq import scheduled

        scheduled.register()
