"""How deep a YAML text nests and how much its aliases repeat, known before anything is made of it. Pure.

A few hundred bytes of aliases of aliases, or of merge keys, are billions of values to whoever walks them. Owns the
reading of the parser's events, which is not recursive; composing and constructing are, and come later.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

__all__ = ["ALIASED_MAX", "check_yaml"]

#: Values that the aliases of one text may stand for, all together.
ALIASED_MAX: Final = 100_000


def check_yaml(text: str | bytes, *, depth_max: int, aliased_max: int = ALIASED_MAX) -> None:
    """Refuse what would be too much.

    Raises:
        yaml.YAMLError: it is no YAML, nests deeper, its aliases stand for more values, or one is part of itself; with
            the place, in ``problem_mark``.
    """
    #: Of every collection that is open, the outermost first: its anchor, and how many values it has so far.
    opened: list[tuple[str | None, int]] = []
    sizes: dict[str, int] = {}
    aliased = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        match event:
            case yaml.DocumentStartEvent():
                sizes.clear()
                continue
            case yaml.CollectionStartEvent():
                opened.append((event.anchor, 1))
                if len(opened) > depth_max:
                    raise _refused(event, f"nested deeper than {depth_max} levels")
                if event.anchor is not None:
                    sizes.pop(event.anchor, None)  # the name is a new value's from here on
                continue
            case yaml.CollectionEndEvent():
                anchor, size = opened.pop()
            case yaml.ScalarEvent():
                anchor, size = event.anchor, 1
            case yaml.AliasEvent():
                anchor, size = None, sizes.get(str(event.anchor), 0)
                if any(event.anchor == name for name, _ in opened):
                    raise _refused(event, f"*{event.anchor} is part of itself")
                aliased += size
                if aliased > aliased_max:
                    raise _refused(event, f"aliases stand for more than {aliased_max} values")
            case _:
                continue
        if anchor is not None:
            sizes[anchor] = size
        if opened:
            name, count = opened[-1]
            opened[-1] = (name, count + size)


def _refused(event: Any, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
