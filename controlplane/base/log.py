"""Logging of every process: one line per record, time in UTC, level, part, then the message as key=value text.

Owns the format only. Secrets are never handed to a logger; nothing here could remove them.
"""

from __future__ import annotations

import logging
import sys
import time

__all__ = ["LEVELS", "setup_logging"]

LEVELS = ("debug", "info", "warning", "error")


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname).1s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")


def setup_logging(level: str = "info") -> None:
    """Send records of ``quarterdeck.*`` and warnings of libraries to standard error.

    Args:
        level: one of :data:`LEVELS`, for our own loggers.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("quarterdeck").setLevel(level.upper())
    logging.captureWarnings(capture=True)
