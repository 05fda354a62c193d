"""A cluster that does what a scenario says: no faults of its own, one client, steps in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

from controlplane.base.errors import StatusError
from controlplane.pb.etcd.rpc_pb2 import PutRequest, RangeRequest
from tests.sim.checks import ViolationError
from tests.sim.node import Breakage, SimNode
from tests.sim.options import Options
from tests.sim.rpc import HOST
from tests.sim.world import World

__all__ = ["Stage"]

T = TypeVar("T")


class Stage:
    """A world with nobody in it but replicas. A context manager."""

    def __init__(self, *, seed: int = 1, breakage: Breakage | None = None, **options: Any) -> None:
        defaults: dict[str, Any] = {"clients": 0, "watchers": 0}
        self.world = World(seed, breakage=breakage, options=Options(**{**defaults, **options}))
        self.nodes = self.world.nodes
        self.net = self.world.net
        self.checks = self.world.checks
        self._s = self.world.scheduler
        self._count = 0

    def __enter__(self) -> Self:
        self.world.start()
        self.run(0.3)
        self.leader()
        return self

    def __exit__(self, *_: object) -> None:
        self.world.close()

    @property
    def now(self) -> float:
        return self._s.now

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self._s.run_until(self._s.now + seconds)

    def until(self, condition: Callable[[], bool], within_s: float = 6.0, *, step_s: float = 0.01) -> None:
        """Let time pass until it holds, looked at every ``step_s``."""
        end = self._s.now + within_s
        while not condition():
            if self._s.now >= end:
                raise ViolationError(f"not within {within_s} s: {self.world._state()}")
            self.run(step_s)

    # -- replicas ----------------------------------------------------------------------------------------------

    def leader(self, *, but: SimNode | None = None) -> SimNode:
        """The one that leads with the consent of a majority; waits for it."""

        def leaders() -> list[SimNode]:
            return [n for n in self.nodes if n.leads and n.core.engine.term_committed and n is not but]

        self.until(lambda: bool(leaders()))
        return max(leaders(), key=lambda n: n.core.engine.term)

    def others(self, *these: SimNode) -> list[SimNode]:
        return [n for n in self.nodes if n not in these]

    def split(self, *groups: list[SimNode]) -> None:
        """Replicas of different groups do not hear each other, from now on; clients reach all."""
        of = {node.name: n for n, group in enumerate(groups) for node in group}
        for a, b in self.net.pairs:
            if HOST not in (a, b) and of.get(a) != of.get(b):
                self.net.cut(a, b)

    def heal(self) -> None:
        for a, b in self.net.pairs:
            self.net.heal(a, b)

    def stop_and_start(self, nodes: list[SimNode], *, power: bool = True) -> None:
        """All at once, and back."""
        for node in nodes:
            node.crash(power=power)
        for node in nodes:
            node.start()

    def converge(self) -> None:
        """Peace; then everything acknowledged is everywhere."""
        self.world.faults.stop()
        self.until(self.world._converged, 10.0)
        for node in self.world.core:
            self.checks.nothing_lost(node.name, node.machine.store)

    # -- a client ----------------------------------------------------------------------------------------------

    def ask(self, node: SimNode, call: Callable[[Any], Awaitable[T]]) -> T:
        """Ask a replica and wait. Raises StatusError."""
        told = self.start(node, call)
        self.until(lambda: bool(told))
        if isinstance(told[0], StatusError):
            raise told[0]
        result: T = told[0]
        return result

    def start(self, node: SimNode, call: Callable[[Any], Awaitable[Any]]) -> list[Any]:
        """Ask a replica; the list gets its answer, or the error, when it comes."""
        told: list[Any] = []

        async def run() -> None:
            try:
                told.append(await self.world.rpc.call(node, call))
            except StatusError as error:
                told.append(error)

        self.world.rpc.start(run)
        return told

    def put(self, node: SimNode, key: bytes = b"k0", value: bytes = b"") -> int:
        """Write; the revision. Raises StatusError."""
        return self.ask(node, self.putting(key, value)).header.revision  # type: ignore[no-any-return]

    def putting(
        self, key: bytes = b"k0", value: bytes = b"", request_id: bytes = b""
    ) -> Callable[[Any], Awaitable[Any]]:
        self._count += 1
        request = PutRequest(key=key, value=value or b"v%d" % self._count)
        request_id = request_id or b"stage %10d" % self._count
        return lambda kv: kv.put(request, request_id=request_id, timeout_ms=500)

    def get(self, node: SimNode, key: bytes = b"k0") -> bytes | None:
        """Read, linearizably. Raises StatusError."""
        answer = self.ask(node, lambda kv: kv.range(RangeRequest(key=key), timeout_ms=500))
        return answer.kvs[0].value if answer.kvs else None

    def write(self, key: bytes = b"k0", value: bytes = b"") -> None:
        """Write through whoever serves, again under the same id until it is acknowledged."""
        call = self.putting(key, value)
        end = self.now + 8.0
        attempt = 0
        while self.now < end:
            serving = [node for node in self.nodes if node.serving]
            if serving:
                told = self.start(serving[attempt % len(serving)], call)
                self.until(lambda told=told: bool(told))  # type: ignore[misc]
                if not isinstance(told[0], StatusError):
                    return
            attempt += 1
            self.run(0.02)
        raise ViolationError(f"nobody takes a write: {self.world._state()}")

    def fill(self, count: int, node: SimNode | None = None) -> None:
        """So many writes, one after the other: through this replica, or through any."""
        for _ in range(count):
            if node is None:
                self.write()
            else:
                self.put(node)
