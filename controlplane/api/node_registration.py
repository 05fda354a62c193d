"""From an agent's Hello to its Node object. Owns what an agent may say about its Node and what it may not.

The agent owns its labels, annotations, capacity, allocatable, addresses, node info and daemon endpoints. Its taints
count when the Node is created; from then on taints, cordon and conditions belong to others and are kept. Only a node
that never had a Ready condition is given one, so that it is schedulable at once. Nothing is written when nothing
changed: after a fail-over thousands of agents say hello within a second.
"""

from __future__ import annotations

import re
from typing import Final

from controlplane.api.calls import ResourceCalls
from controlplane.api.errors import AlreadyExistsError, ApiError, ConflictError, InvalidError, NotFoundError
from controlplane.api.podcidr import PodCIDRs
from controlplane.base.clock import Clock
from controlplane.base.errors import Code
from controlplane.pb.k8s import core_v1_pb2
from controlplane.pb.quarterdeck.v1 import api_pb2, node_pb2

__all__ = ["NodeRegistration"]

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
#: Rounds of read, compare, write before giving up on a Node that somebody keeps changing.
_ROUNDS_MAX: Final = 10


class NodeRegistration:
    """Creates and updates Node objects for agents."""

    def __init__(self, api: ResourceCalls, cidrs: PodCIDRs, clock: Clock) -> None:
        self._api = api
        self._cidrs = cidrs
        self._clock = clock

    async def register(self, hello: node_pb2.Hello) -> core_v1_pb2.Node:
        """The stored Node, as the agent describes it now.

        Raises:
            InvalidError: the name is not a node's.
            ApiError: RESOURCE_EXHAUSTED (no pod range left), or the API could not be reached.
        """
        name = hello.node_name
        if not _NAME.fullmatch(name):
            raise InvalidError(
                Code.INVALID_ARGUMENT,
                f"node name {name!r}: allowed are at most 253 lower-case letters, digits, '-' and '.', "
                "beginning and ending with a letter or digit",
                reason="Invalid",
            )
        for _ in range(_ROUNDS_MAX):
            try:
                stored = await self._get(name)
                if stored is None:
                    stored = await self._create(name, hello.node)
                else:
                    stored = await self._update(stored, hello.node)
                return await self._update_status(stored, hello.node)
            except (ConflictError, AlreadyExistsError, NotFoundError):
                continue  # somebody else wrote it since we read: read again
        raise ApiError(Code.ABORTED, f"node {name!r} changed {_ROUNDS_MAX} times while registering", reason="Conflict")

    async def _get(self, name: str) -> core_v1_pb2.Node | None:
        try:
            return (await self._api.get(api_pb2.GetRequest(resource="nodes", name=name))).node
        except NotFoundError:
            return None

    async def _exists(self, name: str) -> bool:
        return await self._get(name) is not None

    async def _create(self, name: str, said: core_v1_pb2.Node) -> core_v1_pb2.Node:
        node = core_v1_pb2.Node()
        node.metadata.name = name
        _describe(node, said)
        node.spec.taints.extend(said.spec.taints)
        _give_range(node, await self._cidrs.claim(name, self._exists))
        created = await self._api.create(api_pb2.CreateRequest(object=api_pb2.Object(node=node)))
        return created.node

    async def _update(self, stored: core_v1_pb2.Node, said: core_v1_pb2.Node) -> core_v1_pb2.Node:
        wanted = core_v1_pb2.Node()
        wanted.CopyFrom(stored)
        _describe(wanted, said)
        if not wanted.spec.podCIDR:
            _give_range(wanted, await self._cidrs.claim(stored.metadata.name, self._exists))
        if wanted == stored:
            return stored
        return (await self._api.update(api_pb2.UpdateRequest(object=api_pb2.Object(node=wanted)))).node

    async def _update_status(self, stored: core_v1_pb2.Node, said: core_v1_pb2.Node) -> core_v1_pb2.Node:
        wanted = core_v1_pb2.Node()
        wanted.CopyFrom(stored)
        status = wanted.status
        status.ClearField("capacity")
        status.ClearField("allocatable")
        status.ClearField("addresses")
        status.ClearField("daemonEndpoints")
        status.ClearField("nodeInfo")
        theirs = core_v1_pb2.NodeStatus()
        theirs.CopyFrom(said.status)
        theirs.ClearField("conditions")
        status.MergeFrom(theirs)
        if not any(condition.type == "Ready" for condition in status.conditions):
            _add_ready(status, self._clock.wall_ms())
        if wanted == stored:
            return stored
        return (await self._api.update_status(api_pb2.UpdateRequest(object=api_pb2.Object(node=wanted)))).node


def _describe(node: core_v1_pb2.Node, said: core_v1_pb2.Node) -> None:
    node.metadata.labels.update(said.metadata.labels)
    node.metadata.annotations.update(said.metadata.annotations)


def _give_range(node: core_v1_pb2.Node, cidr: str) -> None:
    node.spec.podCIDR = cidr
    del node.spec.podCIDRs[:]
    node.spec.podCIDRs.append(cidr)


def _add_ready(status: core_v1_pb2.NodeStatus, wall_ms: int) -> None:
    condition = status.conditions.add()
    condition.type = "Ready"
    condition.status = "True"
    condition.reason = "SessionOpen"
    condition.message = "the node agent has an open session"
    for time in (condition.lastHeartbeatTime, condition.lastTransitionTime):
        time.seconds = wall_ms // 1000
