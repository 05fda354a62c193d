"""Probes for Chaos Toolkit, made from the table of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chaos.ctk.calls import function
from chaos.probes import PROBES

__all__ = ["FUNCTIONS"]


def _probe(name: str) -> Callable[..., Any]:
    probe = PROBES[name]
    return function(name, probe.doc, probe.params, __name__, lambda stage, arguments: probe.ask(stage, **arguments))


FUNCTIONS: dict[str, Callable[..., Any]] = {name: _probe(name) for name in PROBES}
globals().update(FUNCTIONS)
