"""The pods of a dead node: killed by the agent's own records, and nobody else with them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controlplane.local.pods import kill_all, running
from controlplane.local.procfs import boot_id, stat_of
from tests.unit.local.support import until, zombie


class Node:
    """A node's state directory with records as ``node.runtime.record`` writes them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.groups: list[subprocess.Popen[bytes]] = []

    def container(self, pod: str, container: str = "c1", **changed: Any) -> subprocess.Popen[bytes]:
        """A running container of two processes, and its record."""
        group = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60; true"], start_new_session=True)
        self.groups.append(group)
        stat = stat_of(group.pid)
        assert stat is not None
        known = {
            "id": container, "pod_uid": pod, "pid": group.pid, "pgid": group.pid, "start_ticks": stat.start_ticks,
            "boot_id": boot_id(), "finished_at_ms": 0,
        }  # fmt: skip
        self.write(pod, container, json.dumps(known | changed))
        return group

    def write(self, pod: str, container: str, text: str) -> None:
        """A record of this text."""
        path = self.root / "pods" / pod / ".agent" / "containers" / f"{container}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    for group in made.groups:
        if group.returncode is None:
            os.killpg(group.pid, signal.SIGKILL)
            group.wait()


def members(group: int) -> list[int]:
    """Pids of the living processes of a group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_every_process_of_every_pod_is_killed(node: Node) -> None:
    first, second, third = node.container("u1", "c1"), node.container("u1", "c2"), node.container("u2")
    until(lambda: all(len(members(g.pid)) >= 2 for g in node.groups), "the containers")
    assert running(node.root) == {"u1": [first.pid, second.pid], "u2": [third.pid]}
    assert kill_all(node.root) == 2
    until(lambda: not any(members(g.pid) for g in node.groups), "the end of all")
    for group in node.groups:
        group.wait()
    assert running(node.root) == {}
    assert kill_all(node.root) == 0


@pytest.mark.parametrize(
    "changed",
    [{"start_ticks": 1}, {"boot_id": "another boot"}, {"finished_at_ms": 5}, {"pgid": 0}, {"pgid": 1}, {"pid": 0}],
)
def test_what_a_record_does_not_surely_name_is_left_alone(node: Node, changed: dict[str, Any]) -> None:
    group = node.container("u1", **changed)
    assert kill_all(node.root) == 0
    assert group.poll() is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": null}', '{"pid": "many"}'])
def test_a_record_that_cannot_be_read_is_passed_over(node: Node, text: str) -> None:
    node.write("u1", "c1", text)
    kept = node.container("u2")
    assert running(node.root) == {"u2": [kept.pid]}


def test_a_container_whose_first_process_nobody_has_waited_for_yet_still_has_its_group(node: Node) -> None:
    child = zombie()
    try:
        stat = stat_of(child.pid)
        assert stat is not None
        known = {"pid": child.pid, "pgid": child.pid, "start_ticks": stat.start_ticks, "boot_id": boot_id()}
        node.write("u1", "c1", json.dumps(known | {"finished_at_ms": 0}))
        assert running(node.root) == {"u1": [child.pid]}, "its children may live, so its group is killed"
    finally:
        child.wait()


def test_a_node_without_pods_has_none(tmp_path: Path) -> None:
    assert kill_all(tmp_path / "never") == 0
