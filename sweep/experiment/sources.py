"""Sources, targets and pairs: which explainability vector is added to which classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OTHERS = "others"
"""Name of the source that is, for each target, the union of all other domains."""
UNION = "+"


class ConfigError(ValueError):
    """A sweep that cannot be run as asked; the message names the fix."""


@dataclass(frozen=True)
class Source:
    """What an explainability vector is learned from: one domain, or several taken together.

    A union has the pictures and the classes of its parts side by side; each picture keeps the label of its own domain's model.
    """

    name: str
    parts: tuple[str, ...]

    @property
    def is_union(self) -> bool:
        return len(self.parts) > 1


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

    A source is a domain, a union `A+B`, or `others`: of those that are `alike` (None: of all domains). A pair whose source holds the target
    itself is left out: that would be supervision.
    Raises ConfigError for a name that is no domain, or one that comes twice.
    """
    for what, names in (("source", sources), ("target", targets)):
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ConfigError(f"the {what} {twice[0]!r} is named twice: name it once")
    _check_known("target", targets, domains)
    pairs = []
    for name in sources:
        parts = () if name == OTHERS else tuple(name.split(UNION))
        _check_known("source", parts, domains)
        if len(set(parts)) < len(parts):
            raise ConfigError(f"the union {name!r} names a domain twice: name each once")
        for target in targets:
            of_target = parts or tuple(domain for domain in alike or domains if domain != target)
            if target not in of_target:
                pairs.append(Pair(Source(name, of_target), target))
    return tuple(pairs)


def _check_known(what: str, names: Sequence[str], domains: Sequence[str]) -> None:
    for name in names:
        if name not in domains:
            among = f"the domains {', '.join(domains)}" + (f", a union A{UNION}B of them, or {OTHERS}" if what == "source" else "")
            raise ConfigError(f"there is no {what} {name!r}: choose among {among}")
