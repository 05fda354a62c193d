"""The controllers a replica runs, as one list for the composition root."""

from __future__ import annotations

from controlplane.controllers.cleanup import EventSweeper, PodSweeper
from controlplane.controllers.deployment import DeploymentController
from controlplane.controllers.endpointslice import EndpointSliceController
from controlplane.controllers.gc import GarbageCollector
from controlplane.controllers.manager import ControllerFactory
from controlplane.controllers.namespace import NamespaceController
from controlplane.controllers.replicaset import ReplicaSetController

__all__ = ["all_controllers"]


def all_controllers() -> list[ControllerFactory]:
    """Every controller that needs nothing but its environment. Node lifecycle, which also needs to hear of sessions, is
    added by whoever has those."""
    return [
        DeploymentController,
        ReplicaSetController,
        EndpointSliceController,
        NamespaceController,
        GarbageCollector,
        PodSweeper,
        EventSweeper,
    ]
