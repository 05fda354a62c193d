"""What everything else imports to talk to the API. See ``interface.py`` for the one protocol all clients share.

The in-process client (``controlplane.client.inprocess``) is imported explicitly, by who runs an API server.
"""

from __future__ import annotations

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
from controlplane.client.workqueue import WorkQueue

__all__ = [
    "AlreadyExistsError",
    "ApiClient",
    "ApiError",
    "ConflictError",
    "ExpiredError",
    "FencedError",
    "FieldCause",
    "Informer",
    "InvalidError",
    "ListResult",
    "NotFoundError",
    "UnavailableError",
    "WatchEvent",
    "WatchType",
    "WorkQueue",
]
