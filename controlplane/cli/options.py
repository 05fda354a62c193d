"""Options that several commands share."""

from __future__ import annotations

import click

__all__ = ["all_namespaces_option", "namespace_option"]

namespace_option = click.option(
    "--namespace", "-n", default="default", envvar="QD_NAMESPACE", show_default=True, help="Namespace."
)
all_namespaces_option = click.option("--all-namespaces", "-A", is_flag=True, help="Every namespace.")
