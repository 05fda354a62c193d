"""What a certificate's holder may call on the client port, decided before any handler is asked.

===========  ===============================================================================================
holder       may call
===========  ===============================================================================================
admin        everything (a user of the group ``system:masters``)
user         everything that has its own permission checks or none yet: the etcd API, where etcd's users and
             roles decide once they are enabled, the resource API (no RBAC yet), health and reflection; no snapshot
             of everything, none cut, no restore
node         the node session, and the reads of the resource API an agent makes; the writes of its events
member       who else is a member (a new one asks that before it has links), calls between processes, health
nobody       nothing
===========  ===============================================================================================

The first line is by service and method; whether a node speaks for itself (its session, its events) is checked where
the request is read. Calls made inside the process pass by here. Knows no handler. Every refusal is a log line of the
logger ``quarterdeck.audit`` and is counted.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import grpc

from controlplane.base.errors import Code, StatusError
from controlplane.transport import tls_metrics as metrics
from controlplane.transport.around import AroundInterceptor, respond
from controlplane.transport.callers import HasAuthContext, caller_of
from controlplane.transport.tls import Identity, IdentityKind

__all__ = ["AuthorizationInterceptor", "authorize", "deny"]

_log = logging.getLogger("quarterdeck.audit")

_HEALTH: Final = "/grpc.health.v1.Health/"
_RESOURCES: Final = "/quarterdeck.v1.Resources/"

_MEMBER: Final = (_HEALTH, "/etcdserverpb.Cluster/MemberList", "/quarterdeck.internal.v1.Peers/")
_NODE: Final = (
    _HEALTH,
    "/quarterdeck.v1.Nodes/Session",
    *(_RESOURCES + method for method in ("Get", "List", "Watch", "Create", "Update")),
)
#: What of the cluster's inside users other than administrators have no business with.
_NOT_USER: Final = (
    "/quarterdeck.v1.Nodes/",
    "/quarterdeck.internal.v1.",
    "/quarterdeck.v1.Operator/Restore",
    "/quarterdeck.v1.Operator/CutSnapshot",
    "/quarterdeck.v1.Operator/Snapshot",  # it holds password hashes, the token key, and every object
)


def authorize(caller: Identity | None, method: str) -> None:
    """Return if ``caller`` may call ``method`` (``/package.Service/Method``).

    Raises:
        StatusError: Unauthenticated, nobody calls; PermissionDenied.
    """
    if caller is None:
        metrics.DENIED.labels("nobody", _service(method)).inc()
        raise StatusError(Code.UNAUTHENTICATED, "a client certificate is required: --cacert, --cert and --key")
    if caller.is_admin:
        return
    match caller.kind:
        case IdentityKind.MEMBER:
            allowed = _is_one_of(method, _MEMBER)
        case IdentityKind.NODE:
            allowed = _is_one_of(method, _NODE)
        case _:
            allowed = not method.startswith(_NOT_USER)
    if not allowed:
        deny(caller, method, f"a {caller.kind}'s certificate may not call it")


def deny(caller: Identity, method: str, why: str) -> None:
    """Refuse, on the record.

    Raises:
        StatusError: PermissionDenied, always.
    """
    metrics.DENIED.labels(str(caller.kind), _service(method)).inc()
    _log.warning("event=denied caller=%r method=%s reason=%r", str(caller), method, why)
    raise StatusError(Code.PERMISSION_DENIED, f"{caller} may not call {method}: {why}")


def _is_one_of(method: str, allowed: tuple[str, ...]) -> bool:
    """Whether it is a method named there, or of a service named there (which ends with a slash)."""
    return method in allowed or method[: method.rfind("/") + 1] in allowed


def _service(method: str) -> str:
    # Unknown names are the caller's to invent: only those of ours become labels.
    service = method.removeprefix("/").partition("/")[0]
    ours = service.startswith(("etcdserverpb.", "quarterdeck.", "grpc.", "v3lockpb.", "v3electionpb."))
    return service if ours and len(service) < 64 else "other"


class AuthorizationInterceptor(AroundInterceptor):
    """Asks :func:`authorize` before every handler of a server whose callers show certificates."""

    def around(self, method: str, handler: grpc.RpcMethodHandler[Any, Any], inner: Any) -> Any:
        """The handler, for those who may call it."""
        return (_streaming if handler.response_streaming else _unary)(method, inner)


def _unary(method: str, inner: Any) -> Any:
    async def handle(request: Any, context: HasAuthContext) -> Any:
        authorize(caller_of(context), method)
        return await inner(request, context)

    return handle


def _streaming(method: str, inner: Any) -> Any:
    async def handle(request: Any, context: Any) -> None:
        authorize(caller_of(context), method)
        await respond(inner, request, context)

    return handle
