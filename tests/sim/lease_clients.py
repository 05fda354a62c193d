"""Clients that hold leases: grant one, hang keys on it, renew it for a while, then forget it and let it run out."""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from controlplane.pb.etcd.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveRequest,
    LeaseRevokeRequest,
    PutRequest,
)
from tests.sim.checks import Checks
from tests.sim.node import SimNode
from tests.sim.rpc import PATIENCE_S, TIMEOUT_MS, Rpc

__all__ = ["LeaseClient"]

_AGAIN = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED)


class LeaseClient:
    """One lease after the other, until told to stop."""

    def __init__(self, number: int, rpc: Rpc, nodes: Sequence[SimNode], checks: Checks, rand: SeededRand) -> None:
        self._number = number
        self._rpc = rpc
        self._nodes = nodes
        self._checks = checks
        self._rand = rand
        self._count = 0
        self.stopped = False

    async def run(self) -> None:
        """Until :attr:`stopped`."""
        while not self.stopped:
            await self._one()
            await self._rpc.sleep(0.3 * self._rand.random())

    async def _one(self) -> None:
        rpc, leases, rand = self._rpc, self._checks.leases, self._rand
        s = rpc.scheduler
        self._count += 1
        lease = self._number * 1_000 + self._count
        request_id, sent_at = rand.token(16), s.now
        grant = LeaseGrantRequest(ID=lease, TTL=rand.randint(1, 3))
        granted = None
        while granted is None:
            try:
                granted = await self._grant(grant, request_id)
            except StatusError as error:
                if error.code not in _AGAIN:
                    raise
                if self.stopped:
                    return
                await rpc.sleep(0.02)
        leases.granted(lease, granted.TTL, sent_at, s.now, there=lease in self._checks.model.leases)
        for n in range(rand.randint(1, 3)):
            put = PutRequest(key=b"kl%d.%d" % (self._number, n), value=b"%d" % lease, lease=lease)
            try:
                await self._put(put, rand.token(16))
            except StatusError as error:
                if error.code not in (*_AGAIN, Code.NOT_FOUND):
                    raise
        until = s.now + 3.0 * rand.random()
        while s.now < until and not self.stopped:
            if not await self._renew(lease):
                return
            await rpc.sleep(granted.TTL * (0.1 + 0.4 * rand.random()))
        if rand.random() < 0.2:
            leases.renewal_sent(lease, s.now)
            try:
                await rpc.call(
                    self._node(), lambda kv: kv.lease_revoke(LeaseRevokeRequest(ID=lease), timeout_ms=TIMEOUT_MS)
                )
            except StatusError as error:
                if error.code not in (*_AGAIN, Code.NOT_FOUND):
                    raise

    async def _grant(self, grant: LeaseGrantRequest, request_id: bytes) -> LeaseGrantResponse:
        return await self._rpc.call(
            self._node(), lambda kv: kv.lease_grant(grant, request_id=request_id, timeout_ms=TIMEOUT_MS)
        )

    async def _put(self, put: PutRequest, request_id: bytes) -> None:
        await self._rpc.call(self._node(), lambda kv: kv.put(put, request_id=request_id, timeout_ms=TIMEOUT_MS))

    async def _renew(self, lease: int) -> bool:
        """Whether it is worth going on."""
        rpc, leases = self._rpc, self._checks.leases
        sent_at = rpc.scheduler.now
        # The replica, or the leader it asked, may be paused with the request in hand, and act on it much later.
        leases.renewal_sent(lease, sent_at + PATIENCE_S + 4.0)
        request = LeaseKeepAliveRequest(ID=lease)
        try:
            answer = await rpc.call(self._node(), lambda kv: kv.lease_keep_alive(request, timeout_ms=TIMEOUT_MS))
        except StatusError as error:
            if error.code not in _AGAIN:
                raise
            return True
        leases.renewal_answered(lease, answer.TTL, sent_at)
        return bool(answer.TTL)

    def _node(self) -> SimNode:
        return self._nodes[self._rand.randint(0, len(self._nodes) - 1)]
