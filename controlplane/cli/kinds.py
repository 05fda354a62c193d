"""The words a user may say for a kind: plural, singular, short name; ``deployment/web`` and ``deploy web`` alike."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from controlplane.base.errors import ConfigError
from controlplane.client.kinds import KINDS, KindInfo

__all__ = ["KindType", "Target", "kind_of", "label_of", "short_names", "targets", "title_of"]

_SHORT = {
    "namespaces": ("ns",),
    "nodes": ("no",),
    "pods": ("po",),
    "replicasets": ("rs",),
    "deployments": ("deploy",),
    "services": ("svc",),
    "endpointslices": (),
    "configmaps": ("cm",),
    "events": ("ev",),
}
#: What `get all` means to a kubectl user, of the kinds there are here.
_ALL = ("pods", "services", "deployments", "replicasets")


def _group(info: KindInfo) -> str:
    group, slash, _ = info.api_version.partition("/")
    return f".{group}" if slash else ""


def title_of(info: KindInfo) -> str:
    """The kind as messages and ``-o name`` write it: ``pod``, ``deployment.apps``."""
    return f"{info.kind.lower()}{_group(info)}"


def label_of(info: KindInfo, name: str) -> str:
    """An object as messages and ``-o name`` write it: ``deployment.apps/web``."""
    return f"{title_of(info)}/{name}"


_WORDS: dict[str, KindInfo] = {
    word: info
    for info in KINDS
    for word in (
        info.resource,
        info.kind.lower(),
        *_SHORT.get(info.resource, ()),
        f"{info.resource}{_group(info)}",
        title_of(info),
    )
}


def kind_of(word: str) -> KindInfo:
    """The kind a word names.

    Raises:
        ConfigError: no kind has that name; suggests the nearest and lists all.
    """
    found = _WORDS.get(word.lower())
    if found is None:
        near = difflib.get_close_matches(word.lower(), _WORDS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown kind {word!r}; {hint}there are: {', '.join(info.resource for info in KINDS)}")
    return found


def short_names(info: KindInfo) -> Sequence[str]:
    """Short names of a kind."""
    return _SHORT.get(info.resource, ())


Target = tuple[KindInfo, str]


def targets(arguments: Sequence[str]) -> list[Target]:
    """``("deploy", "a", "b")`` or ``("deploy/a", "svc/b")`` or ``("pods,svc",)`` -> kinds and names ("" for all).

    Raises:
        ConfigError: neither form.
    """
    if not arguments:
        raise ConfigError(f"name a kind: {', '.join(info.resource for info in KINDS)}")
    if any("/" in argument for argument in arguments):
        pairs = []
        for argument in arguments:
            word, separator, name = argument.partition("/")
            if not separator or not name:
                raise ConfigError(f"{argument!r}: where one argument is KIND/NAME, all must be")
            pairs.append((kind_of(word), name))
        return list(dict.fromkeys(pairs))
    words = [part for word in arguments[0].split(",") for part in (_ALL if word.lower() == "all" else (word,))]
    infos = list(dict.fromkeys(kind_of(word) for word in words))
    names = list(dict.fromkeys(arguments[1:])) or [""]
    return [(info, name) for info in infos for name in names]


class KindType(click.ParamType[str]):
    """A kind, or KIND/NAME, with completion."""

    name = "kind"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The words for kinds that begin so."""
        return [CompletionItem(word) for word in sorted(_WORDS) if word.startswith(incomplete)]
