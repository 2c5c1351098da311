"""`python -m sweep.run universal`: section 5.2 of the paper, one explainability vector from a diverse source for every target."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from sweep.commands import sweep_options
from sweep.commands.options import HelpWithDefaults
from sweep.commands.seeds import run_as_asked
from sweep.experiment.config import SweepConfig
from sweep.experiment.sources import OTHERS
from sweep.experiment.suites import UNIVERSAL_SUITES

NAME = "universal"
HELP = "transfer explanations from a diverse source to every target"


def run(options: argparse.Namespace) -> None:
    """Run the command. Raises ConfigError and its kin for bad input."""
    run_as_asked(NAME, config_from(options), options)


def config_from(options: argparse.Namespace) -> SweepConfig:
    """The suite with the fields that the command line changes. One's own domains get the vector of the others."""
    config = sweep_options.config_from(options, UNIVERSAL_SUITES)
    return replace(config, sources=config.sources or (OTHERS,), scores_source_models=True)


def add_parser(commands: Any) -> None:
    """The subcommand and its options."""
    sweep = commands.add_parser(
        NAME,
        help=HELP,
        description="Fine-tune a diverse source with and without explanation labels and add the difference of the weights, the universal "
        "explainability vector, to every target's classifier. Without options: the miniature suite, from drawings that share no class "
        "with the targets (concepts), from all other domains (others), and from both vectors made one (concepts,others).",
        formatter_class=HelpWithDefaults,
        argument_default=None,
    )
    sweep_options.add_sweep_options(sweep, UNIVERSAL_SUITES, "the suite's; others for --domains of your own")
