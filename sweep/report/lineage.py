"""Where a number came from, as an indented text: each artifact once, with what was set for it.

What was set is said once: not again for what something is made from, and of a second stage of a kind only what differs from the first.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from sweep.report.text import ascii_text, duration, moment

Manifests = Mapping[str, Mapping[str, Any] | None]
"""As `sweep.store.lineage.lineage` gives them: None where an artifact is not there any more."""

SHORT = 12
_WIDTH = 120
_ALIKE = 3
_LONGEST = 60
_HASH = re.compile(r"[0-9a-f]{40,64}")


def lineage_text(key: str, manifests: Manifests) -> str:
    """The chain of an artifact down to data and seeds. Inputs that were shown before are named as `above`; of more than three inputs of a
    kind that bring nothing new the rest is counted.
    """
    there = [manifest for manifest in manifests.values() if manifest is not None]
    num_missing = len(manifests) - len(there)
    made = [manifest["created"] for manifest in there]
    hosts = sorted({manifest["host"] for manifest in there})
    end = f"{len(there)} artifacts, {duration(sum(m['seconds'] for m in there))} of work on {ascii_text(', '.join(hosts), 80)}, "
    end += f"{moment(min(made))} to {moment(max(made))}"
    if num_missing:
        end += (
            f"\n{num_missing} missing: collected by `gc`, or lost. What was made of them is whole; where they came from is not known here"
        )
    return "\n".join([*_Tree(manifests).lines(key, "", {}), "", end])


def flat_params(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Parameters as names with dots and short texts; what is not set is left out."""
    found: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            found.update(flat_params(value, f"{prefix}{name}."))
        elif value is not None:
            found[prefix + name] = _shown(value)
    return found


class _Tree:
    def __init__(self, manifests: Manifests) -> None:
        self._manifests = manifests
        self._shown: set[str] = set()
        self._first: dict[str, tuple[str, dict[str, str]]] = {}  # kind -> the key that was shown first, and what was set for it

    def lines(self, key: str, indent: str, said: Mapping[str, str]) -> Iterator[str]:
        """Of an artifact and what it was made from. said: what was set for those that it is part of."""
        self._shown.add(key)
        manifest = self._manifests[key]
        if manifest is None:
            yield f"{indent}{key[:SHORT]} is missing"
            return
        params = flat_params(manifest["params"])
        name = params.pop("name", "")
        yield f"{indent}{self._named(key)}  {f'{ascii_text(name, 60)}  ' if name else ''}({self._made(manifest)})"
        yield from _wrapped(self._settings(key, manifest["stage"], params, said), f"{indent}    ", f"{indent}    ")
        yield from self._inputs(manifest["inputs"], indent + "  ", {**said, **params})

    def _settings(self, key: str, stage: str, params: dict[str, str], said: Mapping[str, str]) -> str:
        """What was set for an artifact: all that was not said above it, or what differs from the first of its kind."""
        first, others = self._first.setdefault(stage, (key, params))
        if first == key:
            return " ".join(f"{k}={v}" for k, v in sorted(params.items()) if said.get(k) != v)
        new = [f"{k}={params.get(k, 'none')}" for k in sorted({*params, *others}) if params.get(k) != others.get(k)]
        return f"as {first[:SHORT]}{', but ' if new else ''}{' '.join(new)}"

    def _inputs(self, keys: list[str], indent: str, said: Mapping[str, str]) -> Iterator[str]:
        above, alike = [], dict[str, list[str]]()
        for key in dict.fromkeys(keys):
            manifest = self._manifests[key]
            if key in self._shown:
                above.append(self._named(key))
                continue
            if manifest is not None and self._shown.issuperset(manifest["inputs"]):
                of_kind = alike.setdefault(manifest["stage"], [])
                of_kind.append(key)
                if len(of_kind) > _ALIKE:
                    self._shown.add(key)
                    continue
            yield from self.lines(key, indent, said)
        for stage, found in alike.items():
            if len(found) > _ALIKE:
                seconds = sum((self._manifests[key] or {})["seconds"] for key in found[_ALIKE:])
                yield f"{indent}{stage}  {len(found) - _ALIKE} more of the same inputs ({duration(seconds)}; --json names them)"
        if above:
            yield from _wrapped(f"above: {', '.join(above)}", indent, f"{indent}  ")

    def _named(self, key: str) -> str:
        manifest = self._manifests[key]
        return f"{'missing' if manifest is None else manifest['stage']} {key[:SHORT]}"

    @staticmethod
    def _made(manifest: Mapping[str, Any]) -> str:
        return f"{manifest['seconds']:.1f} s on {ascii_text(manifest['host'], 40)}, {moment(manifest['created'])}"


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        text = ",".join(_shown(part) for part in value)
    else:
        text = f"{value:g}" if isinstance(value, float) else str(value)
        text = text[:8] if _HASH.fullmatch(text) else text
    return ascii_text(text, _LONGEST)
