"""Sources, targets and pairs: which explainability vector is added to which classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OTHERS = "others"
"""Name of the source that is, for each target, the union of all other domains."""
UNION = "+"
TOGETHER = ","
"""Between sources whose vectors become one: each is learned by itself."""


class ConfigError(ValueError):
    """A sweep that cannot be run as asked; the message names the fix."""


@dataclass(frozen=True)
class Source:
    """What an explainability vector is learned from: one domain, several taken together, or several sources of their own.

    A union has the pictures and the classes of its parts side by side; each picture keeps the label of its own domain's model. Where there
    are members, nothing is trained on the parts together: the members' vectors are combined into one (`core.merging.combination`).
    """

    name: str
    parts: tuple[str, ...]
    members: tuple[Source, ...] = ()

    @property
    def is_union(self) -> bool:
        return len(self.parts) > 1 and not self.members

    @property
    def trained(self) -> tuple[Source, ...]:
        """Those that models are trained on."""
        return self.members or (self,)


@dataclass(frozen=True)
class Pair:
    """A source's vector on a target's classifier."""

    source: Source
    target: str

    @property
    def names(self) -> tuple[str, str]:
        return self.source.name, self.target


def make_pairs(
    sources: Sequence[str], targets: Sequence[str], domains: Sequence[str], alike: Sequence[str] | None = None
) -> tuple[Pair, ...]:
    """The pairs of the sources and targets that are named, by source.

    A source is a domain, a union `A+B`, `others`: of those that are `alike` (None: of all domains), or some of these with their vectors
    made one, `A,others`. A pair whose source holds the target itself is left out: that would be supervision.
    Raises ConfigError for a name that is no domain, or one that comes twice.
    """
    for what, names in (("source", sources), ("target", targets)):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ConfigError(f"the {what} {twice[0]!r} is named twice: name it once")
    _check_known("target", targets, domains)
    pairs = []
    for name in sources:
        for target in targets:
            source = _source(name, target, domains, alike or domains)
            if target not in source.parts:
                pairs.append(Pair(source, target))
    return tuple(pairs)


def _source(name: str, target: str, domains: Sequence[str], alike: Sequence[str]) -> Source:
    """What a name means for a target."""
    if name == OTHERS:
        return Source(name, tuple(domain for domain in alike if domain != target))
    if TOGETHER in name and name not in domains:
        names = name.split(TOGETHER)
        if len(set(names)) < len(names):
            raise ConfigError(f"the sources {name!r} have one twice: name each once")
        members = tuple(_source(member, target, domains, alike) for member in names)
        return Source(name, tuple(dict.fromkeys(part for member in members for part in member.parts)), members)
    parts = tuple(name.split(UNION))
    _check_known("source", parts, domains)
    if len(set(parts)) < len(parts):
        raise ConfigError(f"the union {name!r} names a domain twice: name each once")
    return Source(name, parts)


def _check_known(what: str, names: Sequence[str], domains: Sequence[str]) -> None:
    for name in names:
        if name not in domains:
            forms = f", a union A{UNION}B of them, {OTHERS}, or several sources A{TOGETHER}B" if what == "source" else ""
            among = f"the domains {', '.join(domains)}{forms}"
            raise ConfigError(f"there is no {what} {name!r}: choose among {among}")
