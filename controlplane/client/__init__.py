"""What everything else imports to talk to the API. See ``interface.py`` for the one protocol all clients share.

The in-process client (``controlplane.client.inprocess``) is imported explicitly, by who runs an API server.
"""

from __future__ import annotations

from controlplane.client.etcd_client import EtcdClient
from controlplane.client.events import EventRecorder
from controlplane.client.grpc_client import GrpcClient
from controlplane.client.informer import Informer
from controlplane.client.interface import (
    AlreadyExistsError,
    ApiClient,
    ApiError,
    ConflictError,
    ExpiredError,
    FencedError,
    FieldCause,
    InvalidError,
    ListResult,
    NotFoundError,
    UnavailableError,
    WatchEvent,
    WatchType,
)
from controlplane.client.operator_client import OperatorClient
from controlplane.client.workqueue import WorkQueue

__all__ = [
    "AlreadyExistsError",
    "ApiClient",
    "ApiError",
    "ConflictError",
    "EtcdClient",
    "EventRecorder",
    "ExpiredError",
    "FencedError",
    "FieldCause",
    "GrpcClient",
    "Informer",
    "InvalidError",
    "ListResult",
    "NotFoundError",
    "OperatorClient",
    "UnavailableError",
    "WatchEvent",
    "WatchType",
    "WorkQueue",
]
