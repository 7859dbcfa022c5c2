"""The application that composes the others and shows them."""

from django.apps import AppConfig


class JobsboardConfig(AppConfig):
    """Board, admin, HTTP API and demo."""

    name = "jobsboard"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register checks and services; nothing is imported before the models exist."""
        from jobsboard import accounts, annotations, checks
        from jobsboard.alerts import delivery, endpoints, engine, ledger
        from queues import secrets_box
        from queues.scheduler import Service, register

        checks.connect()
        secrets_box.register(secrets_box.Keeper(name="webhooks", reseal=endpoints.reseal, sealed=endpoints.sealed))

        register(Service(name="login-attempts", every_seconds=3600.0, run_once=accounts.forget_attempts))
        register(Service(name="annotations", every_seconds=3600.0, run_once=annotations.forget_old))
        register(Service(name="alerts", every_seconds=engine.EVERY_SECONDS, run_once=engine.run_once))
        register(Service(name="alerts-kept", every_seconds=3600.0, run_once=engine.forget_old))
        webhooks = delivery.Webhooks()
        register(Service(name="webhooks", every_seconds=delivery.EVERY_SECONDS, run_once=webhooks.run_once))
        register(Service(name="webhooks-kept", every_seconds=60.0, run_once=ledger.give_up_old))
