"""The store stays pure: what its source may not do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import controlplane.store

FORBIDDEN = {
    "asyncio", "datetime", "grpc", "logging", "multiprocessing", "os", "pathlib", "random", "secrets", "socket",
    "subprocess", "sys", "tempfile", "threading", "time", "uuid", "controlplane.raft", "controlplane.transport",
    "controlplane.base.clock", "controlplane.base.rand",
}  # fmt: skip
#: Async signatures only: the protocol of stores, which this package does not implement.
PROTOCOLS = {"kv.py"}
FILES = sorted(Path(controlplane.store.__file__).parent.glob("*.py"))


def problems(source: str) -> list[str]:
    """Impure imports and calls, and sets whose iteration order could reach the state."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [f"{node.lineno}: import {name}" for name in names if _is_forbidden(name)]  # type: ignore[attr-defined]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in {"open", "id", "hash", "input", "print", "set", "eval", "exec"}:
                found.append(f"{node.lineno}: {node.func.id}()")
        elif isinstance(node, ast.Set | ast.SetComp):
            found.append(f"{node.lineno}: a set")
        elif isinstance(node, ast.AsyncFunctionDef | ast.Await):
            found.append(f"{node.lineno}: async")
        elif isinstance(node, ast.Constant) and isinstance(node.value, float):
            found.append(f"{node.lineno}: a float")
    return found


def _is_forbidden(name: str) -> bool:
    parts = name.split(".")
    return any(".".join(parts[: size + 1]) in FORBIDDEN for size in range(len(parts)))


@pytest.mark.parametrize("path", [path for path in FILES if path.name not in PROTOCOLS], ids=lambda path: path.name)
def test_no_clock_random_io_or_set_order(path: Path) -> None:
    assert problems(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    ["import time", "from os import path", "from controlplane.base import clock", "x = {1, 2}", "open('f')", "y = 0.5"],
)
def test_the_check_finds_what_it_is_for(source: str) -> None:
    assert problems(source)


def test_modules_stay_small() -> None:
    assert {path.name: lines for path in FILES if (lines := len(path.read_text().splitlines())) > 500} == {}
