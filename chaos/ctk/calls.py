"""How a synchronous function of Chaos Toolkit reaches the engine: one ground per call, one loop per process.

gRPC's channels belong to the loop they were made on, so all calls of a process, from whichever of Chaos Toolkit's
threads, run on one, in a thread of its own.

Which cluster: the folder in the environment variable QD_FOLDER, or the nearest ``.quarterdeck``.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import inspect
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from chaos.ground import Ground
from chaos.lookout import Lookout
from chaos.stage import Stage, Struck
from chaos.undo import only_one
from controlplane.base.errors import ConfigError, QuarterdeckError, StatusError
from controlplane.cli.common import find_folder
from controlplane.local.cluster import LocalCluster

__all__ = ["ACT", "function", "on_stage"]

#: The name under which these strikes stand in the undo list.
ACT: Final = "chaos-toolkit"
_SETTLE_S: Final = 1.0
_ENDS_S: Final = 10.0


class _Loop:
    """A loop in a thread, begun by the first call and ended with the process."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="quarterdeck", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            # Only if whoever waits was interrupted: the work ends first, with what it puts back.
            if not future.done():
                future.cancel()
                concurrent.futures.wait([future], _ENDS_S)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_ENDS_S)
        if not self._loop.is_running():
            self._loop.close()


@cache
def _loop() -> _Loop:
    return _Loop()


def on_stage(work: Callable[[Stage], Awaitable[Any]]) -> Any:
    """Open the cluster, with what earlier calls have struck, do one thing, and close it.

    Raises:
        ConfigError: there is no cluster here, or a run of ours is at work on it.
        QuarterdeckError: what the work raises.
    """
    folder = Path(os.environ["QD_FOLDER"]) if "QD_FOLDER" in os.environ else find_folder()
    if folder is None or not LocalCluster.exists(folder):
        raise ConfigError("no local cluster here: start one with make cluster, or set QD_FOLDER")
    cluster = LocalCluster.open(folder)

    async def do() -> Any:
        async with (
            Ground.open(cluster, say=lambda _: None, broken=True) as ground,
            Lookout(ground.replicas, ground.clock, lambda *_: None) as lookout,
        ):
            stage = await _stage(ground, lookout)
            return await work(stage)

    with only_one(folder / "chaos"):
        return _loop().run(do())


async def _stage(ground: Ground, lookout: Lookout) -> Stage:
    """As the calls before have left it: a fault's ``says`` and the leader it hit are in the undo list."""
    deadline_s = ground.clock.monotonic() + _SETTLE_S
    while ground.clock.monotonic() < deadline_s and lookout.leader()[0] is None:
        await ground.clock.sleep(0.02)
    await ground.look()
    try:
        async with asyncio.timeout(_SETTLE_S):
            wanted = await ground.count_wanted()
    except (TimeoutError, StatusError):
        wanted = 0  # nobody answers: what is wanted is not known, and what needs it waits for nothing
    stage = Stage(
        ground=ground, lookout=lookout, act=ACT, n=1, rand=ground.rand, wanted=wanted, by=ACT,
        allow_quorum_loss=os.environ.get("QD_CHAOS_ALLOW_QUORUM_LOSS") == "1",
    )  # fmt: skip
    for entry in reversed(ground.undo.entries):
        stage.struck.append(Struck(entry))
        stage.excused.update(entry.strike.excused)
        stage.first_fault_s = stage.first_fault_s or stage.now_s()
        if any(victim in ground.seen.replicas for victim in entry.strike.victims) and stage.leader_before is None:
            stage.leader_fault_s = stage.now_s()
            stage.leader_before = next(v for v in entry.strike.victims if v in ground.seen.replicas)
    return stage


def _interruption(error: QuarterdeckError) -> BaseException:
    """What ends a run of Chaos Toolkit: it takes every Exception of an activity for part of a run that goes on. The
    error itself where somebody else called."""
    return SystemExit(str(error)) if "chaoslib.run" in sys.modules else error


def function(
    name: str,
    doc: str,
    params: Mapping[str, str],
    module: str,
    work: Callable[[Stage, Mapping[str, Any]], Awaitable[Any]],
    *,
    ends_run: bool = False,
) -> Callable[..., Any]:
    """A function with that name, that documentation and these keyword arguments, all of them optional: Chaos Toolkit
    checks an experiment's arguments against the signature. ``ends_run``: a failure interrupts the run, so that what was
    never broken is not taken for borne."""

    def call(**arguments: Any) -> Any:
        try:
            return on_stage(lambda stage: work(stage, {k: v for k, v in arguments.items() if v is not None}))
        except QuarterdeckError as error:
            if not ends_run:
                raise
            raise _interruption(error) from error

    call.__name__ = call.__qualname__ = name
    call.__module__ = module
    call.__doc__ = "\n".join([doc, *(f"    {param}: {text}" for param, text in params.items())])
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, default=None) for each in params]
    )
    return call
