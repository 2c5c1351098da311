"""What of a store nobody refers to any more, and its removal. What is young, leased or in doubt stays."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sweep.store.artifacts import Store
from sweep.store.files import Entry
from sweep.store.lineage import reached
from sweep.store.processes import LEFT_BEHIND_S, is_alive_here, is_of_this_host


@dataclass(frozen=True)
class Garbage:
    """What may go. artifacts: manifests by key; num_left_out: artifacts that nobody refers to and that stay all the same, as they are young
    or under a lease. leases: names of those of the dead. checkpoints: of trainings that nobody wants to end, by key. scratches: names of
    directories that engines wrote to. leftovers: paths of what was never finished.
    """

    artifacts: Mapping[str, Mapping[str, Any]]
    num_left_out: int
    leases: tuple[str, ...]
    checkpoints: Mapping[str, Entry]
    scratches: tuple[str, ...]
    leftovers: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.artifacts or self.leases or self.checkpoints or self.scratches or self.leftovers)


def size_of(manifest: Mapping[str, Any]) -> int:
    """Bytes of an artifact's files."""
    return sum(facts["size"] for facts in manifest["files"].values())


def find_garbage(
    store: Store,
    manifests: Mapping[str, Mapping[str, Any]],
    referenced: Collection[str],
    keep_from: float | None,
    kept_stages: Iterable[str] = (),
) -> Garbage:
    """What of a store is neither referred to nor in use. Removes nothing.

    manifests: of all artifacts, listed before `referenced` was asked for, so that a sweep that begins meanwhile finds all that it is to
    use. referenced: keys that somebody wants, there or not; all that they were made from is wanted too. keep_from: what was made since
    then stays, s since the epoch. kept_stages: kinds of stages that stay. Checkpoints, foreign leases and what was never finished go
    once nobody has touched them for a day.
    """
    now = time.time()
    leases = store.leases()
    held = {name for name, lease in leases.items() if not lease.is_expired}
    wanted = reached(referenced, manifests)
    unwanted = {key: m for key, m in manifests.items() if key not in wanted and m["stage"] not in set(kept_stages)}
    oldest_kept = float("inf") if keep_from is None else keep_from
    artifacts = {key: m for key, m in unwanted.items() if m["created"] < oldest_kept and key not in held}
    dead = [
        name
        for name, lease in leases.items()
        if lease.is_expired
        and (now - lease.renewed > LEFT_BEHIND_S or (is_of_this_host(lease.process) and not is_alive_here(lease.process)))
    ]
    is_old = min(now - LEFT_BEHIND_S, oldest_kept)
    to_be_continued = set(referenced) - set(manifests)
    checkpoints = {
        key: entry
        for key, entry in store.checkpoints().items()
        if key not in to_be_continued and key not in held and entry.written < is_old
    }
    scratches = [] if held else [name for name, written in store.scratches().items() if written < is_old]
    return Garbage(
        artifacts, len(unwanted) - len(artifacts), tuple(dead), checkpoints, tuple(scratches), tuple(store.leftovers())
    )


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Remove it; what is gone already is no error. Raises StoreError where the store cannot be reached or written to."""
    for key in garbage.artifacts:
        store.remove(key)
    for name in garbage.leases:
        store.remove_lease(name)
    for key in garbage.checkpoints:
        store.checkpoint(key).remove()
    for name in garbage.scratches:
        store.remove_scratch(name)
    store.check_writable()  # clears away what was never finished
