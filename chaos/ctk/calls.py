"""How a synchronous function of Chaos Toolkit reaches the engine: one ground, one loop, one call. Owns nothing else.

Which cluster: the folder in the environment variable QD_FOLDER, or the nearest ``.quarterdeck``.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from chaos.ground import Ground
from chaos.lookout import Lookout
from chaos.stage import Stage, Struck
from chaos.undo import only_one
from controlplane.base.errors import ConfigError, StatusError
from controlplane.cli.common import find_folder
from controlplane.local.cluster import LocalCluster

__all__ = ["ACT", "function", "on_stage"]

#: The name under which these strikes stand in the undo list.
ACT: Final = "chaos-toolkit"
_SETTLE_S: Final = 1.0


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
        return asyncio.run(do())


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


def function(
    name: str,
    doc: str,
    params: Mapping[str, str],
    module: str,
    work: Callable[[Stage, Mapping[str, Any]], Awaitable[Any]],
) -> Callable[..., Any]:
    """A function with that name, that documentation and these keyword arguments, all of them optional: Chaos Toolkit
    checks an experiment's arguments against the signature."""

    def call(**arguments: Any) -> Any:
        return on_stage(lambda stage: work(stage, {k: v for k, v in arguments.items() if v is not None}))

    call.__name__ = call.__qualname__ = name
    call.__module__ = module
    call.__doc__ = "\n".join([doc, *(f"    {param}: {text}" for param, text in params.items())])
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(each, inspect.Parameter.KEYWORD_ONLY, default=None) for each in params]
    )
    return call
