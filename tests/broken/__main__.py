"""``python -m tests.broken BUILD``: run an experiment on a broken build and show the verdict, which must be FAIL."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from chaos.findings import Verdict
from chaos.report import render
from tests.broken import BUILDS, play

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("build", choices=sorted(BUILDS))
parser.add_argument("--port-base", type=int, default=13600)
parser.add_argument("--hosts", default="links", help="loopback, links or netns")
given = parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    found = asyncio.run(
        play(
            BUILDS[given.build], Path(folder) / ".quarterdeck", port_base=given.port_base, hosts=given.hosts, say=print
        )
    )
print(render(found.report))
sys.exit(0 if found.report.verdict is Verdict.FAIL else 1)
