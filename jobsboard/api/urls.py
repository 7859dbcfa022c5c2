"""Where the API is mounted: its routers, and an answer in JSON to every other address below /api/.

Not here: who may pass (`jobsboard.api.access`, called by the middleware before any of these views).
"""

from __future__ import annotations

import threading
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, URLResolver, path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe
from ninja import NinjaAPI
from ninja.openapi.schema import OpenAPISchema
from ninja.security import HttpBearer

from jobsboard.api import (
    cancellations,
    causes,
    confirmations,
    dead_letters,
    dependencies,
    exporting,
    groups,
    job_types,
    jobs,
    outcomes,
    problems,
    replays,
    suspected,
)
from jobsboard.api.annotations import router as annotations_router
from jobsboard.api.keys import Key
from jobsboard.api.problems import Problem


class ApiKeyBearer(HttpBearer):
    """Says in the OpenAPI document what the gate has checked."""

    openapi_description = "An API key: jb_live_…"

    def __call__(self, request: HttpRequest) -> Key | None:
        """Return the key that the gate left on the request."""
        key: Key | None = getattr(request, "api_key", None)
        return key

    def authenticate(self, request: HttpRequest, token: str) -> None:
        """Never asked: `__call__` answers."""


class Api(NinjaAPI):
    """ninja's, whose document says that errors are problem documents; it knows one media type for all answers."""

    _making = threading.Lock()
    _made: OpenAPISchema | None = None

    def get_openapi_schema(self, **options: Any) -> OpenAPISchema:
        """Return the OpenAPI document; as the site asks for it, it is made once: that takes most of a second."""
        if set(options) - {"path_params"} or options.get("path_params"):
            return self._document(**options)
        with self._making:
            if self._made is None:
                self._made = self._document()
        return self._made

    def _document(self, **options: Any) -> OpenAPISchema:
        schema = super().get_openapi_schema(**options)
        for operations in schema["paths"].values():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    if int(status) >= 400 and "application/json" in response.get("content", {}):
                        response["content"] = {problems.CONTENT_TYPE: response["content"]["application/json"]}
        return schema


# docs_url: the bundled page loads scripts from elsewhere; the document itself is enough.
api = Api(
    title="Jobsboard",
    version="1",
    docs_url=None,
    openapi_url="/openapi.json",
    docs_decorator=require_safe,
    auth=ApiKeyBearer(),
    urls_namespace="api",
)
for _router in (
    jobs.router,
    confirmations.router,
    dead_letters.router,
    exporting.router,
    groups.router,
    replays.router,
    cancellations.router,
    job_types.router,
    dependencies.router,
    annotations_router,
    causes.router,
    outcomes.router,
    suspected.router,
):
    api.add_router("", _router)


@api.exception_handler(Exception)
def _on_error(request: HttpRequest, error: Exception) -> HttpResponse:
    return problems.answer(request, problems.of_exception(error))


@csrf_exempt
def nothing_here(request: HttpRequest) -> HttpResponse:
    """Answer an address that is none of the API's."""
    return problems.answer(request, Problem("not_found", "There is nothing at this address.", status=404))


urlpatterns: list[URLPattern | URLResolver] = [
    # Before ninja's own root, which answers a POST as a form that was forged.
    path("v1/", nothing_here),
    path("v1/", api.urls),
    re_path(r"", nothing_here, name="api-nothing"),
]
