"""A cluster is started until it serves, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.local.cluster import LocalCluster
from tests.unit.cli.commands import PORT_BASE, SHAPE, qd
from tests.unit.local.support import script


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
