"""The metrics of gRPC servers, under the names of go-grpc-prometheus, which etcd's dashboards and alerts use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["FRONT_CONNECTIONS", "FRONT_PROTOCOL_ERRORS", "HANDLED", "HANDLING_SECONDS", "STARTED", "MethodMetrics"]

_LABELS: Final = ("grpc_service", "grpc_method", "grpc_type")

STARTED: Final = Counter("grpc_server_started_total", "RPCs begun on the server.", _LABELS)
HANDLED: Final = Counter(
    "grpc_server_handled_total", "RPCs completed on the server, by outcome.", (*_LABELS, "grpc_code")
)
HANDLING_SECONDS: Final = Histogram(
    "grpc_server_handling_seconds",
    "Time from the start of an RPC to its end, as the handler sees it.",
    _LABELS,
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
FRONT_CONNECTIONS: Final = Gauge("quarterdeck_grpc_connections", "Connections open on the gRPC port.")
FRONT_PROTOCOL_ERRORS: Final = Counter(
    "quarterdeck_grpc_connections_ended_total", "Connections ended for what the peer sent, by HTTP/2 error.", ["code"]
)

#: What go-grpc-prometheus calls the status codes, by number.
_CODE_NAMES: Final = (
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
)


@dataclass(slots=True)
class MethodMetrics:
    """The children of one method, looked up once: labels cost more than the counting."""

    labels: tuple[str, str, str]
    _started: Counter
    _handling: Histogram
    _handled: dict[int, Counter]

    @classmethod
    def of(cls, service: str, method: str, kind: str) -> MethodMetrics:
        labels = (service, method, kind)
        return cls(labels, STARTED.labels(*labels), HANDLING_SECONDS.labels(*labels), {})

    def started(self) -> None:
        self._started.inc()

    def handled(self, code: int, seconds: float) -> None:
        child = self._handled.get(code)
        if child is None:
            name = _CODE_NAMES[code] if 0 <= code < len(_CODE_NAMES) else "Unknown"
            child = self._handled[code] = HANDLED.labels(*self.labels, name)
        child.inc()
        self._handling.observe(seconds)
