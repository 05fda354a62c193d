"""Disasters, practised: everything is lost or spoilt on purpose, brought back with one command, and compared."""
