"""`python -m sweep.run why`: where a number came from, down to data and seeds."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

from sweep.record.history import History
from sweep.report.lineage import lineage_text
from sweep.store.artifacts import Store
from sweep.store.lineage import find_key, lineage

DESCRIPTION = """\
Say where a number came from: the artifact that holds it and everything that was made on the way, as an indented tree: kind of stage, key,
name, seconds, host, time, and what was set for it. What was set is said where it first applies; what several share is shown once.

  python -m sweep.run why 735adee0
      a beginning of a key, of 40 digits: those of a pair are in the report, under "artifacts"; a sweep's is in its run's name
  python -m sweep.run why 5ab69b8c00d04548a490913c6582d29b
      a run of MLflow's, a sweep's or a child's: its tag names the key
  python -m sweep.run why 735adee0 --store s3://BUCKET/sweep --json
      every manifest of the chain, for machines; null where an artifact is gone
"""
_RUN_ID = re.compile(r"[0-9a-f]{32}")


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    parser = commands.add_parser(
        "why",
        help="where a number came from: all that it was made of, down to data and seeds",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("key", metavar="KEY", help="key of an artifact, a beginning of one, or the id of a run in MLflow")
    parser.add_argument("--store", default="sweep_store", help="directory or fsspec URL of the artifacts (default: sweep_store)")
    parser.add_argument("--tracking-uri", help="MLflow that a run's id is of (default: what `mlflow ui` opens here)")
    parser.add_argument("--json", action="store_true", default=False, help="print the chain for machines")


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises StoreError or TrackingError, with the fix, for a key that is not there or not one alone."""
    store, text = Store(options.store), options.key.strip()
    recorded = History(options.tracking_uri).artifact_key(text) if _RUN_ID.fullmatch(text) else None
    key = find_key(store, recorded or text)
    found = lineage(store, key)
    print(json.dumps({"key": key, "artifacts": found}, indent=1) if options.json else lineage_text(key, found))
