"""Orders carried out on the processes of one machine, and undone: by whoever ordered, at the deadline, at the start.

Owns the list of what is in force, on disk (synced) before anything is done. An agent that starts heals what the one
before it left: it cannot know whether anybody still wants it. Knows nothing of who asks, nor of the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from chaos.agent.config import AgentConfig, ProcessConfig
from chaos.fault import FaultError
from chaos.groups import CpuGroup
from chaos.hog import Hogs
from controlplane.base.clock import Clock
from controlplane.base.errors import Code, ConfigError, StatusError
from controlplane.local import damage, pods
from controlplane.local.procfs import ProcessStat, began_s, boot_id, catches, stat_of

__all__ = ["ACTS", "Order", "Orders"]

#: Act -> whether it stays in force until it is healed.
ACTS: Final[Mapping[str, bool]] = {
    "kill": True, "stop": True, "pause": True, "kill-with-pods": True, "throttle": True, "failpoints": True,
    "flip": True, "memory": True, "cut-tail": False, "start": False,
}  # fmt: skip
DEADLINE_MS_MAX: Final = 3_600_000
ORDERS_MAX: Final = 100
_MIB_MAX: Final = 1 << 20
_MILLION: Final = 1_000_000
#: 2 has what flip and memory need; 1 is read.
_FORMAT: Final = 2
_STOPS_S: Final = 15.0
_START_S: Final = 30.0
_POLL_S: Final = 0.02
_WORDS_BYTES_MAX: Final = 500
#: The wall clock may have been set by so much since a process wrote its pid file.
_CLOCK_STEP_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Order:
    """One order. ``until_ms``: wall clock, when the agent heals it by itself."""

    id: str
    process: str
    act: str
    until_ms: int
    percent: int = 0
    failpoints: str = ""
    keep: float = 0.0
    mib: int = 0
    where: str = ""
    place: int = 0
    bit: int = 0
    #: flip: what undoes it.
    file: str = ""
    offset: int = 0
    byte: int = 0
    #: The process when it was struck, so that nobody else is continued in its place.
    pid: int = 0
    start_ticks: int = 0


class Orders:
    """See the module. Every method raises StatusError: what was asked is wrong, or the machine refused."""

    def __init__(self, config: AgentConfig, clock: Clock, *, note: Callable[[Order, str], None]) -> None:
        """``note``: hears of what is healed without being asked, and how that went."""
        self._config = config
        self._clock = clock
        self._note = note
        self._path = config.state_dir / "orders.json"
        config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.in_force: dict[str, Order] = self._load()
        self._hogs = Hogs(config.state_dir / "hogs")
        # One order at a time, also one that is healed at its deadline: what is still being done cannot be undone.
        self._turn = asyncio.Lock()

    # -- what there is ---------------------------------------------------------------------------------------------

    def impossible(self) -> dict[str, str]:
        """Act -> why it cannot be done here."""
        why = CpuGroup.missing()
        return {"throttle": why} if why is not None else {}

    def stat(self, name: str) -> tuple[int, ProcessStat | None]:
        """Pid and state of a process; 0: it does not run."""
        pid = _pid(self._process(name).pid_file)
        found = stat_of(pid) if pid else None
        return (pid, found) if found is not None and found.alive else (0, None)

    def pods(self, name: str) -> dict[str, list[int]]:
        """A node's pods that have processes: uid -> process groups."""
        state_dir = self._process(name).state_dir
        return {uid: list(groups) for uid, groups in pods.running(state_dir).items()} if state_dir is not None else {}

    # -- doing and undoing -----------------------------------------------------------------------------------------

    async def strike(self, order: Order, *, renew: bool = False) -> int:
        """Do it; returns a count, see ``ChaosStruck``. ``renew``: only move its deadline, if it is in force."""
        async with self._turn:
            return await self._strike(order, renew=renew)

    async def _strike(self, order: Order, *, renew: bool) -> int:
        process = self._process(order.process)
        if order.act not in ACTS:
            raise StatusError(Code.INVALID_ARGUMENT, f"act {order.act!r}: want one of {', '.join(ACTS)}")
        if not order.id or len(order.id) > 100:
            raise StatusError(Code.INVALID_ARGUMENT, f"id {order.id[:100]!r}: want 1 to 100 characters")
        known = self.in_force.get(order.id)
        if known is not None:
            if replace(known, until_ms=0, pid=0, start_ticks=0, file="", offset=0, byte=0) != replace(
                order, until_ms=0
            ):
                raise StatusError(Code.INVALID_ARGUMENT, f"order {order.id} is in force, and is another")
            self._save({**self.in_force, order.id: replace(known, until_ms=order.until_ms)})
            return 0
        if renew:
            raise StatusError(Code.NOT_FOUND, f"order {order.id} is not in force: it was healed")
        if order.act == "throttle" and not 1 <= order.percent <= 90:
            raise StatusError(Code.INVALID_ARGUMENT, f"percent {order.percent}: want 1 to 90")
        if order.act == "memory" and not 1 <= order.mib <= _MIB_MAX:
            raise StatusError(Code.INVALID_ARGUMENT, f"mib {order.mib}: want 1 to {_MIB_MAX}")
        pid, stat = self.stat(order.process)
        if stat is None and order.act not in {"cut-tail", "flip", "memory", "start", "failpoints", "kill-with-pods"}:
            raise StatusError(Code.FAILED_PRECONDITION, f"{order.process} does not run")
        if ACTS[order.act]:
            if len(self.in_force) >= ORDERS_MAX:
                raise StatusError(Code.RESOURCE_EXHAUSTED, f"{ORDERS_MAX} orders are in force: heal some first")
            if (other := self._same_of(order)) is not None:
                raise StatusError(
                    Code.FAILED_PRECONDITION, f"order {other} does that to {order.process}: heal it first"
                )
            if order.act == "flip":
                order = await asyncio.to_thread(_chosen, process, order, pid)
            order = replace(order, pid=pid, start_ticks=stat.start_ticks if stat is not None else 0)
            self._save({**self.in_force, order.id: order})
        return await self._do(order, process, pid)

    async def _do(self, order: Order, process: ProcessConfig, pid: int) -> int:
        match order.act:
            case "kill":
                _signal(pid, signal.SIGKILL)
                await self._until_gone(process)
            case "stop":
                _signal(pid, signal.SIGTERM)
                if not await self._until_gone(process):
                    _signal(pid, signal.SIGKILL)
                    return 1
            case "pause":
                _signal(pid, signal.SIGSTOP)
            case "kill-with-pods":
                found = pods.running(process.state_dir) if process.state_dir is not None else {}
                _signal(pid, signal.SIGKILL)
                await asyncio.to_thread(pods.kill, found)
                return len(found)
            case "throttle":
                await _refused(CpuGroup(_group(order)).throttle, [pid], order.percent)
            case "failpoints":
                self._arm(process, order.failpoints)
            case "flip":
                await asyncio.to_thread(damage.flip, Path(order.file), order.offset, order.bit)
                return order.offset
            case "memory":
                await _refused(self._hogs.take, _token(order), order.mib)
            case "cut-tail":
                return await asyncio.to_thread(_cut, process, order.keep, pid)
            case "start":
                await self._start(process)
        return 0

    async def heal(self, order_id: str) -> int:
        """Undo it; one that is not in force is healed."""
        async with self._turn:
            return await self._heal(order_id)

    async def _heal(self, order_id: str) -> int:
        order = self.in_force.get(order_id)
        if order is None:
            return 0
        process, count = self._process(order.process), 0
        if order.act in {"kill", "stop", "kill-with-pods"}:
            # Cut short, by whoever ordered or by our own end: it may be on its way out, and not to be taken for healed.
            pid, stat = self.stat(order.process)
            if stat is not None and (pid, stat.start_ticks) == (order.pid, order.start_ticks):
                await self._until_gone(process)
            await self._start(process)
        elif order.act == "pause":
            stat = stat_of(order.pid)
            if stat is not None and stat.start_ticks == order.start_ticks:
                _signal(order.pid, signal.SIGCONT)
        elif order.act == "throttle":
            group = CpuGroup(_group(order))
            count = await asyncio.to_thread(group.throttled)
            await _refused(group.release)
        elif order.act == "failpoints":
            self._arm(process, "")
        elif order.act == "flip":
            # It may run on what is damaged, or have refused to.
            _signal(self.stat(order.process)[0], signal.SIGKILL)
            await self._until_gone(process)
            await asyncio.to_thread(damage.restore, Path(order.file), order.offset, order.byte)
            await self._start(process)
        elif order.act == "memory":
            count = await asyncio.to_thread(self._hogs.taken, _token(order))
            await asyncio.to_thread(self._hogs.release, _token(order))
        self._save({key: other for key, other in self.in_force.items() if key != order_id})
        return count

    async def heal_all(self, why: str) -> None:
        """Undo everything that is in force; what fails is noted, and tried again by :meth:`keep_deadlines`."""
        for order in list(self.in_force.values()):
            async with self._turn:
                await self._heal_unasked(order, why)

    async def keep_deadlines(self) -> None:
        """Heal whatever outlives its deadline, until cancelled."""
        while True:
            for order in list(self.in_force.values()):
                if self._clock.wall_ms() >= order.until_ms:
                    async with self._turn:
                        # Looked at again: it may have been healed, or renewed, while another had its turn.
                        now = self.in_force.get(order.id)
                        if now is not None and self._clock.wall_ms() >= now.until_ms:
                            await self._heal_unasked(now, "deadline")
            await self._clock.sleep(0.1)

    async def _heal_unasked(self, order: Order, why: str) -> None:
        try:
            await self._heal(order.id)
        except (StatusError, OSError) as error:
            self._note(order, f"{why}: not healed: {error}")
            self._save({**self.in_force, order.id: replace(order, until_ms=self._clock.wall_ms() + 1_000)})
        else:
            self._note(order, f"{why}: healed")

    def _same_of(self, order: Order) -> str | None:
        """An order in force that cannot be had twice on one process: what undoes one would undo the other, or not."""
        if order.act not in {"throttle", "flip"}:
            return None
        same = (o.id for o in self.in_force.values() if (o.process, o.act) == (order.process, order.act))
        return next(same, None)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _process(self, name: str) -> ProcessConfig:
        found = self._config.processes.get(name)
        if found is None:
            names = ", ".join(self._config.processes)
            raise StatusError(Code.NOT_FOUND, f"process {name[:100]!r} is none of this agent's: {names}")
        return found

    async def _until_gone(self, process: ProcessConfig) -> bool:
        deadline_s = self._clock.monotonic() + _STOPS_S
        while self.stat(process.name)[1] is not None:
            if self._clock.monotonic() > deadline_s:
                return False
            await self._clock.sleep(_POLL_S)
        return True

    async def _start(self, process: ProcessConfig) -> None:
        if self.stat(process.name)[1] is not None:
            return
        # Its words into a file: what it starts may hold on to a pipe for as long as it runs.
        with tempfile.TemporaryFile() as words:
            try:
                child = await asyncio.create_subprocess_exec(
                    *process.start, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True
                )
                async with asyncio.timeout(_START_S):
                    await child.wait()
            except OSError as error:
                raise StatusError(Code.INTERNAL, f"{process.start[0]}: {error.strerror or error}") from error
            except TimeoutError as error:
                child.kill()
                await child.wait()
                raise StatusError(
                    Code.DEADLINE_EXCEEDED, f"{process.start[0]} did not end in {_START_S:g} s"
                ) from error
            if child.returncode != 0:
                words.seek(0)
                text = words.read(_WORDS_BYTES_MAX).decode(errors="replace").strip()
                raise StatusError(Code.INTERNAL, f"{' '.join(process.start)}: exit {child.returncode}: {text}")

    def _arm(self, process: ProcessConfig, spec: str) -> None:
        if process.failpoints_file is None:
            raise StatusError(Code.FAILED_PRECONDITION, f"{process.name} has no failpoints-file in the configuration")
        temporary = process.failpoints_file.with_suffix(".tmp")
        temporary.write_text(spec)
        os.replace(temporary, process.failpoints_file)
        pid, _ = self.stat(process.name)
        if pid and catches(pid, signal.SIGUSR2):
            _signal(pid, signal.SIGUSR2)
        elif spec:
            raise StatusError(Code.FAILED_PRECONDITION, f"{process.name} does not run, or listens to no failpoints")

    def _save(self, orders: dict[str, Order]) -> None:
        temporary = self._path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"version": _FORMAT, "orders": [asdict(order) for order in orders.values()]}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self.in_force = orders

    def _load(self) -> dict[str, Order]:
        try:
            raw = json.loads(self._path.read_text(encoding="utf-8"))
            if raw["version"] not in (1, _FORMAT):
                raise ConfigError(f"{self._path}: format version {raw['version']}, this program reads up to {_FORMAT}")
            return {order["id"]: Order(**order) for order in raw["orders"]}
        except FileNotFoundError:
            return {}
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{self._path} is damaged ({error}): what is to be undone is not known") from error


