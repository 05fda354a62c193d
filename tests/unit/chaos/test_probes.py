"""What experiments ask, on fakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chaos.probes import PROBES
from chaos.stage import Stage
from controlplane.base.clock import SystemClock
from controlplane.base.rand import SeededRand
from controlplane.pb.etcd import kv_pb2, rpc_pb2
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.k8s.runtime_pb2 import Unknown
from tests.unit.chaos.faults.rig import ground


class QuickClock(SystemClock):
    """Nobody waits."""

    async def sleep(self, seconds: float) -> None:
        return


class Answering:
    """Replicas that answer with these (revision, hash) in turn, then the last again; None: silent."""

    def __init__(self, **turns: Sequence[tuple[int, str] | None]) -> None:
        self._turns = turns
        self._turn = 0
        self.names = list(turns)

    async def statuses(self) -> dict[str, Any]:
        at, self._turn = self._turn, self._turn + 1
        answers = {name: turns[min(at, len(turns) - 1)] for name, turns in self._turns.items()}
        return {
            name: SimpleNamespace(revision=answer[0], state_hash=answer[1])
            for name, answer in answers.items()
            if answer is not None
        }


@pytest.mark.parametrize(
    ("turns", "agree"),
    [
        ({"r1": [(5, "a")], "r2": [(5, "a")]}, True),
        ({"r1": [(5, "a")], "r2": [(5, "b")]}, False),
        # Under load never at one revision at once, but each passed the other's.
        ({"r1": [(5, "a"), (6, "b")], "r2": [(4, "x"), (5, "a")]}, True),
        ({"r1": [(5, "a"), (6, "b")], "r2": [(4, "x"), (5, "c")]}, False),
        # Never compared, and never asked: nothing is known.
        ({"r1": [(5, "a")], "r2": [(4, "x")]}, False),
        ({"r1": [(5, "a")], "r2": [(5, "a")], "r3": [None]}, False),
    ],
)
async def test_states_agree_if_every_replica_was_compared(
    tmp_path: Path, turns: dict[str, list[tuple[int, str] | None]], agree: bool
) -> None:
    on, _ = ground(tmp_path)
    on.clock = QuickClock()
    on.replicas = cast(Any, Answering(**turns))
    assert await PROBES["states_agree"].ask(SimpleNamespace(ground=on)) is agree


class Offices:
    """A store in which leaders took office at these revisions, and pods had their nodes from these on (0: never)."""

    def __init__(self, offices: Sequence[int], bound_at: dict[str, int]) -> None:
        self._offices = offices
        self._bound_at = bound_at

    async def get(self, key: bytes) -> kv_pb2.KeyValue:
        return kv_pb2.KeyValue(key=key, mod_revision=self._offices[-1])

    async def range(self, request: rpc_pb2.RangeRequest) -> rpc_pb2.RangeResponse:
        earlier = [at for at in self._offices if at <= request.revision]
        return rpc_pb2.RangeResponse(kvs=[kv_pb2.KeyValue(mod_revision=at) for at in earlier[-1:]])

    async def get_prefix(self, prefix: bytes, *, revision: int) -> rpc_pb2.RangeResponse:
        found = rpc_pb2.RangeResponse()
        for name, at in self._bound_at.items():
            pod = Pod()
            pod.metadata.name = name
            pod.spec.nodeName = "node-1" if at and at <= revision else ""
            found.kvs.add(value=b"k8s\0" + Unknown(raw=pod.SerializeToString()).SerializeToString())
        return found


@pytest.mark.parametrize(
    ("offices", "bound_at", "proven"),
    [
        ([40, 60], {"web-0": 30, "web-1": 65}, True),
        # Another leader since: what counts is who came next.
        ([40, 60, 80], {"web-0": 30, "web-1": 65}, True),
        ([40, 60], {"web-0": 30, "web-1": 55}, False),
        ([40], {"web-0": 30, "web-1": 65}, False),
    ],
)
async def test_binds_were_in_flight_if_the_next_leader_found_pods_without_a_node(
    tmp_path: Path, offices: list[int], bound_at: dict[str, int], proven: bool
) -> None:
    on, _ = ground(tmp_path)
    on.kv = cast(Any, Offices(offices, bound_at))
    stage = Stage(on, cast(Any, None), "mine", 1, SeededRand(1), 6, "run")
    stage.observed["office_at_kill"] = "40"
    assert await PROBES["bound_by_next_leader"].ask(stage) is proven
