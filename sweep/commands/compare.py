"""`python -m sweep.run compare`: what two sweeps differ in."""

from __future__ import annotations

import argparse
from typing import Any

from sweep.record.history import History, RecordedSweep
from sweep.report.differences import ComparedSweep, differences
from sweep.report.result import RESULT

DESCRIPTION = """\
Say what two sweeps differ in: settings, versions of libraries and of each kind of stage's code, and results. Of the pairs of source and
target that both have, each score's difference with an interval and a paired test over the targets, which are what is independent.

  python -m sweep.run compare 5ab69b8c 0f3e11aa
      beginnings of the ids of their runs in MLflow; `python -m sweep.run status` lists them
  python -m sweep.run compare 735adee0 9b02c4d1
      or of the sweeps' keys, which end the runs' names
"""
_VERSION = "version."


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    parser = commands.add_parser(
        "compare",
        help="what two sweeps differ in: settings, versions, results",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("left", metavar="RUN", help="a sweep: the id of its run, its key, or a beginning of one")
    parser.add_argument("right", metavar="RUN", help="the sweep that it is compared with")
    parser.add_argument("--tracking-uri", help="MLflow tracking URI (default: what `mlflow ui` opens here)")


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises TrackingError, naming what there is, for a sweep that is not recorded or not one alone."""
    history = History(options.tracking_uri)
    left, right = history.find(options.left), history.find(options.right)
    # Settings of both by the same names: all that a result holds, or of one without a result the run's own.
    provenances = [(history.read_json(sweep, RESULT) or {}).get("provenance") for sweep in (left, right)]
    has_provenance = all(provenance is not None for provenance in provenances)
    print(differences(*(_compared(history, s, p if has_provenance else None) for s, p in zip((left, right), provenances, strict=True))))


def _compared(history: History, sweep: RecordedSweep, provenance: dict[str, Any] | None) -> ComparedSweep:
    known = provenance if provenance is not None else sweep.params
    settings = {name: value for name, value in known.items() if not name.startswith(_VERSION)}
    settings |= {"experiment": sweep.experiment, **{name: sweep.params.get(name) for name in ("sources", "targets")}}
    versions = {name.removeprefix(_VERSION): value for name, value in known.items() if name.startswith(_VERSION)}
    plan = history.plan(sweep)
    versions |= {f"stage {kind}": version for kind, version in (plan.versions if plan else {}).items()}
    cells = history.table(sweep, "cells")
    chosen = None if cells is None else cells[(cells["split"] == "test") & cells["is_chosen"]]
    return ComparedSweep(str(sweep), settings, versions, chosen)
