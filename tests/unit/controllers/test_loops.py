"""The controllers and the scheduler at work together on a fake API: what users see happen, faults included."""

from __future__ import annotations

import pytest

from controlplane.base.errors import Code
from controlplane.client.interface import ConflictError, InvalidError, UnavailableError
from controlplane.controllers.deployment_decide import REVISION
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet
from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, Namespace, Node, Pod, Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice
from controlplane.pb.k8s.meta_v1_pb2 import ObjectMeta
from tests.fakes.world import World, world


def deployment(replicas: int, image: str = "v1", **labels: str) -> Deployment:
    made = Deployment()
    made.metadata.name, made.metadata.namespace = "web", "default"
    made.spec.replicas = replicas
    made.spec.selector.matchLabels["app"] = "web"
    made.spec.template.metadata.labels["app"] = "web"
    made.spec.template.metadata.labels.update(labels)
    made.spec.template.spec.containers.add(name="web", image=image).resources.requests["cpu"].string = "100m"
    return made


def service() -> Service:
    made = Service()
    made.metadata.name, made.metadata.namespace = "web", "default"
    made.spec.selector["app"] = "web"
    made.spec.ports.add(name="http", port=80).targetPort.intVal = 8080
    return made


async def change(w: World, image: str | None = None, replicas: int | None = None, **labels: str) -> None:
    stored = w.api.peek(Deployment, "web", "default")
    assert stored is not None
    if image is not None:
        stored.spec.template.spec.containers[0].image = image
    if replicas is not None:
        stored.spec.replicas = replicas
    stored.spec.template.metadata.labels.update(labels)
    await w.api.update(stored)
    await w.settle()


def status(w: World) -> Deployment:
    found = w.api.peek(Deployment, "web", "default")
    assert found is not None
    return found


async def test_a_deployment_becomes_running_pods_spread_over_the_nodes() -> None:
    async with world() as w:
        await w.lead()
        await w.api.create(deployment(6))
        await w.settle()
        pods = w.pods(app="web")
        assert sorted(p.spec.nodeName for p in pods) == ["node-0", "node-0", "node-1", "node-1", "node-2", "node-2"]
        stored = status(w)
        assert (stored.status.availableReplicas, stored.status.updatedReplicas) == (6, 6)
        assert stored.status.observedGeneration == stored.metadata.generation
        progressing = next(c for c in stored.status.conditions if c.type == "Progressing")
        assert progressing.reason == "NewReplicaSetAvailable"
        assert stored.metadata.annotations[REVISION] == "1"


async def test_a_replica_that_does_not_lead_writes_nothing() -> None:
    async with world() as w:
        await w.api.create(deployment(3))
        w.api.writes.clear()
        await w.settle()
        assert w.api.writes == []


async def test_scaling_up_and_down_follows_at_once() -> None:
    async with world() as w:
        await w.lead()
        await w.api.create(deployment(2))
        await w.settle()
        await change(w, replicas=9)
        assert len(w.pods(app="web")) == 9
        await change(w, replicas=1)
        assert len(w.pods(app="web")) == 1


async def test_a_new_template_rolls_without_ever_losing_too_many_pods() -> None:
    async with world() as w:
        await w.lead()
        await w.api.create(deployment(6))
        await w.settle()
        low = 6
        high = 6

        def watch(old: Pod | None, new: Pod | None) -> None:
            nonlocal low, high
            pods = [p for p in w.pods(app="web") if not p.metadata.HasField("deletionTimestamp")]
            ready = [p for p in pods if any(c.type == "Ready" and c.status == "True" for c in p.status.conditions)]
            low, high = min(low, len(ready)), max(high, len(pods))

        w.caches.of(Pod).on_change(watch)
        await change(w, image="v2")
        assert {p.spec.containers[0].image for p in w.pods(app="web")} == {"v2"}
        assert len(w.pods(app="web")) == 6
        assert low >= 5  # maxUnavailable 25% of 6, rounded down
        assert high <= 8  # maxSurge 25% of 6, rounded up
        assert status(w).metadata.annotations[REVISION] == "2"


async def test_putting_the_old_template_back_is_a_rollback_with_a_new_revision() -> None:
    async with world() as w:
        await w.lead()
        await w.api.create(deployment(2))
        await w.settle()
        await change(w, image="v2")
        await change(w, image="v1")
        sets = w.api.all(ReplicaSet)
        assert len(sets) == 2
        current = next(rs for rs in sets if rs.spec.replicas == 2)
        assert current.spec.template.spec.containers[0].image == "v1"
        assert current.metadata.annotations[REVISION] == "3"
        assert current.metadata.annotations["deployment.kubernetes.io/revision-history"] == "1"


