"""Options and types of arguments that several commands share."""

from __future__ import annotations

import re

import click

__all__ = ["Seconds", "all_namespaces_option", "namespace_option", "output_option"]

namespace_option = click.option(
    "--namespace", "-n", default="default", envvar="QD_NAMESPACE", show_default=True, help="Namespace."
)
all_namespaces_option = click.option("--all-namespaces", "-A", is_flag=True, help="Every namespace.")
output_option = click.option(
    "--output", "-o", type=click.Choice(["table", "json"]), default="table", show_default=True
)  # fmt: skip

_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)")


class Seconds(click.ParamType[float]):
    """A duration: plain seconds (``90``), or as kubectl takes it (``90s``, ``1m30s``, ``500ms``)."""

    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds. Fails as wrong usage, showing the forms allowed."""
        if isinstance(value, (int, float)):
            return float(value)
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value)
        parts = _PART.findall(value)
        if not parts or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"{value!r} is not a duration; write 90, 90s or 1m30s", param, ctx)
        return sum(float(number) * _UNITS_S[unit] for number, unit in parts)
