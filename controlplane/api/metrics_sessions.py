"""Metrics of node sessions. One home; the values are set by ``sessions``."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

__all__ = ["ENDS", "OPEN", "REPORTS", "STALLS", "STATUSES"]

OPEN = Gauge("quarterdeck_node_sessions", "Node sessions open on this replica.")
ENDS = Counter("quarterdeck_node_session_ends_total", "Sessions that ended here, by reason.", ["reason"])
STATUSES = Counter("quarterdeck_node_session_statuses_total", "Pod status reports received.")
REPORTS = Counter("quarterdeck_session_reports_total", "Session reports to the leader, by result.", ["result"])
STALLS = Counter("quarterdeck_session_stalls_total", "Times this replica did not run and counted no node's silence.")