def _pid(path: Path) -> int:
    """From a file with a number, or a record of a local cluster. 0: nobody, or somebody else has the pid now: a number
    alone says nobody's start, but who began after it was written is not whom it meant."""
    try:
        text = path.read_text().strip()
        if text.isdecimal():
            return int(text) if began_s(int(text)) <= path.stat().st_mtime + _CLOCK_STEP_S else 0
        record: dict[str, Any] = json.loads(text)
        stat = stat_of(int(record["pid"]))
        mine = stat is not None and stat.start_ticks == record["start_ticks"] and record["boot_id"] == boot_id()
        return int(record["pid"]) if mine else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _signal(pid: int, signum: signal.Signals) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.kill(pid, signum)


def _group(order: Order) -> str:
    return f"qd-agent-{order.process}-{order.start_ticks}"


def _token(order: Order) -> str:
    """A file's name, of an id that was chosen elsewhere."""
    return hashlib.sha256(order.id.encode()).hexdigest()[:16]


def _stopped(process: ProcessConfig, pid: int) -> Path:
    """The data of a replica that is stopped, as those must be that are damaged."""
    if process.data_dir is None:
        raise StatusError(Code.FAILED_PRECONDITION, f"{process.name} has no data-dir in the configuration")
    if pid:
        raise StatusError(Code.FAILED_PRECONDITION, f"{process.name} runs: only a stopped replica's data are damaged")
    return process.data_dir


