"""`python -m sweep.run status`: what runs, what is done and what is left, asked from another terminal."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any

from sweep.record.history import History, RecordedSweep
from sweep.report.remaining import remaining, seconds_left
from sweep.report.text import ascii_text, duration, moment, size
from sweep.stages.plan import Plan
from sweep.store.artifacts import Store
from sweep.store.leases import Lease
from sweep.store.processes import is_alive_here, is_of_this_host, started_at

DESCRIPTION = """\
Say which sweeps there are, and of the one that runs what is done, what is left, what is being worked on and by whom. Reads only: ask as
often as you like, from any machine that reaches the store and MLflow.

  python -m sweep.run status
      in the directory that the sweep was started in
  python -m sweep.run status --store s3://BUCKET/sweep --tracking-uri http://HOST:5000

A number of `done` counts artifacts that are there, of this sweep or an earlier one. The estimate is by the rate of work so far, without
kinds of stages of which none is finished.
"""
_STORE = "sweep_store"
_NUM_SWEEPS = 10


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    parser = commands.add_parser(
        "status",
        help="what runs, what is done and what is left",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--store", help=f"directory or fsspec URL of the artifacts (default: the running sweep's, else {_STORE})")
    parser.add_argument("--tracking-uri", help="MLflow tracking URI (default: what `mlflow ui` opens here)")


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises StoreError or TrackingError, with the fix, where store or MLflow cannot be reached."""
    history, now = History(options.tracking_uri), time.time()
    sweeps = history.sweeps()
    running = [sweep for sweep in sweeps if sweep.is_running]
    plans = {sweep.run_id: history.plan(sweep) for sweep in running}
    lines = [f"Sweeps in {history}:", *(f"  {_line(sweep, now)}" for sweep in sweeps[:_NUM_SWEEPS])]
    if len(sweeps) > _NUM_SWEEPS:
        lines.append(f"  and {len(sweeps) - _NUM_SWEEPS} older ones")
    if not sweeps:
        lines = [f"{history} holds no sweep."]
    elif not running:
        ended = [sweep for sweep in sweeps if sweep.status == "FINISHED" and sweep.ended is not None]
        last = max(ended, key=lambda sweep: sweep.ended or 0.0, default=None)
        lines += ["", "No sweep runs." + (f" {ascii_text(last.name, 80)} finished last, {_ago(last.ended, now)}." if last else "")]
    url = options.store or next((plan.store for plan in plans.values() if plan is not None), _STORE)
    store = Store(url)
    for sweep in running:
        lines += ["", *_running(sweep, plans[sweep.run_id], store, now)]
    names = {key: (kind, name) for plan in plans.values() if plan for kind, of in plan.stages.items() for key, name in of.items()}
    lines += ["", *_at_work(store, names, now)]
    print("\n".join(lines))


def _line(sweep: RecordedSweep, now: float) -> str:
    took = f"began {_ago(sweep.started, now)}"
    if sweep.ended is not None:
        took += f", took {duration(sweep.ended - sweep.started)}"
    return f"{sweep.run_id[:8]}  {sweep.status:<9} {ascii_text(sweep.name, 48):<48}  {took}"


def _running(sweep: RecordedSweep, plan: Plan | None, store: Store, now: float) -> list[str]:
    lines = [f"{ascii_text(sweep.name, 80)}, driven by {_process(sweep.driver)}"]
    if sweep.is_driver_alive is False:
        lines.append("  Its process is dead: give its command again, and it goes on from what is finished.")
    if plan is None:
        return [*lines, "  It did not say what it will compute: it was begun by an earlier version, or is just beginning."]
    if plan.store != str(store):
        lines.append(f"  It works in {plan.store}, which --store does not name.")
        return lines
    manifests = store.manifests(plan.keys)
    left = remaining(plan.stages, manifests)
    width = max(len(kind.kind) for kind in left)
    lines.append(f"  {'':<{width}}{'done':>8}{'of':>8}{'left':>8}   each takes")
    for kind in left:
        each = "" if kind.mean_s is None else f"{kind.mean_s:.1f} s"
        lines.append(f"  {kind.kind:<{width}}{kind.num_done:>8}{kind.num_planned:>8}{kind.num_left:>8}   {each}".rstrip())
    total = [sum(numbers) for numbers in zip(*((k.num_done, k.num_planned, k.num_left) for k in left), strict=True)]
    lines.append(f"  {'all':<{width}}" + "".join(f"{number:>8}" for number in total))
    since = started_at(sweep.driver)
    seconds = None if since is None or sweep.is_driver_alive is False else seconds_left(left, manifests, since, now)
    unknown = [kind.kind for kind in left if kind.num_left and kind.mean_s is None]
    if seconds is not None:
        without = f", and what {', '.join(unknown)} will take, of which none is finished" if unknown else ""
        lines.append(f"  About {duration(seconds)} left{without}.")
    elif total[2]:
        lines.append("  No estimate: nothing has been finished since it was begun.")
    return lines


def _at_work(store: Store, names: Mapping[str, tuple[str, str]], now: float) -> list[str]:
    """Leases, and checkpoints of trainings that have not ended. names: kind and name of what running sweeps plan, by key."""
    leases = {name: lease for name, lease in store.leases().items() if "." not in name}
    checkpoints = store.checkpoints()
    if not leases and not checkpoints:
        return [f"Nobody is at work in {store}."]
    lines = [f"At work in {store}:" if leases else f"Nobody is at work in {store}, but trainings are unfinished:"]
    for key, lease in leases.items():
        since = "" if lease.since is None else f", since {_ago(lease.since, now)}"
        lines.append(f"  {_named(key, names)}: {_holder(lease, now)}{since}{_checkpoint(checkpoints.pop(key, None), now)}")
    lines += [f"  {_named(key, names)}: nobody trains it{_checkpoint(entry, now)}" for key, entry in checkpoints.items()]
    return lines


def _named(key: str, names: Mapping[str, tuple[str, str]]) -> str:
    kind, name = names.get(key, ("", "of no running sweep that is recorded here"))
    return f"{kind} {key[:12]} {ascii_text(name, 60)}".strip()


def _checkpoint(entry: Any, now: float) -> str:
    return "" if entry is None else f", checkpoint of {_ago(entry.written, now)} ({size(entry.size)})"


def _holder(lease: Lease, now: float) -> str:
    if not lease.process:
        return "a lease that cannot be read"
    gone = f", not heard of for {duration(now - lease.renewed)}: it may be dead" if lease.is_expired else ""
    return _process(lease.process) + ("" if is_of_this_host(lease.process) else gone)


def _process(name: str) -> str:
    """Who a process is, and whether it lives, where that can be told."""
    host, _, rest = name.partition(":")
    life = ("which lives" if is_alive_here(name) else "which is dead") if is_of_this_host(name) else "another machine"
    return f"process {rest.partition(':')[0]} on {ascii_text(host, 60)} ({life})"


def _ago(then: float | None, now: float) -> str:
    assert then is not None
    return f"{duration(max(0.0, now - then))} ago ({moment(then)})" if now - then > 3600 else f"{duration(max(0.0, now - then))} ago"
