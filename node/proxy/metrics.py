"""Metrics of the proxy, under kube-proxy's names where it has them."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = ["CONNECTIONS", "CONNECT_RETRIES", "FAILED", "FRONTENDS", "SYNC_SECONDS"]

SYNC_SECONDS = Histogram(
    "kubeproxy_sync_proxy_rules_duration_seconds",
    "Time of one reconciliation of listeners and endpoints.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.25, 1.0),
)
FRONTENDS = Gauge("quarterdeck_proxy_frontends", "Service addresses listened on.", ["protocol"])
CONNECTIONS = Counter("quarterdeck_proxy_connections_total", "TCP connections and UDP sessions relayed.", ["protocol"])
CONNECT_RETRIES = Counter("quarterdeck_proxy_connect_retries_total", "Endpoints that refused, so the next was tried.")
FAILED = Counter("quarterdeck_proxy_connections_failed_total", "Connections no endpoint took.", ["reason"])
