"""A score, a merge rule, an estimator and a command are added in one file each: in a copy of the code one of each is added and used."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from image_sets import write_noise
from patience import PATIENCE_S
from test_end_to_end import client, runs

ROOT = Path(__file__).parent.parent
SCORE = """    Score(
        "peak",
        "peak height",
        "mean over pictures of the largest attribution.",
        lambda scored: float(scored.attributions.max(axis=1).mean()),
        bounds=(0.0, 2.0),
        terminal_title="peak",
        reading="The darker, the higher the peak.",
    ),
"""
MERGE_RULE = '''"""What both vectors agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from core.merging.rule import NO_EVIDENCE, Evidence, MergeRule
from core.task_vectors import TaskVector


@dataclass(frozen=True)
class SignAgreement(MergeRule):
    """Addition of the explainability vector's weights whose sign the target's task vector shares, times a scale."""

    name: ClassVar[str] = "sign_agreement"

    scale: float = 1.0

    def edited(self, target_task: TaskVector, explainability: TaskVector, evidence: Evidence = NO_EVIDENCE) -> TaskVector:
        task, star = target_task.weights, explainability.weights
        kept = {name: self.scale * star[name] * (star[name] * task[name] > 0) for name in star}
        return TaskVector(kept, explainability.base_fingerprint)
'''
ESTIMATOR = '''"""The difference of mean values with and without a player, shifted to share out v(N) - v(empty)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.shapley.estimator import Coalitions, Estimator, Learned, Sample, Seed, Values, ValueSolver


@dataclass(frozen=True, eq=False)
class Halves(ValueSolver):
    coalitions: Coalitions

    def prefix(self, budget: int) -> Halves:
        return Halves(self.coalitions[:budget])

    def attributions(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        with_player, without = self.coalitions / self.coalitions.sum(0), ~self.coalitions / (~self.coalitions).sum(0)
        found = values @ (with_player - without)
        return found + (value_full - value_empty - found.sum(1))[:, None] / found.shape[1]

    def standard_error(self, values: Values, value_empty: Values, value_full: Values) -> Values:
        return np.broadcast_to(values.std(1, keepdims=True) * 2 / len(self.coalitions) ** 0.5, (len(values), self.coalitions.shape[1]))


@dataclass(frozen=True)
class HalvesEstimator(Estimator):
    name: str = "halves"
    card: str = "difference of means over uniformly drawn coalitions"

    def smallest_budget(self, num_players: int) -> int:
        return 16

    def draw(self, num_players: int, budget: int, seed: Seed = 0) -> Halves:
        if budget < self.smallest_budget(num_players):
            raise ValueError(f"a budget of {budget} evaluations is too small: at least 16 are needed")
        return Halves(np.random.default_rng(seed).random((budget, num_players)) < 0.5)

    def solver(self, sample: Sample, learned: Learned | None = None, l1_reg: str = "none") -> Halves:
        assert isinstance(sample, Halves)
        return sample


HALVES = HalvesEstimator()
'''
COMMAND = '''"""`python -m sweep.run count`: how many artifacts of a stage a store holds."""

from __future__ import annotations

import argparse
from typing import Any

from sweep.experiment.config import ConfigError
from sweep.stages.labels import LabelSet
from sweep.store.artifacts import Store


def add_parser(commands: Any) -> None:
    count = commands.add_parser("count", help="count the label sets of a store")
    count.add_argument("store")
    count.set_defaults(verbose=False)


def run(options: argparse.Namespace) -> None:
    number = len(Store(options.store).keys(LabelSet.kind))
    if not number:
        raise ConfigError(f"{options.store} holds no labels: name the store of a sweep")
    print(f"{number} label sets")
'''
PROGRAM = """
import contextlib, io, json, os, runpy, shutil, sys, traceback
import pytest

def without_ray():
    from in_process import engines_here
    engines_here(patch, draws_all=True)

own = {"copy": lambda place: shutil.copytree(".", place), "without Ray": without_ray}
with pytest.MonkeyPatch.context() as patch:
    done = []
    for directory, arguments in json.load(sys.stdin):
        os.chdir(directory)
        if arguments[0] in own:
            own[arguments[0]](*arguments[1:])
            continue
        out, errors, code = io.StringIO(), io.StringIO(), 0
        sys.argv[1:] = arguments
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                runpy.run_module("sweep.run", run_name="__main__", alter_sys=True)
            except SystemExit as end:
                code = end.code or 0
            except Exception:
                code = traceback.format_exc()
        done.append((code, out.getvalue(), errors.getvalue()))
json.dump(done, sys.stdout)
"""
CHANGED = {"core/metrics.py"}
ADDED = {"core/merging/sign_agreement.py", "core/shapley/halves.py", "sweep/commands/count.py"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the code with one row or one module more for each."""
    directory = tmp_path_factory.mktemp("tree")
    for package in ("core", "sweep"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))

    def insert(name: str, *changes: tuple[str, str]) -> None:
        source = (directory / name).read_text()
        for before, after in changes:
            assert source.count(before) == 1, (name, before)
            source = source.replace(before, after)
        (directory / name).write_text(source)

    insert("core/metrics.py", (")\n\nSCORES:", SCORE + ")\n\nSCORES:"))
    (directory / "core" / "merging" / "sign_agreement.py").write_text(MERGE_RULE)
    (directory / "core" / "shapley" / "halves.py").write_text(ESTIMATOR)
    (directory / "sweep" / "commands" / "count.py").write_text(COMMAND)
    return directory


