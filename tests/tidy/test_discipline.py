"""Time and randomness are handed in, and nothing from outside is unpickled."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.tidy.sources import modules, parsed

#: Calls and references that read a clock, wait, or draw lots.
BANNED = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep"},
    "datetime": {"now", "utcnow", "today"},
    "os": {"urandom", "getrandom"},
    "random": None,
    "secrets": None,
    "uuid": {"uuid1", "uuid4", "uuid6", "uuid7", "getnode"},
}
#: Where it is the business of the code: the seams themselves, and commands that run alone and wait on processes.
#: chaos/, examples/ and tests/ are not looked at: they are outside the system.
ALLOWED = (
    "controlplane/base/clock.py",
    "controlplane/base/rand.py",
    "controlplane/cli/",
    "controlplane/local/",
)


def uses(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """What is used of :data:`BANNED`, as ``module.name``, and the line."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname or alias.name: alias.name for alias in node.names if alias.name in BANNED}
        elif isinstance(node, ast.ImportFrom) and node.module in BANNED:
            banned = BANNED[node.module]
            for alias in node.names:
                if node.module == "datetime":
                    aliases[alias.asname or alias.name] = "datetime"
                elif banned is None or alias.name in banned:
                    yield f"{node.module}.{alias.name}", node.lineno
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        value = node.value
        inner = value.attr if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) else None
        name = value.id if isinstance(value, ast.Name) else None
        module = aliases.get(name) if name else "datetime" if inner in {"datetime", "date"} else None
        if module is None:
            continue
        banned = BANNED[module]
        if banned is None or node.attr in banned:
            yield f"{module}.{node.attr}", node.lineno


def test_clock_and_random_are_handed_in() -> None:
    found = [
        f"{name}:{line}: {use}; take a Clock or a Rand (controlplane.base) instead"
        for name in modules("controlplane", "node")
        if not name.startswith(ALLOWED)
        for use, line in uses(parsed(name))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import time\ntime.sleep(1)", ["time.sleep"]),
        ("import time as t\nt.monotonic", ["time.monotonic"]),
        ("from time import monotonic", ["time.monotonic"]),
        ("import time\ntime.gmtime()", []),
        ("from datetime import datetime\ndatetime.now()", ["datetime.now"]),
        ("import datetime\ndatetime.datetime.now()", ["datetime.now"]),
        ("from datetime import datetime\ndatetime.fromtimestamp(0)", []),
        ("import random\nrandom.random()", ["random.random"]),
        ("from uuid import uuid4", ["uuid.uuid4"]),
        ("import uuid\nuuid.UUID(bytes=b)", []),
        ("import os\nos.urandom(1)\nos.replace(1, 2)", ["os.urandom"]),
        ("clock.monotonic()\nself.random.random()", []),
    ],
)
def test_the_rule_sees_what_it_should(source: str, found: list[str]) -> None:
    assert [use for use, _ in uses(ast.parse(source))] == found


def imports_of(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_nothing_is_pickled() -> None:
    picklers = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle"}
    found = {n: imports_of(parsed(n)) & picklers for n in modules("controlplane", "node", "chaos", "examples")}
    assert {name: names for name, names in found.items() if names} == {}
