"""The dead-letter application."""

from django.apps import AppConfig


class DlqConfig(AppConfig):
    """Dead letters and their replay."""

    name = "dlq"