async def test_a_rollout_of_pods_that_never_get_ready_stops_and_says_so_after_its_deadline() -> None:
    async with world() as w:
        await w.lead()
        made = deployment(4)
        made.spec.progressDeadlineSeconds = 5
        await w.api.create(made)
        await w.settle()
        await change(w, image="v2", broken="yes")
        ready_v1 = [p for p in w.pods(app="web") if p.spec.containers[0].image == "v1"]
        assert len(ready_v1) >= 3
        await w.pass_time(7)
        progressing = next(c for c in status(w).status.conditions if c.type == "Progressing")
        assert (progressing.status, progressing.reason) == ("False", "ProgressDeadlineExceeded")


async def test_old_revisions_beyond_the_limit_are_forgotten() -> None:
    async with world() as w:
        await w.lead()
        made = deployment(1)
        made.spec.revisionHistoryLimit = 1
        await w.api.create(made)
        await w.settle()
        for image in ("v2", "v3", "v4"):
            await change(w, image=image)
        images = sorted(rs.spec.template.spec.containers[0].image for rs in w.api.all(ReplicaSet))
        assert images == ["v3", "v4"]


async def test_recreate_stops_every_old_pod_before_a_new_one_starts() -> None:
    async with world() as w:
        await w.lead()
        made = deployment(3)
        made.spec.strategy.type = "Recreate"
        await w.api.create(made)
        await w.settle()
        mixed = False

        def watch(old: Pod | None, new: Pod | None) -> None:
            nonlocal mixed
            mixed = mixed or len({p.spec.containers[0].image for p in w.pods(app="web")}) > 1

        w.caches.of(Pod).on_change(watch)
        await change(w, image="v2")
        assert {p.spec.containers[0].image for p in w.pods(app="web")} == {"v2"}
        assert not mixed


async def test_a_lost_pod_is_replaced_and_never_by_two() -> None:
    async with world() as w:
        await w.lead()
        await w.api.create(deployment(5))
        await w.settle()
        victim = w.pods(app="web")[0]
        w.api.remove(Pod, victim.metadata.name, "default")
        await w.settle()
        assert len(w.pods(app="web")) == 5
        assert len([x for x in w.api.writes if x[:2] == ("create", "Pod")]) == 6


async def test_a_failed_pod_is_replaced() -> None:
    async with world() as w:
        await w.lead()
        await w.api.create(deployment(2))
        await w.settle()
        victim = w.pods(app="web")[0]
        victim.status.phase = "Failed"
        w.api.put(victim)
        await w.settle()
        running = [p for p in w.pods(app="web") if p.status.phase == "Running"]
        assert len(running) == 2


@pytest.mark.parametrize("verb", ["create", "update", "update_status", "delete", "bind"])
async def test_a_write_that_fails_is_made_good(verb: str) -> None:
    async with world() as w:
        await w.lead()
        w.api.fail_next(verb, ConflictError(Code.ABORTED, "conflict", reason="Conflict"), times=3)
        await w.api.create(deployment(4)) if verb != "create" else w.api.put(deployment(4))
        await w.settle()
        await w.pass_time(5)
        await change(w, replicas=2) if verb != "update" else None
        await w.pass_time(5)
        assert len([p for p in w.pods(app="web") if p.spec.nodeName]) == (2 if verb != "update" else 4)


async def test_an_outcome_nobody_learned_makes_no_second_pod_until_it_is_known() -> None:
    async with world() as w:
        await w.lead()
        lost = UnavailableError(Code.DEADLINE_EXCEEDED, "no answer", unknown_outcome=True)
        w.api.put(deployment(1))
        w.api.fail_next("create", lost, times=0)
        await w.settle()
        assert len(w.pods(app="web")) == 1
        # The next creation is lost without a trace: nothing is tried again until it must have failed.
        w.api.fail_next("create", lost)
        await change(w, replicas=2)
        await w.pass_time(10, step_s=1)
        assert len(w.pods(app="web")) == 1
        await w.pass_time(30, step_s=1)
        assert len(w.pods(app="web")) == 2


async def test_a_refused_pod_is_reported_and_tried_one_at_a_time() -> None:
    async with world() as w:
        await w.lead()
        w.api.put(deployment(50))
        await w.settle()
        w.api.fail_next("create", InvalidError(Code.INVALID_ARGUMENT, "quota"), times=10_000)
        before = len(w.api.writes)
        await change(w, replicas=500)
        tries = len(w.api.writes) - before
        assert tries < 50
        assert "FailedCreate" in w.events.reasons()


