"""Metrics of the node lifecycle controller, under the names kube-controller-manager has."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

__all__ = ["BRAKE", "EVICTIONS", "NODES", "NODES_DOWN", "ZONE_HEALTH"]

EVICTIONS = Counter("node_collector_evictions_total", "Pods deleted because their node died.", ["zone"])
NODES = Gauge("node_collector_zone_size", "Nodes registered in the zone.", ["zone"])
NODES_DOWN = Gauge("node_collector_unhealthy_nodes_in_zone", "Nodes of the zone that are not Ready.", ["zone"])
ZONE_HEALTH = Gauge("node_collector_zone_health", "Percentage of the zone's nodes that are Ready.", ["zone"])
BRAKE = Gauge("quarterdeck_node_eviction_brake", "1 while so many nodes look dead at once that nobody is evicted.")
