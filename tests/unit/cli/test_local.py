"""``qd local`` with tiny programs in place of replicas and agents; ``qd snapshot verify`` and ``restore``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chaos.fault import Strike, Undo
from chaos.undo import UndoList
from controlplane.cli.main import cli
from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import plan
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader, SnapshotMember
from controlplane.raft.snapshot_format import encode_snapshot_file
from controlplane.store.store import Store
from tests.unit.local.support import script
from tests.unit.store.support import Driver

PORT_BASE = 23400
SHAPE = ("--replicas", "1", "--nodes", "1", "--port-base", str(PORT_BASE))


def qd(*words: str, stdin: str = "") -> Result:
    result = CliRunner().invoke(cli, list(words), prog_name="qd", input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What runs as replicas and agents: sleeps, until a test writes something else."""
    path = Path(script(tmp_path / "program", "exec sleep 60"))
    monkeypatch.setattr(LocalCluster, "python", str(path))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Where the commands of a test keep their cluster; nothing of it runs afterwards."""
    folder = tmp_path / ".quarterdeck"
    yield folder
    if LocalCluster.exists(folder):
        LocalCluster.open(folder).down()


@pytest.fixture
def cluster(root: Path, program: Path) -> LocalCluster:
    return LocalCluster.create(root, plan(replicas=1, nodes=1, port_base=PORT_BASE))


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


def test_up_that_does_not_serve_in_time_leaves_nothing_running(root: Path, program: Path) -> None:
    result = qd("local", "up", *SHAPE, "--timeout", "0.2")
    assert result.exit_code == 1
    assert "replicas ready: 0 of 1, and the time is up" in result.stderr
    assert "stopping what was started: r1, node-1" in result.stderr
    assert LocalCluster.open(root).running() == []


def test_up_ends_when_a_replica_ends_and_says_why(root: Path, program: Path) -> None:
    script(program, "echo cannot bind; exit 2")
    result = qd("local", "up", *SHAPE)
    assert result.exit_code == 1
    assert "cannot bind" in result.stderr
    assert LocalCluster.open(root).running() == []


def test_up_looks_at_the_manifest_before_it_starts_anything(root: Path, program: Path, tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text("kind: [")
    result = qd("local", "up", *SHAPE, "--apply", str(tmp_path / "web.yaml"))
    assert result.exit_code == 2
    assert "web.yaml: not valid YAML" in result.stderr
    assert not root.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--replicas", "0"), "REPLICAS=0: want 1 to 9"),
        (("--nodes", "900"), "NODES=900"),
        (("--port-base", "80"), "PORT_BASE=80"),
    ],
)
def test_up_refuses_numbers_out_of_range(root: Path, words: tuple[str, ...], said: str) -> None:
    result = qd("local", "up", *words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not root.exists()


def test_up_does_not_put_another_shape_over_the_data_of_a_stopped_cluster(cluster: LocalCluster) -> None:
    result = qd("local", "up", "--replicas", "5", "--nodes", "1", "--port-base", str(PORT_BASE))
    assert result.exit_code == 2
    assert "REPLICAS=1 NODES=1" in result.stderr
    assert "--destroy" in result.stderr


@pytest.fixture
def snapshot_file(tmp_path: Path) -> Path:
    driver = Driver(Store(cluster_id=0xABC))
    for number in range(5):
        driver.put(b"key%d" % number, b"value")
    store = driver.store
    header = SnapshotHeader(
        cluster_id=0xABC, members=[SnapshotMember(name="r1")], index=store.applied_index, term=1,
        revision=store.revision, created_at_ms=1_700_000_000_000, state_format_version=1,
    )  # fmt: skip
    path = tmp_path / "s.qdsnap"
    path.write_bytes(b"".join(encode_snapshot_file(header, store.snapshot())))
    return path


def test_verify_says_what_is_in_a_file(snapshot_file: Path) -> None:
    result = qd("snapshot", "verify", str(snapshot_file))
    assert result.exit_code == 0
    facts = dict(line.split(None, 1) for line in result.stdout.splitlines()[:-1])
    assert (facts["cluster:"], facts["keys:"], facts["revision:"]) == ("abc", "5", "6")
    assert facts["created:"] == "2023-11-14T22:13:20.000Z"
    assert result.stdout.endswith("\nOK\n")


def test_verify_refuses_damage(snapshot_file: Path) -> None:
    snapshot_file.write_bytes(snapshot_file.read_bytes()[:-1])
    result = qd("snapshot", "verify", str(snapshot_file))
    assert result.exit_code == 1
    assert "OK" not in result.stdout
    assert str(snapshot_file) in result.stderr


def test_restore_seeds_one_members_directory(snapshot_file: Path, tmp_path: Path) -> None:
    words = (
        "snapshot", "restore", str(snapshot_file), "--name", "r1", "--data-dir", str(tmp_path / "r1"),
        "--initial-cluster", "r1=127.0.0.1:1@127.0.0.1:2@127.0.0.1:3", "--cluster-token", "new",
    )  # fmt: skip
    result = qd(*words)
    assert result.exit_code == 0
    assert result.stdout.startswith("r1: 5 keys of revision 6, going on at 1000000006; state hash ")
    again = qd(*words)
    assert again.exit_code == 2
    assert "already holds data" in again.stderr


def test_local_restore_asks_first(cluster: LocalCluster, snapshot_file: Path) -> None:
    token = cluster.spec.token
    result = qd("local", "restore", str(snapshot_file), stdin="n\n")
    assert result.exit_code == 1
    assert "Replace the data of 1 replicas" in result.stderr
    assert LocalCluster.open(cluster.root).spec.token == token


def test_save_without_a_cluster_wants_a_path() -> None:
    result = qd("snapshot", "save")
    assert result.exit_code == 2
    assert "name a directory or URL" in result.stderr
