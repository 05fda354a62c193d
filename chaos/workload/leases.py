"""Leases with keys, kept alive for a while and then revoked or left to run out; and a lock made of one, whose holders
write under its fencing token.

A lock is a key created under the holder's lease; its create revision is the fencing token, and every write that the
lock protects compares it. Now and then a holder stalls for longer than its lease, as a paused process would, and then
tries to write: that write must be refused if another holds the lock by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from chaos.history import Recorder
from chaos.records import Hold, Kind, Op
from chaos.workload.keys import Keys, SharedKeyValue
from chaos.workload.pace import Process
from chaos.workload.shared import Newest
from controlplane.base.clock import Clock
from controlplane.base.rand import Rand
from controlplane.client import ApiError
from controlplane.client import etcd_client as etcd
from controlplane.pb.etcd import rpc_pb2

__all__ = ["LeaseClient", "LeaseHolder", "LockUser"]

TTL_S: Final = 2
_RENEW_EVERY_S: Final = 0.6
_RENEW_TRIES: Final = 3
_KEYS: Final = 3
_REST_S: Final = 0.25
_LEASE_ID_BYTES: Final = 7


class LeaseClient(SharedKeyValue, Protocol):
    """What is needed of an :class:`~controlplane.client.EtcdClient`."""

    async def lease_grant(self, lease: int, ttl_s: int) -> etcd.Outcome[rpc_pb2.LeaseGrantResponse]: ...

    async def lease_revoke(self, lease: int) -> etcd.Outcome[rpc_pb2.LeaseRevokeResponse]: ...

    async def lease_keep_alive(self, lease: int) -> rpc_pb2.LeaseKeepAliveResponse: ...


@dataclass(slots=True)
class _Leases:
    """Grants, renewals and revocations of one process, recorded."""

    client: LeaseClient
    process: Process
    part: str
    rand: Rand

    async def grant(self) -> Op:
        """A new lease, under a new id."""
        lease = int.from_bytes(self.rand.token(_LEASE_ID_BYTES)) or 1
        return await self._do("grant", lease, lambda: self.client.lease_grant(lease, TTL_S), lambda r: int(r.TTL))

    async def revoke(self, lease: int) -> Op:
        """The end of a lease."""
        return await self._do("revoke", lease, lambda: self.client.lease_revoke(lease), lambda _: 0)

    async def renew(self, lease: int) -> Op:
        """One renewal, asked of another replica when one does not answer, as clients do that live by a lease; each
        asking is recorded. The record's ``ttl_s`` is 0 if the lease is gone, or nobody answered."""
        op = await self._renew(lease)
        for _ in range(_RENEW_TRIES - 1):
            if op.outcome == "info":
                op = await self._renew(lease)
        return op

    async def _renew(self, lease: int) -> Op:

        async def call() -> etcd.Outcome[Any]:
            endpoint = self.client.pool.current
            try:
                response = await self.client.lease_keep_alive(lease)
            except ApiError as error:
                return etcd.Unknown(f"{error.code.name}: {error.message}", endpoint)
            return etcd.Acknowledged(response.header.revision, response, endpoint)

        return await self._do("keepalive", lease, call, lambda r: int(r.TTL))

    async def _do(self, kind: Kind, lease: int, call: Callable[[], Any], ttl_of: Callable[[Any], int]) -> Op:
        asked = Op(
            0, self.process.name, kind, self.client.pool.current, "", 0, 0, "info", part=self.part, lease=lease
        )  # fmt: skip

        def done(op_id: int, call_ns: int, return_ns: int, result: etcd.Outcome[Any]) -> Op:
            op = replace(asked, id=op_id, call_ns=call_ns, return_ns=return_ns, endpoint=result.endpoint)
            if isinstance(result, etcd.Acknowledged):
                return replace(
                    op, outcome="ok", revision=result.revision, ttl_s=ttl_of(result.response),
                    term=result.response.header.raft_term,
                )  # fmt: skip
            if isinstance(result, etcd.Failed):
                return replace(op, outcome="fail", error=f"{result.code.name}: {result.message}")
            return replace(op, error=result.reason)

        return await self.process.recorded(call, done, asked)


