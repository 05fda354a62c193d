"""The metrics of gRPC servers, under the names of go-grpc-prometheus, which etcd's dashboards and alerts use."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

__all__ = ["FRONT_CONNECTIONS", "FRONT_PROTOCOL_ERRORS", "MethodMetrics"]

_LABELS: Final = ("grpc_service", "grpc_method", "grpc_type")

#: Upper bounds of a handling time, seconds.
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
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


class MethodMetrics:
    """The counts of one method. Plain numbers that one loop moves: a counter of the library takes a lock and four
    calls, and every RPC moves five."""

    __slots__ = ("_buckets", "_handled", "_labels", "_seconds", "_started")

    def __init__(self, labels: tuple[str, str, str]) -> None:
        self._labels = labels
        self._started = 0
        self._handled: dict[str, int] = {}
        self._buckets = [0] * (len(_BUCKETS) + 1)
        self._seconds = 0.0

    @classmethod
    def of(cls, service: str, method: str, kind: str) -> MethodMetrics:
        """That method's, the same for every server of the process."""
        return _METHODS.of((service, method, kind))

    def started(self) -> None:
        self._started += 1

    def handled(self, code: int, seconds: float) -> None:
        """It ended with this status, after so long."""
        name = _CODE_NAMES[code] if 0 <= code < len(_CODE_NAMES) else "Unknown"
        self._handled[name] = self._handled.get(name, 0) + 1
        self._buckets[bisect_left(_BUCKETS, seconds)] += 1
        self._seconds += seconds

    def add_to(self, started: CounterMetricFamily, handled: CounterMetricFamily, took: HistogramMetricFamily) -> None:
        """Report, by the library's families."""
        started.add_metric(self._labels, self._started)
        for name, count in self._handled.items():
            handled.add_metric((*self._labels, name), count)
        bounds = [*map(floatToGoString, _BUCKETS), "+Inf"]
        took.add_metric(self._labels, list(zip(bounds, accumulate(self._buckets), strict=True)), self._seconds)


class _Methods(Collector):
    """All methods, as the library collects them."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, str], MethodMetrics] = {}

    def of(self, labels: tuple[str, str, str]) -> MethodMetrics:
        found = self._known.get(labels)
        if found is None:
            found = self._known[labels] = MethodMetrics(labels)
        return found

    def collect(self) -> Iterator[Metric]:
        started = CounterMetricFamily("grpc_server_started", "RPCs begun on the server.", labels=_LABELS)
        handled = CounterMetricFamily(
            "grpc_server_handled", "RPCs completed on the server, by outcome.", labels=(*_LABELS, "grpc_code")
        )
        took = HistogramMetricFamily(
            "grpc_server_handling_seconds",
            "Time from the start of an RPC to its end, as the handler sees it.",
            labels=_LABELS,
        )
        for method in list(self._known.values()):
            method.add_to(started, handled, took)
        yield from (started, handled, took)


_METHODS: Final = _Methods()
REGISTRY.register(_METHODS)
