"""Parameters and targets of faults, read with their unit, their range and a refusal that names them. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from chaos.fault import JSON
from controlplane.base.errors import ConfigError

__all__ = ["integer", "known", "nodes_only", "number", "word"]


def known(fault: str, params: Mapping[str, JSON], allowed: Iterable[str]) -> None:
    """Refuse parameters that the fault does not have; names the nearest."""
    names = sorted(allowed)
    for name in params:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(names) or 'none'}"
            raise ConfigError(f"{fault}: unknown parameter {name!r}{hint}")


def nodes_only(fault: str, targets: Iterable[str], nodes: Iterable[str]) -> None:
    """Refuse targets that are no nodes; names those there are."""
    there = list(nodes)
    for name in targets:
        if name not in there:
            raise ConfigError(f"{fault}: {name} is no node; there are: {', '.join(there)}")


def number(fault: str, params: Mapping[str, JSON], name: str, default: float, low: float, high: float) -> float:
    """A number in [low, high]."""
    value = params.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{fault}: {name} is {value!r}: want a number from {low:g} to {high:g}")
    return float(value)


def integer(fault: str, params: Mapping[str, JSON], name: str, default: int, low: int, high: int) -> int:
    """A whole number in [low, high]."""
    value = params.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{fault}: {name} is {value!r}: want a whole number from {low} to {high}")
    return value


def word(fault: str, params: Mapping[str, JSON], name: str, default: str, among: Iterable[str]) -> str:
    """One of some words."""
    value, words = params.get(name, default), list(among)
    if value not in words:
        raise ConfigError(f"{fault}: {name} is {value!r}: want one of {', '.join(words)}")
    return str(value)
