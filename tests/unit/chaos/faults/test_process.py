"""Who is hit is decided without effect, says what undoes it, and is taken back by that alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import Popen

import pytest

from chaos.faults import REGISTRY, fault_named
from chaos.targets import TargetError
from controlplane.base.errors import ConfigError
from controlplane.base.rand import SeededRand
from controlplane.local.procfs import boot_id, stat_of
from controlplane.local.spec import plan
from tests.unit.chaos.faults.rig import PODS, ground

RAND = SeededRand(1)


@pytest.mark.parametrize(
    ("fault", "targets", "struck", "healed"),
    [
        ("kill", ["r2"], ["SIGKILL r2"], ["start r2"]),
        ("kill", ["node-1"], ["SIGKILL node-1"], ["start node-1"]),
        ("stop", ["r1"], ["stop r1"], ["start r1"]),
        ("pause", ["r2"], ["SIGSTOP r2"], ["SIGCONT r2"]),
        ("node-death", ["node-1"], ["kill node node-1"], ["start node-1"]),
        ("zone-loss", ["r1", "node-1"], ["SIGKILL r1", "kill node node-1"], ["start r1", "start node-1"]),
    ],
)
async def test_struck_and_healed(
    tmp_path: Path, fault: str, targets: list[str], struck: list[str], healed: list[str]
) -> None:
    on, cluster = ground(tmp_path)
    strike = fault_named(fault).plan(on, targets, {}, RAND)
    assert cluster.calls == []
    assert strike.victims == tuple(targets)
    await fault_named(fault).strike(on, strike)
    assert cluster.calls == struck
    cluster.calls.clear()
    for undo in strike.undo:
        await fault_named(undo.fault).heal(on, undo)
    assert cluster.calls == healed


def test_a_leader_is_named_as_one(tmp_path: Path) -> None:
    on, _ = ground(tmp_path)
    assert fault_named("kill").plan(on, ["r2"], {}, RAND).says == "kill -9 r2, the leader of term 4"


def test_the_loss_of_a_quorum_is_known_before(tmp_path: Path) -> None:
    on, _ = ground(tmp_path)
    assert not fault_named("kill").plan(on, ["r1"], {}, RAND).quorum_lost
    assert fault_named("kill").plan(on, ["r1", "r3"], {}, RAND).quorum_lost
    on, _ = ground(tmp_path, down=frozenset({"r3"}))
    assert fault_named("pause").plan(on, ["r1"], {}, RAND).quorum_lost
    assert not fault_named("kill").plan(on, ["node-1"], {}, RAND).quorum_lost


def test_members_of_a_store_apart_have_a_quorum_of_their_own(tmp_path: Path) -> None:
    store = ("etcd-1", "etcd-2", "etcd-3")
    on, cluster = ground(tmp_path, store=store)
    cluster.spec = plan(replicas=3, nodes=3, port_base=15_000, store="etcd")
    assert not fault_named("kill").plan(on, ["etcd-1"], {}, RAND).quorum_lost
    on.seen = replace(on.seen, store_down=frozenset({"etcd-1"}))
    assert fault_named("kill").plan(on, ["etcd-2"], {}, RAND).quorum_lost
    assert not fault_named("kill").plan(on, ["etcd-1"], {}, RAND).quorum_lost


def test_pods_of_a_dead_node_have_a_reason_to_go(tmp_path: Path) -> None:
    on, _ = ground(tmp_path)
    assert fault_named("node-death").plan(on, ["node-2"], {}, RAND).excused == ("node-2",)
    assert fault_named("kill").plan(on, ["pod/web-1"], {}, RAND).excused == ("pod/web-1",)
    assert fault_named("kill").plan(on, ["node-2"], {}, RAND).excused == ("node-2",)
    assert fault_named("pause").plan(on, ["node-2"], {}, RAND).excused == ()


@pytest.mark.parametrize(
    ("fault", "targets", "params", "says"),
    [
        ("kill", ["r9"], {}, "no process 'r9'"),
        ("kill", ["r1"], {"signal": 9}, "unknown parameter 'signal'"),
        ("node-death", ["r1"], {}, "r1 is no node"),
        ("node-death", ["node-1", "node-2", "node-3"], {}, "nothing would be left"),
        ("stop", ["pod/web-1"], {}, "not a pod"),
        ("stop", ["container/web-1/web"], {}, "not a pod or a container"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, fault: str, targets: list[str], params: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        fault_named(fault).plan(ground(tmp_path)[0], targets, params, RAND)


async def test_what_does_not_run_cannot_be_paused(tmp_path: Path) -> None:
    on, cluster = ground(tmp_path)
    cluster.refuse = {"r1"}
    with pytest.raises(TargetError, match="r1 does not run"):
        await fault_named("pause").strike(on, fault_named("pause").plan(on, ["r1"], {}, RAND))


async def test_a_pause_that_did_not_take_is_no_proof(tmp_path: Path) -> None:
    on, _ = ground(tmp_path)
    strike = fault_named("pause").plan(on, ["r1"], {}, RAND)
    assert (await fault_named("pause").proof(on, strike))["bit"] is False


def test_an_unknown_fault_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'node-death'"):
        fault_named("node-deth")


def test_every_fault_says_what_it_is() -> None:
    for name, fault in REGISTRY.items():
        assert fault.name == name
        assert len(fault.doc.split()) > 4


class Containers:
    """Two real process groups that stand for the containers of web-1, as their agent's records name them."""

    def __init__(self, node_dir: Path) -> None:
        self.running = {name: Popen(["sleep", "60"], start_new_session=True) for name in ("web", "beside")}
        for name, process in self.running.items():
            stat = stat_of(process.pid)
            assert stat is not None
            record = {
                "name": name, "pid": process.pid, "pgid": process.pid, "start_ticks": stat.start_ticks,
                "boot_id": boot_id(), "finished_at_ms": 0,
            }  # fmt: skip
            path = node_dir / "pods" / "u1" / ".agent" / "containers" / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record))

    def state(self, name: str) -> str:
        stat = stat_of(self.running[name].pid)
        return stat.state if stat is not None else "gone"

    def until_stopped(self, name: str) -> None:
        """A signal that was sent takes its time to arrive: the kernel tells."""
        assert os.WIFSTOPPED(os.waitpid(self.running[name].pid, os.WUNTRACED)[1])

    def until_continued(self, name: str) -> None:
        assert os.WIFCONTINUED(os.waitpid(self.running[name].pid, os.WCONTINUED)[1])


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    made = Containers(tmp_path / "nodes" / "node-2")
    yield made
    for process in made.running.values():
        process.kill()
        process.wait()


