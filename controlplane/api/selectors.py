"""Label and field selectors of list and watch requests: text → predicate over objects. Pure.

Syntax is Kubernetes': ``a=b,c!=d,e in (f,g),h notin (i),j,!k`` for labels; ``path=value,path!=value`` for fields,
where the paths a kind supports are its row's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from controlplane.api.errors import bad_request
from controlplane.api.names import check_label_key, check_label_value
from controlplane.api.registry import Kind

__all__ = ["Predicate", "parse_field_selector", "parse_label_selector", "parse_selectors"]

Predicate = Callable[[Any], bool]
_LabelTest = Callable[[Mapping[str, str]], bool]

_SET: Final = re.compile(r"(\S+)\s+(in|notin)\s*\(([^()]*)\)")
_EQUAL: Final = re.compile(r"([^=!\s]+)\s*(==|=|!=)\s*([^=!\s]*)")
_COMMA_OUTSIDE_PARENTHESES: Final = re.compile(r",(?![^()]*\))")


def parse_selectors(kind: Kind, label_selector: str, field_selector: str) -> Predicate | None:
    """Both selectors as one predicate over objects; None when both are empty.

    Raises:
        ApiError: a selector cannot be parsed (INVALID_ARGUMENT, BadRequest); says where and what is allowed.
    """
    tests: list[Predicate] = []
    if label_selector.strip():
        labels_match = parse_label_selector(label_selector)
        tests.append(lambda obj: labels_match(obj.metadata.labels))
    if field_selector.strip():
        tests.append(parse_field_selector(kind, field_selector))
    if not tests:
        return None
    return tests[0] if len(tests) == 1 else lambda obj: all(test(obj) for test in tests)


def parse_label_selector(text: str) -> _LabelTest:
    """A predicate over labels."""
    tests = [_label_term(term.strip(), text) for term in _COMMA_OUTSIDE_PARENTHESES.split(text)]
    return lambda labels: all(test(labels) for test in tests)


def _label_term(term: str, whole: str) -> _LabelTest:
    if match := _SET.fullmatch(term):
        key, operator, listed = match.groups()
        values = frozenset(value.strip() for value in listed.split(","))
        _check(key, values, whole)
        if operator == "in":
            return lambda labels: key in labels and labels[key] in values
        return lambda labels: key not in labels or labels[key] not in values
    if match := _EQUAL.fullmatch(term):
        key, operator, value = match.groups()
        _check(key, frozenset((value,)), whole)
        if operator == "!=":
            return lambda labels: key not in labels or labels[key] != value
        return lambda labels: key in labels and labels[key] == value
    key = term.removeprefix("!").strip()
    _check(key, frozenset(), whole)
    if term.startswith("!"):
        return lambda labels: key not in labels
    return lambda labels: key in labels


def _check(key: str, values: frozenset[str], whole: str) -> None:
    problem = check_label_key(key)
    if problem is not None:
        raise bad_request(f"unable to parse label selector {whole!r}: {key!r}: {problem}")
    for value in sorted(values):
        problem = check_label_value(value)
        if problem is not None:
            raise bad_request(f"unable to parse label selector {whole!r}: {value!r}: {problem}")


def parse_field_selector(kind: Kind, text: str) -> Predicate:
    """A predicate over objects of a kind."""
    readers: dict[str, Callable[[Any], str]] = {
        "metadata.name": lambda obj: str(obj.metadata.name),
        **({"metadata.namespace": lambda obj: str(obj.metadata.namespace)} if kind.namespaced else {}),
        **kind.selectable,
    }
    tests = [_field_term(term.strip(), text, kind, readers) for term in text.split(",")]
    return lambda obj: all(test(obj) for test in tests)


def _field_term(term: str, whole: str, kind: Kind, readers: Mapping[str, Callable[[Any], str]]) -> Predicate:
    match = re.fullmatch(r"([^=!]+?)\s*(==|=|!=)\s*(.*)", term)
    if match is None:
        raise bad_request(
            f"unable to parse field selector {whole!r}: {term!r} is not of the form path=value or path!=value"
        )
    path, operator, value = match.groups()
    read = readers.get(path)
    if read is None:
        raise bad_request(
            f'field label not supported for {kind.resource}: "{path}"; supported: {", ".join(sorted(readers))}'
        )
    if operator == "!=":
        return lambda obj: read(obj) != value
    return lambda obj: read(obj) == value
