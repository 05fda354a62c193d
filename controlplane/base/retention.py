"""How much history is kept: etcd's two settings of automatic compaction, parsed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from controlplane.base.errors import ConfigError

__all__ = ["Retention", "parse_retention"]

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600}
_PART = re.compile(r"(\d+)([smh])")


@dataclass(frozen=True, slots=True)
class Retention:
    """How much history stays: so many seconds of it, or so many revisions. Both None: all of it."""

    seconds: float | None = None
    revisions: int | None = None


def parse_retention(mode: str, text: str) -> Retention:
    """etcd's two settings: ``periodic`` with a duration (1h30m, 10s; a bare number is hours), ``revision`` with a
    number; 0 turns compaction off.

    Raises:
        ConfigError: naming the setting and what is allowed.
    """
    if mode == "revision":
        if not text.isdecimal():
            raise ConfigError(f"auto-compaction retention {text!r}: want a number of revisions, such as 1000")
        return Retention(revisions=int(text) or None)
    if mode != "periodic":
        raise ConfigError(f"auto-compaction mode {mode!r}: want periodic or revision")
    if text.isdecimal():
        return Retention(seconds=float(text) * 3_600 or None)
    if not text or _PART.sub("", text):
        raise ConfigError(
            f"auto-compaction retention {text!r}: want a duration such as 5m or 1h30m, or a number of hours"
        )
    return Retention(seconds=float(sum(int(n) * _UNITS_S[unit] for n, unit in _PART.findall(text))) or None)
