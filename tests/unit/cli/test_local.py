"""``qd local`` with tiny programs in place of replicas and agents."""

from __future__ import annotations

from pathlib import Path

from chaos.fault import Strike, Undo
from chaos.undo import UndoList
from controlplane.local.cluster import LocalCluster
from tests.unit.cli.commands import SHAPE, qd
from tests.unit.local.support import script


def states() -> dict[str, str]:
    lines = qd("local", "status").stdout.splitlines()[1:]
    return {line.split()[0]: line.split()[1] for line in lines}


def test_processes_are_started_stopped_and_killed_by_name(cluster: LocalCluster) -> None:
    assert states() == {"r1": "stopped", "node-1": "stopped"}
    started = qd("local", "start", "r1")
    assert started.stderr == f"r1 runs, pid {cluster.processes.pid('r1')}\n"
    assert "r1 runs already" in qd("local", "start", "r1").stderr
    qd("local", "start", "node-1")
    assert states() == {"r1": "running", "node-1": "running"}
    assert qd("local", "stop", "r1").stderr == "r1 stopped\n"
    assert qd("local", "kill", "node-1", "--with-pods").stderr == "node-1 killed with 0 pods\n"
    assert states() == {"r1": "stopped", "node-1": "stopped"}
    gone = qd("local", "kill", "r1")
    assert (gone.exit_code, gone.stderr) == (1, "error: r1 does not run\n")


def test_a_program_that_ends_at_once_is_told_with_its_last_words(cluster: LocalCluster, program: Path) -> None:
    script(program, "echo the disk is full; exit 1")
    result = qd("local", "start", "r1")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: r1 ended; the end of ")
    assert result.stderr.endswith("the disk is full\n")


def test_up_starts_the_cluster_that_is_there_whatever_the_defaults_are(cluster: LocalCluster, program: Path) -> None:
    script(program, "echo as it was; exit 1")
    result = qd("local", "up")
    assert (result.exit_code, "as it was" in result.stderr) == (1, True), result.output
    result = qd("local", "up", "--nodes", "2")
    assert result.exit_code == 2
    assert "holds the data of a stopped cluster with REPLICAS=1 NODES=1" in result.stderr


def test_a_name_that_is_not_there(cluster: LocalCluster) -> None:
    for word in ("start", "stop", "kill", "remove-node"):
        result = qd("local", word, "r9")
        assert result.exit_code == 2
        assert "there are: r1, node-1" in result.stderr


def test_down_stops_all_and_destroys_when_told(cluster: LocalCluster) -> None:
    cluster.start("r1")
    cluster.start("node-1")
    assert qd("local", "down").stderr == "stopped 2 processes\n"
    assert qd("local", "down").stderr == "nothing was running\n"
    assert cluster.root.exists()
    qd("local", "down", "--destroy")
    assert not cluster.root.exists()
    assert qd("local", "down").exit_code == 2


def test_a_node_that_is_added_has_the_next_free_name(cluster: LocalCluster) -> None:
    result = qd("local", "add-node")
    assert (result.exit_code, result.stdout) == (0, "node-2\n")
    assert states()["node-2"] == "running"


def test_nothing_is_started_over_what_chaos_has_left_broken(cluster: LocalCluster) -> None:
    strike = Strike("pause", ("r1",), {}, (Undo("pause", {"name": "r1"}),), False, "SIGSTOP r1")
    entry = (undo := UndoList(cluster.root / "chaos")).add("a-run", strike)
    for words in (("up", *SHAPE), ("start", "r1")):
        refused = qd("local", *words)
        assert refused.exit_code == 2
        assert "left this cluster broken: SIGSTOP r1" in refused.stderr
        assert "qd chaos heal" in refused.stderr
    assert cluster.running() == []
    undo.remove(entry)
    assert qd("local", "start", "r1").exit_code == 0
