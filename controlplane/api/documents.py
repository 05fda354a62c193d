"""YAML and JSON text as plain values, within limits. Pure.

Owns what Kubernetes' tools do and Python's do not: duplicate keys are errors, dates stay text, no base-60 numbers, no
``NaN``. Input is bounded in bytes, depth and what aliases repeat before anything recursive looks at it. Knows nothing
of kinds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from typing import Any, Final, NoReturn

import yaml

from controlplane.api.errors import ApiError
from controlplane.base.errors import Code
from controlplane.base.yaml_limits import check_yaml

__all__ = ["DEPTH_MAX", "DOCUMENT_BYTES_MAX", "DocumentError", "dump_yaml", "load_json", "load_yaml_documents"]

#: Nesting of lists and mappings in one document. The deepest field of our kinds is about 15 deep.
DEPTH_MAX: Final = 64
#: One file of manifests.
DOCUMENT_BYTES_MAX: Final = 4 * 1024 * 1024


class DocumentError(ApiError):
    """The text cannot be read (INVALID_ARGUMENT, reason BadRequest); the message says where and why."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.INVALID_ARGUMENT, message, reason="BadRequest")


def load_json(text: str | bytes) -> Any:
    """One JSON document.

    Raises:
        DocumentError: not JSON, a duplicate key, too large or too deep.
    """
    _check_size(len(text))
    try:
        return json.loads(text, object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"not valid JSON: {error}") from error


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key!r}")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class _Loader(yaml.CSafeLoader):
    """Safe loading with Kubernetes' reading of scalars and without duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - filled below

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a mapping key must be a string", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
            seen.add(key.value)
            key.tag = "tag:yaml.org,2002:str"  # JSON has no other keys: `1: x` and `yes: x` mean their text
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0b[0-1_]+|0[0-7_]+|0x[0-9a-fA-F_]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^$"), [""])


def load_yaml_documents(text: str | bytes) -> list[Any]:
    """Every document of a YAML (or JSON) stream, empty ones left out.

    Raises:
        DocumentError: not YAML, a duplicate key, too large, too deep, or too much by aliases; the message has line
            and column.
    """
    _check_size(len(text))
    try:
        check_yaml(text, depth_max=DEPTH_MAX)
        return [d for d in yaml.load_all(text, Loader=_Loader) if d is not None]
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise DocumentError(f"not valid YAML: {_place(error)}") from error


def _check_size(size: int) -> None:
    if size > DOCUMENT_BYTES_MAX:
        raise DocumentError(f"the document has {size} bytes; at most {DOCUMENT_BYTES_MAX} are read")


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return problem if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


class _Dumper(yaml.CSafeDumper):
    """Block style, multi-line strings as literals, lists indented as kubectl prints them."""


def _represent_str(dumper: yaml.CSafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_str)


def dump_yaml(value: Any) -> str:
    """The value as YAML, keys in the order given."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)
    return text
