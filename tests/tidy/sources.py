"""The files that the rules are about: what is committed, and what would be committed next."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

__all__ = ["ROOT", "committed", "modules", "parsed"]

ROOT = Path(__file__).resolve().parents[2]
_SKIPPED = ("controlplane/pb/",)


@cache
def committed() -> tuple[Path, ...]:
    """Files of the repository, and new ones that are not ignored. All files of a checkout without git."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode:
        folders = ("controlplane", "node", "chaos", "tests", "docs", "examples", "deploy", "proto")
        return tuple(p for folder in folders for p in sorted((ROOT / folder).rglob("*")) if p.is_file())
    return tuple(ROOT / line for line in listing.stdout.splitlines() if (ROOT / line).is_file())


@cache
def modules(*folders: str) -> tuple[str, ...]:
    """Python files under these folders, as paths from the root; generated ones left out."""
    names = (path.relative_to(ROOT).as_posix() for path in committed() if path.suffix == ".py")
    return tuple(n for n in names if n.startswith(tuple(f"{f}/" for f in folders)) and not n.startswith(_SKIPPED))


@cache
def parsed(name: str) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse((ROOT / name).read_text(), name)
