"""A sweep's graph computed in this process, without Ray: the same stages as on a cluster."""

from __future__ import annotations

import torch

from sweep import run as command_line
from sweep.commands import all_pairs
from sweep.commands.sweep import check
from sweep.engines.scheduler import missing
from sweep.stages.base import BaseModel
from sweep.stages.graph import SweepGraph
from sweep.store.artifacts import Store


def graph_of(store: Store, *arguments: str) -> SweepGraph:
    """The graph of `all_pairs` with these options; its base is loaded here."""
    config = all_pairs.config_from(command_line.make_parser().parse_args(["all_pairs", *arguments]))
    checked = check(config)
    base = BaseModel(checked.base)
    base.publish(store)
    return SweepGraph("all_pairs", config, base.load(store), checked.domains, checked.imported)


def compute(store: Store, *targets) -> list:
    """Publish what is missing of the targets, inputs first; gives it."""
    torch.set_num_threads(1)
    works = missing(targets, store)
    for work in works:
        work.publish(store)
    return works
