"""EventRecorder: repetitions count up, and nothing it meets disturbs who speaks."""

from __future__ import annotations

import asyncio

import pytest

from controlplane.base.clock import ManualClock
from controlplane.base.errors import Code
from controlplane.base.rand import SeededRand
from controlplane.client import metrics
from controlplane.client.events import EVENTS_WAITING_MAX, EventRecorder
from controlplane.client.interface import UnavailableError
from controlplane.pb.k8s.core_v1_pb2 import Event, Node
from tests.fakes.api import FakeApi
from tests.unit.client.fakes import pod, settle


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def api(clock: ManualClock) -> FakeApi:
    return FakeApi(clock)


@pytest.fixture
def recorder(api: FakeApi, clock: ManualClock) -> EventRecorder:
    return EventRecorder(api, "scheduler", host="r1", clock=clock, rand=SeededRand(1))


async def test_an_event_says_what_about_which_object_and_who_says_it(api: FakeApi, recorder: EventRecorder) -> None:
    recorder.event(pod("web", 5, uid="u1"), "Warning", "FailedScheduling", "no node fits")
    await recorder.flush()
    [event] = api.all(Event)
    assert event.metadata.namespace == "default"
    assert event.metadata.name.startswith("web.")
    involved = event.involvedObject
    assert (involved.kind, involved.apiVersion, involved.namespace, involved.name, involved.uid) == (
        "Pod",
        "v1",
        "default",
        "web",
        "u1",
    )
    assert (event.type, event.reason, event.message) == ("Warning", "FailedScheduling", "no node fits")
    assert (event.source.component, event.source.host, event.count) == ("scheduler", "r1", 1)
    assert event.firstTimestamp.seconds == 1_700_000_000


async def test_the_same_again_counts_up_on_one_object(
    api: FakeApi, clock: ManualClock, recorder: EventRecorder
) -> None:
    for _ in range(3):
        recorder.event(pod("web", 5), "Normal", "Pulled", "again")
    await recorder.flush()
    clock.advance(60)
    recorder.event(pod("web", 6), "Normal", "Pulled", "again")
    recorder.event(pod("web", 6), "Normal", "Pulled", "something else")
    await recorder.flush()
    first, second = sorted(api.all(Event), key=lambda e: -e.count)
    assert (first.count, second.count) == (4, 1)
    assert first.lastTimestamp.seconds - first.firstTimestamp.seconds == 60


async def test_an_event_somebody_deleted_is_said_anew(api: FakeApi, recorder: EventRecorder) -> None:
    recorder.event(pod("web", 5), "Normal", "Pulled", "again")
    await recorder.flush()
    [event] = api.all(Event)
    api.remove(Event, event.metadata.name, "default")
    recorder.event(pod("web", 5), "Normal", "Pulled", "again")
    await recorder.flush()
    assert [e.count for e in api.all(Event)] == [1]


async def test_events_of_cluster_scoped_objects_live_in_the_default_namespace(
    api: FakeApi, recorder: EventRecorder
) -> None:
    node = Node()
    node.metadata.name = "n1"
    recorder.event(node, "Normal", "NodeReady", "ready")
    await recorder.flush()
    [event] = api.all(Event)
    assert (event.metadata.namespace, event.involvedObject.namespace) == ("default", "")


async def test_a_name_of_full_length_leaves_room_for_the_suffix(api: FakeApi, recorder: EventRecorder) -> None:
    recorder.event(pod("x" * 253, 1), "Normal", "Pulled", "m" * 5_000)
    await recorder.flush()
    [event] = api.all(Event)
    assert len(event.metadata.name) == 253
    assert len(event.message) == 1_024


async def test_what_waits_is_bounded_and_what_is_too_much_counted(api: FakeApi, recorder: EventRecorder) -> None:
    dropped = metrics.EVENTS_DROPPED._value.get()
    for i in range(EVENTS_WAITING_MAX + 5):
        recorder.event(pod(f"p{i}", 1), "Normal", "Pulled", "m")
    await recorder.flush()
    assert len(api.all(Event)) == EVENTS_WAITING_MAX
    assert metrics.EVENTS_DROPPED._value.get() - dropped == 5


async def test_a_refusing_api_costs_the_event_and_nothing_else(api: FakeApi, recorder: EventRecorder) -> None:
    api.fail_next("create", UnavailableError(Code.UNAVAILABLE, "no leader"))
    recorder.event(pod("a", 1), "Normal", "Pulled", "m")
    await recorder.flush()
    recorder.event(pod("b", 1), "Normal", "Pulled", "m")
    await recorder.flush()
    assert [e.involvedObject.name for e in api.all(Event)] == ["b"]


async def test_running_gathers_for_a_moment_and_writes(
    api: FakeApi, clock: ManualClock, recorder: EventRecorder
) -> None:
    task = asyncio.create_task(recorder.run())
    await settle()
    recorder.event(pod("a", 1), "Normal", "Pulled", "m")
    await settle()
    assert api.all(Event) == []
    recorder.event(pod("a", 1), "Normal", "Pulled", "m")
    clock.advance(0.2)
    await settle()
    assert [e.count for e in api.all(Event)] == [2]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