async def test_one_container_is_killed_and_the_others_of_its_pod_are_untouched(
    tmp_path: Path, containers: Containers
) -> None:
    on, _ = ground(tmp_path)
    strike = fault_named("kill").plan(on, ["container/web-1/beside"], {}, RAND)
    assert (strike.excused, strike.undo, strike.quorum_lost) == ((), (), False)
    await fault_named("kill").strike(on, strike)
    assert containers.running["beside"].wait(5) == -signal.SIGKILL
    assert containers.state("web") in "SRD"
    with pytest.raises(TargetError, match="container/web-1/beside does not run now"):
        await fault_named("kill").strike(on, strike)


async def test_one_container_is_paused_and_goes_on_when_healed(tmp_path: Path, containers: Containers) -> None:
    on, _ = ground(tmp_path)
    strike = fault_named("pause").plan(on, ["container/web-1/beside"], {}, RAND)
    await fault_named("pause").strike(on, strike)
    containers.until_stopped("beside")
    assert (await fault_named("pause").proof(on, strike))["bit"] is True
    assert containers.state("web") in "SRD"
    for undo in strike.undo:
        await fault_named("pause").heal(on, undo)
    containers.until_continued("beside")
    assert containers.state("beside") in "SRD"


def test_a_node_with_all_the_pods_is_nobody_for_now_that_nothing_would_be_left_to_serve(tmp_path: Path) -> None:
    """A schedule leaves it out, and goes on."""
    one = tuple(replace(pod, node="node-1") for pod in PODS)
    on, _ = ground(tmp_path, pods=one)
    with pytest.raises(TargetError, match="nothing would be left to serve"):
        fault_named("node-death").plan(on, ["node-1"], {}, SeededRand(1))
