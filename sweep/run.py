"""Command line: picks a command and turns what is the user's to mend into a message and an exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from core.checkpoint_files import CheckpointError
from core.data.domains import DomainError
from core.model import BaseModelError
from core.model_directory import ModelDirectoryError
from core.task_vectors import TaskVectorError
from sweep import commands
from sweep.engines.job import WorkLostError
from sweep.experiment.config import ConfigError
from sweep.record.tracker import TrackingError
from sweep.stages.pictures import CorruptPicturesError
from sweep.store.artifacts import StoreError
from sweep.store.files import is_disk_full

# What is the user's to mend, by its message. Any other error is ours and shows where it arose.
USER_ERRORS = (
    ConfigError,
    DomainError,
    BaseModelError,
    CheckpointError,
    ModelDirectoryError,
    TaskVectorError,
    StoreError,
    TrackingError,
    CorruptPicturesError,
    WorkLostError,
)
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

FIRST_STEPS = """\
first steps:
  python -m sweep.run all_pairs                      the embedded miniature suite: minutes on a laptop, nothing to prepare
  python -m sweep.run universal                      one explainability vector from a diverse source, for every target
  python -m sweep.run all_pairs --domains A B        your own image sets (a directory per class, or Parquet); add --dry-run to check them
  python -m sweep.run label --data A --model miniature --out labels/     Shapley labels of one data set
  python -m sweep.run transfer --help                make your own fine-tuned checkpoint explain itself; `recommend` says with which vector
  python -m sweep.run explain --help                 see what it sees in pictures; `export` and `publish` give it to others
  python -m sweep.run status                         from another terminal: what runs, what is left; `why KEY` where a number came from
  mlflow ui                                          review what a sweep recorded
  python -m sweep.run COMMAND --help                 every option of a command
"""


def find_commands(wanted: str | None = None) -> dict[str, ModuleType]:
    """The commands by name: modules of `sweep.commands` with an `add_parser` (its options) and a `run`.

    wanted: the one that is asked for: where it is there, the others are not imported, which takes seconds.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    return (_commands([wanted]) if wanted in names else {}) or _commands(names)


def _commands(names: Sequence[str]) -> dict[str, ModuleType]:
    modules = {name: importlib.import_module(f"sweep.commands.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "add_parser")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 done, 2 bad input (the message names the fix), 130 interrupted, 1 anything else."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    found = find_commands(given[0] if given else None)
    options = make_parser(found).parse_args(given)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        found[options.command].run(options)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except USER_ERRORS as error:
        if options.verbose:
            raise
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Exception as error:
        if not is_disk_full(error) or options.verbose:
            raise
        place = getattr(error, "filename", None) or "a directory that is written to (the store's, or the temporary one)"
        print(f"error: no space is left at {place}: free some and give the same command again; what is finished stays", file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def make_parser(found: Mapping[str, ModuleType] | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweep.run",
        description="Find out which explainability vector makes a fine-tuned CLIP classifier explain itself.",
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (find_commands() if found is None else found).values():
        command.add_parser(subparsers)
    for subparser in subparsers.choices.values():
        subparser.add_argument("--verbose", action="store_true", help="show where an error of the input arose")
    return parser


if __name__ == "__main__":
    sys.exit(main())
