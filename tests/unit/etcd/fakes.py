"""What the etcd services' tests share: one replica over a FakeRaft, and a gRPC context that a test reads."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from controlplane.base.clock import ManualClock
from controlplane.base.errors import StatusError
from controlplane.base.rand import SeededRand
from controlplane.etcd.authorizer import Authorizer
from controlplane.etcd.local import LocalKV
from controlplane.etcd.tokens import Tokens
from controlplane.pb.etcd import rpc_pb2 as e
from controlplane.store.store import Store
from tests.fakes.raft import FakeRaft

__all__ = ["FakeContext", "InlineExecutor", "Replica", "put", "refused", "settle"]


@dataclass
class Replica:
    """A LocalKV on a clock that moves when told."""

    name: str = "r1"
    join: Replica | None = None
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.store = Store(cluster_id=FakeRaft.CLUSTER_ID)
        joined: FakeRaft | None = None if self.join is None else self.join.raft
        self.raft: FakeRaft = FakeRaft(self.store, name=self.name, join=joined)
        self.rand = SeededRand(self.name)
        self.kv = LocalKV(self.raft, self.store, clock=self.clock, rand=self.rand, election_timeout_ms=1_000)
        self.tokens = Tokens(self.store.auth, self.clock)
        self.authorizer = Authorizer(self.store.auth, self.kv.barrier, self.tokens)


class InlineExecutor(Executor):
    """Does the work at once, where it is asked for."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class FakeContext:
    """The parts of a gRPC servicer context that services use. ``written`` is what the client was sent."""

    def __init__(
        self,
        metadata: dict[str, str] | None = None,
        remaining_s: float | None = None,
        certificate: bytes | None = None,
    ) -> None:
        self.written: asyncio.Queue[Any] = asyncio.Queue()
        self.initial: dict[str, str] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self._metadata = tuple((metadata or {}).items())
        self._remaining_s = remaining_s
        self._certificate = certificate

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        """As grpc shows a client certificate; empty without one."""
        return {} if self._certificate is None else {"x509_pem_cert": [self._certificate]}

    def time_remaining(self) -> float | None:
        return self._remaining_s

    async def send_initial_metadata(self, metadata: Iterable[tuple[str, str]]) -> None:
        self.initial.update(metadata)

    async def write(self, message: Any) -> None:
        """Waits while ``gate`` is closed, as grpc does when the client does not read."""
        await self.gate.wait()
        copy = type(message)()
        copy.CopyFrom(message)
        self.written.put_nowait(copy)


async def settle() -> None:
    """Let everything that can run without time passing run."""
    for _ in range(50):
        await asyncio.sleep(0)


async def put(kv: LocalKV, key: bytes, value: bytes = b"v", lease: int = 0) -> int:
    """Put a key; its revision."""
    return (await kv.put(e.PutRequest(key=key, value=value, lease=lease))).header.revision


async def refused(call: object) -> StatusError:
    """The error with which a call fails."""
    with pytest.raises(StatusError) as caught:
        await call  # type: ignore[misc]
    return caught.value