async def test_a_suspect_node_leaves_the_endpoints_at_once_and_comes_back() -> None:
    async with world() as w:
        await w.lead()
        await w.api.create(service())
        await w.api.create(deployment(6))
        await w.settle()

        def ready_on(name: str) -> set[bool]:
            return {e.conditions.ready for s in w.api.all(EndpointSlice) for e in s.endpoints if e.nodeName == name}

        assert ready_on("node-1") == {True}
        node = w.api.peek(Node, "node-1")
        assert node is not None
        node.status.conditions.add(type="Suspect", status="True")
        w.api.put(node)
        await w.settle()
        assert ready_on("node-1") == {False}
        assert ready_on("node-0") == {True}
        del node.status.conditions[1:]
        w.api.put(node)
        await w.settle()
        assert ready_on("node-1") == {True}
        assert len(w.api.all(EndpointSlice)) == 1


async def test_deleting_a_deployment_takes_everything_it_owns() -> None:
    async with world() as w:
        await w.lead()
        await w.api.create(deployment(3))
        await w.settle()
        await w.api.delete(Deployment, "web", namespace="default")
        await w.settle()
        assert w.api.all(ReplicaSet) == []
        assert w.api.all(Pod) == []


async def test_orphaning_leaves_the_pods_and_their_set() -> None:
    async with world() as w:
        await w.lead()
        await w.api.create(deployment(3))
        await w.settle()
        await w.api.delete(Deployment, "web", namespace="default", propagation_policy="Orphan")
        await w.settle()
        assert w.api.peek(Deployment, "web", "default") is None
        assert [list(rs.metadata.ownerReferences) for rs in w.api.all(ReplicaSet)] == [[]]
        assert len(w.pods(app="web")) == 3


async def test_foreground_deletion_waits_for_the_pods() -> None:
    async with world() as w:
        await w.lead()
        await w.api.create(deployment(2))
        await w.settle()
        w.kubelet_runs = False  # nobody stops the pods
        await w.api.delete(Deployment, "web", namespace="default", propagation_policy="Foreground")
        await w.settle()
        assert w.api.peek(Deployment, "web", "default") is not None
        assert all(p.metadata.HasField("deletionTimestamp") for p in w.pods(app="web"))
        w.kubelet_runs = True
        await w.settle()
        await w.settle()
        assert w.api.peek(Deployment, "web", "default") is None
        assert w.api.all(ReplicaSet) == []


async def test_a_namespace_goes_when_it_is_empty() -> None:
    async with world() as w:
        await w.lead()
        for name in ("default", "doomed"):
            w.api.put(Namespace(metadata=ObjectMeta(name=name)))
        w.api.put(ConfigMap(metadata=ObjectMeta(name="c", namespace="doomed")))
        w.api.put(ConfigMap(metadata=ObjectMeta(name="c", namespace="default")))
        await w.api.delete(Namespace, "doomed")
        await w.settle()
        await w.pass_time(1)
        assert [n.metadata.name for n in w.api.all(Namespace)] == ["default"]
        assert [c.metadata.namespace for c in w.api.all(ConfigMap)] == ["default"]


async def test_a_fenced_write_ends_the_term_at_once() -> None:
    async with world() as w:
        await w.lead(term=1)
        await w.api.create(deployment(1))
        await w.settle()
        w.api.fence_revision = 2  # another replica has won
        await change(w, replicas=5)
        assert len(w.pods(app="web")) == 1
        assert not w.manager.leading
        await w.lead(term=3)
        assert len(w.pods(app="web")) == 5


async def test_caches_survive_a_broken_and_an_expired_watch() -> None:
    async with world() as w:
        await w.lead()
        await w.api.create(deployment(2))
        await w.settle()
        w.api.expire_watches()
        await change(w, replicas=4)
        await w.pass_time(3)
        assert len(w.pods(app="web")) == 4


async def test_a_bare_pod_that_matches_is_adopted_and_one_that_no_longer_does_is_released() -> None:
    async with world() as w:
        await w.lead()
        rs = ReplicaSet(metadata=ObjectMeta(name="rs", namespace="default"))
        rs.spec.replicas = 2
        rs.spec.selector.matchLabels["app"] = "x"
        rs.spec.template.metadata.labels["app"] = "x"
        bare = Pod(metadata=ObjectMeta(name="bare", namespace="default", labels={"app": "x"}))
        w.api.put(bare)
        w.api.put(rs)
        await w.settle()
        assert len(w.pods(app="x")) == 2
        adopted = w.api.peek(Pod, "bare", "default")
        assert adopted is not None
        assert adopted.metadata.ownerReferences[0].name == "rs"
        adopted.metadata.labels["app"] = "y"
        await w.api.update(adopted)
        await w.settle()
        released = w.api.peek(Pod, "bare", "default")
        assert released is not None
        assert not released.metadata.ownerReferences
        assert len(w.pods(app="x")) == 2
