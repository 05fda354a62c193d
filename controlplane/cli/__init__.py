"""The ``quarterdeck`` command, short form ``qd``: what a person and a script use.

Owns words, tables and exit codes. Everything it knows of a cluster it asks through ``controlplane.client`` (or, for
the processes on this machine, ``controlplane.local``). Standard output is the answer and can be piped; progress and
messages go to standard error.

Exit codes: 0 done; 1 the cluster refused or the thing asked for is not so; 2 wrong usage or configuration; 3 no
replica could be reached, or a write's outcome is unknown; 130 interrupted.
"""
