"""Metrics of the node lifecycle controller, under the names kube-controller-manager has."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

__all__ = ["BRAKE", "EVICTIONS", "EVICTIONS_BY_REASON", "NODES", "NODES_DOWN", "NODE_DELETED", "ZONE_HEALTH"]

EVICTIONS = Counter("node_collector_evictions_total", "Pods deleted because their node died.", ["zone"])
EVICTIONS_BY_REASON = Counter(
    "quarterdeck_node_evictions_total",
    "Pods deleted because their node died, by what was found of it: silent, session_broke, replica_gone, not_returned, "
    "never_heard, goodbye, drained; node_deleted: there is no such node.",
    ["reason"],
)
#: The reason of pods whose Node object is gone for good.
NODE_DELETED: Final = "node_deleted"
NODES = Gauge("node_collector_zone_size", "Nodes registered in the zone.", ["zone"])
NODES_DOWN = Gauge("node_collector_unhealthy_nodes_in_zone", "Nodes of the zone that are not Ready.", ["zone"])
ZONE_HEALTH = Gauge("node_collector_zone_health", "Percentage of the zone's nodes that are Ready.", ["zone"])
BRAKE = Gauge("quarterdeck_node_eviction_brake", "1 while so many nodes look dead at once that nobody is evicted.")
