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
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from image_sets import write_noise
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
MERGE_RULE = '''
@dataclass(frozen=True)
class SignAgreement(MergeRule):
    """Addition of the explainability vector's weights whose sign the target's task vector shares."""

    name: ClassVar[str] = "sign_agreement"

    def prepare(self, base: Weights, target_task: TaskVector, explainability: TaskVector, device: torch.device | str = "cpu") -> Merger:
        task, star = target_task.weights, explainability.weights
        return _Sum(base, task, {name: star[name] * (star[name] * task[name] > 0) for name in star}, torch.device(device))


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
import contextlib, io, json, sys
import pytest
from in_process import engines_here
from sweep import run

def answer(arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run.main(arguments)
        except SystemExit as ended:  # argparse's
            code = ended.code
    return code, out.getvalue(), err.getvalue()

with pytest.MonkeyPatch.context() as patch:
    engines_here(patch)
    json.dump({name: answer(arguments) for name, arguments in json.loads(sys.argv[1]).items()}, sys.stdout)
"""
CHANGED = {"core/metrics.py", "core/merging.py"}
ADDED = {"core/shapley/halves.py", "sweep/commands/count.py"}


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
    insert("core/merging.py", ("\nMERGE_RULES:", MERGE_RULE + "\nMERGE_RULES:"), ("in (Addition(),)", "in (Addition(), SignAgreement())"))
    (directory / "core" / "shapley" / "halves.py").write_text(ESTIMATOR)
    (directory / "sweep" / "commands" / "count.py").write_text(COMMAND)
    return directory


SWEEP = [
    *("all_pairs", "--suite", "miniature", "--domains", "clean_digits", "street_digits", "--alphas", "0.5", "--num-steps", "4"),
    *("--max-train-pictures", "20", "--max-test-pictures", "12", "--max-test-labels", "4", "--budget", "64", "--test-budget", "64"),
    *("--search", "grid", "--lambdas", "0,0.8", "--precision", "float32", "--estimator", "halves"),
]
LABEL = ["label", "--data", "noise", "--model", "miniature", "--out", "out", "--estimator", "halves", "--dry-run"]
COMMANDS = {
    "help": ["--help"],
    "help of a sweep": ["all_pairs", "--help"],
    "label": [*LABEL, "--budget", "64"],
    "label with too few": [*LABEL, "--budget", "8"],
    "sweep by sign": [*SWEEP, "--merge", "sign_agreement"],
    "sweep by addition": [*SWEEP, "--merge", "addition"],
    "count": ["count", "sweep_store"],
    "count elsewhere": ["count", "elsewhere"],
}


class Answer(NamedTuple):
    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Used:
    """The copy at work: where its commands ran, in one process one after the other, and what they answered."""

    directory: Path
    answers: dict[str, Answer]


@pytest.fixture(scope="module")
def used(tree, tmp_path_factory, new_database) -> Used:
    directory = tmp_path_factory.mktemp("used")
    shutil.copyfile(new_database, directory / "mlflow.db")
    write_noise(directory / "noise")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), str(ROOT / "tests")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, json.dumps(COMMANDS)]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return Used(directory, {name: Answer(*answer) for name, answer in json.loads(done.stdout).items()})


def test_each_touches_one_file(tree):
    files = lambda root: {p.relative_to(root).as_posix() for d in ("core", "sweep") for p in (root / d).rglob("*.py")}  # noqa: E731
    assert files(tree) - files(ROOT) == ADDED
    assert {name for name in files(ROOT) if not filecmp.cmp(ROOT / name, tree / name, shallow=False)} == CHANGED


def test_the_command_line_offers_them(used):
    assert "count the label sets of a store" in used.answers["help"].stdout
    text = used.answers["help of a sweep"].stdout
    assert "sign_agreement" in text and "halves" in text


def test_the_estimator_labels_a_data_set(used):
    done = used.answers["label"]
    assert done.code == 0 and "halves, 64 evaluations" in done.stdout, done.stderr
    refused = used.answers["label with too few"]
    assert refused.code == 2 and "at least 16 are needed" in refused.stderr


def stored(directory: Path, kind: str, name: str) -> list[Path]:
    """The files of that name of all artifacts of a kind."""
    found = (directory / "sweep_store" / "artifacts").glob(f"*/*/{name}")
    return [path for path in found if f'"stage": "{kind}"' in (path.parent / "manifest.json").read_text()]


def result_of(directory: Path, merge: str) -> Path:
    """The directory of a sweep's result."""
    (found,) = (
        path.parent
        for path in stored(directory, "result", "result.json")
        if json.loads(path.read_text())["provenance"]["search.merge"] == merge
    )
    return found


def test_a_score_reaches_cells_references_record_report_figures_and_terminal(used):
    directory, done = used.directory, used.answers["sweep by sign"]
    assert done.code == 0, done.stderr
    result = result_of(directory, "sign_agreement")
    for name in ("cells", "references"):
        table = pd.read_parquet(result / f"{name}.parquet")
        assert list(table.columns)[-1] == "peak" and table["peak"].notna().any()
    rows = pd.read_parquet(result / "references.parquet")
    means = [np.load(path).max() for path in stored(directory, "label_set", "mean_map.npy")]
    for peak in rows[rows["reference"] == "mean_map"]["peak"]:  # of one map for all pictures: its own largest value
        assert np.isclose(means, peak, rtol=1e-5).any()
    lines = done.stdout.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("source -> target"))
    assert lines[header].endswith("  IoU@10   peak")
    text = (result / "report.html").read_text(encoding="utf-8")
    assert text.count('<th scope="col">peak height</th>') == 3 and "mean over pictures of the largest attribution." in text
    assert "The darker, the higher the peak." in text
    assert (result / "figures" / "matrix_peak.png").stat().st_size > 1000
    for run in runs(directory, "pair"):
        assert "peak" in run.data.metrics
    assert client(directory).get_experiment_by_name("all_pairs/miniature") is not None


def test_a_merge_rule_is_named_in_the_record_and_merges_otherwise_than_addition(used):
    directory, done = used.directory, used.answers["sweep by addition"]
    assert done.code == 0, done.stderr
    recorded = runs(directory, "sweep")
    assert sorted(run.data.params["merge"] for run in recorded) == ["addition", "sign_agreement"]
    assert {run.data.params["label_estimator"] for run in recorded} == {"halves"}
    found = [pd.read_parquet(result_of(directory, merge) / "cells.parquet") for merge in ("sign_agreement", "addition")]
    by_sign, by_addition = (table[(table["split"] == "validation") & (table["lambda2"] == 0.8)]["e_rmse"].to_numpy() for table in found)
    assert (abs(by_sign - by_addition) > 1e-5).all()
    assert len(stored(directory, "finetune", "manifest.json")) == 4  # the same models, merged twice


def test_a_command_runs_and_its_bad_input_is_refused_like_any_other(used):
    done, refused = used.answers["count"], used.answers["count elsewhere"]
    assert (done.code, done.stdout) == (0, "8 label sets\n"), done.stderr
    assert refused.code == 2 and refused.stderr.startswith("error: ") and "holds no labels" in refused.stderr
