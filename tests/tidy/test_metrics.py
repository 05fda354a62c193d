"""docs/metrics.md has every metric of our own name, with its type, and none that is not there."""

from __future__ import annotations

import ast
import re

from tests.tidy.sources import ROOT, modules, parsed

OURS = "quarterdeck_"
ROW = re.compile(r"^\| `(quarterdeck_[a-z_]+)` \| (\w+) \|", re.MULTILINE)


def declared() -> dict[str, str]:
    """Name -> type of what the product makes: ``Counter("quarterdeck_…", …)`` and the like."""
    found: dict[str, str] = {}
    for name in modules("controlplane", "node"):
        for call in ast.walk(parsed(name)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.args:
                first = call.args[0]
                if isinstance(first, ast.Constant) and isinstance(first.value, str) and first.value.startswith(OURS):
                    found[first.value] = call.func.id.removesuffix("MetricFamily").lower()
    return found


def test_the_page_of_metrics_has_them_all_with_their_types_and_no_others() -> None:
    made = declared()
    assert len(made) > 40
    rows = ROW.findall((ROOT / "docs" / "metrics.md").read_text())
    assert len(rows) == len(dict(rows))  # none twice
    assert dict(rows) == made
