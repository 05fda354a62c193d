"""Faults of objects: what people and programs do to a running cluster. Growth, a rollout, a drain, nodes that join.

Each is aimed at the workload (the Deployment ``web``) or at a node, through the API, as a user would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from chaos.fault import JSON, DeviationError, Fault, FaultError, Strike, Undo
from chaos.faults.params import integer, known, nodes_only
from chaos.ground import NAMESPACE, WORKLOAD, Ground, aside
from controlplane.base.rand import Rand
from controlplane.cli.rollout import rollout_state
from controlplane.client import ConflictError, NotFoundError
from controlplane.local.spec import NODES_MAX
from controlplane.pb.k8s.apps_v1_pb2 import Deployment
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod

__all__ = ["FAULTS"]

_PODS_MAX: Final = 500
_ROLLOUT_TIMEOUT_S: Final = 60.0
_DRAIN_TIMEOUT_S: Final = 60.0
_POD_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.05
#: The pod of ``pod-add``.
_BESIDE_POD: Final = "chaos-pair"
_RESTARTED_AT: Final = "quarterdeck.dev/restarted-at"


class Scale(Fault):
    """Another number of pods."""

    name = "scale"
    doc = "ask for another number of pods of the workload; as many as before when healed"
    target = ""
    params: Mapping[str, str] = {"replicas": "how many pods", "times": "or how many times as many as now"}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        now = ground.seen.wanted
        times = integer(self.name, params, "times", 1, 1, 100)
        wanted = integer(self.name, params, "replicas", max(1, now * times), 0, _PODS_MAX)
        # Fewer pods: some have a reason to go, nobody says which.
        excused = ("*",) if wanted < now else ()
        undo = (Undo(self.name, {"replicas": now}),)
        says = f"{WORKLOAD} from {now} to {wanted} pods"
        return Strike(self.name, (), {"replicas": wanted}, undo, quorum_lost=False, says=says, excused=excused)

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        await _ask(ground, int(strike.args["replicas"]))
        return {}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        await ground.patiently(lambda: _ask(ground, int(undo.args["replicas"])))


class Rollout(Fault):
    """A new template: every pod is replaced, a few at a time."""

    name = "rollout"
    doc = "a rolling update of the workload: every pod replaced under load; returns when it is complete"
    target = ""
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        args = {"stamp": rand.token(4).hex()}
        return Strike(
            self.name, (), args, (), quorum_lost=False, says=f"a rolling update of {WORKLOAD}", excused=("*",)
        )

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        began_s = ground.clock.monotonic()
        patch = {"spec": {"template": {"metadata": {"annotations": {_RESTARTED_AT: strike.args["stamp"]}}}}}
        await ground.patiently(lambda: ground.client.patch(Deployment, WORKLOAD, patch, namespace=NAMESPACE))
        while True:
            text, complete = rollout_state(
                await ground.patiently(lambda: ground.client.get(Deployment, WORKLOAD, namespace=NAMESPACE))
            )
            if complete:
                return {"rollout_s": round(ground.clock.monotonic() - began_s, 3)}
            if ground.clock.monotonic() - began_s > _ROLLOUT_TIMEOUT_S:
                raise DeviationError(f"the rollout is not complete after {_ROLLOUT_TIMEOUT_S:g} s: {text}")
            await ground.clock.sleep(_POLL_S)

    async def heal(self, ground: Ground, undo: Undo) -> None:
        """Nothing is left to undo."""


class Drain(Fault):
    """A node is emptied for maintenance."""

    name = "drain"
    doc = "cordon a node and evict its pods, which run elsewhere; uncordoned when healed"
    target = "busiest-node"
    params: Mapping[str, str] = {}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        nodes_only(self.name, targets, ground.seen.nodes)
        undo = tuple(Undo(self.name, {"uncordon": name}) for name in targets)
        pods = sum(1 for pod in ground.seen.pods if pod.node in targets and not pod.deleting)
        says = f"drain {', '.join(targets)} of its {pods} pods"
        return Strike(self.name, tuple(targets), {}, undo, quorum_lost=False, says=says, excused=tuple(targets))

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        began_s = ground.clock.monotonic()
        for name in strike.victims:
            patch = {"spec": {"unschedulable": True}}
            await ground.patiently(lambda name=name, patch=patch: ground.client.patch(Node, name, patch))  # type: ignore[misc]
        asked: set[str] = set()
        while left := [pod for pod in ground.pods.views() if pod.node in strike.victims]:
            for pod in left:
                if pod.uid not in asked and not pod.deleting:
                    try:
                        await ground.client.evict(pod.name, namespace=NAMESPACE)
                        asked.add(pod.uid)
                    except (NotFoundError, ConflictError):
                        pass  # it went, or changed, in between; the next look tells
            if ground.clock.monotonic() - began_s > _DRAIN_TIMEOUT_S:
                raise DeviationError(f"still on {', '.join(strike.victims)}: {', '.join(pod.name for pod in left)}")
            await ground.clock.sleep(_POLL_S)
        return {"pods_evicted": len(asked), "drained_s": round(ground.clock.monotonic() - began_s, 3)}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        name = undo.args["uncordon"]
        try:
            await ground.patiently(lambda: ground.client.patch(Node, name, {"spec": {"unschedulable": None}}))
        except NotFoundError:
            pass  # the node has left since


class NodeAdd(Fault):
    """Machines that join."""

    name = "node-add"
    doc = "start more node agents; they leave again, with their pods, when healed"
    target = ""
    params: Mapping[str, str] = {"count": "how many, 1 by default"}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        count = integer(self.name, params, "count", 1, 1, NODES_MAX)
        spec, names = ground.cluster.spec, []
        for _ in range(count):
            spec, node = spec.with_node()
            names.append(node.name)
        undo = tuple(Undo(self.name, {"remove": name}) for name in names)
        says = f"{', '.join(names)} {'joins' if count == 1 else 'join'}"
        return Strike(self.name, tuple(names), {}, undo, quorum_lost=False, says=says, excused=tuple(names))

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        joined = [(await aside(ground.cluster.add_node)).name for _ in strike.victims]
        if set(joined) != set(strike.victims):
            raise FaultError(f"{', '.join(joined)} joined instead of {', '.join(strike.victims)}")
        return {}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        name = undo.args["remove"]
        if any(node.name == name for node in ground.cluster.spec.nodes):
            await aside(ground.cluster.remove_node, name)
        try:
            await ground.patiently(lambda: ground.client.delete(Node, name))
        except NotFoundError:
            pass  # it was stopped before it had joined


class PodAdd(Fault):
    """One more pod, which nobody manages."""

    name = "pod-add"
    doc = "one more pod like the workload's, with a second container beside; it leaves again when healed"
    target = ""
    params: Mapping[str, str] = {"name": f"the pod's name, {_BESIDE_POD} by default; the second container is `beside`"}

    def plan(self, ground: Ground, targets: Sequence[str], params: Mapping[str, JSON], rand: Rand) -> Strike:
        known(self.name, params, self.params)
        name = str(params.get("name", _BESIDE_POD))
        undo = (Undo(self.name, {"delete": name}),)
        return Strike(self.name, (f"pod/{name}",), {"name": name}, undo, quorum_lost=False, says=f"pod {name} joins")

    async def strike(self, ground: Ground, strike: Strike) -> Mapping[str, JSON]:
        template = (await ground.client.get(Deployment, WORKLOAD, namespace=NAMESPACE)).spec.template
        pod = Pod(metadata=template.metadata, spec=template.spec)
        pod.metadata.name, pod.metadata.namespace = strike.args["name"], NAMESPACE
        pod.spec.containers.add(name="beside", image="host", command=["sleep", "86400"])
        await ground.client.create(pod)
        began_s = ground.clock.monotonic()
        while not any(pod.name == strike.args["name"] for pod in ground.pods.ready()):
            if ground.clock.monotonic() - began_s > _POD_TIMEOUT_S:
                raise DeviationError(f"pod {strike.args['name']} is not Ready after {_POD_TIMEOUT_S:g} s")
            await ground.clock.sleep(_POLL_S)
        return {}

    async def heal(self, ground: Ground, undo: Undo) -> None:
        try:
            await ground.patiently(lambda: ground.client.delete(Pod, undo.args["delete"], namespace=NAMESPACE))
        except NotFoundError:
            pass  # it was not made, or has gone


FAULTS: Final[tuple[Fault, ...]] = (Scale(), Rollout(), Drain(), NodeAdd(), PodAdd())


async def _ask(ground: Ground, replicas: int) -> None:
    await ground.client.patch(Deployment, WORKLOAD, {"spec": {"replicas": replicas}}, namespace=NAMESPACE)
