"""Metrics of the connection to an external etcd, under kube-apiserver's names for it where it has one."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["FAILED", "LEADING", "REQUESTS", "REQUEST_SECONDS", "REVISION", "WATCH_RESUMES"]

REQUESTS: Final = Counter("etcd_requests_total", "Attempts of requests to the external etcd.", ["operation"])
FAILED: Final = Counter(
    "etcd_request_errors_total", "Attempts that failed, by gRPC code.", ["operation", "code"]
)  # fmt: skip
REQUEST_SECONDS: Final = Histogram(
    "etcd_request_duration_seconds", "Duration of one attempt of a request to the external etcd.", ["operation"]
)
WATCH_RESUMES: Final = Counter(
    "quarterdeck_store_watch_resumes_total", "Watches on the external etcd taken up again after their stream ended."
)
REVISION: Final = Gauge("quarterdeck_store_revision", "Newest revision that the external etcd has answered with.")
LEADING: Final = Gauge("quarterdeck_store_leading", "1 while this process holds the lease-held leadership.")
