"""What a dry run of a sweep says: it refuses what the run refuses, and counts the models that the run trains."""

from __future__ import annotations

import re

import pytest
from in_process import graph_of, no_engines

from sweep import run
from sweep.stages.models import FineTuned
from sweep.store.artifacts import Store

TWO = ["--suite", "miniature", "--domains", "clean_digits", "street_digits"]
THREE = [*TWO, "cars"]


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    no_engines(monkeypatch)


@pytest.mark.parametrize("command", ["all_pairs", "universal"])
@pytest.mark.parametrize(
    ("options", "message"), [(["--seeds", "0"], "not 0"), (["--seeds", "1"], "not 1"), (["--workers", "0"], "at least 1")]
)
def test_it_refuses_what_the_run_refuses(command, options, message, capsys):
    for more in ([], ["--dry-run"]):
        assert run.main([command, *TWO, *options, *more]) == 2
        assert message in capsys.readouterr().err


def test_several_seeds_are_several_times_the_plan_of_one(capsys, tmp_path):
    assert run.main(["all_pairs", *TWO, "--seed", "4", "--dry-run"]) == 0
    one = capsys.readouterr().out
    assert run.main(["all_pairs", *TWO, "--seed", "4", "--seeds", "3", "--dry-run"]) == 0
    assert capsys.readouterr().out == f"3 seeds, 4 to 6, and for each: {one}"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        [*TWO, "--sources", "others"],  # for each target the only other domain, which is a target itself
        [*TWO, "--sources", "others", "clean_digits"],
        [*THREE, "--sources", "others", "clean_digits+street_digits", "--alphas", "0.2,0.6"],
        [*THREE, "--sources", "cars,others"],
        THREE,
    ],
)
def test_it_counts_each_model_that_is_trained_once(options, capsys, tmp_path):
    assert run.main(["all_pairs", *options, "--dry-run"]) == 0
    told = re.search(r"(\d+) models to train \((\d+) prediction-only", capsys.readouterr().out)
    models = {stage.key: stage for stage in graph_of(Store(str(tmp_path / "store")), *options).stages if isinstance(stage, FineTuned)}
    assert (len(models), sum(model.alpha == 1.0 for model in models.values())) == (int(told[1]), int(told[2]))
