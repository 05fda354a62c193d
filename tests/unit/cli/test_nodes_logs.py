"""``qd cordon``, ``uncordon``, ``drain``, ``logs``."""

from __future__ import annotations

import pytest

from controlplane.base.errors import Code
from controlplane.client.interface import ApiError, NotFoundError, UnavailableError
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from tests.unit.cli.manifests import DEPLOYMENT, NODE, pod
from tests.unit.cli.rig import Rig

GONE = UnavailableError(Code.UNAVAILABLE, "failed to connect")


def test_cordon_and_uncordon_mark_and_say_when_there_was_nothing_to_do(rig: Rig) -> None:
    rig.put(NODE)
    assert rig.ok("cordon", "node-1") == "node/node-1 cordoned\n"
    assert rig.get(Node, "node-1", "").spec.unschedulable
    assert rig.ok("cordon", "node/node-1") == "node/node-1 already cordoned\n"
    assert rig.rows("get", "nodes")[1][1] == "Ready,SchedulingDisabled"
    assert rig.ok("uncordon", "node-1") == "node/node-1 uncordoned\n"
    assert rig.ok("uncordon", "no/node-1") == "node/node-1 already uncordoned\n"
    assert not rig.get(Node, "node-1", "").spec.unschedulable


@pytest.mark.parametrize("word", ["cordon", "uncordon", "drain"])
def test_a_node_must_be_there(rig: Rig, word: str) -> None:
    result = rig.run(word, "nope")
    assert (result.exit_code, result.stderr) == (1, 'Error from server (NotFound): nodes "nope" not found\n')
    assert rig.run(word, "pod/nope").exit_code == 2
    assert rig.run(word).exit_code == 2


def test_drain_evicts_what_a_controller_replaces_and_leaves_other_nodes_alone(rig: Rig) -> None:
    rig.put(NODE)
    rig.put(pod("a", node="node-1").replace("phase: Running", "phase: Succeeded"))
    rig.put(pod("b", node="node-1", owner="").replace("phase: Running", "phase: Failed"))
    rig.put(pod("c", node="node-2"))
    result = rig.run("drain", "node-1", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")
    assert result.exit_code == 0
    assert result.stdout == "node/node-1 cordoned\nnode/node-1 drained\n"
    assert result.stderr == "evicting pod default/a\nevicting pod default/b\n"
    assert rig.ok("get", "pods", "-o", "name") == "pod/c\n"


def test_drain_refuses_pods_that_nobody_would_replace_unless_forced(rig: Rig) -> None:
    rig.put(NODE)
    rig.put(pod("bare", node="node-1", owner=""))
    result = rig.run("drain", "node-1")
    assert result.exit_code == 1
    assert "--force" in result.stderr
    assert "default/bare" in result.stderr
    assert not rig.get(Pod, "bare").metadata.HasField("deletionTimestamp")
    assert rig.get(Node, "node-1", "").spec.unschedulable
    forced = rig.run("drain", "node-1", "--force", "--grace-period", "0")
    assert forced.exit_code == 0
    with pytest.raises(NotFoundError):
        rig.get(Pod, "bare")


def test_drain_says_what_did_not_go_in_time(rig: Rig) -> None:
    rig.put(NODE)
    rig.put(pod("slow", node="node-1"))
    result = rig.run("drain", "node-1", "--timeout", "0")
    assert result.exit_code == 1
    assert "still on node-1 after 0 s: default/slow" in result.stderr
    assert rig.get(Pod, "slow").metadata.HasField("deletionTimestamp")


def test_drain_of_an_empty_node(rig: Rig) -> None:
    rig.put(NODE)
    assert rig.ok("drain", "node-1") == "node/node-1 cordoned\nnode/node-1 drained\n"


def test_logs_are_passed_on_byte_for_byte(rig: Rig) -> None:
    rig.log_answers.append([b"one\n", b"tw\xffo"])
    result = rig.run("logs", "pod/web-1", "-c", "main", "--tail", "5", "-f", "-p", "--timestamps", "-n", "blue")
    assert result.exit_code == 0
    assert result.stdout_bytes == b"one\ntw\xffo"
    (asked,) = rig.logs_asked
    assert (asked.namespace, asked.pod, asked.container, asked.tail_lines) == ("blue", "web-1", "main", 5)
    assert (asked.follow, asked.previous, asked.timestamps) == (True, True, True)


@pytest.mark.parametrize(("words", "tail"), [((), None), (("--tail=-1",), None), (("--tail=0",), 0)])
def test_without_a_tail_all_lines_are_asked_for(rig: Rig, words: tuple[str, ...], tail: int | None) -> None:
    rig.log_answers.append([])
    rig.ok("logs", "web-1", *words)
    (asked,) = rig.logs_asked
    assert (asked.tail_lines if asked.HasField("tail_lines") else None) == tail


def test_logs_of_a_deployment_are_those_of_its_first_pod(rig: Rig) -> None:
    rig.put(DEPLOYMENT)
    for name, app in (("web-b", "web"), ("web-a", "web"), ("db", "db")):
        rig.put(pod(name, app=app))
    rig.log_answers.append([b"hello\n"])
    result = rig.run("logs", "deploy/web")
    assert (result.stdout, result.stderr) == ("hello\n", "Found 2 pods, using pod/web-a\n")
    assert rig.logs_asked[0].pod == "web-a"


def test_what_has_no_logs(rig: Rig) -> None:
    assert "services have no logs" in rig.run("logs", "svc/web").stderr
    rig.put(DEPLOYMENT)
    assert "has no pods" in rig.run("logs", "deploy/web").stderr


def test_a_replica_that_does_not_answer_is_passed_over(rig: Rig) -> None:
    rig.log_answers += [GONE, GONE, [b"hello\n"]]
    assert rig.ok("logs", "web-1") == "hello\n"


def test_no_replica_answers(rig: Rig) -> None:
    rig.log_answers += [GONE] * 20
    result = rig.run("logs", "web-1")
    assert result.exit_code == 3
    assert "failed to connect" in result.stderr


def test_the_servers_refusal_is_told(rig: Rig) -> None:
    rig.log_answers.append(ApiError(Code.INVALID_ARGUMENT, "container x is not valid", reason="BadRequest"))
    result = rig.run("logs", "web-1", "-c", "x")
    assert (result.exit_code, result.stderr) == (1, "Error from server (BadRequest): container x is not valid\n")
