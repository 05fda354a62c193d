"""How objects come out: a table, YAML, JSON or names; at once or as they change. Text to standard output only."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import click

from controlplane.cli.kinds import label_of
from controlplane.cli.printers import headings, row
from controlplane.cli.tables import Table
from controlplane.client.codec import dump_yaml, to_dict
from controlplane.client.kinds import KindInfo
from controlplane.pb.k8s.core_v1_pb2 import Event

__all__ = ["Found", "Show"]

#: A kind and an object of it.
Found = tuple[KindInfo, Any]


class Show:
    """Prints objects in one form. A table keeps its widths from call to call, so that a watch stays aligned.

    Args:
        output: None (table), ``wide``, ``json``, ``yaml`` or ``name``.
        namespaces: with a NAMESPACE column.
        headers: with a heading row.
        kind_in_name: names as ``pod/web-1``.
    """

    def __init__(
        self, output: str | None = None, *, namespaces: bool = False, headers: bool = True, kind_in_name: bool = False
    ) -> None:
        self._output = output
        self._namespaces = namespaces
        self._headers = headers
        self._kind_in_name = kind_in_name
        self._tables: dict[KindInfo, Table] = {}
        self._documents = 0

    @property
    def tabular(self) -> bool:
        """Whether it prints tables."""
        return self._output in {None, "wide"}

    def listed(self, found: Sequence[Found]) -> None:
        """Print these together: one table a kind, or one ``List``."""
        if self._output == "name":
            self._names(found)
        elif self.tabular:
            self._rows(found)
        else:
            items = [to_dict(obj) for _, obj in found]
            self._document({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})

    def single(self, found: Found) -> None:
        """Print this one: a row, or a document of its own."""
        if self._output == "name":
            self._names([found])
        elif self.tabular:
            self._rows([found])
        else:
            self._document(to_dict(found[1]))

    def _names(self, found: Sequence[Found]) -> None:
        for info, obj in found:
            click.echo(label_of(info, obj.metadata.name))

    def _document(self, document: dict[str, Any]) -> None:
        if self._output == "json":
            click.echo(json.dumps(document, indent=4))
            return
        if self._documents:
            click.echo("---")
        self._documents += 1
        click.echo(dump_yaml(document).rstrip())

    def _rows(self, found: Sequence[Found]) -> None:
        now_s, wide = time.time(), self._output == "wide"
        groups: dict[KindInfo, list[Any]] = {}
        for info, obj in found:
            groups.setdefault(info, []).append(obj)
        for number, (info, objects) in enumerate(groups.items()):
            if number:
                click.echo()
            if info not in self._tables:
                first = headings(info, wide=wide, namespaces=self._namespaces)
                self._tables[info] = Table(first, headings_shown=self._headers)
            cells = [
                row(info, o, now_s, wide=wide, namespaces=self._namespaces, kind_in_name=self._kind_in_name)
                for o in sorted(objects, key=_order)
            ]
            click.echo(self._tables[info].add(cells))


def _order(obj: Any) -> tuple[Any, ...]:
    if isinstance(obj, Event):
        seen = obj.lastTimestamp.seconds or obj.eventTime.seconds or obj.metadata.creationTimestamp.seconds
        return (seen, obj.metadata.name)
    return (obj.metadata.namespace, obj.metadata.name)
