"""Values of a file that a person wrote, read or refused with the place named and the nearest name. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from controlplane.base.errors import ConfigError

__all__ = ["Reader", "kind", "near"]


class Reader:
    """Reads parts of one file. Every method refuses (ConfigError) what it does not want, with its place."""

    def __init__(self, file: str) -> None:
        self._file = file

    def refuse(self, where: str, why: str) -> Any:
        raise ConfigError(f"{self._file}: {f'{where}: ' if where else ''}{why}")

    def mapping(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.refuse(where, f"want a mapping, not {kind(value)}")
        return {str(key): item for key, item in value.items()}

    def items(self, value: Any, where: str) -> list[Any]:
        if value is not None and not isinstance(value, list):
            self.refuse(where, f"want a list, not {kind(value)}")
        return value or []

    def text(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not value.strip():
            self.refuse(where, "want a text")
        return str(value).strip()

    def number(self, value: Any, where: str, low: float = 0.0, high: float = 86_400.0) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(where, f"{value!r}: want a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, value: Any, where: str, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(where, f"{value!r}: want a whole number from {low} to {high}")
        return int(value)

    def yes_or_no(self, value: Any, where: str) -> bool:
        if not isinstance(value, bool):
            self.refuse(where, f"{value!r}: want true or false")
        return bool(value)

    def bounds(self, value: Any, where: str) -> tuple[float, float]:
        if isinstance(value, list):
            if len(value) != 2:
                self.refuse(where, "want a number, or [shortest, longest]")
            low, high = (self.number(item, where) for item in value)
            if low > high:
                self.refuse(where, f"[{low:g}, {high:g}]: the first is the shortest")
            return low, high
        only = self.number(value, where)
        return only, only

    def keys(self, value: Mapping[str, Any], where: str, allowed: Iterable[str]) -> None:
        for key in value:
            if key not in allowed:
                self.refuse(f"{where}.{key}" if where else key, f"unknown field{near(key, allowed)}")


def near(name: str, among: Iterable[str]) -> str:
    found = list(among)
    close = difflib.get_close_matches(name, found, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(found) or 'none'}"


def kind(value: Any) -> str:
    names: Sequence[tuple[type, str]] = (
        (dict, "a mapping"),
        (list, "a list"),
        (str, "a text"),
        (bool, "true or false"),
    )
    return next((text for each, text in names if isinstance(value, each)), "nothing" if value is None else "a number")
