"""Backups: snapshots and the archived log of a cluster, kept in a directory or in any store that fsspec knows.

Owns what lies there (names, manifests, segments, encryption, retention), who puts it there while a replica runs
(``archiver``, ``schedule``), and how a state is made of it again (``materialize``). Must not know services, controllers
or the command line.
"""
