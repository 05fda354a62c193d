"""The search in stretches never refuses what some order explains: on histories made from an order, with clients at the
same time, outcomes nobody knows, and values that come again."""

from __future__ import annotations

import random

import pytest

from chaos.checkers.search import check_by_search
from chaos.findings import Verdict
from chaos.records import Header, History, Op


def legal(seed: int, *, count: int = 150, clients: int = 5, unique: bool = True) -> History:
    """Each operation takes effect at one moment between its call and its return; an unknown one later too, or never."""
    rand = random.Random(seed)
    plans: list[tuple[float, float, float, str, bool]] = []
    for client in range(clients):
        now = rand.random()
        for _ in range(count // clients):
            call = now + rand.random()
            end = call + rand.random() * 4
            unknown = rand.random() < 0.06
            point = call + rand.random() * (end - call) if not unknown else call + rand.random() * 40
            plans.append((point, call, end, f"c{client}", unknown))
            now = end
    held: str | None = None
    history = History(Header("r", "", "now", []))
    for number, (_, call, end, process, unknown) in enumerate(sorted(plans), start=1):
        value = f"v{number}" if unique else f"v{rand.randrange(4)}"
        common = {
            "id": number, "process": process, "endpoint": "", "key": "k", "call_ns": int(call * 1e9),
            "return_ns": int(end * 1e9), "outcome": "info" if unknown else "ok", "part": "txn",
        }  # fmt: skip
        never = unknown and rand.random() < 0.5
        kind = rand.choice(["put", "get", "get", "delete", "swap", "swap"])
        if kind == "get":
            history.ops.append(Op(kind="get", value=held, **common))  # type: ignore[arg-type]
        elif kind == "put":
            history.ops.append(Op(kind="put", value=value, **common))  # type: ignore[arg-type]
            held = held if never else value
        elif kind == "delete":
            history.ops.append(Op(kind="delete", **common))  # type: ignore[arg-type]
            held = held if never else None
        else:
            expected = held if rand.random() < 0.6 else f"v{rand.randrange(1, number + 1)}"
            compare = ("k", "create", 0) if expected is None else ("k", "value", expected)
            went = expected == held
            history.ops.append(
                Op(
                    kind="txn", compares=(compare,), then=(("put", "k", value),), otherwise=(("get", "k"),),  # type: ignore[arg-type]
                    succeeded=None if unknown else went,
                    results=() if unknown or went else (None if held is None else (held, 0, 0, 0),),
                    **common,  # type: ignore[arg-type]
                )
            )  # fmt: skip
            held = value if went and not never else held
    return history


@pytest.mark.parametrize("unique", [True, False])
def test_what_an_order_explains_is_never_refused(unique: bool) -> None:
    for seed in range(12):
        (finding,) = check_by_search(legal(seed, unique=unique))
        assert finding.verdict is not Verdict.FAIL, (seed, finding.violations)


def test_a_read_of_a_value_that_was_replaced_is_refused_wherever_it_is() -> None:
    caught = tried = 0
    for seed in range(12):
        history = legal(seed)
        reads = [op for op in history.ops if op.kind == "get" and op.outcome == "ok" and op.value is not None]
        old, late = reads[2], reads[-3]
        tried += 1
        history.ops[late.id - 1] = Op(**{**{f: getattr(late, f) for f in late.__slots__}, "value": old.value})
        (finding,) = check_by_search(history)
        caught += finding.verdict is Verdict.FAIL
    # Not all: where an operation of unknown outcome wrote that value, the read may be right.
    assert caught >= tried - 1
