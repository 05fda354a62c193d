"""Probes: is a container started, ready, alive. Owns thresholds and timing; the effect of an outcome is its caller's.

Timing is Kubernetes' with one difference, so that pods are ready in fractions of a second: until its first success a
startup or readiness probe is asked again after 100 ms, growing by half up to ``periodSeconds``. These extra tries can
only succeed: failures count towards ``failureThreshold`` at most once per period. ``initialDelaySeconds`` is kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

import aiohttp

from controlplane.base.clock import Clock
from controlplane.pb.k8s.core_v1_pb2 import Container, HTTPGetAction, Probe
from controlplane.pb.k8s.intstr_pb2 import IntOrString
from node.runtime.base import ContainerRuntimeError, Runtime

__all__ = ["Outcome", "ProbeKind", "ProbeTarget", "ProbeTracker", "Prober", "RealProber", "Result", "run_probe"]

log = logging.getLogger("quarterdeck.probes")

_FAST_FIRST_S: Final = 0.1
_FAST_GROWTH: Final = 1.5
_BODY_BYTES_MAX: Final = 1024


class ProbeKind(Enum):
    """What is asked."""

    STARTUP = "Startup"
    READINESS = "Readiness"
    LIVENESS = "Liveness"


@dataclass(frozen=True, slots=True)
class Result:
    """One try."""

    ok: bool
    message: str = ""


@dataclass(frozen=True, slots=True)
class ProbeTarget:
    """What a probe is aimed at."""

    ip: str
    container: Container
    container_id: str

    def port(self, port: IntOrString) -> int:
        """The number; a name is looked up in the container's ports. Raises ValueError."""
        number = port.intVal
        if port.type == 1:
            named = next((p.containerPort for p in self.container.ports if p.name == port.strVal), 0)
            number = named or (int(port.strVal) if port.strVal.isdigit() else 0)
        if not 0 < number < 65536:
            raise ValueError(f"port {port.strVal or number!r}: no such port in container {self.container.name}")
        return number


class Prober(Protocol):
    """Makes one try."""

    async def check(self, probe: Probe, target: ProbeTarget) -> Result: ...


class Outcome(Enum):
    """What a series of tries comes to."""

    UNDECIDED = "undecided"
    SUCCESS = "success"
    FAILURE = "failure"


class ProbeTracker:
    """Counts tries against the thresholds. Pure."""

    def __init__(self, probe: Probe) -> None:
        self._success_threshold = max(probe.successThreshold, 1)
        self._failure_threshold = probe.failureThreshold or 3
        self._run_of_success = 0
        self._run_of_failure = 0
        self.outcome = Outcome.UNDECIDED

    def add(self, *, ok: bool) -> Outcome:
        """Take one try into account."""
        if ok:
            self._run_of_success += 1
            self._run_of_failure = 0
            if self._run_of_success >= self._success_threshold:
                self.outcome = Outcome.SUCCESS
        else:
            self._run_of_failure += 1
            self._run_of_success = 0
            if self._run_of_failure >= self._failure_threshold:
                self.outcome = Outcome.FAILURE
        return self.outcome


async def run_probe(
    kind: ProbeKind,
    probe: Probe,
    target: ProbeTarget,
    prober: Prober,
    clock: Clock,
    *,
    on_outcome: Callable[[ProbeKind, Outcome, str], None],
    on_failure: Callable[[ProbeKind, str], None],
) -> None:
    """Probe until cancelled; a startup probe ends with its first outcome.

    Args:
        on_outcome: called when the outcome changes, with the message of the try that changed it.
        on_failure: called for every counted failure.
    """
    period_s = float(probe.periodSeconds or 10)
    if probe.initialDelaySeconds > 0:
        await clock.sleep(probe.initialDelaySeconds)
    tracker = ProbeTracker(probe)
    fast_s = _FAST_FIRST_S
    # The first period is a grace: a process that has not opened its port yet has not failed.
    counted_at_s = clock.monotonic()
    while True:
        result = await prober.check(probe, target)
        now = clock.monotonic()
        waiting_for_first = kind is not ProbeKind.LIVENESS and tracker.outcome is not Outcome.SUCCESS
        before = tracker.outcome
        if result.ok:
            tracker.add(ok=True)
        elif not waiting_for_first or now - counted_at_s >= period_s:
            counted_at_s = now
            tracker.add(ok=False)
            on_failure(kind, result.message)
        if tracker.outcome is not before:
            on_outcome(kind, tracker.outcome, result.message)
            if kind is ProbeKind.STARTUP:
                return
        if waiting_for_first and not result.ok:
            await clock.sleep(min(fast_s, period_s))
            fast_s *= _FAST_GROWTH
        elif waiting_for_first and tracker.outcome is Outcome.UNDECIDED:
            await clock.sleep(min(_FAST_FIRST_S, period_s))
        else:
            await clock.sleep(period_s)


class RealProber:
    """Tries over the network and through the runtime. Close it when done."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._http: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def check(self, probe: Probe, target: ProbeTarget) -> Result:
        """One try; a probe that cannot be made is a failed one, with the reason as message."""
        timeout_s = float(probe.timeoutSeconds or 1)
        handler = probe.handler
        try:
            if handler.HasField("httpGet"):
                return await self._get(handler.httpGet, target, timeout_s)
            if handler.HasField("tcpSocket"):
                host = handler.tcpSocket.host or target.ip
                return await _connect(host, target.port(handler.tcpSocket.port), timeout_s)
            if handler.HasField("exec"):
                argv = list(handler.exec.command)
                result = await self._runtime.exec_sync(target.container_id, argv, timeout_s)
                return Result(result.exit_code == 0, result.output.strip() or f"exit code {result.exit_code}")
        except (ValueError, ContainerRuntimeError) as error:
            return Result(ok=False, message=str(error))
        return Result(ok=False, message="this kind of probe is not served: want httpGet, tcpSocket or exec")

    async def get(self, action: HTTPGetAction, target: ProbeTarget, timeout_s: float) -> Result:
        """An HTTP GET as hooks make it."""
        try:
            return await self._get(action, target, timeout_s)
        except ValueError as error:
            return Result(ok=False, message=str(error))

    async def _get(self, action: HTTPGetAction, target: ProbeTarget, timeout_s: float) -> Result:
        scheme = (action.scheme or "HTTP").lower()
        url = f"{scheme}://{action.host or target.ip}:{target.port(action.port)}/{action.path.lstrip('/')}"
        headers = {"User-Agent": "kube-probe/quarterdeck", "Accept": "*/*"}
        headers.update((header.name, header.value) for header in action.httpHeaders)
        if self._http is None:
            # No connection is kept: a probe asks whether a *new* client would be served.
            self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
        try:
            async with self._http.get(
                url,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                allow_redirects=False,
                ssl=False,
            ) as response:
                await response.content.read(_BODY_BYTES_MAX)
                ok = 200 <= response.status < 400
                return Result(ok, "" if ok else f"HTTP probe failed with statuscode: {response.status}")
        except TimeoutError:
            return Result(ok=False, message=f"Get {url!r}: no answer within {timeout_s:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return Result(ok=False, message=f"Get {url!r}: {error}")


async def _connect(host: str, port: int, timeout_s: float) -> Result:
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return Result(ok=False, message=f"dial tcp {host}:{port}: no answer within {timeout_s:g} s")
    except OSError as error:
        return Result(ok=False, message=f"dial tcp {host}:{port}: {error.strerror or error}")
    writer.close()
    return Result(ok=True)