SWEEP = [
    *("--suite", "miniature", "--domains", "clean_digits", "street_digits", "--alphas", "0.5", "--num-steps", "4", "--search", "grid"),
    *("--validation-share", "0.1"),
    *("--max-train-pictures", "20", "--max-test-pictures", "12", "--max-test-labels", "4", "--budget", "64", "--test-budget", "64"),
    *("--lambdas", "0,0.8", "--precision", "float32", "--estimator", "halves"),
]


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    errors: str


@dataclass(frozen=True)
class Commands:
    """What commands in the copy did: `swept` is where a sweep used score, merge rule and estimator, `both` a copy of it, swept again."""

    done: dict[str, Done]
    swept: Path
    both: Path


@pytest.fixture(scope="module")
def commands(tree, tmp_path_factory, new_database) -> Commands:
    """One process runs them all: each of its own would import the same libraries again."""
    directory = tmp_path_factory.mktemp("commands")
    swept, both = directory / "swept", directory / "both"
    swept.mkdir()
    shutil.copyfile(new_database, swept / "mlflow.db")
    label = ["label", "--data", str(write_noise(directory / "noise")), "--model", "miniature", "--out", "out", "--estimator", "halves"]
    asked = {
        "count elsewhere": (directory, ["count", "elsewhere"]),  # first, while nothing is imported but what it imports itself
        "help": (directory, ["--help"]),
        "help of all_pairs": (directory, ["all_pairs", "--help"]),
        "label": (directory, [*label, "--dry-run", "--budget", "64"]),
        "label for too little": (directory, [*label, "--dry-run", "--budget", "8"]),
        "without Ray": (directory, ["without Ray"]),
        "sweep": (swept, ["all_pairs", *SWEEP, "--merge", "sign_agreement:scale=0.5"]),
        "count": (swept, ["count", "sweep_store"]),
        "copy": (swept, ["copy", str(both)]),
        "sweep by addition": (both, ["all_pairs", *SWEEP, "--merge", "addition"]),
    }
    path = os.pathsep.join([str(tree), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    given = json.dumps([(str(cwd), arguments) for cwd, arguments in asked.values()])
    whole = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(whole, input=given, cwd=directory, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stderr
    names = [name for name in asked if name not in ("without Ray", "copy")]
    return Commands({name: Done(*one) for name, one in zip(names, json.loads(ran.stdout), strict=True)}, swept, both)


def test_each_touches_one_file(tree):
    files = lambda root: {p.relative_to(root).as_posix() for d in ("core", "sweep") for p in (root / d).rglob("*.py")}  # noqa: E731
    assert files(tree) - files(ROOT) == ADDED
    assert {name for name in files(ROOT) if not filecmp.cmp(ROOT / name, tree / name, shallow=False)} == CHANGED


def test_the_command_line_offers_them(commands):
    assert "count the label sets of a store" in commands.done["help"].out
    text = commands.done["help of all_pairs"].out
    assert "sign_agreement" in text and "halves" in text


def test_the_estimator_labels_a_data_set(commands):
    done, refused = commands.done["label"], commands.done["label for too little"]
    assert done.code == 0 and "halves, 64 evaluations" in done.out, done
    assert refused.code == 2 and "at least 16 are needed" in refused.errors


def stored(directory: Path, kind: str, name: str) -> list[Path]:
    """The files of that name of all artifacts of a kind."""
    found = (directory / "sweep_store" / "artifacts").glob(f"*/*/{name}")
    return [path for path in found if f'"stage": "{kind}"' in (path.parent / "manifest.json").read_text()]


def test_a_score_reaches_cells_references_record_report_figures_and_terminal(commands):
    directory, done = commands.swept, commands.done["sweep"]
    assert done.code == 0, done
    (page,) = stored(directory, "result", "report.html")
    for name in ("cells", "references"):
        table = pd.read_parquet(page.parent / f"{name}.parquet")
        assert list(table.columns)[-1] == "peak" and table["peak"].notna().any()
    rows = pd.read_parquet(page.parent / "references.parquet")
    means = [np.load(path).max() for path in stored(directory, "label_set", "mean_map.npy")]
    for peak in rows[rows["reference"] == "mean_map"]["peak"]:  # of one map for all pictures: its own largest value
        assert np.isclose(means, peak, rtol=1e-5).any()
    lines = done.out.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("source -> target"))
    assert lines[header].endswith("  IoU@10   peak")
    text = page.read_text(encoding="utf-8")
    assert text.count('<th scope="col">peak height</th>') == 3 and "mean over pictures of the largest attribution." in text
    assert "The darker, the higher the peak." in text
    assert (page.parent / "figures" / "matrix_peak.png").stat().st_size > 1000
    for run in runs(directory, "pair"):
        assert "peak" in run.data.metrics
    assert client(directory).get_experiment_by_name("all_pairs/miniature") is not None


def test_a_merge_rule_is_named_in_the_record_and_merges_otherwise_than_addition(commands):
    (parent,) = runs(commands.swept, "sweep")
    assert parent.data.params["merge"] == "sign_agreement:scale=0.5" and parent.data.params["label_estimator"] == "halves"
    assert commands.done["sweep by addition"].code == 0, commands.done["sweep by addition"]
    found = [pd.read_parquet(path) for path in stored(commands.both, "result", "cells.parquet")]
    by_sign, by_addition = (table[(table["split"] == "validation") & (table["lambda2"] == 0.8)]["e_rmse"].to_numpy() for table in found)
    assert (abs(by_sign - by_addition) > 1e-5).all()
    assert len(stored(commands.both, "finetune", "manifest.json")) == 4  # the same models, merged twice


def test_a_command_runs_and_its_bad_input_is_refused_like_any_other(commands):
    done, refused = commands.done["count"], commands.done["count elsewhere"]
    assert (done.code, done.out) == (0, "8 label sets\n"), done
    assert refused.code == 2 and refused.errors.startswith("error: ") and "holds no labels" in refused.errors
