"""Breaks the cluster on purpose while it serves, records what clients saw, and judges the record.

::

    workload ──> history <── acts (faults, observe)
                    │
                    └──> checkers, availability ──> verdict ──> report

``history`` is the only thing between what happened and what is judged: a verdict is computed from the file alone, so
it can be computed again (``qd chaos verify``). Chaos stands outside: it uses the client, and the processes of a local
cluster; it knows no insides of a replica or an agent.
"""
