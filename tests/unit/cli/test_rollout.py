"""``qd rollout``: kubectl's words and exit codes for following, undoing, pausing, restarting."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.cli.rollout import RolloutError, rollout_state
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from tests.unit.cli.manifests import DEPLOYMENT, replica_set
from tests.unit.cli.rig import Rig

DONE = "{observedGeneration: 1, replicas: 2, updatedReplicas: 2, readyReplicas: 2, availableReplicas: 2}"


def deployment(status: str) -> str:
    return f"{DEPLOYMENT}status: {status}\n"


def in_rollout(**status: int) -> Deployment:
    found = Deployment()
    found.metadata.name, found.metadata.generation, found.spec.replicas = "web", 3, 5
    found.status.observedGeneration = 3
    for name, value in status.items():
        setattr(found.status, name, value)
    return found


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"observedGeneration": 2}, "Waiting for deployment spec update to be observed..."),
        ({"updatedReplicas": 2}, "2 out of 5 new replicas have been updated..."),
        ({"updatedReplicas": 5, "replicas": 6}, "1 old replicas are pending termination..."),
        ({"updatedReplicas": 5, "replicas": 5, "availableReplicas": 4}, "4 of 5 updated replicas are available..."),
    ],
)
def test_a_rollout_that_is_not_done_says_what_it_waits_for(status: dict[str, int], words: str) -> None:
    text, complete = rollout_state(in_rollout(**status))
    assert text.endswith(words)
    assert not complete


def test_a_rollout_past_its_deadline_is_an_error() -> None:
    late = in_rollout(updatedReplicas=1)
    late.status.conditions.add(type="Progressing", status="False", reason="ProgressDeadlineExceeded")
    with pytest.raises(RolloutError, match='deployment "web" exceeded its progress deadline'):
        rollout_state(late)


@pytest.mark.parametrize("words", [("deployment/web",), ("deploy", "web"), ("web",), ("deployment.apps/web",)])
def test_status_of_a_complete_rollout(rig: Rig, words: tuple[str, ...]) -> None:
    rig.put(deployment(DONE))
    assert rig.ok("rollout", "status", *words) == 'deployment "web" successfully rolled out\n'


def test_status_gives_up_after_its_time_with_exit_code_1(rig: Rig) -> None:
    rig.put(deployment("{observedGeneration: 1, updatedReplicas: 1}"))
    result = rig.run("rollout", "status", "deployment/web", "--timeout", "0s")
    assert result.exit_code == 1
    assert result.stdout == (
        'Waiting for deployment "web" rollout to finish: 1 out of 2 new replicas have been updated...\n'
    )
    assert result.stderr == "error: the rollout is not complete\n"
    assert rig.run("rollout", "status", "deployment/web", "--watch=false").exit_code == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("status", "svc/web"), 2, "only deployments have rollouts"),
        (("status", "deploy/a", "deploy/b"), 2, "one deployment at a time"),
        (("status",), 2, "Missing argument"),
        (("status", "web", "--timeout", "soon"), 2, "not a duration"),
        (("status", "nope"), 1, 'deployments.apps "nope" not found'),
        (("pause", "nope"), 1, 'deployments.apps "nope" not found'),
    ],
)
def test_wrong_words(rig: Rig, words: tuple[str, ...], code: int, said: str) -> None:
    result = rig.run("rollout", *words)
    assert result.exit_code == code
    assert said in result.stderr


def test_history_lists_revisions_oldest_first(rig: Rig) -> None:
    uid = rig.put(DEPLOYMENT).metadata.uid
    rig.put(replica_set("web-b", 10, "host", uid, cause="second"))
    rig.put(replica_set("web-a", 9, "host", uid))
    rig.put(replica_set("other", 1, "host", "another-uid"))
    rows = rig.rows("rollout", "history", "deployment/web")
    assert rows[:2] == [["deployment.apps/web"], ["REVISION", "REPLICASET", "PODS", "CHANGE-CAUSE"]]
    assert rows[2:] == [["9", "web-a", "0", "<none>"], ["10", "web-b", "0", "second"]]


def test_undo_goes_back_one_or_to_a_revision_with_the_template_whole(rig: Rig) -> None:
    uid = rig.put(DEPLOYMENT.replace("image: host", "image: three, workingDir: /tmp")).metadata.uid
    for revision, image in ((1, "one"), (2, "two"), (3, "three")):
        rig.put(replica_set(f"web-{revision}", revision, image, uid))
    assert rig.ok("rollout", "undo", "deployment/web") == "deployment.apps/web rolled back\n"
    template = rig.get(Deployment, "web").spec.template
    assert template.spec.containers[0].image == "two"
    assert not template.spec.containers[0].workingDir
    assert dict(template.metadata.labels) == {"app": "web"}
    rig.ok("rollout", "undo", "deployment/web", "--to-revision", "1")
    assert rig.get(Deployment, "web").spec.template.spec.containers[0].image == "one"
    assert rig.ok("rollout", "undo", "web", "--to-revision", "1") == (
        "deployment.apps/web skipped rollback (current template already matches revision 1)\n"
    )


def test_undo_refuses_what_is_not_there(rig: Rig) -> None:
    uid = rig.put(DEPLOYMENT).metadata.uid
    rig.put(replica_set("web-4", 4, "host", uid))
    alone = rig.run("rollout", "undo", "deployment/web")
    assert (alone.exit_code, alone.stderr) == (1, 'error: deployment "web" has no earlier revision\n')
    wrong = rig.run("rollout", "undo", "deployment/web", "--to-revision", "2")
    assert (wrong.exit_code, wrong.stderr) == (1, "error: no revision 2; there are: 4\n")


def test_pause_and_resume_each_only_once(rig: Rig) -> None:
    rig.put(DEPLOYMENT)
    assert rig.run("rollout", "resume", "web").stderr == 'error: deployments.apps "web" is not paused\n'
    assert rig.ok("rollout", "pause", "web") == "deployment.apps/web paused\n"
    assert rig.get(Deployment, "web").spec.paused
    again = rig.run("rollout", "pause", "web")
    assert (again.exit_code, again.stderr) == (1, 'error: deployments.apps "web" is already paused\n')
    for word in ("undo", "restart"):
        assert "resume it first" in rig.run("rollout", word, "web").stderr
    assert rig.ok("rollout", "resume", "web") == "deployment.apps/web resumed\n"
    assert not rig.get(Deployment, "web").spec.paused


def test_every_restart_changes_the_template(rig: Rig) -> None:
    rig.put(DEPLOYMENT)
    stamps: list[Any] = []
    for _ in range(2):
        assert rig.ok("rollout", "restart", "deployment/web") == "deployment.apps/web restarted\n"
        annotations = rig.get(Deployment, "web").spec.template.metadata.annotations
        stamps.append(annotations["kubectl.kubernetes.io/restartedAt"])
    assert stamps[0] < stamps[1]
