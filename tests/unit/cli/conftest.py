"""Fixtures of the command line's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import plan
from controlplane.pb.quarterdeck.internal.v1.snapshot_pb2 import SnapshotHeader, SnapshotMember
from controlplane.raft.snapshot_format import encode_snapshot_file
from controlplane.store.store import Store
from tests.unit.cli.commands import PORT_BASE
from tests.unit.cli.rig import Rig
from tests.unit.local.support import script
from tests.unit.store.support import Driver


@pytest.fixture
def rig() -> Rig:
    """A cluster with its first namespaces and nothing else."""
    return Rig()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster of the folder or the environment these tests are run in."""
    monkeypatch.chdir(tmp_path)
    for name in ("QD_ENDPOINTS", "QD_FOLDER", "QD_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)


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
    """Laid out, with nothing running."""
    return LocalCluster.create(root, plan(replicas=1, nodes=1, port_base=PORT_BASE))


@pytest.fixture
def snapshot_file(tmp_path: Path) -> Path:
    """Five keys of cluster abc, as of revision 6."""
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
