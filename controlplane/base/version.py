"""The version of this distribution, as metrics, ``--version`` and the health port show it."""

from __future__ import annotations

from importlib import metadata

__all__ = ["VERSION"]

try:
    VERSION = metadata.version("quarterdeck")
except metadata.PackageNotFoundError:  # run from a checkout that is not installed
    VERSION = "0.0.0+checkout"