class LeaseHolder:
    """One lease after the other, each with a few keys."""

    def __init__(
        self, number: int, prefix: str, client: LeaseClient, newest: Newest, recorder: Recorder, clock: Clock,
        rand: Rand,
    ) -> None:  # fmt: skip
        self._prefix = f"{prefix}lease/{number}/"
        process = Process(f"l{number}", recorder)
        self._leases = _Leases(client, process, "lease", rand)
        self._keys = Keys("lease", client, process)
        self._newest = newest
        self._clock = clock
        self._rand = rand
        self._cycle = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Until told to stop."""
        while not stopping.is_set():
            await self.cycle()
            await self._clock.sleep(_REST_S)

    async def cycle(self) -> None:
        """A lease from its grant until it is revoked, or left to run out."""
        self._cycle += 1
        granted = await self._leases.grant()
        if granted.outcome != "ok":
            return
        for n in range(_KEYS):
            key = f"{self._prefix}{self._cycle}.{n}"
            self._newest.told(await self._keys.put(key, f"{granted.lease:x}-{n}", lease=granted.lease))
        for _ in range(int(self._rand.random() * 5)):
            await self._clock.sleep(_RENEW_EVERY_S)
            if not (await self._leases.renew(granted.lease)).ttl_s:
                break
        if self._rand.random() < 0.3:
            await self._leases.revoke(granted.lease)


class LockUser:
    """Takes one lock again and again, and writes under it."""

    def __init__(
        self, number: int, prefix: str, client: LeaseClient, newest: Newest, recorder: Recorder, clock: Clock,
        rand: Rand,
    ) -> None:  # fmt: skip
        self._name = f"k{number}"
        self._lock, self._resource = f"{prefix}lock/0", f"{prefix}lock/0.resource"
        process = Process(self._name, recorder)
        self._process = process
        self._recorder = recorder
        self._leases = _Leases(client, process, "lock", rand)
        self._keys = Keys("lock", client, process)
        self._newest = newest
        self._clock = clock
        self._rand = rand
        self._sequence = 0

    async def run(self, stopping: asyncio.Event) -> None:
        """Until told to stop."""
        while not stopping.is_set():
            await self.turn(stopping)
            await self._clock.sleep(_REST_S * self._rand.random())

    async def turn(self, stopping: asyncio.Event) -> None:
        """One lease, and the lock if it can be had while that lasts."""
        granted = await self._leases.grant()
        if granted.outcome != "ok":
            return
        lease = granted.lease
        self._sequence += 1
        mark = f"{self._name}-{self._sequence}"
        renewed_s = self._clock.monotonic()
        while not stopping.is_set():
            took = await self._keys.txn([(self._lock, "create", 0)], [("put", self._lock, mark, str(lease))])
            self._newest.told(took)
            if took.outcome != "ok" or took.succeeded:
                break
            await self._clock.sleep(_REST_S)
            if self._clock.monotonic() - renewed_s > _RENEW_EVERY_S:
                renewed_s = self._clock.monotonic()
                if not (await self._leases.renew(lease)).ttl_s:
                    return
        else:
            await self._leases.revoke(lease)
            return
        if took.outcome == "ok":
            await self._hold(took, lease)
        await self._leases.revoke(lease)

    async def _hold(self, took: Op, lease: int) -> None:
        """Write under the lock for a while. ``took.revision`` is the token."""
        token, began_ns = took.revision, self._recorder.now_ns()
        if self._rand.random() < 0.15:
            await self._clock.sleep(TTL_S * 2.0)  # stalled: the lease runs out meanwhile, and this one does not know
        renewed_s = self._clock.monotonic()
        for n in range(1 + int(self._rand.random() * 8)):
            wrote = await self._keys.txn(
                [(self._lock, "create", token)], [("put", self._resource, f"{token}:{self._name}:{n}")]
            )
            self._newest.told(wrote)
            if wrote.outcome != "ok" or not wrote.succeeded:
                break
            await self._clock.sleep(0.1)
            if self._clock.monotonic() - renewed_s > _RENEW_EVERY_S:
                renewed_s = self._clock.monotonic()
                if not (await self._leases.renew(lease)).ttl_s:
                    break
        held_until_ns = self._recorder.now_ns()
        self._recorder.hold(Hold(self._process.name, self._lock, token, lease, began_ns, held_until_ns))
