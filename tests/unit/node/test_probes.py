"""Thresholds and timing of probes, in virtual time; real connections for the three kinds of try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from controlplane.base.clock import Clock
from controlplane.pb.k8s.core_v1_pb2 import Container, Probe
from node.probes import Outcome, ProbeKind, Prober, ProbeTarget, ProbeTracker, RealProber, Result, run_probe
from node.runtime.process import ProcessRuntime
from tests.unit.node.virtual import VirtualClock

TARGET = ProbeTarget(ip="127.0.0.1", container=Container(name="main"), container_id="c")


class ScriptedProber:
    """Answers by the time of the question."""

    def __init__(self, clock: Clock, *, ok_from_s: float = 0, ok_until_s: float = 1e9) -> None:
        self._clock = clock
        self._start_s = clock.monotonic()
        self._from_s, self._until_s = ok_from_s, ok_until_s
        self.asked_s: list[float] = []

    async def check(self, probe: Probe, target: ProbeTarget) -> Result:
        at_s = self._clock.monotonic() - self._start_s
        self.asked_s.append(round(at_s, 3))
        return Result(self._from_s <= at_s < self._until_s, "scripted")


async def observe(
    kind: ProbeKind, probe: Probe, prober: Prober, clock: VirtualClock, for_s: float
) -> tuple[list[tuple[float, Outcome]], list[float]]:
    outcomes: list[tuple[float, Outcome]] = []
    failures: list[float] = []
    began_s = clock.monotonic()

    def at() -> float:
        return round(clock.monotonic() - began_s, 3)

    task = asyncio.ensure_future(
        run_probe(
            kind,
            probe,
            TARGET,
            prober,
            clock,
            on_outcome=lambda _k, outcome, _m: outcomes.append((at(), outcome)),
            on_failure=lambda _k, _m: failures.append(at()),
        )
    )
    await clock.run_for(for_s)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return outcomes, failures


def test_thresholds_count_runs_of_the_same_result() -> None:
    tracker = ProbeTracker(Probe(successThreshold=2, failureThreshold=3))
    assert [tracker.add(ok=ok) for ok in (True, False, True, True)][-1] is Outcome.SUCCESS
    assert [tracker.add(ok=False) for _ in range(3)] == [Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE]


async def test_readiness_is_asked_at_once_and_often_until_the_first_success() -> None:
    clock = VirtualClock()
    prober = ScriptedProber(clock, ok_from_s=0.3)
    outcomes, failures = await observe(ProbeKind.READINESS, Probe(periodSeconds=10), prober, clock, 15)
    assert prober.asked_s[0] == 0
    assert outcomes[0][0] < 1
    assert outcomes[0][1] is Outcome.SUCCESS
    assert failures == []
    after = [at for at in prober.asked_s if at > outcomes[0][0]]
    assert after == [outcomes[0][0] + 10]


async def test_quick_tries_do_not_count_as_failures() -> None:
    clock = VirtualClock()
    prober = ScriptedProber(clock, ok_from_s=1e6)
    probe = Probe(periodSeconds=2, failureThreshold=3)
    outcomes, failures = await observe(ProbeKind.STARTUP, probe, prober, clock, 20)
    assert [outcome for _, outcome in outcomes] == [Outcome.FAILURE]
    assert outcomes[0][0] >= 6  # three periods, however often it was asked
    assert len(failures) == 3


async def test_liveness_keeps_its_period_and_initial_delay() -> None:
    clock = VirtualClock()
    prober = ScriptedProber(clock, ok_until_s=12)
    probe = Probe(initialDelaySeconds=3, periodSeconds=5, failureThreshold=2)
    outcomes, failures = await observe(ProbeKind.LIVENESS, probe, prober, clock, 20)
    assert prober.asked_s[:4] == [3, 8, 13, 18]
    assert failures == [13, 18]
    assert outcomes == [(3, Outcome.SUCCESS), (18, Outcome.FAILURE)]


@pytest.fixture
async def prober(process_runtime: ProcessRuntime) -> AsyncIterator[RealProber]:
    made = RealProber(process_runtime)
    yield made
    await made.close()


async def test_http_probe_takes_200_to_399(prober: RealProber) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["code"]))

    app = web.Application()
    app.router.add_get("/{code}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    target = ProbeTarget(ip="127.0.0.1", container=Container(name="main"), container_id="c")
    target.container.ports.add(name="http", containerPort=port)
    tcp = Probe()
    tcp.handler.tcpSocket.port.intVal = port
    try:
        # First: it ends with the connection made, and only the next answer shows that the server has accepted it too.
        assert (await prober.check(tcp, target)).ok
        for code, ok in ((200, True), (302, True), (404, False), (503, False)):
            probe = Probe(timeoutSeconds=2)
            probe.handler.httpGet.path = f"/{code}"
            probe.handler.httpGet.port.type = 1
            probe.handler.httpGet.port.strVal = "http"
            result = await prober.check(probe, target)
            assert result.ok is ok, code
            assert ok or str(code) in result.message
    finally:
        await runner.cleanup()
        await prober.close()
    assert not (await prober.check(tcp, target)).ok


async def test_a_port_name_that_does_not_exist_is_said(prober: RealProber) -> None:
    probe = Probe()
    probe.handler.tcpSocket.port.type = 1
    probe.handler.tcpSocket.port.strVal = "nope"
    result = await prober.check(probe, TARGET)
    assert (result.ok, "nope" in result.message) == (False, True)


@pytest.mark.parametrize("kind", ["tcpSocket", "httpGet"])
async def test_a_try_that_is_cancelled_ends_cancelled_whatever_it_waits_for(prober: RealProber, kind: str) -> None:
    """A try that outlives its cancellation keeps its pod from being stopped, for ever."""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    probe = Probe()
    getattr(probe.handler, kind).port.intVal = port
    for turns in range(1, 60):
        task = asyncio.ensure_future(prober.check(probe, TARGET))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not task.cancel():
            break  # it was over before it could be cancelled
        await asyncio.wait({task})
        assert task.cancelled(), f"cancelled after {turns} turns of the loop, it answered all the same"
    # A try may end before the server has so much as accepted it. Connections are accepted in their order: once one more
    # is answered and closed, none is on its way, to be left open when the loop ends.
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert await reader.read(-1)
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
