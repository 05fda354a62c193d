"""The chaos agent's gRPC port: who may order, and the record of every order.

Owns the check of the caller (an administrator's certificate, nothing else) and the audit log, one JSON line for each
order, refusal and healing: when, who, what, to whom, and how it went. TLS is not optional.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc

from chaos.agent.config import AgentConfig
from chaos.agent.orders import DEADLINE_MS_MAX, Order, Orders
from controlplane.base.clock import Clock
from controlplane.base.errors import Code, ConfigError, StatusError
from controlplane.client.tls import Reloader, caller_of
from controlplane.pb.quarterdeck.v1 import chaos_pb2 as pb
from controlplane.pb.quarterdeck.v1.chaos_pb2_grpc import ChaosAgentServicer, add_ChaosAgentServicer_to_server

__all__ = ["AgentServer", "AuditLog"]

_GRPC_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_MESSAGE_BYTES_MAX: Final = 64 * 1024
_DEADLINE_MS_MIN: Final = 1_000

T = TypeVar("T")


class AuditLog:
    """Appends lines to one file, which only its owner reads. A line is on disk before the answer leaves."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._clock = clock

    def note(self, **fields: Any) -> None:
        """One line."""
        line = json.dumps({"at_ms": self._clock.wall_ms(), **fields}) + "\n"
        os.write(self._fd, line.encode())
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class AgentServer(ChaosAgentServicer):
    """Serves ``quarterdeck.v1.ChaosAgent`` on one address.

    Args:
        tls: this machine's certificate; callers must show an administrator's of the same authority.
    """

    def __init__(self, config: AgentConfig, tls: Reloader, clock: Clock) -> None:
        self._config = config
        self._tls = tls
        self._clock = clock
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._audit = AuditLog(config.state_dir / "audit.jsonl", clock)
        self.orders = Orders(config, clock, note=self._unasked)
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self, listen: str) -> None:
        """Bind and serve. Raises ConfigError if the address cannot be had."""
        self._server = grpc.aio.server(
            options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX)),
            maximum_concurrent_rpcs=32,
        )
        add_ChaosAgentServicer_to_server(self, self._server)
        try:
            self.port = self._server.add_secure_port(listen, self._tls.server_credentials())
        except RuntimeError as error:
            raise ConfigError(f"--listen {listen}: the address cannot be bound; choose another") from error
        await self._server.start()
        self._audit.note(event="started", machine=self._config.machine, processes=sorted(self._config.processes))

    async def run(self) -> None:
        """Heal what the agent before this one left, then keep deadlines, until cancelled."""
        await self.orders.heal_all("left by an agent that ended")
        await self.orders.keep_deadlines()

    async def stop(self) -> None:
        """Close the port. What is in force is healed before: nobody else would."""
        if self._server is not None:
            await self._server.stop(grace=0.5)
        await self.orders.heal_all("the agent stops")
        self._audit.note(event="stopped")
        self._audit.close()

    # -- calls -------------------------------------------------------------------------------------------------------

    async def Describe(self, request: Any, context: Any) -> pb.ChaosDescribeResponse:  # noqa: N802
        """What there is."""

        async def describe() -> pb.ChaosDescribeResponse:
            answer = pb.ChaosDescribeResponse(machine=self._config.machine, impossible=self.orders.impossible())
            for process in self._config.processes.values():
                pid, stat = self.orders.stat(process.name)
                found = answer.processes.add(
                    name=process.name, kind=process.kind, endpoint=process.endpoint, pid=pid,
                    state=stat.state if stat is not None else "",
                )  # fmt: skip
                for uid, groups in self.orders.pods(process.name).items():
                    found.pods[uid].groups.extend(groups)
            for order in self.orders.in_force.values():
                answer.orders.add(
                    id=order.id, process=order.process, act=order.act, percent=order.percent, keep=order.keep,
                    failpoints=order.failpoints, mib=order.mib, where=order.where, place=order.place, bit=order.bit,
                    deadline_ms=max(0, order.until_ms - self._clock.wall_ms()),
                )  # fmt: skip
            return answer

        return await self._answer(context, "describe", {}, describe, quiet=True)

    async def Strike(self, request: pb.ChaosOrder, context: Any) -> pb.ChaosStruck:  # noqa: N802
        """Do one thing to one process."""

        async def strike() -> pb.ChaosStruck:
            if not _DEADLINE_MS_MIN <= request.deadline_ms <= DEADLINE_MS_MAX:
                raise StatusError(
                    Code.INVALID_ARGUMENT,
                    f"deadline {request.deadline_ms} ms: want {_DEADLINE_MS_MIN} to {DEADLINE_MS_MAX}",
                )
            order = Order(
                request.id, request.process, request.act, self._clock.wall_ms() + request.deadline_ms,
                request.percent, request.failpoints, request.keep, request.mib, request.where[:20], request.place,
                request.bit,
            )  # fmt: skip
            return pb.ChaosStruck(count=await self.orders.strike(order, renew=request.renew))

        what = {
            "order": request.id[:100], "process": request.process[:100], "act": request.act[:100],
            "deadline_ms": request.deadline_ms, "percent": request.percent, "failpoints": request.failpoints[:500],
            "keep": request.keep, "renew": request.renew, "mib": request.mib, "where": request.where[:20],
            "place": request.place, "bit": request.bit,
        }  # fmt: skip
        return await self._answer(context, "strike", what, strike)

    async def Heal(self, request: pb.ChaosHealRequest, context: Any) -> pb.ChaosHealResponse:  # noqa: N802
        """Undo one order."""

        async def heal() -> pb.ChaosHealResponse:
            return pb.ChaosHealResponse(count=await self.orders.heal(request.id))

        return await self._answer(context, "heal", {"order": request.id[:100]}, heal)

    async def _answer(
        self, context: Any, event: str, what: dict[str, Any], work: Callable[[], Awaitable[T]], *, quiet: bool = False
    ) -> T:
        caller = "nobody"
        try:
            identity = caller_of(context)
            caller = str(identity)
            if identity is None or not identity.is_admin:
                raise StatusError(
                    Code.PERMISSION_DENIED, f"the chaos agent takes orders of an administrator, not of {caller}"
                )
            answer = await work()
        except StatusError as error:
            self._audit.note(event=event, caller=caller, **what, outcome=f"refused: {error.message}")
            await context.abort(_GRPC_CODES[int(error.code)], error.message)
            raise
        except BaseException as error:
            self._audit.note(event=event, caller=caller, **what, outcome=f"unknown: {type(error).__name__}: {error}")
            raise
        if not quiet:
            self._audit.note(event=event, caller=caller, **what, outcome="done")
        return answer

    def _unasked(self, order: Order, outcome: str) -> None:
        self._audit.note(event="heal", caller="agent", order=order.id, process=order.process, act=order.act,
                         outcome=outcome)  # fmt: skip
