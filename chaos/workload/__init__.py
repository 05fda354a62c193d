"""The parts of a load, each its own module: what is asked of the cluster, at which pace, and what is recorded of it.

Parts judge nothing, and hide nothing: an operation's retries are inside its time, and what failed is recorded as
failed.
"""

from chaos.workload.fresh import Board, KeyValue, Reader, ServiceClient, Watcher, Writer, fetch, read_prefix
from chaos.workload.pace import Pace, Process

__all__ = [
    "Board",
    "KeyValue",
    "Pace",
    "Process",
    "Reader",
    "ServiceClient",
    "Watcher",
    "Writer",
    "fetch",
    "read_prefix",
]
