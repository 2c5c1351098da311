"""`python -m sweep.run publish`: a transferred model goes into MLflow, to be reviewed, registered and served."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from core.model_directory import read_model
from sweep.experiment.config import ConfigError
from sweep.record.tracker import Tracker
from sweep.store.credentials import without_credentials

DESCRIPTION = """\
Log a transferred model in MLflow (experiment `transferred`), with the code that runs it: it loads and serves where this project is not
installed.

  python -m sweep.run publish --model explaining/
  python -m sweep.run publish --model explaining/ --register signs      a new version of `signs` in the registry

It prints the line that serves it. A request is a picture's file in base64; the answer its class, probability and the map of its patches:

  curl localhost:5001/invocations -H 'Content-Type: application/json' \\
      -d "{\\"dataframe_records\\": [{\\"image\\": \\"$(base64 < photo.jpg | tr -d '\\n')\\"}]}"
"""


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    parser = commands.add_parser(
        "publish",
        help="log a transferred model in MLflow, to be served and registered",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="what `transfer` wrote")
    parser.add_argument("--register", metavar="NAME", help="a name in MLflow's registry that gets a new version")
    parser.add_argument("--tracking-uri", help="MLflow tracking URI (default: what `mlflow ui` opens here)")


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises ModelDirectoryError and TrackingError, with the fix."""
    if options.register is not None and (not options.register.strip() or set(options.register) & set("/:")):
        raise ConfigError(f"--register {options.register!r} is no name for MLflow's registry: leave / and : out")
    directory = Path(options.model).expanduser()
    read_model(directory)  # nothing is logged that does not load
    from sweep.record.model_record import EXPERIMENT, record_model  # MLflow takes seconds

    tracker = Tracker(options.tracking_uri, EXPERIMENT)
    tracker.check()
    recorded = record_model(tracker, directory, options.register)
    served = recorded.uri
    if recorded.version is not None:
        served = f"models:/{options.register}/{recorded.version}"
        print(f"Registered as {options.register}, version {recorded.version}")
    print(f"Logged as {recorded.uri} in the experiment {EXPERIMENT}")
    command = ["mlflow", "models", "serve", "-m", served, "--env-manager", "local", "--port", "5001"]
    print(f"Serve it: MLFLOW_TRACKING_URI={shlex.quote(without_credentials(tracker.uri))} {shlex.join(command)}")
    print(f"Review: {tracker.review_command()}")
