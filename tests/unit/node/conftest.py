"""Fixtures of the node's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane.base.clock import SystemClock
from controlplane.base.rand import SeededRand
from node.layout import Layout
from node.runtime import procs
from node.runtime.base import ContainerState
from node.runtime.process import ProcessRuntime
from tests.unit.node.pod_bench import Bench


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state")
    made.prepare()
    return made


@pytest.fixture
async def process_runtime(layout: Layout) -> AsyncIterator[ProcessRuntime]:
    """A runtime of real processes; none is left at the end."""
    procs.children_hear_signals()  # as the agent does when it starts
    runtime = ProcessRuntime(layout, clock=SystemClock(), rand=SeededRand(1))
    await runtime.start()
    yield runtime
    for info in runtime.list_containers():
        if info.state is not ContainerState.EXITED:
            await runtime.stop_container(info.id, 0)
    await runtime.close()


@pytest.fixture
async def bench(layout: Layout) -> AsyncIterator[Bench]:
    made = Bench(layout)
    yield made
    for worker in made.workers:
        await worker.abandon()
