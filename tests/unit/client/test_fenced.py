"""The fenced client: every write carries the fence of the present term, or is not sent."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from controlplane.client.fenced import LEADER_KEY, FencedClient, NotLeadingError
from controlplane.client.interface import FencedError
from controlplane.pb.k8s.core_v1_pb2 import ConfigMap, Pod
from controlplane.pb.k8s.meta_v1_pb2 import ObjectMeta
from controlplane.pb.quarterdeck.v1 import api_pb2
from tests.fakes.api import FakeApi

Write = Callable[[FencedClient], Awaitable[object]]


def pod() -> Pod:
    return Pod(metadata=ObjectMeta(name="p", namespace="default"))


WRITES: dict[str, Write] = {
    "create": lambda c: c.create(ConfigMap(metadata=ObjectMeta(name="new", namespace="default"))),
    "update": lambda c: c.update(pod()),
    "update_status": lambda c: c.update_status(pod()),
    "delete": lambda c: c.delete(Pod, "p", namespace="default"),
    "bind": lambda c: c.bind([api_pb2.Binding(namespace="default", name="p", node_name="n")]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
async def test_every_write_needs_a_term_and_ends_it_when_the_store_knows_a_newer_one(write: Write) -> None:
    api = FakeApi()
    api.put(pod())
    ended: list[str] = []
    client = FencedClient(api, lambda: ended.append("ended"))
    before = api.revision
    with pytest.raises(NotLeadingError):
        await write(client)
    api.fence_revision = 2
    client.grant(api_pb2.Fence(key=LEADER_KEY, mod_revision=1))
    with pytest.raises(FencedError):
        await write(client)
    assert (api.revision, client.leading, ended) == (before, False, ["ended"])
    client.grant(api_pb2.Fence(key=LEADER_KEY, mod_revision=2))
    await write(client)
    assert client.leading
