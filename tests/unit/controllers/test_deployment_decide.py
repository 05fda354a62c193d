"""What a Deployment needs done, case by case. The arithmetic of a rollout is test_rollout_decide's."""

from __future__ import annotations

import pytest

from controlplane.controllers.deployment_decide import (
    DESIRED_REPLICAS,
    REVISION,
    REVISION_HISTORY,
    TEMPLATE_HASH_LABEL,
    CreateReplicaSet,
    DeleteReplicaSet,
    Rollout,
    UpdateReplicaSet,
    decide,
    find_new,
    template_hash,
)
from controlplane.controllers.deployment_status_decide import condition_of, decide_status
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from tests.unit.controllers.objects import deployment, set_of


def sizes(rollout: Rollout) -> dict[str, int]:
    """Image -> new size, for sets that are created or resized."""
    found: dict[str, int] = {}
    for intent in rollout.intents:
        if isinstance(intent, CreateReplicaSet):
            rs = intent.replica_set
            found[rs.spec.template.spec.containers[0].image] = rs.spec.replicas
        elif isinstance(intent, UpdateReplicaSet) and intent.replicas != intent.replica_set.spec.replicas:
            found[intent.replica_set.spec.template.spec.containers[0].image] = intent.replicas
    return found


def test_the_first_set_is_made_with_all_pods() -> None:
    rollout = decide(deployment(4), [])
    assert sizes(rollout) == {"v1": 4}
    made = next(i.replica_set for i in rollout.intents if isinstance(i, CreateReplicaSet))
    name = made.metadata.labels[TEMPLATE_HASH_LABEL]
    assert made.metadata.name == f"web-{name}"
    assert made.spec.selector.matchLabels[TEMPLATE_HASH_LABEL] == name
    assert made.spec.template.metadata.labels[TEMPLATE_HASH_LABEL] == name
    assert made.metadata.ownerReferences[0].uid == "uid-deployment"
    assert made.metadata.annotations[REVISION] == "1"


def test_a_new_template_starts_with_the_surge_and_frees_what_may_be_missing() -> None:
    owner = deployment(4, image="v2")
    assert sizes(decide(owner, [set_of(owner, "v1", wanted=4)])) == {"v2": 1, "v1": 3}


def test_at_rest_there_is_nothing_to_do() -> None:
    owner = deployment(4)
    first = decide(owner, []).intents[0]
    assert isinstance(first, CreateReplicaSet)
    rs = first.replica_set
    rs.status.replicas = rs.status.availableReplicas = 4
    assert decide(owner, [rs]).intents == ()


def test_paused_does_not_roll_but_still_scales() -> None:
    owner = deployment(4, image="v2")
    owner.spec.paused = True
    old = set_of(owner, "v1", wanted=4)
    assert decide(owner, [old]).intents == ()
    owner.spec.replicas = 6
    assert sizes(decide(owner, [old])) == {"v1": 6}


def test_scaling_during_a_rollout_keeps_the_mix() -> None:
    owner = deployment(20, image="v2")
    owner.spec.strategy.rollingUpdate.maxSurge.intVal = 0
    owner.spec.strategy.rollingUpdate.maxUnavailable.intVal = 2
    old, new = set_of(owner, "v1", wanted=6, desired=10), set_of(owner, "v2", wanted=4, revision=2, desired=10)
    assert sizes(decide(owner, [old, new])) == {"v1": 12, "v2": 8}


def test_recreate_waits_for_the_last_old_pod() -> None:
    owner = deployment(3, image="v2")
    owner.spec.strategy.type = "Recreate"
    old = set_of(owner, "v1", wanted=3, desired=3)
    assert sizes(decide(owner, [old], old_pods_exist=True)) == {"v1": 0, "v2": 0}
    gone, waiting = set_of(owner, "v1", wanted=0, desired=3), set_of(owner, "v2", wanted=0, revision=2, desired=3)
    assert sizes(decide(owner, [gone, waiting], old_pods_exist=True)) == {}
    assert sizes(decide(owner, [gone, waiting], old_pods_exist=False)) == {"v2": 3}


def test_a_rollback_reuses_the_old_set_under_the_next_revision() -> None:
    owner = deployment(4, image="v1")
    old, new = set_of(owner, "v1", wanted=0, revision=1), set_of(owner, "v2", wanted=4, revision=2)
    rollout = decide(owner, [old, new])
    assert rollout.new is old
    assert rollout.revision == 3
    update = next(i for i in rollout.intents if isinstance(i, UpdateReplicaSet) and i.replica_set is old)
    assert update.annotations[REVISION] == "3"
    assert update.annotations[REVISION_HISTORY] == "1"
    assert update.annotations[DESIRED_REPLICAS] == "4"


def test_the_change_cause_is_inherited_and_the_applied_manifest_is_not() -> None:
    owner = deployment()
    owner.metadata.annotations["kubernetes.io/change-cause"] = "because"
    owner.metadata.annotations["kubectl.kubernetes.io/last-applied-configuration"] = "{}"
    intent = decide(owner, []).intents[0]
    assert isinstance(intent, CreateReplicaSet)
    annotations = intent.replica_set.metadata.annotations
    assert annotations["kubernetes.io/change-cause"] == "because"
    assert "kubectl.kubernetes.io/last-applied-configuration" not in annotations


