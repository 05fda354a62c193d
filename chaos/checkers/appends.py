"""Lists that transactions append to: anomalies that need neither revisions nor a search, only that every element is
appended once (after Elle, Kingsbury and Alvaro 2020).

A list is a key whose value is its elements, separated by blanks. As nothing is ever taken off a list, every state of it
that was seen must be a beginning of the longest; who appended what, and who saw what, then orders the transactions, and
so does real time. A circle in that order is an anomaly, over several keys too.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from chaos.checkers.lineage import Lineage
from chaos.checkers.log import access, named
from chaos.findings import Finding, judge
from chaos.records import History, Op

__all__ = ["check_appends"]

_List = tuple[str, ...]


def check_appends(history: History, lineage: Lineage | None = None) -> list[Finding]:
    """Nothing if there are no lists. Before and after a restore are histories of their own."""
    lineage = lineage or Lineage()
    if not history.of_part("append"):
        return []
    lives = [_Lists(history, lineage, life) for life in range(len(lineage.restores) + 1)]
    broken = [text for lists in lives for text in lists.broken()]
    circles = [text for lists in lives for text in lists.circles()]
    appends, transactions = sum(lists.acked for lists in lives), sum(lists.transactions for lists in lives)
    return [
        judge("lists: no append lost, done twice or seen though refused", appends, broken),
        judge("lists: transactions fit one order, true to real time", transactions, circles),
    ]


class _Lists:
    """Every state of every list that was seen in one life of the cluster."""

    def __init__(self, history: History, lineage: Lineage, life: int) -> None:
        ops = history.of_part("append")
        self._mine = {op.id: op for op in ops if op.outcome == "info" or lineage.life(op.revision) == life}
        self.seen: list[tuple[str, str, _List]] = []
        self._reads: list[tuple[Op, str, _List]] = []
        #: (key, element) -> who appended it, or tried to.
        self._by: dict[tuple[str, str], Op] = {}
        self._acked: list[tuple[str, str, Op]] = []
        self._refused: dict[tuple[str, str], Op] = {}
        for op in ops:
            self._take(op)
        keys = {key for key, _ in self._by} | {key for _, key, _ in self.seen}
        self._last: dict[str, _List] = {}
        for listing in history.listings:
            if listing.reason == "shared" and lineage.life(listing.revision) == life:
                rows = {row.key: _elements(row.value) for row in listing.rows}
                self._last = {key: rows.get(key, ()) for key in keys}
                self.seen += [("the final read-back", key, found) for key, found in self._last.items()]
        for told in history.told:
            for change in told.changes:
                ours = change.key in keys and lineage.life(change.mod_revision) == life
                if ours and change.value is not None:
                    self.seen.append((f"watch {told.watch}", change.key, _elements(change.value)))
        longest: dict[str, _List] = {}
        for _, key, found in self.seen:
            if len(found) > len(longest.get(key, ())):
                longest[key] = found
        self._longest = longest
        # Of what was acknowledged this life must keep what its last state holds.
        final = max((one.revision for one in history.listings if one.reason == "shared"), default=0)
        if self._last:
            self._acked = [item for item in self._acked if lineage.holds(final, item[2].revision)]
        else:
            self._acked = [item for item in self._acked if item[2].id in self._mine]
        self.acked, self.transactions = len(self._acked), len(self._mine)

    def _take(self, op: Op) -> None:
        tried = {step[1]: _elements(step[2])[-1] for step in (*op.then, *op.otherwise) if step[0] == "put"}
        if op.outcome == "ok":
            found = access(op)
            mine = op.id in self._mine
            for key, value in found.writes.items():
                self._acked.append((key, tried[key], op))
                if mine:
                    self.seen.append((named(op), key, _elements(value)))
            for key, seen in found.reads if mine else ():
                elements = _elements(seen[0] if seen else None)
                self.seen.append((named(op), key, elements))
                self._reads.append((op, key, elements))
            refused = {key for key in tried if key not in found.writes}
        else:
            refused = set(tried) if op.outcome == "fail" else set()
        for key, element in tried.items():
            (self._refused if key in refused else self._by)[key, element] = op

    def broken(self) -> list[str]:
        """No element is lost, twice there, of a transaction that was refused, or of nobody; no state of a list is other
        than a beginning of the longest."""
        broken: list[str] = []
        for where, key, found in self.seen:
            if len(set(found)) < len(found):
                twice = next(element for n, element in enumerate(found) if element in found[:n])
                broken.append(f"{where} shows {twice} twice in {key}")
            longest = self._longest.get(key, ())
            if found != longest[: len(found)]:
                at = next(n for n, pair in enumerate(zip(found, longest, strict=False)) if pair[0] != pair[1])
                broken.append(f"{where} shows {found[at]} at place {at + 1} of {key}; elsewhere it is {longest[at]}")
        for key, longest in self._longest.items():
            for element in longest:
                if (key, element) in self._refused:
                    broken.append(f"{key} holds {element}, though {named(self._refused[key, element])} was refused")
                elif (key, element) not in self._by:
                    broken.append(f"{key} holds {element}, which nobody appended")
        kept = {key: set(found) for key, found in (self._last or self._longest).items()}
        for key, element, op in self._acked:
            if element not in kept.get(key, ()):
                broken.append(f"{named(op)} appended {element} to {key}, which was lost")
        return broken

    def circles(self) -> list[str]:
        """Who appended before whom, who saw whose append, who saw it not yet, and who was over before whom began: all
        of this fits one order."""
        ids = {number: op for number, op in self._mine.items() if op.outcome != "fail"}
        after: defaultdict[int, set[int]] = defaultdict(set)

        def edge(first: Op | None, then: Op | None) -> None:
            if first is not None and then is not None and first.id != then.id and {first.id, then.id} <= ids.keys():
                after[first.id].add(then.id)

        for key, longest in self._longest.items():
            for first, then in itertools.pairwise(longest):
                edge(self._by.get((key, first)), self._by.get((key, then)))
        for op, key, elements in self._reads:
            longest = self._longest.get(key, ())
            if elements:
                edge(self._by.get((key, elements[-1])), op)
            if len(elements) < len(longest):
                edge(op, self._by.get((key, longest[len(elements)])))
        _real_time(list(ids.values()), after)
        return [
            "a circle: " + " → ".join(named(ids[n]) for n in circle)
            for group in _groups(after)
            if len(circle := [n for n in group if n in ids][:6]) > 1
        ]


def _elements(value: str | None) -> _List:
    return tuple((value or "").split())


def _real_time(ops: Sequence[Op], after: defaultdict[int, set[int]]) -> None:
    """What had returned before another was called comes before it: over a chain of moments (negative numbers), one for
    each return, so that there are as many edges as operations, not their square."""
    moments = sorted((op for op in ops if op.outcome == "ok"), key=lambda op: op.return_ns)
    for n, op in enumerate(moments):
        after[op.id].add(-n - 1)
        if n:
            after[-n].add(-n - 1)
    passed = 0
    for op in sorted(ops, key=lambda op: op.call_ns):
        while passed < len(moments) and moments[passed].return_ns < op.call_ns:
            passed += 1
        if passed:
            after[-passed].add(op.id)


def _groups(after: defaultdict[int, set[int]]) -> Iterator[list[int]]:
    """Strongly connected components of more than one node (Tarjan, without recursion)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    on_stack: set[int] = set()
    stack: list[int] = []
    for root in list(after):
        if root in index:
            continue
        work: list[tuple[int, Iterable[int]]] = [(root, iter(sorted(after.get(root, ()))))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, rest = work[-1]
            for following in rest:
                if following not in index:
                    index[following] = low[following] = len(index)
                    stack.append(following)
                    on_stack.add(following)
                    work.append((following, iter(sorted(after.get(following, ())))))
                    break
                if following in on_stack:
                    low[node] = min(low[node], index[following])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    group = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        group.append(member)
                        if member == node:
                            break
                    if len(group) > 1:
                        yield sorted(group)
