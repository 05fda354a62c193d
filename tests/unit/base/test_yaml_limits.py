"""Aliases repeat as much as they may, and no more; a text that would be billions of values is refused at once."""

from __future__ import annotations

import pytest
import yaml

from controlplane.base.yaml_limits import check_yaml


def laughs(levels: int, line: str) -> str:
    """Each level is nine times the one before it."""
    text = "a0: &a0 {k: v}\n"
    for level in range(1, levels):
        text += f"a{level}: &a{level} " + line.replace("*", ", ".join([f"*a{level - 1}"] * 9)) + "\n"
    return text


@pytest.mark.parametrize("line", ["[*]", "{<<: [*]}"], ids=["lists", "merge keys"])
def test_a_billion_laughs_are_refused_with_their_place(line: str) -> None:
    with pytest.raises(yaml.MarkedYAMLError, match="more than 100000 values") as refused:
        check_yaml(laughs(40, line), depth_max=10)
    assert refused.value.problem_mark is not None


def test_aliases_of_an_ordinary_file_are_no_trouble() -> None:
    check_yaml("probe: &p {type: probe, name: x}\nbefore: [*p, *p]\nafter: {<<: *p}\n", depth_max=3)
    check_yaml(laughs(5, "[*]"), depth_max=10)


def test_what_aliases_stand_for_is_counted_whole() -> None:
    text = "a: &a [1, 2, 3]\nb: &b [*a, *a]\nc: *b"
    check_yaml(text, depth_max=3, aliased_max=4 + 4 + 9)
    with pytest.raises(yaml.YAMLError, match="more than 16 values"):
        check_yaml(text, depth_max=3, aliased_max=4 + 4 + 9 - 1)


def test_a_value_that_is_part_of_itself_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match=r"\*a is part of itself"):
        check_yaml("a: &a [1, [*a]]", depth_max=5)


def test_anchors_are_those_of_their_document() -> None:
    check_yaml("a: &a [1]\n---\nb: &b [2]\nc: *b\n", depth_max=5)


def test_nesting_has_an_end() -> None:
    check_yaml("[" * 5 + "]" * 5, depth_max=5)
    with pytest.raises(yaml.YAMLError, match="deeper than 5"):
        check_yaml("[" * 6 + "]" * 6, depth_max=5)
