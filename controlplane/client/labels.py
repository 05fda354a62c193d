"""Label selectors of Kubernetes' ``LabelSelector`` and node-selector messages, compiled to predicates.

Pure. An empty selector matches everything; whether an absent one matches nothing is the caller's rule to know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from controlplane.pb.k8s.meta_v1_pb2 import LabelSelector

__all__ = ["Labels", "Predicate", "Requirement", "compile_requirement", "compile_selector", "selector_text"]

Labels = Mapping[str, str]
Predicate = Callable[[Labels], bool]


class Requirement(Protocol):
    """The common shape of LabelSelectorRequirement and NodeSelectorRequirement."""

    @property
    def key(self) -> str: ...

    @property
    def operator(self) -> str: ...

    @property
    def values(self) -> Iterable[str]: ...


def _as_int(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def compile_requirement(requirement: Requirement) -> Predicate:
    """``In NotIn Exists DoesNotExist Gt Lt``, as Kubernetes reads them: a label that is absent satisfies NotIn.

    An operator that is none of these matches nothing (validation refuses it before it gets here).
    """
    key, operator = requirement.key, requirement.operator
    values: Final = frozenset(requirement.values)
    if operator == "In":
        return lambda labels: labels.get(key) in values
    if operator == "NotIn":
        return lambda labels: labels.get(key) not in values
    if operator == "Exists":
        return lambda labels: key in labels
    if operator == "DoesNotExist":
        return lambda labels: key not in labels
    bound = _as_int(next(iter(values), None))
    if operator in ("Gt", "Lt") and bound is not None:
        sign = 1 if operator == "Gt" else -1

        def beyond(labels: Labels) -> bool:
            number = _as_int(labels.get(key))
            return number is not None and sign * (number - bound) > 0

        return beyond
    return lambda labels: False


def compile_selector(selector: LabelSelector) -> Predicate:
    """All of matchLabels and all of matchExpressions."""
    wanted = dict(selector.matchLabels)
    expressions = [compile_requirement(r) for r in selector.matchExpressions]

    def matches(labels: Labels) -> bool:
        return all(labels.get(k) == v for k, v in wanted.items()) and all(e(labels) for e in expressions)

    return matches


def selector_text(labels: Labels) -> str:
    """``a=b,c=d``: equality requirements as a list request's ``label_selector``."""
    return ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
