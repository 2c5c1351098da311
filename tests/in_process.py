"""Sweeps and labellings computed in this process, without Ray: the same stages and the same driver as on a cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import torch

from sweep import run as command_line
from sweep.commands import all_pairs
from sweep.commands.sweep import check
from sweep.engines.cluster import Workers
from sweep.engines.job import OnDone, Work, attempt
from sweep.engines.scheduler import missing
from sweep.stages.base import BaseModel
from sweep.stages.graph import SweepGraph
from sweep.store.artifacts import Store

if TYPE_CHECKING:
    from sweep.report.figures.drawing import Drawing
    from sweep.report.result import SweepResult

TINY_UNIVERSAL = [
    *("--domains", "clean_digits", "street_digits", "concepts", "--alphas", "0.5", "--num-trials", "5", "--precision", "float32"),
    *("--max-train-pictures", "16", "--max-test-pictures", "12", "--max-test-labels", "4", "--max-validation-labels", "4"),
    *("--num-steps", "2", "--num-source-steps", "2", "--budget", "104", "--test-budget", "104"),
]
"""Options of a `universal` over two targets and both sources that takes seconds."""
SMALL_SWEEP = [
    *("--suite", "miniature", "--domains", "clean_digits", "street_digits", "--alphas", "0.5", "--precision", "float32"),
    *("--max-train-pictures", "16", "--max-test-pictures", "12", "--max-test-labels", "4", "--max-validation-labels", "4"),
    *("--num-steps", "2", "--budget", "104", "--test-budget", "104"),
]
"""Options of two pairs that are computed in seconds, all but the number of trials."""


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


class EnginesHere:
    """Stands in for the engines: a worker's part is done here. works: what was asked for, in its order."""

    def __init__(self) -> None:
        self.works: list[Work] = []

    @contextmanager
    def connected(self, *arguments: object) -> Iterator[Workers]:
        torch.set_num_threads(1)
        yield Workers(1, 0.0, 1, 1, is_one_machine=True)

    def run(self, works: Sequence[Work], store: Store, workers: Workers, on_done: OnDone) -> None:
        for work in works:
            outcome = attempt(work, store)
            if outcome.error is not None:
                raise outcome.error
            self.works.append(work)
            on_done(work)


def engines_here(monkeypatch: pytest.MonkeyPatch, draws_all: bool = False) -> EnginesHere:
    """Let commands run without Ray. draws_all: every figure of a report, which takes seconds, and not only one."""
    here = EnginesHere()
    if not draws_all:
        monkeypatch.setattr("sweep.report.page.draw_figures", _draw_one)
    monkeypatch.setattr("sweep.engines.cluster.connected", here.connected)
    monkeypatch.setattr("sweep.engines.scheduler.engine", lambda name: here.run)
    return here


def _draw_one(result: SweepResult) -> list[Drawing]:
    from sweep.report.figures import drawing, trade_off

    return [drawing._drawing("trade_off", trade_off.CAPTION, trade_off.trade_off, result)]


def no_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where Ray would start."""
    monkeypatch.setattr("sweep.engines.cluster.connected", lambda *a, **k: pytest.fail("computation was about to start"))
