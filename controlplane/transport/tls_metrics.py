"""Metrics of TLS: what expires when, what was reloaded, who was turned away."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

__all__ = ["DENIED", "EXPIRY_SECONDS", "REFUSED_HANDSHAKES", "RELOADS"]

EXPIRY_SECONDS = Gauge(
    "quarterdeck_certificate_expiry_timestamp_seconds",
    "When a certificate in use ends, seconds since 1970: this process's own (leaf) and its authority's (ca).",
    ["certificate"],
)
RELOADS = Counter("quarterdeck_certificate_reloads_total", "Changed certificate files read, by result.", ["result"])
REFUSED_HANDSHAKES = Counter(
    "quarterdeck_tls_handshakes_refused_total",
    "Connections that ended in the TLS handshake: no certificate, a foreign or expired one, no TLS at all.",
    ["port"],
)
DENIED = Counter(
    "quarterdeck_requests_denied_total", "Calls refused for who made them, before any handler.", ["kind", "service"]
)
