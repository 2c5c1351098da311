"""`python -m sweep.run all_pairs`: section 5.1 of the paper, and sweeps over any sources and targets."""

from __future__ import annotations

import argparse
from typing import Any

from sweep.commands import sweep_options
from sweep.commands.options import HelpWithDefaults
from sweep.commands.seeds import run_as_asked
from sweep.experiment.config import SweepConfig
from sweep.experiment.suites import SUITES

NAME = "all_pairs"
HELP = "transfer explanations between all pairs of domains"


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises ConfigError and its kin for bad input."""
    run_as_asked(NAME, config_from(options), options)


def config_from(options: argparse.Namespace) -> SweepConfig:
    """The suite with the fields that the command line changes."""
    return sweep_options.config_from(options, SUITES)


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    sweep = commands.add_parser(
        NAME,
        help=HELP,
        description="Fine-tune every source with and without explanation labels, add the difference of the weights to every target's "
        "classifier, and search alpha and lambda2 for each pair. Without options: the miniature suite, minutes on a laptop.",
        formatter_class=HelpWithDefaults,
        argument_default=None,
    )
    sweep_options.add_sweep_options(sweep, SUITES, "each domain")
