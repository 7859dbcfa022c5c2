"""The Celery application: JSON only, ids only, messages are hints. No task is defined here."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")

app = Celery("jobsboard")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["queues"])
