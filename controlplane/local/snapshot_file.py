"""What tells about a snapshot file, handed on to those who see local clusters only."""

from __future__ import annotations

from controlplane.recovery import Restored, contents, verify

__all__ = ["Restored", "contents", "verify"]
