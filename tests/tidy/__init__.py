"""Tests of the code as text: rules that no linter has."""
