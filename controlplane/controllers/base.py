"""What a controller is, and what it gets to work with.

Owns: the :class:`Controller` base, the fenced way to write, keys, and the node states every controller agrees on.
Must not know: any particular controller, raft, or how leadership is won.

Invariants:

- A controller changes the cluster only through :class:`FencedClient`, so a deposed leader's late write is refused by
  the store, not merged.
- Level-triggered: ``reconcile`` gets a *key*, looks at the present state, and may be called any number of times with
  nothing to do. What woke it up is deliberately not told.
- Between winning and losing leadership nothing is remembered that the cluster does not hold: ``on_lead`` starts from
  ``keys()``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from controlplane.base.clock import Clock
from controlplane.base.errors import QuarterdeckError
from controlplane.base.rand import Rand
from controlplane.client.interface import ApiClient, FencedError, K8sObject, ListResult, ObjT
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = [
    "LEADER_KEY",
    "SUSPECT_CONDITION",
    "Cache",
    "Caches",
    "Controller",
    "Environment",
    "EventSink",
    "FencedClient",
    "NotLeadingError",
    "key_of",
    "node_is_ready",
    "node_is_suspect",
    "node_serves",
    "pod_is_finished",
    "split_key",
]

#: The key a new leader writes; its mod revision is the fence of every write of that term.
LEADER_KEY = b"/quarterdeck/leader"

#: Node condition (status True) between "its session broke or it is late" and NotReady (Ready != True). A Suspect
#: node's endpoints leave load balancing; its pods stay.
SUSPECT_CONDITION = "Suspect"


CachedT = TypeVar("CachedT", bound=K8sObject, covariant=True)


class NotLeadingError(QuarterdeckError):
    """A controller tried to write while this replica does not lead. Its work stops; nothing was sent."""


def key_of(obj: K8sObject) -> str:
    """``namespace/name``, or ``name`` for a cluster-scoped object."""
    meta = obj.metadata
    return f"{meta.namespace}/{meta.name}" if meta.namespace else meta.name


def split_key(key: str) -> tuple[str, str]:
    """``(namespace, name)``; the namespace of a cluster-scoped key is empty."""
    namespace, _, name = key.rpartition("/")
    return namespace, name


def _condition_status(node: Node, condition_type: str) -> str:
    return next((c.status for c in node.status.conditions if c.type == condition_type), "")


def node_is_ready(node: Node) -> bool:
    """The agent reports and the leader hears it: condition Ready is True."""
    return _condition_status(node, "Ready") == "True"


def node_is_suspect(node: Node) -> bool:
    """Its session broke or its heartbeat is late, but it is not declared dead."""
    return _condition_status(node, SUSPECT_CONDITION) == "True"


def node_serves(node: Node) -> bool:
    """Whether traffic may be sent to pods of this node: ready and not suspect."""
    return node_is_ready(node) and not node_is_suspect(node)


class Cache(Protocol[CachedT]):
    """The read side of an informer: the objects of one kind as of a moment ago. Objects are shared: never mutate."""

    def get(self, name: str, namespace: str = "") -> CachedT | None: ...

    def list(self) -> Sequence[CachedT]: ...

    def by_index(self, name: str, key: str) -> Sequence[CachedT]: ...

    def add_index(self, name: str, fn: Callable[[CachedT], Iterable[str]]) -> None: ...

    def on_change(self, fn: Callable[[CachedT | None, CachedT | None], None]) -> None: ...


class Caches(Protocol):
    """One shared cache per kind, kept warm on every replica."""

    def of(self, kind: type[ObjT]) -> Cache[ObjT]: ...


class EventSink(Protocol):
    """Where controllers tell users what they did: Kubernetes Events, aggregated and rate-limited by the recorder."""

    def event(self, regarding: Any, event_type: str, reason: str, message: str) -> None:
        """``event_type`` is Normal or Warning; ``regarding`` the object it is about. Never blocks, never raises."""
        ...


class FencedClient:
    """The API client of a leader: every write carries the fence of the present term.

    Raises on write: NotLeadingError when no term is held (nothing is sent), FencedError when the store knows a newer
    leader (then the term is dropped at once: no later write of this term is even sent).
    """

    def __init__(self, client: ApiClient, on_fenced: Callable[[], None] = lambda: None) -> None:
        self._client = client
        self._fence: api_pb2.Fence | None = None
        self._on_fenced = on_fenced

    @property
    def leading(self) -> bool:
        return self._fence is not None

    def grant(self, fence: api_pb2.Fence) -> None:
        """Write under this fence from now on."""
        self._fence = fence

    def revoke(self) -> None:
        """Refuse all writes from now on."""
        self._fence = None

    def _held(self) -> api_pb2.Fence:
        if self._fence is None:
            raise NotLeadingError("this replica does not lead: write not sent")
        return self._fence

    def _fenced_off(self, fence: api_pb2.Fence) -> None:
        if self._fence is fence:
            self._fence = None
            self._on_fenced()

    async def get(self, kind: type[ObjT], name: str, *, namespace: str = "") -> ObjT:
        """A linearizable read. Raises NotFoundError."""
        return await self._client.get(kind, name, namespace=namespace)

    async def list(
        self, kind: type[ObjT], *, namespace: str = "", label_selector: str = "", limit: int = 0, token: str = ""
    ) -> ListResult[ObjT]:
        """A linearizable list, one page of it when ``limit`` is set."""
        return await self._client.list(
            kind, namespace=namespace, label_selector=label_selector, limit=limit, continue_token=token
        )

    async def create(self, obj: ObjT) -> ObjT:
        """Raises AlreadyExistsError, InvalidError."""
        fence = self._held()
        try:
            return await self._client.create(obj, fence=fence)
        except FencedError:
            self._fenced_off(fence)
            raise

    async def update(self, obj: ObjT) -> ObjT:
        """Write with the resource version the object was read at. Raises ConflictError, NotFoundError."""
        fence = self._held()
        try:
            return await self._client.update(obj, fence=fence)
        except FencedError:
            self._fenced_off(fence)
            raise

    async def update_status(self, obj: ObjT) -> ObjT:
        """As :meth:`update`, of the status alone."""
        fence = self._held()
        try:
            return await self._client.update_status(obj, fence=fence)
        except FencedError:
            self._fenced_off(fence)
            raise

    async def patch(
        self, kind: type[ObjT], name: str, patch: object, *, namespace: str = "", subresource: str = ""
    ) -> ObjT:
        """A merge patch. Include ``metadata.resourceVersion`` to make it conditional."""
        fence = self._held()
        try:
            return await self._client.patch(
                kind, name, patch, namespace=namespace, subresource=subresource, fence=fence
            )
        except FencedError:
            self._fenced_off(fence)
            raise

    async def delete(
        self,
        kind: type[ObjT],
        name: str,
        *,
        namespace: str = "",
        grace_period_s: int | None = None,
        propagation_policy: str = "",
        uid: str = "",
        resource_version: str = "",
    ) -> ObjT:
        """Delete, on condition of uid and resource version when given. Raises NotFoundError, ConflictError."""
        fence = self._held()
        try:
            return await self._client.delete(
                kind,
                name,
                namespace=namespace,
                grace_period_s=grace_period_s,
                propagation_policy=propagation_policy,
                uid=uid,
                resource_version=resource_version,
                fence=fence,
            )
        except FencedError:
            self._fenced_off(fence)
            raise

    async def bind(self, bindings: Sequence[api_pb2.Binding]) -> Sequence[api_pb2.BindResult]:
        """Assign pods to nodes, each or not at all, in one transaction."""
        fence = self._held()
        try:
            return await self._client.bind(bindings, fence=fence)
        except FencedError:
            self._fenced_off(fence)
            raise


@dataclass(frozen=True, slots=True)
class Environment:
    """What the manager hands to every controller."""

    client: FencedClient
    caches: Caches
    events: EventSink
    clock: Clock
    rand: Rand


class Controller:
    """One reconciler with one queue. Subclass, set ``name``, subscribe in ``__init__``, implement ``reconcile``.

    The manager calls, in this order: the constructor (once, on every replica, before informers start), then for each
    term that is won ``on_lead()``, ``reconcile(key)`` for all of ``keys()`` and whatever was enqueued since, and at
    the end of the term, with every reconcile stopped, ``on_stop()``.
    """

    #: Name of the queue in logs and metrics.
    name: str = ""
    #: Reconciles in flight at the same time; a key is never reconciled twice at once.
    workers: int = 1

    def __init__(self, env: Environment) -> None:
        self.env = env
        self._sink: Callable[[str, float], None] | None = None

    def attach(self, sink: Callable[[str, float], None] | None) -> None:
        """Manager only: where enqueued keys go during a term (key, delay in seconds); None between terms."""
        self._sink = sink

    def enqueue(self, key: str, delay_s: float = 0.0) -> None:
        """Ask for a reconcile. Dropped while not leading: a new term starts with all of ``keys()``."""
        if self._sink is not None:
            self._sink(key, delay_s)

    def keys(self) -> Iterable[str]:
        """Every key that may need work when a term begins."""
        raise NotImplementedError

    async def reconcile(self, key: str) -> float | None:
        """Bring the key's part of the world one step nearer to what is wanted.

        Returns: seconds after which to look again even if nothing changes, or None. Raises ApiError to be called
        again with back-off (a conflict is the ordinary case).
        """
        raise NotImplementedError

    def on_lead(self) -> None:
        """A term begins: forget what an earlier term believed."""

    def on_stop(self) -> None:
        """The term is over."""


def pod_is_finished(pod: Pod) -> bool:
    """Succeeded or Failed: it will never run again."""
    return pod.status.phase in ("Succeeded", "Failed")
