"""Actions for Chaos Toolkit: every fault (hyphens are underscores) and every step of ours, made from their tables."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from chaos.ctk.calls import function
from chaos.faults import REGISTRY
from chaos.stage import Stage, fault_arguments
from chaos.steps import STEPS
from controlplane.base.errors import QuarterdeckError

__all__ = ["FUNCTIONS"]


async def _strike(stage: Stage, name: str, arguments: Mapping[str, Any]) -> Any:
    struck = await stage.inject(name, arguments)
    if "for_s" in arguments:
        await asyncio.sleep(float(arguments["for_s"]))
        await stage.heal(struck)
    return {"victims": list(struck.entry.strike.victims), "says": struck.entry.strike.says, **struck.facts}


async def _or_heal(stage: Stage, work: Awaitable[Any]) -> Any:
    """An action that fails ends the run (:func:`function`), and Chaos Toolkit plays no rollbacks then: what was struck
    is taken back here."""
    try:
        return await work
    except QuarterdeckError:
        await stage.heal_all()
        raise


def _fault(name: str, params: Mapping[str, str]) -> Callable[..., Any]:
    return function(
        name.replace("-", "_"), REGISTRY[name].doc, params, __name__,
        lambda stage, arguments: _or_heal(stage, _strike(stage, name, arguments)), ends_run=True,
    )  # fmt: skip


def _step(name: str) -> Callable[..., Any]:
    step = STEPS[name]
    return function(
        name, step.doc, step.params, __name__,
        lambda stage, arguments: _or_heal(stage, step.do(stage, **arguments)), ends_run=True,
    )  # fmt: skip


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{func: _fault(func.replace("_", "-"), params) for func, params in fault_arguments().items()},
    **{name: _step(name) for name in STEPS},
}
globals().update(FUNCTIONS)
