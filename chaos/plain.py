"""Anybody's history: operations on keys as JSON lines, read into the terms of ``chaos.records``.

Owns the format that docs/verdicts.md describes, and saying which line of a file breaks it and how. Judges nothing.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from chaos.records import Compare, Header, History, Op
from controlplane.base.errors import ConfigError

__all__ = ["LINES_MAX", "parse"]

#: More than this is no history to be judged in one go.
LINES_MAX: Final = 2_000_000
_OPS: Final = ("put", "get", "delete", "cas")
_OUTCOMES: Final = {"ok": "ok", "fail": "fail", "unknown": "info", "info": "info"}
_FIELDS: Final = (
    "process", "op", "key", "value", "expected", "swapped", "found", "call", "return", "outcome", "revision",
    "mod_revision", "version", "stale_ok", "id",
)  # fmt: skip
_LAST: Final = 1 << 62


class _LineError(ValueError):
    """What is wrong with a line."""


def parse(name: str, lines: Iterable[str]) -> History:
    """A history from its lines; blank lines and those that begin with ``#`` say nothing.

    Raises:
        ConfigError: a line is not what the format allows: says file, line, what and what would be right.
    """
    history = History(Header(name, "", "", []))
    initial: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if number > LINES_MAX:
            raise ConfigError(f"{name}: more than {LINES_MAX} lines; split it")
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict):
                raise _LineError("want a JSON object")
            if "initial" in raw:
                if history.ops or initial:
                    raise _LineError("'initial' must come before every operation, once")
                initial = _initial(raw)
            else:
                history.ops.append(_op(raw, number))
        except (_LineError, json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"{name}, line {number}: {error}; see docs/verdicts.md") from error
    if not history.ops:
        raise ConfigError(f"{name} has no operations; see docs/verdicts.md")
    history.ops[:0] = _as_writes(initial, history.ops)
    return history


def _initial(raw: Mapping[str, Any]) -> dict[str, str]:
    held = raw["initial"]
    if not isinstance(held, dict) or len(raw) != 1 or not all(isinstance(value, str) for value in held.values()):
        raise _LineError('want {"initial": {KEY: VALUE, …}} with values as strings')
    return held


def _as_writes(initial: Mapping[str, str], ops: list[Op]) -> list[Op]:
    """What was there before, as writes before everything, in revisions before every other."""
    begin = min(op.call_ns for op in ops)
    revisions = [op.revision for op in ops if op.revision]
    first = min(revisions, default=0) - len(initial)
    return [
        Op(
            -n - 1, "initial", "put", "", key, begin - 2 * (len(initial) - n), begin - 2 * (len(initial) - n) + 1, "ok",
            value, part="txn", revision=first + n if revisions else 0,
        )
        for n, (key, value) in enumerate(initial.items())
    ]  # fmt: skip


def _op(raw: Mapping[str, Any], number: int) -> Op:
    for field in raw:
        if field not in _FIELDS:
            near = difflib.get_close_matches(field, _FIELDS, n=1)
            raise _LineError(f"field {field!r} is unknown" + (f", did you mean {near[0]!r}?" if near else ""))
    kind = _one_of(raw, "op", _OPS)
    outcome = _OUTCOMES[_one_of(raw, "outcome", _OUTCOMES)]
    call_ns = _time(raw, "call")
    if call_ns is None:
        raise _LineError("field 'call' is missing: when the operation was asked, in seconds")
    return_ns = _time(raw, "return")
    if return_ns is None:
        if outcome == "ok":
            raise _LineError("field 'return' is missing: an operation that is ok was answered at some time")
        return_ns = _LAST
    if return_ns < call_ns:
        raise _LineError(f"'return' {raw['return']} is before 'call' {raw['call']}")
    key = _text(raw, "key")
    if key is None:
        raise _LineError("field 'key' is missing")
    common: dict[str, Any] = {
        "id": number,
        "process": _text(raw, "process") or "?",
        "endpoint": "",
        "key": key,
        "call_ns": call_ns,
        "return_ns": return_ns,
        "outcome": outcome,
        "part": "txn",
        "revision": _count(raw, "revision"),
    }
    if kind == "get":
        return Op(
            kind="get", value=_text(raw, "value"), mod_revision=_count(raw, "mod_revision"),
            version=_count(raw, "version"), serializable=_flag(raw, "stale_ok") or False, **common,
        )  # fmt: skip
    value = _text(raw, "value")
    if kind == "delete":
        return Op(kind="delete", succeeded=_flag(raw, "found"), **common)
    if value is None:
        raise _LineError(f"field 'value' is missing: what the {kind} wrote")
    if kind == "put":
        return Op(kind="put", value=value, **common)
    return _cas(raw, common, value)


def _cas(raw: Mapping[str, Any], common: dict[str, Any], value: str) -> Op:
    if "expected" not in raw:
        raise _LineError("field 'expected' is missing: what the cas compares with, null for a key that is not there")
    expected, swapped = _text(raw, "expected"), _flag(raw, "swapped")
    if common["outcome"] == "ok" and swapped is None:
        raise _LineError("field 'swapped' is missing: a cas that is ok says whether it wrote")
    key = common["key"]
    compare: Compare = (key, "create", 0) if expected is None else (key, "value", expected)
    return Op(kind="txn", compares=(compare,), then=(("put", key, value),), succeeded=swapped, **common)


def _one_of(raw: Mapping[str, Any], field: str, allowed: Iterable[str]) -> str:
    value = raw.get(field)
    if not isinstance(value, str) or value not in allowed:
        said = "is missing" if field not in raw else f"is {value!r}"
        raise _LineError(f"field {field!r} {said}, want one of: {', '.join(allowed)}")
    return value


def _text(raw: Mapping[str, Any], field: str) -> str | None:
    value = raw.get(field)
    if value is not None and not isinstance(value, str):
        raise _LineError(f"field {field!r} is {json.dumps(value)}, want a string or null")
    return value


def _count(raw: Mapping[str, Any], field: str) -> int:
    value = raw.get(field, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _LineError(f"field {field!r} is {json.dumps(value)}, want a whole number >= 0")
    return value


def _flag(raw: Mapping[str, Any], field: str) -> bool | None:
    value = raw.get(field)
    if value is not None and not isinstance(value, bool):
        raise _LineError(f"field {field!r} is {json.dumps(value)}, want true or false")
    return value


def _time(raw: Mapping[str, Any], field: str) -> int | None:
    value = raw.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise _LineError(f"field {field!r} is {json.dumps(value)}, want seconds as a number below 1e9")
    return round(value * 1_000_000_000)