@pytest.mark.parametrize(("limit", "forgotten"), [(0, ["v1", "v2", "v3"]), (1, ["v1", "v2"]), (3, []), (10, [])])
def test_history_beyond_the_limit_is_deleted_oldest_first(limit: int, forgotten: list[str]) -> None:
    owner = deployment(4, image="v4")
    owner.spec.revisionHistoryLimit = limit
    sets = [set_of(owner, f"v{i}", wanted=0, revision=i) for i in (3, 1, 2)]
    sets.append(set_of(owner, "v4", wanted=4, revision=4))
    deleted = [i.replica_set for i in decide(owner, sets).intents if isinstance(i, DeleteReplicaSet)]
    assert [rs.spec.template.spec.containers[0].image for rs in deleted] == forgotten


def test_history_is_kept_while_a_rollout_is_under_way() -> None:
    owner = deployment(4, image="v4")
    owner.spec.revisionHistoryLimit = 0
    sets = [set_of(owner, "v1", wanted=0), set_of(owner, "v4", wanted=4, available=3, revision=4)]
    assert not any(isinstance(i, DeleteReplicaSet) for i in decide(owner, sets).intents)


def test_a_template_is_found_again_whatever_its_hash_label_says() -> None:
    owner = deployment()
    rs = set_of(owner, "v1", wanted=4)
    rs.spec.template.metadata.labels[TEMPLATE_HASH_LABEL] = "fromelsewhere"
    assert find_new(owner, [rs]) is rs


def test_a_collision_gives_the_same_template_another_name() -> None:
    template = deployment().spec.template
    assert template_hash(template, 0) == template_hash(template, 0)
    assert template_hash(template, 0) != template_hash(template, 1)


# -- status ------------------------------------------------------------------------------------------------------


def report(
    owner: Deployment, new: ReplicaSet | None, *old: ReplicaSet, age_s: float = 0.0, created: str = ""
) -> tuple[str, str, str]:
    """(status and reason of Progressing, status of Available)."""
    status = decide_status(owner, new, old, now_s=100, progress_age_s=age_s, created=created)
    progressing, available = condition_of(status, "Progressing"), condition_of(status, "Available")
    assert available is not None
    if progressing is None:
        return "", "", available.status
    return progressing.status, progressing.reason, available.status


def with_progress(owner: Deployment, status: str, reason: str) -> Deployment:
    owner.status.conditions.add(type="Progressing", status=status, reason=reason)
    owner.status.replicas = owner.status.updatedReplicas = 4
    return owner


def test_a_set_just_made_is_progress() -> None:
    assert report(deployment(), None, created="web-x") == ("True", "NewReplicaSetCreated", "False")


def test_all_pods_available_is_complete() -> None:
    owner = deployment()
    assert report(owner, set_of(owner, "v1", wanted=4)) == ("True", "NewReplicaSetAvailable", "True")


@pytest.mark.parametrize(
    ("age_s", "verdict"), [(9.9, ("True", "ReplicaSetUpdated")), (10.0, ("False", "ProgressDeadlineExceeded"))]
)
def test_without_progress_until_the_deadline_a_rollout_has_failed(age_s: float, verdict: tuple[str, str]) -> None:
    owner = with_progress(deployment(), "True", "ReplicaSetUpdated")
    owner.spec.progressDeadlineSeconds = 10
    assert report(owner, set_of(owner, "v1", wanted=4, available=0), age_s=age_s)[:2] == verdict


def test_pods_lost_after_a_rollout_do_not_make_it_fail() -> None:
    owner = deployment()
    new = set_of(owner, "v1", wanted=4, available=1)
    with_progress(owner, "True", "NewReplicaSetAvailable").status.conditions[0].message = new.metadata.name
    assert report(owner, new, age_s=10_000) == ("True", "NewReplicaSetAvailable", "False")


def test_paused_and_resumed_are_said() -> None:
    owner = with_progress(deployment(), "True", "ReplicaSetUpdated")
    owner.spec.paused = True
    new = set_of(owner, "v1", wanted=4, available=2)
    assert report(owner, new)[:2] == ("Unknown", "DeploymentPaused")
    owner.status.conditions[0].reason = "DeploymentPaused"
    owner.spec.paused = False
    assert report(owner, new)[:2] == ("Unknown", "DeploymentResumed")


def test_counts_and_the_times_of_an_unchanged_condition_stay() -> None:
    owner = deployment()
    new, old = set_of(owner, "v1", wanted=3, available=2), set_of(owner, "v0", wanted=2)
    owner.status.CopyFrom(decide_status(owner, new, [old], now_s=100, progress_age_s=0))
    again = decide_status(owner, new, [old], now_s=200, progress_age_s=1)
    assert again == owner.status
    counts = (again.replicas, again.updatedReplicas, again.availableReplicas, again.unavailableReplicas)
    assert counts == (5, 3, 4, 1)