def _chosen(process: ProcessConfig, order: Order, pid: int) -> Order:
    """With the byte that will be struck, and what it is now."""
    if order.where not in {"wal", "snapshot"} or not 0 <= order.place < _MILLION or not 0 <= order.bit <= 7:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"flip of {order.where[:20]!r}, {order.place}, {order.bit}: want wal or snapshot, "
            f"0 to {_MILLION - 1}, 0 to 7",
        )  # fmt: skip
    try:
        path, low, high = damage.rot_target(_stopped(process, pid), order.where)
    except ConfigError as error:
        raise StatusError(Code.FAILED_PRECONDITION, str(error)) from error
    offset = low + (high - low) * order.place // _MILLION
    with path.open("rb") as file:
        file.seek(offset)
        return replace(order, file=str(path), offset=offset, byte=file.read(1)[0])


def _cut(process: ProcessConfig, keep: float, pid: int) -> int:
    data_dir = _stopped(process, pid)
    if not 0 <= keep < 1:
        raise StatusError(Code.INVALID_ARGUMENT, f"keep {keep}: want 0 to less than 1")
    try:
        tail = damage.last_frame(data_dir)
    except ConfigError as error:
        raise StatusError(Code.FAILED_PRECONDITION, str(error)) from error
    return 0 if tail is None else tail.cut(max(1, int((tail.end - tail.start) * keep)) if keep else 0)


async def _refused(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return await asyncio.to_thread(function, *arguments)
    except FaultError as error:
        raise StatusError(Code.INTERNAL, str(error)) from error
