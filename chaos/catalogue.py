"""What experiments may name: actions and probes with their arguments, faults with their usual target. A value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Catalogue"]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """``actions`` and ``probes``: function -> argument -> a sentence. ``faults``: name -> the selector it is aimed at
    when an experiment gives none (empty: it has no target)."""

    actions: Mapping[str, Mapping[str, str]]
    probes: Mapping[str, Mapping[str, str]]
    faults: Mapping[str, str]
