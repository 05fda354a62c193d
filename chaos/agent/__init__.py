"""The chaos agent: breaks processes of one machine for an administrator elsewhere. Off unless somebody starts it.

Whoever may order here may kill what runs here, so: nothing without a certificate of the cluster's administrator, only
the processes that the agent's own configuration names, only a few acts on them, each with a deadline after which the
agent heals by itself, and every order on record.
"""
