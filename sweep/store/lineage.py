"""Where an artifact came from: the chain of what it was made from, as the manifests say it; and the key that a user means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from sweep.store.artifacts import Store
from sweep.store.files import StoreError

_NAMED = 6


def find_key(store: Store, prefix: str) -> str:
    """The key of the one artifact whose key begins so. Raises StoreError, naming close ones, where there is none or several."""
    keys = store.keys()
    found = [key for key in keys if key.startswith(prefix.lower())] if prefix else []
    if len(found) == 1:
        return found[0]
    if not keys:
        raise StoreError(f"there are no artifacts in {store}: give --store as the sweep had it")
    if found:
        raise StoreError(f"{prefix} begins {len(found)} keys: {_named(store, found)}. Give more of the one you mean")
    beginnings = {key[: max(len(prefix), 4)]: key for key in keys}
    close = [beginnings[name] for name in difflib.get_close_matches(prefix.lower(), beginnings, n=_NAMED, cutoff=0.5)]
    hint = f"close ones: {_named(store, close)}" if close else f"none of the {len(keys)} keys there is close to it"
    raise StoreError(f"no key in {store} begins with {prefix} ({hint}). Give a key, a beginning of one, or --store as the sweep had it")


def lineage(store: Store, key: str) -> dict[str, Mapping[str, Any] | None]:
    """An artifact and all that it was made from, itself first, by key: manifests; None where an artifact is not there any more.

    Of a bucket one round of requests for each step down the chain.
    """
    found: dict[str, Mapping[str, Any] | None] = {}
    asked = [key]
    while asked:
        there = store.manifests(asked)
        found.update({name: there.get(name) for name in asked})
        inputs = dict.fromkeys(name for manifest in there.values() for name in manifest["inputs"])
        asked = [name for name in inputs if name not in found]
    return found


def reached(keys: Iterable[str], manifests: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Those of the manifests' keys that the given ones are or were made from."""
    found: set[str] = set()
    asked = list(keys)
    while asked:
        key = asked.pop()
        if key in manifests and key not in found:
            found.add(key)
            asked.extend(manifests[key]["inputs"])
    return found


def _named(store: Store, keys: list[str]) -> str:
    shown = store.manifests(keys[:_NAMED])
    names = [f"{key[:12]} ({m['stage']} {m['params'].get('name', '')})" for key, m in sorted(shown.items())]
    return ", ".join([*names, *([f"{len(keys) - _NAMED} more"] if len(keys) > _NAMED else [])])
