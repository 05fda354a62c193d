"""Named checks of how a process is, and the metrics of how they went. Served by ``http``; knows nothing of that.

Apart from it because parts that have checks are imported before, and without, what it takes to serve HTTP.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prometheus_client import Counter, Gauge

__all__ = ["KUBERNETES", "Check", "CheckOutcomes"]

#: A named check: None (or an awaitable of it) means fine, a text says what is wrong.
Check = Callable[[], "str | Awaitable[str | None] | None"]


class CheckOutcomes:
    """Metrics of how checks went: ``PREFIX_healthcheck`` and ``PREFIX_healthchecks_total``."""

    def __init__(self, prefix: str) -> None:
        self._last = Gauge(f"{prefix}_healthcheck", "1 if the check last went well, by endpoint.", ["name", "type"])
        self._all = Counter(
            f"{prefix}_healthchecks_total", "Checks made, by how they went.", ["name", "type", "status"]
        )

    def count(self, name: str, endpoint: str, *, well: bool) -> None:
        """A check of an endpoint (``readyz``) has been made."""
        self._last.labels(name, endpoint).set(well)
        self._all.labels(name, endpoint, "success" if well else "error").inc()


KUBERNETES = CheckOutcomes("kubernetes")
