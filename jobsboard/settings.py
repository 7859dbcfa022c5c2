"""Django settings: everything that differs between machines comes from the environment, through env.py."""

import contextlib
from pathlib import Path
from typing import Any

from jobsboard import env

BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = env.flag("DEBUG")
SECRET_KEY = env.secret_key(debug=DEBUG)
ALLOWED_HOSTS = env.words("ALLOWED_HOSTS")
PUBLIC_URL = env.text("PUBLIC_URL", "http://127.0.0.1:8000").rstrip("/")
ENCRYPTION_KEYS = env.words("ENCRYPTION_KEYS")
TRUSTED_PROXIES = env.networks("TRUSTED_PROXIES")
CSRF_TRUSTED_ORIGINS = env.words("CSRF_TRUSTED_ORIGINS")
OUTBOUND_ALLOWED_CIDRS = env.networks("OUTBOUND_ALLOWED_CIDRS")
WEBHOOK_ALLOW_HTTP = env.flag("WEBHOOK_ALLOW_HTTP")
WEBHOOK_ALLOWED_PORTS = env.ports("WEBHOOK_ALLOWED_PORTS", "443")
METRICS_TOKEN = env.text("METRICS_TOKEN", "")
JOBSBOARD_HANDLERS = env.words("JOBSBOARD_HANDLERS")
REQUEST_BODY_SECONDS = env.seconds("REQUEST_BODY_SECONDS", 30, least=1)
WORKER_DEAF_SECONDS = env.seconds("WORKER_DEAF_SECONDS", 75)
ALLOW_NONDURABLE_DATABASE = env.flag("ALLOW_NONDURABLE_DATABASE")
JOBSBOARD_ENVIRONMENT = env.text("JOBSBOARD_ENVIRONMENT", "local")

INSTALLED_APPS = [
    "jobsboard.apps.JobsboardConfig",
    "dlq.apps.DlqConfig",
    "queues.apps.QueuesConfig",
    "django_htmx",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "jobsboard.middleware.RequestIdMiddleware",
    "jobsboard.metrics.requests.Before",
    "jobsboard.slow_bodies.SlowBodiesMiddleware",
    "jobsboard.middleware.SecurityHeadersMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "jobsboard.middleware.DenyByDefaultMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django_htmx.middleware.HtmxMiddleware",
    "jobsboard.metrics.requests.After",
]

ROOT_URLCONF = "jobsboard.urls"
WSGI_APPLICATION = "jobsboard.wsgi.application"
# A redirect after a POST would lose the job (RELIABILITY.md H-21).
APPEND_SLASH = False
DATA_UPLOAD_MAX_MEMORY_SIZE = 2 * 1024 * 1024

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "jobsboard.board.shell.context",
            ],
        },
    },
]

# Every wait ends: locks after 3 s, statements after 15 s, a forgotten transaction after 30 s (I-42, S-34).
DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        **env.database(),
        "CONN_MAX_AGE": 600,
        "CONN_HEALTH_CHECKS": True,
        "DISABLE_SERVER_SIDE_CURSORS": True,
        "OPTIONS": {
            "connect_timeout": 3,
            # A peer that vanished without a word is noticed within seconds, not after the kernel's two hours.
            "tcp_user_timeout": 5000,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            # No statement here is worth the start of another process.
            "options": "-c lock_timeout=3s -c statement_timeout=15s -c idle_in_transaction_session_timeout=30s"
            " -c max_parallel_workers_per_gather=0"
            " -c timezone=UTC",
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
]
CSRF_FAILURE_VIEW = "jobsboard.error_pages.csrf_failure"
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = "/"
LOGOUT_REDIRECT_URL = "/login/"

# A plain-HTTP PUBLIC_URL (the local stack) cannot carry Secure cookies; production is HTTPS.
_HTTPS = PUBLIC_URL.startswith("https://")
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _HTTPS
SESSION_COOKIE_NAME = "__Host-sessionid" if _HTTPS else "sessionid"
CSRF_COOKIE_NAME = "__Host-csrftoken" if _HTTPS else "csrftoken"
SESSION_COOKIE_AGE = 8 * 3600
SESSION_SAVE_EVERY_REQUEST = False
CSRF_COOKIE_HTTPONLY = True
SECURE_HSTS_SECONDS = 31536000 if _HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = _HTTPS
SECURE_SSL_REDIRECT = _HTTPS
# Prometheus asks each process by its own address, where there is no TLS.
SECURE_REDIRECT_EXEMPT = [r"^livez$", r"^readyz$", r"^metrics$"]
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https") if TRUSTED_PROXIES else None
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

STATIC_URL = "/static/"
STATIC_ROOT = env.text("STATIC_ROOT", str(BASE_DIR / ".static"))
STATICFILES_DIRS = [BASE_DIR / "static"]
# WhiteNoise warns about a directory that is not there; without collectstatic it serves from the finders.
with contextlib.suppress(OSError):
    Path(STATIC_ROOT).mkdir(exist_ok=True)
WHITENOISE_USE_FINDERS = True
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

BROKER_URL = env.broker()
CELERY_BROKER_URL = BROKER_URL
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_RESULT_BACKEND = None
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = False
CELERY_TASK_DEFAULT_QUEUE = "tier2"
CELERY_WORKER_SEND_TASK_EVENTS = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# Messages are hints, so nothing is gained by Redis remembering unacknowledged ones (FACTS.md 2 and 3).
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "ack_emulation": False,
    "socket_connect_timeout": 3,
    "health_check_interval": 15,
    "socket_keepalive": True,
}
# The fix-up of Celery closes connections around every task unless told that they are reused.
CELERY_DB_REUSE_MAX = 1_000_000

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"()": "jobsboard.logs.LineFormatter"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {
        "django.request": {"level": "ERROR"},
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.app.trace": {"level": "WARNING"},
    },
}
