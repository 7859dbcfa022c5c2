"""Logging in and out: Django's views, with a limit on guesses and an audit entry for each try.

Not here: roles (`jobsboard.roles`); the template (templates/registration/login.html).
"""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final

from django.contrib.auth import get_user_model
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.views import LoginView, LogoutView
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.crypto import salted_hmac

from jobsboard.middleware import client_address
from jobsboard.models import LoginAttempt
from queues import audit

ATTEMPTS_PER_MINUTE: Final = 5
TOO_MANY: Final = "Too many attempts. Wait a minute, then try again."
# A password typed into the wrong field must not be found in the audit log.
UNKNOWN: Final = "(unknown account)"


class RefusedForm(AuthenticationForm):
    """The login form of a try over the limit: no password is compared."""

    def clean(self) -> dict[str, Any]:
        """Refuse."""
        raise ValidationError(TOO_MANY)


class Login(LoginView):
    """The login page. Five tries a minute for one account from one address, whichever process answers."""

    redirect_authenticated_user = True

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Refuse a try over the limit before any password is compared."""
        name = request.POST.get(get_user_model().USERNAME_FIELD, "")[:200]
        if _is_over_limit(name, client_address(request)):
            _record("login_refused", request, name)
            context = self.get_context_data(form=RefusedForm(request, data=request.POST))
            response = self.render_to_response(context, status=HTTPStatus.TOO_MANY_REQUESTS)
            response["Retry-After"] = "60"
            return response
        return super().post(request, *args, **kwargs)

    def form_valid(self, form: AuthenticationForm) -> HttpResponse:
        """Log in and write it down."""
        response = super().form_valid(form)
        _record("login", self.request, form.get_user().get_username())
        return response

    def form_invalid(self, form: AuthenticationForm) -> HttpResponse:
        """Write the failure down; the page says the same for a wrong name and a wrong password."""
        _record("login_failed", self.request, self.request.POST.get(get_user_model().USERNAME_FIELD, ""))
        return super().form_invalid(form)


class Logout(LogoutView):
    """Ends the session, by POST only."""

    http_method_names = ["post", "options"]  # noqa: RUF012 (Django's own form)

    def post(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Write down who leaves while it is still known."""
        _record("logout", request, request.user.get_username())
        return super().post(request, *args, **kwargs)


def closed_admin_login(request: HttpRequest) -> HttpResponseBase:
    """Stand in for the admin's own login page, which has no limit on guesses."""
    raise PermissionDenied


login = Login.as_view()
logout = Logout.as_view()


def _is_over_limit(name: str, address: str) -> bool:
    """Count this try with those of the last minute; written first, so that parallel tries see each other."""
    who = salted_hmac("jobsboard.login", f"{name.casefold()}\0{address}", algorithm="sha256").hexdigest()
    tries = LoginAttempt.objects.filter(who=who)
    LoginAttempt.objects.create(who=who)
    return tries.filter(at__gt=Now() - timedelta(minutes=1)).count() > ATTEMPTS_PER_MINUTE


def forget_attempts() -> bool:
    """Delete tries that count no more; a service of the scheduler."""
    LoginAttempt.objects.filter(at__lt=Now() - timedelta(hours=1)).delete()
    return False


def _record(action: str, request: HttpRequest, name: str) -> None:
    known = "\0" not in name and get_user_model().objects.filter(username=name).exists()
    actor = name if known else UNKNOWN
    audit.record(
        action,
        actor=actor,
        object_type="user",
        object_id=actor,
        after={"address": client_address(request)},
        request_id=_request_id(request),
    )


def _request_id(request: HttpRequest) -> str:
    return getattr(request, "request_id", "")
