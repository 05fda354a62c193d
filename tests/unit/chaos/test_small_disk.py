"""A small disk, mounted for real: whoever moves the data in may be killed at any step."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from chaos import small_disk
from chaos.small_disk import SmallDisk
from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import plan

pytestmark = [
    pytest.mark.slow,
    # Where there can be none, faults of the disk are made by failpoints. In CI they must run.
    pytest.mark.skipif(small_disk.missing() is not None and "CI" not in os.environ, reason=str(small_disk.missing())),
]


def killed_while_copying(directory: Path) -> Path:
    """What a runner that was killed in the middle of moving in leaves: the disk, mounted beside."""
    image, place = (directory.with_name(f"{directory.name}.{what}") for what in ("disk.new", "mount"))
    with image.open("wb") as file:
        file.truncate(4 << 20)
    place.mkdir()
    small_disk._run("mke2fs", "-q", "-F", "-t", "ext2", str(image))
    small_disk._run("mount", "-o", "loop", str(image), str(place))
    return place


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "r1"
    directory.mkdir()
    (directory / "log").write_text("acknowledged")
    return directory


def test_killed_while_copying_nothing_stays_mounted(data: Path) -> None:
    place = killed_while_copying(data)
    try:
        SmallDisk(data).settle()
        assert not os.path.ismount(place)
        assert [path.name for path in data.parent.iterdir()] == ["r1"]
        assert (data / "log").read_text() == "acknowledged"
    finally:
        subprocess.run(["umount", str(place)], check=False, capture_output=True)


def test_a_cluster_is_destroyed_with_whatever_is_mounted_in_it(tmp_path: Path) -> None:
    cluster = LocalCluster.create(tmp_path / "here", plan(replicas=1, nodes=0, port_base=21_750))
    cluster.replica_dir("r1").mkdir()
    place = killed_while_copying(cluster.replica_dir("r1"))
    try:
        cluster.destroy()
        assert not cluster.root.exists()
    finally:
        subprocess.run(["umount", str(place)], check=False, capture_output=True)
