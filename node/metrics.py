"""Metrics of the agent, under the kubelet's names so that dashboards made for it work.

There is no PLEG here: pidfds tell of an exit at once. ``kubelet_pleg_relist_*`` measure the housekeeping pass that
lists all containers, which is what those dashboards watch for.
"""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "NODE_NAME",
    "POD_START_SECONDS",
    "POD_START_SLI_SECONDS",
    "POD_WORKER_SECONDS",
    "PROBES",
    "RELIST_INTERVAL_SECONDS",
    "RELIST_SECONDS",
    "RUNNING_CONTAINERS",
    "RUNNING_PODS",
    "RUNTIME_ERRORS",
    "RUNTIME_OPERATIONS",
    "RUNTIME_SECONDS",
    "SESSION_CONNECTED",
    "SESSION_MOVES",
]

_START_BUCKETS_S: Final = (0.05, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 8, 10, 20, 30, 45, 60, 120, 300, 600)
_CALL_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

NODE_NAME = Gauge("kubelet_node_name", "The node's name. The count is always 1.", ["node"])
RUNNING_PODS = Gauge("kubelet_running_pods", "Number of pods that have a running container")
RUNNING_CONTAINERS = Gauge("kubelet_running_containers", "Number of containers by state", ["container_state"])
POD_START_SECONDS = Histogram(
    "kubelet_pod_start_duration_seconds",
    "Seconds from the agent seeing a pod for the first time to the pod running",
    buckets=_START_BUCKETS_S,
)
POD_START_SLI_SECONDS = Histogram(
    "kubelet_pod_start_sli_duration_seconds",
    "Seconds from the pod's creation to the pod running, without image pulls and init containers",
    buckets=_START_BUCKETS_S,
)
POD_WORKER_SECONDS = Histogram(
    "kubelet_pod_worker_duration_seconds",
    "Seconds one operation on a pod took: create, sync, terminate",
    ["operation_type"],
    buckets=_CALL_BUCKETS_S,
)
RELIST_SECONDS = Histogram(
    "kubelet_pleg_relist_duration_seconds", "Seconds of one pass over all containers", buckets=_CALL_BUCKETS_S
)
RELIST_INTERVAL_SECONDS = Histogram(
    "kubelet_pleg_relist_interval_seconds", "Seconds between two passes over all containers", buckets=_START_BUCKETS_S
)
RUNTIME_OPERATIONS = Counter("kubelet_runtime_operations_total", "Calls of the container runtime", ["operation_type"])
RUNTIME_ERRORS = Counter(
    "kubelet_runtime_operations_errors_total", "Calls of the container runtime that failed", ["operation_type"]
)
RUNTIME_SECONDS = Histogram(
    "kubelet_runtime_operations_duration_seconds",
    "Seconds of calls of the container runtime",
    ["operation_type"],
    buckets=_CALL_BUCKETS_S,
)
PROBES = Counter(
    "prober_probe_total", "Probes of containers by result", ["probe_type", "result", "container", "pod", "namespace"]
)
SESSION_MOVES = Counter("quarterdeck_agent_session_ends_total", "Node sessions that broke or were given up")
SESSION_CONNECTED = Gauge("quarterdeck_node_session_connected", "1 while a replica holds this node's session")
