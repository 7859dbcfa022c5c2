"""Every route of Jobsboard. What needs no login is named in `jobsboard.middleware.OPEN_ROUTES`."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path

from jobsboard import accounts, health
from jobsboard.metrics.view import metrics

urlpatterns: list[URLPattern | URLResolver] = [
    path("api/", include("jobsboard.api.urls")),
    path("login/", accounts.login, name="login"),
    path("logout/", accounts.logout, name="logout"),
    # Before the admin's own, which would take any number of guesses.
    path("admin/login/", accounts.closed_admin_login, name="admin-login-closed"),
    # Before the admin's own, which is not in the audit log and sends whoever is no staff to the closed login.
    path("admin/logout/", accounts.logout, name="admin-logout"),
    path("admin/", admin.site.urls),
    path("livez", health.livez, name="livez"),
    path("readyz", health.readyz, name="readyz"),
    path("metrics", metrics, name="metrics"),
    path(".well-known/security.txt", health.security_txt, name="security_txt"),
    path("", include("jobsboard.board.urls")),
]

handler400 = "jobsboard.error_pages.bad_request"
handler403 = "jobsboard.error_pages.forbidden"
handler404 = "jobsboard.error_pages.not_found"
handler500 = "jobsboard.error_pages.server_error"
