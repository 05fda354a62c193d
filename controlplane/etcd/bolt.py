"""A bbolt database file, written from nothing: the format of etcd's backend and of its snapshots.

Owns the layout of pages. Must not know what is in the buckets. Two passes over the same entries: the first
(:class:`BucketPlan`) learns sizes, so that every page has its number and the file its length before a byte is written;
the second (:class:`BoltFile`) yields the file from front to back. So nothing is held but the first key of each leaf
page, and no temporary file is needed.

Pages, in order: two metas, an empty freelist, then per bucket its leaves and above them its branches, and last the root
bucket's leaf. No page is unused, so bbolt's own check of the file has nothing to complain about.

Format: go.etcd.io/bbolt page.go, bucket.go, freelist.go, db.go (version 2, little endian, 4 KiB pages).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import Final, NamedTuple

__all__ = ["PAGE_BYTES", "BoltFile", "BucketPlan"]

PAGE_BYTES: Final = 4096

_BRANCH, _LEAF, _META, _FREELIST = 0x01, 0x02, 0x04, 0x10
_MAGIC: Final = 0xED0CDAED
_VERSION: Final = 2
_BUCKET_ENTRY: Final = 0x01
_TXID: Final = 2

_PAGE_HEAD = Struct("<QHHI")  # id, flags, count, overflow
_LEAF_ENTRY = Struct("<IIII")  # flags, offset from here, key bytes, value bytes
_BRANCH_ENTRY = Struct("<IIQ")  # offset from here, key bytes, page id
_BUCKET = Struct("<QQ")  # root page id, sequence
_META_BODY = Struct("<IIIIQQQQQ")  # magic, version, page bytes, flags, root bucket, freelist, high water mark, txid

_FREELIST_PAGE: Final = 2
_FIRST_PAGE: Final = 3
#: Elements of one page: the count is 16 bits, and 0xFFFF has a meaning of its own.
_ELEMENTS_MAX: Final = 0xFFFE

Entry = tuple[bytes, bytes]


class _Leaf(NamedTuple):
    first_key: bytes
    pages: int


class _Packer:
    """Decides, the same in both passes, which entry begins a new leaf."""

    def __init__(self) -> None:
        self.used_bytes = _PAGE_HEAD.size
        self.count = 0

    def fits(self, entry_bytes: int) -> bool:
        return not self.count or (self.used_bytes + entry_bytes <= PAGE_BYTES and self.count < _ELEMENTS_MAX)

    def take(self, entry_bytes: int) -> None:
        self.used_bytes += entry_bytes
        self.count += 1

    @property
    def pages(self) -> int:
        """Of the leaf as it is now: more than one only for a single entry that is bigger than a page."""
        return -(-self.used_bytes // PAGE_BYTES)


class BucketPlan:
    """First pass over one bucket's entries, which must come in ascending order of key."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self._leaves: list[_Leaf] = []
        self._first_key = b""
        self._packer = _Packer()

    def add(self, key: bytes, value_bytes: int) -> None:
        """Take note of one entry."""
        entry_bytes = _LEAF_ENTRY.size + len(key) + value_bytes
        if not self._packer.fits(entry_bytes):
            self._close()
        if not self._packer.count:
            self._first_key = key
        self._packer.take(entry_bytes)

    def _close(self) -> None:
        self._leaves.append(_Leaf(self._first_key, self._packer.pages))
        self._packer = _Packer()

    def leaves(self) -> Sequence[_Leaf]:
        """All leaves; at least one. Ends the pass."""
        if self._packer.count or not self._leaves:
            self._close()
        return self._leaves


class _Tree(NamedTuple):
    """A bucket with page numbers: its leaves from ``start`` on, then branch pages, level by level upwards."""

    start: int
    branches: list[tuple[int, list[tuple[bytes, int]]]]  # (page id, [(first key below, page id below)])
    root: int


