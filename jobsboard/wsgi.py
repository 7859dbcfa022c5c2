"""The WSGI entry point that gunicorn serves."""

import os

from django.core.exceptions import ImproperlyConfigured
from django.core.wsgi import get_wsgi_application

from jobsboard import checks
from jobsboard.api import unread
from jobsboard.metrics import directory

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")

# Before Django loads the middleware that counts requests.
directory.prepare()
try:
    application = get_wsgi_application()
except ImproperlyConfigured as error:
    checks.end("web", [str(error)], code=checks.LOAD_ERROR)
checks.refuse_to_start("web", code=checks.LOAD_ERROR, servers_too=checks.starts_with_its_parent())
unread.use_problems()
