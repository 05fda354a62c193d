"""A whole cluster on this machine: every replica and every agent its own process, state under one folder.

Owns the folder (`.quarterdeck/` by default), the processes it started, their ports and logs. Must not know what the
processes do: it starts ``python -m controlplane`` and ``python -m node`` with flags, and signals pids it recorded.

Invariants: a pid is signalled only if the process's start time is the recorded one; nothing outside the folder is
written; a second ``up`` finds the first one's processes instead of starting more.
"""
