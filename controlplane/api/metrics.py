"""Metrics of the resource API: kube-apiserver's names, so that its dashboards and alerts work; codes are HTTP's."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from controlplane.api.registry import KINDS, Kind
from controlplane.base.errors import Code

__all__ = [
    "COMPONENT",
    "INFLIGHT",
    "LONGRUNNING",
    "REQUESTS",
    "REQUEST_SECONDS",
    "REQUEST_SLI_SECONDS",
    "WATCH_EVENTS",
    "http_code",
    "labels_of",
]

COMPONENT: Final = "apiserver"
_LABELS: Final = ("verb", "group", "version", "resource", "subresource", "scope", "component")

REQUESTS: Final = Counter(
    "apiserver_request_total", "Requests to the resource API, by what they asked for and their HTTP code.",
    (*_LABELS, "dry_run", "code"),
)  # fmt: skip
REQUEST_SECONDS: Final = Histogram(
    "apiserver_request_duration_seconds", "Time to answer a request of the resource API.", _LABELS,
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)  # fmt: skip
#: Here the same as the duration: nothing of a request's time is excused. Alerts on the error budget ask for this one.
REQUEST_SLI_SECONDS: Final = Histogram(
    "apiserver_request_sli_duration_seconds", "Time to answer a request of the resource API that counts as service.",
    _LABELS, buckets=(0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0),
)  # fmt: skip
INFLIGHT: Final = Gauge("apiserver_current_inflight_requests", "Requests being served now.", ("request_kind",))
LONGRUNNING: Final = Gauge("apiserver_longrunning_requests", "Watches and log streams open now.", _LABELS)
WATCH_EVENTS: Final = Counter(
    "apiserver_watch_events_total", "Events sent to watches.", ("group", "version", "resource")
)

_HTTP: Final = {
    Code.OK: 200, Code.CANCELLED: 499, Code.INVALID_ARGUMENT: 422, Code.DEADLINE_EXCEEDED: 504, Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409, Code.PERMISSION_DENIED: 403, Code.RESOURCE_EXHAUSTED: 429, Code.FAILED_PRECONDITION: 412,
    Code.ABORTED: 409, Code.OUT_OF_RANGE: 410, Code.UNIMPLEMENTED: 501, Code.UNAVAILABLE: 503,
}  # fmt: skip
_BY_RESOURCE: Final = {kind.resource: kind for kind in KINDS}
_BY_FIELD: Final = {kind.field: kind for kind in KINDS}


def http_code(code: Code) -> str:
    """The HTTP code kube-apiserver would have answered."""
    return str(_HTTP.get(code, 500))


def labels_of(verb: str, subresource: str, resource: str, field: str, *, one: bool) -> tuple[str, ...]:
    """The labels of a request, from the resource it names or the member of ``Object`` it carries.

    A name that no kind has becomes the empty one: label values are never a client's to invent.
    """
    kind: Kind | None = _BY_RESOURCE.get(resource) or _BY_FIELD.get(field)
    if kind is None:
        return (verb, "", "", "", subresource, "", COMPONENT)
    scope = "resource" if one else ("namespace" if kind.namespaced else "cluster")
    version = kind.api_version.rpartition("/")[2]
    return (verb, kind.group, version, kind.resource, subresource, scope, COMPONENT)
