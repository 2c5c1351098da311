"""`python -m sweep.run gc`: what of a store no sweep refers to any more, and its removal."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sweep.experiment.config import ConfigError
from sweep.record.history import History, RecordedSweep
from sweep.report.text import ascii_text, counted, moment, size
from sweep.stages.base import BaseModel
from sweep.store.artifacts import Store
from sweep.store.collection import Garbage, find_garbage, remove_garbage, size_of
from sweep.store.leases import Lease
from sweep.store.lineage import reached

DESCRIPTION = """\
List what of a store no run of MLflow refers to, neither itself nor as something that what it refers to was made from, and what the dead
left: leases, checkpoints, unfinished directories. --delete removes it. A run keeps its artifacts until you delete it in MLflow.

  python -m sweep.run gc
      says what would go and which run keeps what; removes nothing
  python -m sweep.run gc --store s3://BUCKET/sweep --tracking-uri http://HOST:5000 --delete
      removes it; begin no sweep meanwhile

All runs that use the store must be in the one MLflow store that is asked. What a running sweep may use stays: all that it has planned,
and whatever was made since the oldest running one began. While somebody works in the store of whom MLflow knows nothing, nothing is
removed. Labels that `label` wrote to a directory of their own stay there; only their artifacts in the store go.
"""
_NUM_SHOWN = 20


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    parser = commands.add_parser(
        "gc",
        help="what of a store no sweep refers to any more; --delete removes it",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--store", default="sweep_store", help="directory or fsspec URL of the artifacts (default: sweep_store)")
    parser.add_argument("--tracking-uri", help="MLflow that its sweeps are recorded in (default: what `mlflow ui` opens here)")
    parser.add_argument("--delete", action="store_true", default=False, help="remove what is listed")


@dataclass(frozen=True)
class Claim:
    """What a sweep keeps. keys: of artifacts that its runs name or that it plans, there or not. is_planned: whether that is all it uses."""

    sweep: RecordedSweep
    keys: frozenset[str]
    is_planned: bool

    @property
    def keeps_from(self) -> float | None:
        """Of a sweep that runs, or whose work is not known, what was made since its start is kept, s since the epoch."""
        return None if not self.sweep.is_running and self.is_planned else self.sweep.started


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises StoreError, TrackingError or ConfigError, with the fix, where it cannot be known what is referred to."""
    store = Store(options.store)
    manifests = store.manifests()  # before MLflow is asked: what begins meanwhile refers to what is listed here
    history = History(options.tracking_uri)
    claims, others = _claims(history, manifests)
    referenced = others.union(*(claim.keys for claim in claims))
    if manifests and not reached(referenced, manifests):
        raise ConfigError(
            f"no run in {history} refers to any of the {len(manifests)} artifacts of {store}: give the --tracking-uri that its sweeps "
            "were recorded with. To remove a store as a whole, remove its directory"
        )
    oldest = min((claim.keeps_from for claim in claims if claim.keeps_from is not None), default=None)
    garbage = find_garbage(store, manifests, referenced, oldest, kept_stages=(BaseModel.kind,))
    print(f"Store {store}, MLflow {history}\n")
    print("\n".join([*_kept(claims, others, manifests), "", *_listed(garbage, manifests)]))
    if options.delete and not garbage.is_empty:
        _refuse_if_in_use(store, claims)
        remove_garbage(store, garbage)
        print(f"\nRemoved: {_amount(garbage.artifacts, manifests)}, and what the dead left.")
    elif not garbage.is_empty:
        print("\nNothing was removed: --delete removes it.")


def _claims(history: History, manifests: Mapping[str, Any]) -> tuple[list[Claim], frozenset[str]]:
    """What each sweep keeps, and what runs keep that are children of none."""
    children = history.children()
    claims = []
    for sweep in history.sweeps():
        is_finished = sweep.status == "FINISHED"
        # A result names all that it was made from; where there is none, as of several seeds together, the plan may.
        plan = None if is_finished and sweep.key in manifests else history.plan(sweep)
        keys = {sweep.key} | children.pop(sweep.run_id, set()) | (plan.keys if plan else set())
        claims.append(Claim(sweep, frozenset(keys), is_finished or plan is not None))
    return claims, frozenset().union(*children.values())


