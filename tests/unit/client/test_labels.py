"""Label selectors compiled to predicates."""

from __future__ import annotations

import pytest

from controlplane.client.labels import compile_requirement, compile_selector, selector_text
from controlplane.pb.k8s.meta_v1_pb2 import LabelSelector, LabelSelectorRequirement


@pytest.mark.parametrize(
    ("operator", "values", "matching", "others"),
    [
        ("In", ["a", "b"], [{"k": "a"}, {"k": "b"}], [{"k": "c"}, {}]),
        ("NotIn", ["a"], [{"k": "b"}, {}], [{"k": "a"}]),
        ("Exists", [], [{"k": ""}], [{"j": "a"}]),
        ("DoesNotExist", [], [{"j": "a"}], [{"k": "a"}]),
        ("Gt", ["5"], [{"k": "6"}], [{"k": "5"}, {"k": "x"}, {}]),
        ("Lt", ["5"], [{"k": "-6"}], [{"k": "5"}, {}]),
        ("Gt", ["x"], [], [{"k": "6"}]),
        ("Other", ["a"], [], [{"k": "a"}, {}]),
    ],
)
def test_each_operator_matches_as_in_kubernetes(
    operator: str, values: list[str], matching: list[dict[str, str]], others: list[dict[str, str]]
) -> None:
    predicate = compile_requirement(LabelSelectorRequirement(key="k", operator=operator, values=values))
    assert all(predicate(labels) for labels in matching)
    assert not any(predicate(labels) for labels in others)


def test_a_selector_wants_all_of_it_and_an_empty_one_nothing() -> None:
    selector = LabelSelector(matchLabels={"a": "1"})
    selector.matchExpressions.add(key="b", operator="Exists")
    matches = compile_selector(selector)
    assert matches({"a": "1", "b": ""})
    assert not matches({"a": "1"})
    assert not matches({"b": "", "a": "2"})
    assert compile_selector(LabelSelector())({})


def test_a_selector_as_text_is_sorted() -> None:
    assert selector_text({"b": "2", "a": "1"}) == "a=1,b=2"
