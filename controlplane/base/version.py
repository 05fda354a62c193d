"""The version of this distribution, as metrics, ``--version`` and the health port show it."""

from __future__ import annotations

from functools import cache

__all__ = ["version"]


@cache
def version() -> str:
    """As installed. Looked up when first asked for: that takes 10 ms, which no start should wait for."""
    from importlib import metadata

    try:
        return metadata.version("quarterdeck")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0.0.0+checkout"
