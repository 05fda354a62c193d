"""The API client of a leader: the one way controllers and the scheduler write.

Owns: the fence of the present term. Must not know: how leadership is won, or what is written.

Invariant: no write leaves without the fence of a term that is still held as far as this replica knows; the store
refuses the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from controlplane.base.errors import QuarterdeckError
from controlplane.client.interface import ApiClient, FencedError, ListResult, ObjT
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = ["LEADER_KEY", "FencedClient", "NotLeadingError"]

#: The key a new leader writes; its mod revision is the fence of every write of that term.
LEADER_KEY: Final = b"/quarterdeck/leader"


class NotLeadingError(QuarterdeckError):
    """A controller tried to write while this replica does not lead. Its work stops; nothing was sent."""


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
