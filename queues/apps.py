"""The base application: job types, jobs and their lifecycle."""

from django.apps import AppConfig


class QueuesConfig(AppConfig):
    """What is promised for a job and what becomes of it."""

    name = "queues"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Connect to Celery's worker signals and register services; nothing is imported before the models exist."""
        from queues import scheduler, worker_process

        worker_process.connect()
        scheduler.register_services()
