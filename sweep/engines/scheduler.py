"""Runs what is missing of a graph: whatever has all its inputs goes to its engine, wave by wave, until the result is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sweep.engines import interruption
from sweep.engines.cluster import Workers
from sweep.engines.job import OnDone, Work, through_outages
from sweep.experiment.config import ConfigError
from sweep.store.artifacts import Store

Engine = Callable[[Sequence[Work], Store, Workers, OnDone], None]
ORDER = ("tasks", "training", "shards", "trials")
"""Of several engines with something to do the first: tasks are short, and trainings are what others wait for."""


def missing(targets: Sequence[Work], store: Store) -> list[Work]:
    """What must be computed for the targets, inputs first: a stage whose artifact is there needs none of its own inputs.

    But for an index, which is of use with all that it tells of: one of whose inputs was lost counts as missing. (It is not computed anew.)
    """
    stack, nodes = list(targets), {}
    while stack:  # the whole graph once, so that the store is asked once
        work = stack.pop()
        if work.key not in nodes:
            nodes[work.key] = work
            stack.extend(work.inputs)
    there = through_outages(lambda: store.existing(nodes))
    there -= {key for key, work in nodes.items() if work.is_index and any(other.key not in there for other in work.inputs)}
    found: dict[str, Work] = {}

    def visit(start: Work) -> None:
        pending: list[tuple[Work, bool]] = [(start, False)]
        while pending:
            work, is_ready = pending.pop()
            if is_ready:
                found.setdefault(work.key, work)
            elif work.key not in there and work.key not in found:
                pending.append((work, True))
                pending.extend((other, False) for other in reversed((*work.inputs, *work.also_reads)))

    for target in targets:
        visit(target)
    return list(found.values())


def run(works: Sequence[Work], store: Store, workers: Workers, on_done: OnDone) -> None:
    """Compute what is `missing`. An error ends it; what is published stays.

    Raises ConfigError, before anything runs, for a model of more workers than there are: it would never begin.
    """
    pending = {work.key: work for work in works}
    most = max((work.num_workers for work in pending.values()), default=1)
    if most > workers.number:
        fix = f"give --workers {most}, or fewer --workers-per-model"
        raise ConfigError(f"{most} workers are to train a model together and there are {workers.number}: {fix}")
    while pending:
        ready = [work for work in pending.values() if not any(other.key in pending for other in (*work.inputs, *work.also_reads))]
        name = next(name for name in ORDER if any(work.engine == name for work in ready))
        engine(name)([work for work in ready if work.engine == name], store, workers, _taking_off(pending, on_done))
        interruption.check()


def _taking_off(pending: dict[str, Work], on_done: OnDone) -> OnDone:
    def done(work: Work) -> None:
        pending.pop(work.key, None)
        through_outages(lambda: on_done(work))

    return done


def engine(name: str) -> Engine:
    """An engine by name, imported when it is wanted: seconds each."""
    if name == "tasks":
        from sweep.engines.tasks import run_tasks

        return run_tasks
    if name == "training":
        from sweep.engines.training import run_trainings

        return run_trainings
    if name == "shards":
        from sweep.engines.shards import run_shards

        return run_shards
    from sweep.engines.trials import run_trials

    return run_trials
