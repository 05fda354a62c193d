"""What a node's certificate may do with the resource API: the reads an agent makes, and the events it writes.

The rule of Kubernetes' Node authorizer, as far as our agents go: a node reads what its pods and its proxy need, and
writes only of itself. (Its Node object and its pods' statuses go through its session, under its own name.) Secrets are
not among the reads, and nothing else is among the writes. Owns the rule; the refusal's words and its record are
``transport.authorization``'s.
"""

from __future__ import annotations

from typing import Any, Final

from controlplane.transport.authorization import deny
from controlplane.transport.tls import Identity, IdentityKind

__all__ = ["check_node_request", "check_node_session"]

_READS: Final = frozenset({"configmaps", "services", "endpointslices", "events"})


def check_node_request(caller: Identity | None, method: str, request: Any) -> None:
    """Return if the caller is no node, or a node that may do this.

    Raises:
        StatusError: PermissionDenied.
    """
    if caller is None or caller.kind is not IdentityKind.NODE:
        return
    if hasattr(request, "object"):
        if request.object.WhichOneof("kind") != "event":
            deny(caller, method, "a node writes events, and nothing else outside its session")
        if request.object.event.source.host != caller.name:
            deny(caller, method, f"the event is of {request.object.event.source.host[:64]!r}")
    elif hasattr(request, "resource") and request.resource not in _READS:
        deny(caller, method, f"a node does not read {request.resource[:64]!r}")


def check_node_session(caller: Identity | None, node: str) -> None:
    """Return if the caller may hold the session of ``node``: that node, an administrator, or anybody without TLS.

    Raises:
        StatusError: PermissionDenied.
    """
    if caller is not None and not caller.is_admin and (caller.kind, caller.name) != (IdentityKind.NODE, node):
        deny(caller, "/quarterdeck.v1.Nodes/Session", f"it is not node {node[:64]!r}")