def _refuse_if_in_use(store: Store, claims: list[Claim]) -> None:
    """Raise ConfigError while somebody is at work whose needs are not known."""
    known = frozenset().union(*(claim.keys for claim in claims))
    strangers = {name: lease for name, lease in store.leases().items() if not lease.is_expired and name not in known}
    if strangers:
        name, lease = next(iter(strangers.items()))
        raise ConfigError(
            f"nothing is removed: {_holder(lease)} is computing {name[:12]}, which no run of this MLflow store plans. Wait until it is "
            "done, or give the --tracking-uri that its sweep is recorded with"
        )
    for claim in claims:
        if claim.sweep.is_running and not claim.is_planned and claim.sweep.is_driver_alive is not False:
            raise ConfigError(f"nothing is removed: {claim.sweep} has not said what it will use. Wait until it has ended")


def _holder(lease: Lease) -> str:
    host, _, rest = lease.process.partition(":")
    return f"process {rest.partition(':')[0]} on {ascii_text(host, 60)}" if host else "somebody"


def _kept(claims: list[Claim], others: frozenset[str], manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Who keeps what; artifacts that several keep are counted with each."""
    lines = ["Kept (what several refer to is counted with each):"]
    for claim in claims[:_NUM_SHOWN]:
        lines.append(f"  {_amount(reached(claim.keys, manifests), manifests):<28}{ascii_text(str(claim.sweep), 90)}")
        if claim.keeps_from is not None:
            lines.append(f"  {'':<28}and whatever was made since {moment(claim.keeps_from)}, {_why_from(claim)}")
    if len(claims) > _NUM_SHOWN:
        more = reached((key for claim in claims[_NUM_SHOWN:] for key in claim.keys), manifests)
        lines.append(f"  {_amount(more, manifests):<28}{len(claims) - _NUM_SHOWN} older sweeps")
    if kept := reached(others, manifests):
        lines.append(f"  {_amount(kept, manifests):<28}runs whose sweep's run was deleted")
    return lines if len(lines) > 1 else ["Kept: nothing; MLflow holds no sweep."]


def _why_from(claim: Claim) -> str:
    if not claim.sweep.is_running:
        return "as it did not say what it uses: finish it with its command, or delete its run in MLflow"
    if claim.sweep.is_driver_alive is False:
        return "though its process is dead: give its command again, or delete its run in MLflow"
    return "as it runs"


def _listed(garbage: Garbage, manifests: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if garbage.is_empty:
        rest = f" {garbage.num_left_out} that nobody refers to are too young or in use." if garbage.num_left_out else ""
        return [f"Nothing to collect in {len(manifests)} artifacts.{rest}"]
    lines = ["Nobody refers to:"]
    of_stage: dict[str, list[str]] = defaultdict(list)
    for key, manifest in garbage.artifacts.items():
        of_stage[manifest["stage"]].append(key)
    lines += [f"  {_amount(keys, manifests):<28}{ascii_text(stage, 60)}" for stage, keys in sorted(of_stage.items())]
    lines.append(f"  {_amount(garbage.artifacts, manifests):<28}in all")
    if garbage.num_left_out:
        lines.append(f"  {garbage.num_left_out} more are left out, too young or in use")
    stale = (
        ("checkpoint", [f"{key[:12]} ({size(entry.size)})" for key, entry in garbage.checkpoints.items()]),
        ("lease", [name[:12] for name in garbage.leases]),
        ("engine's directory", garbage.scratches),
        ("unfinished path", garbage.leftovers),
    )
    for what, names in stale:
        if names:
            shown = ", ".join([*names[:3], *(["..."] if len(names) > 3 else [])])
            lines.append(f"  left by the dead, {counted(len(names), what)}: {ascii_text(shown, 300)}")
    return lines


def _amount(keys: Iterable[str], manifests: Mapping[str, Mapping[str, Any]]) -> str:
    found = list(keys)
    return f"{counted(len(found), 'artifact')}, {size(sum(size_of(manifests[key]) for key in found))}"