class BoltFile:
    """Second pass. ``plans`` are complete and in ascending order of name; their tables are small enough to sort."""

    def __init__(self, plans: Sequence[BucketPlan]) -> None:
        page = _FIRST_PAGE
        self._trees: dict[bytes, _Tree] = {}
        for plan in plans:
            tree, page = _number(plan.leaves(), page)
            self._trees[plan.name] = tree
        self._root_page = page
        entries = [(name, _BUCKET.pack(tree.root, 0)) for name, tree in self._trees.items()]
        self._root = _leaf(page, entries, _BUCKET_ENTRY)
        self._pages = page + len(self._root) // PAGE_BYTES

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return self._pages * PAGE_BYTES

    def head(self) -> bytes:
        """The pages before the first bucket's."""
        metas = [self._meta(page, _TXID - page) for page in (0, 1)]
        return b"".join([*metas, _pad(_PAGE_HEAD.pack(_FREELIST_PAGE, _FREELIST, 0, 0))])

    def bucket(self, name: bytes, entries: Iterable[Entry]) -> Iterator[bytes]:
        """The pages of one bucket, one at a time. ``entries`` are those of the first pass, in the same order."""
        tree = self._trees[name]
        page, packer = tree.start, _Packer()
        waiting: list[Entry] = []
        for key, value in entries:
            entry_bytes = _LEAF_ENTRY.size + len(key) + len(value)
            if not packer.fits(entry_bytes):
                yield _leaf(page, waiting)
                page += packer.pages
                packer, waiting = _Packer(), []
            packer.take(entry_bytes)
            waiting.append((key, value))
        yield _leaf(page, waiting)
        for number, children in tree.branches:
            yield _branch(number, children)

    def tail(self) -> bytes:
        """The pages after the last bucket's."""
        return self._root

    def _meta(self, page: int, txid: int) -> bytes:
        body = _META_BODY.pack(
            _MAGIC, _VERSION, PAGE_BYTES, 0, self._root_page, 0, _FREELIST_PAGE, self._pages, txid
        )  # fmt: skip
        return _pad(_PAGE_HEAD.pack(page, _META, 0, 0) + body + _fnv1a(body).to_bytes(8, "little"))


def _number(leaves: Sequence[_Leaf], page: int) -> tuple[_Tree, int]:
    """Give every page of a bucket its number; the next free number comes with it."""
    start = page
    level: list[tuple[bytes, int]] = []
    for leaf in leaves:
        level.append((leaf.first_key, page))
        page += leaf.pages
    branches: list[tuple[int, list[tuple[bytes, int]]]] = []
    while len(level) > 1:
        above: list[tuple[bytes, int]] = []
        children: list[tuple[bytes, int]] = []
        for child in level:
            if children and not _branch_fits(children, child):
                branches.append((page, children))
                above.append((children[0][0], page))
                page, children = page + 1, []
            children.append(child)
        branches.append((page, children))
        above.append((children[0][0], page))
        page += 1
        level = above
    return _Tree(start, branches, level[0][1]), page


def _branch_fits(children: list[tuple[bytes, int]], child: tuple[bytes, int]) -> bool:
    # A page is at most 256 elements wide with empty keys: summing anew is cheap.
    used = _PAGE_HEAD.size + sum(_BRANCH_ENTRY.size + len(key) for key, _ in (*children, child))
    # Two at least, or the levels above would never end: a key is far smaller than half a page.
    return used <= PAGE_BYTES or len(children) < 2


def _leaf(page: int, entries: Sequence[Entry], flags: int = 0) -> bytes:
    heads: list[bytes] = []
    data: list[bytes] = []
    offset = _LEAF_ENTRY.size * len(entries)
    for key, value in entries:
        heads.append(_LEAF_ENTRY.pack(flags, offset, len(key), len(value)))
        data += (key, value)
        offset += len(key) + len(value) - _LEAF_ENTRY.size
    body = b"".join((*heads, *data))
    overflow = -(-(_PAGE_HEAD.size + len(body)) // PAGE_BYTES) - 1
    return _pad(_PAGE_HEAD.pack(page, _LEAF, len(entries), overflow) + body)


def _branch(page: int, children: Sequence[tuple[bytes, int]]) -> bytes:
    heads: list[bytes] = []
    data: list[bytes] = []
    offset = _BRANCH_ENTRY.size * len(children)
    for key, below in children:
        heads.append(_BRANCH_ENTRY.pack(offset, len(key), below))
        data.append(key)
        offset += len(key) - _BRANCH_ENTRY.size
    return _pad(_PAGE_HEAD.pack(page, _BRANCH, len(children), 0) + b"".join((*heads, *data)))


def _pad(page: bytes) -> bytes:
    return page + bytes(-len(page) % PAGE_BYTES)


def _fnv1a(data: bytes) -> int:
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value
