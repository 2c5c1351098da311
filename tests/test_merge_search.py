"""A merge rule whose parameter the study of a pair searches: found, recorded, merged and reported as one value; what is refused."""

from __future__ import annotations

import contextlib
import io
import shutil
from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch
from in_process import SMALL_SWEEP, compute, engines_here, graph_of, no_engines
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from core.merging.fisher import Fisher
from core.merging.lines import Lines
from core.merging.rule import NO_EVIDENCE
from core.merging.rules import parse_rule
from core.task_vectors import TaskVector
from sweep import run
from sweep.commands import all_pairs, universal
from sweep.experiment.config import ConfigError, SearchSettings
from sweep.report.result import CELL_COLUMNS, MERGE_COLUMN, SweepResult
from sweep.stages.objectives import OBJECTIVES
from sweep.stages.pairs import PairSearch
from sweep.stages.study import PAPER_LAMBDA2, run_study
from sweep.store.artifacts import Store

SEARCHED = (*SMALL_SWEEP, "--num-trials", "6", "--merge", "lines:first=search")


@pytest.fixture(scope="module")
def store(two_sweeps, tmp_path_factory) -> Store:
    """With the models and labels of sweeps that searched no rule: they are the same."""
    directory = tmp_path_factory.mktemp("searched") / "store"
    shutil.copytree(two_sweeps / "sweep_store", directory)
    return Store(str(directory))


@pytest.fixture(scope="module")
def pair(store) -> PairSearch:
    """A pair whose study is done."""
    graph = graph_of(store, *SEARCHED)
    found = graph.pair(graph.config.pairs[0])
    compute(store, found)
    return found


def of_split(pair: PairSearch, store: Store, split: str) -> pd.DataFrame:
    cells = pair.cells(store)
    return cells[cells["split"] == split]


def rules(cells: pd.DataFrame) -> list:
    return [parse_rule(text) for text in cells[MERGE_COLUMN]]


@pytest.mark.parametrize("best", [0.1, 0.9])
def test_a_study_finds_the_value_that_the_goal_was_made_with(base, tmp_path, best):
    """E-RMSE is the distance of the merged tower from one that was merged with a known `first`: no other value reaches it."""
    generator = torch.Generator().manual_seed(0)
    tower = {name: weight for name, weight in base.visual.state_dict().items() if "resblocks" in name or name == "proj"}
    task, star = (
        TaskVector({k: 0.01 * torch.randn(v.shape, generator=generator) for k, v in tower.items()}, base.fingerprint) for _ in range(2)
    )
    goal = Lines(first=best).prepare(tower, task, star).weights(1.0, PAPER_LAMBDA2)

    def evaluate(alpha, lambda2, merge=None):
        merged = merge.prepare(tower, task, star).weights(1.0, lambda2)
        distance = sum((merged[name] - weight).square().sum() for name, weight in goal.items()).sqrt().item()
        kept = {"accuracy": 1.0, "normalized_accuracy_lower": 1.0}
        return {"alpha": alpha, "lambda2": lambda2, MERGE_COLUMN: merge.text, "e_rmse": distance, **kept}

    search = SearchSettings(num_trials=40, lambdas=(0.0, 1.2), merge=Lines(), searched=("first",), objective="e_rmse")
    cells = run_study("known", "key", search, evaluate, tmp_path / "journal")
    chosen = OBJECTIVES["e_rmse"].choose(cells, search)
    assert abs(parse_rule(chosen[MERGE_COLUMN]).first - best) < 0.15 and abs(chosen["lambda2"] - PAPER_LAMBDA2) < 0.15
    at_default = [cell for cell in cells if cell[MERGE_COLUMN] == Lines().text]
    assert [cell["lambda2"] for cell in at_default] == [0.0, PAPER_LAMBDA2]  # the first points
    assert chosen["e_rmse"] < 0.5 * min(cell["e_rmse"] for cell in at_default)


def test_every_cell_says_the_rule_that_its_trial_had(pair, store):
    cells = of_split(pair, store, "validation").sort_values("trial")
    path = str(pair.artifact(store).path("study.journal"))
    study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(path)))
    assert [trial.params["merge.first"] for trial in study.trials] == [rule.first for rule in rules(cells)]
    assert [trial.params["lambda2"] for trial in study.trials] == cells["lambda2"].to_list()
    assert rules(cells)[:2] == [Lines(), Lines()] and len({rule.first for rule in rules(cells)}) > 2
    assert all(0.0 <= rule.first <= 1.0 and rule.last == 1.0 for rule in rules(cells))


def test_chosen_tested_recorded_and_merged_are_one_value(pair, store):
    chosen, tested = pair.chosen(store, "validation"), pair.chosen(store, "test")
    point = ["alpha", "lambda2", MERGE_COLUMN, "trial", "attribution_scale"]
    assert [chosen[name] for name in point] == [tested[name] for name in point]
    recorded = pair.child_run(store)
    assert recorded.params["merge"] == chosen[MERGE_COLUMN] and "merge" not in recorded.metrics
    transfer = pair.transfer
    tower = dict(transfer.zero_shot.base.load().visual.state_dict())
    vectors = transfer.target_task.load(store), transfer.source_vectors[0].load(store)
    points = transfer.evaluator(store, pair.search)
    for cell in of_split(pair, store, "validation").to_dict("records"):
        expected = parse_rule(cell[MERGE_COLUMN]).prepare(tower, *vectors, "cpu", NO_EVIDENCE).weights(1.0, cell["lambda2"])
        found = points.at(cell).visual.state_dict()
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
        by_hand = points.on("validation")(cell["alpha"], cell["lambda2"], parse_rule(cell[MERGE_COLUMN]))
        assert by_hand["e_rmse"] == pytest.approx(cell["e_rmse"], rel=1e-5)


def test_a_range_is_in_the_key_and_without_a_search_nothing_is(pair, store):
    plain = graph_of(store, *SMALL_SWEEP, "--num-trials", "6", "--merge", "lines")
    stated = graph_of(store, *SMALL_SWEEP, "--num-trials", "6", "--merge", "lines:first=0.5")
    keys = [graph.pair(graph.config.pairs[0]).key for graph in (plain, stated)]
    assert keys[0] == keys[1] != pair.key
    of_plain = plain.pair(plain.config.pairs[0])
    assert of_plain.params["search"]["merge"] == {"name": "lines", "first": 0.5, "last": 1.0}
    assert "searched" not in of_plain.params["search"]
    assert pair.params["search"]["merge"] == {"name": "lines", "first": {"search": (0.0, 1.0), "first": 0.5}, "last": 1.0}
    assert [stage.key for stage in of_plain.inputs] == [stage.key for stage in pair.inputs]


def test_the_accuracy_bound_compares_points_of_one_rule_and_between_rules_the_infidelity_decides():
    """With `first` = 0 far goes little: the furthest lambda2 of all is not the best, and a lost point of one rule bounds no other."""

    def cell(first, lambda2, lower, infidelity):
        scores = {"normalized_accuracy_lower": lower, "accuracy": lower, "e_rmse": 1.0, "infidelity_at_best_scale": infidelity}
        return {"alpha": 0.5, "lambda2": lambda2, MERGE_COLUMN: Lines(first).text, **scores}

    other_rules = [cell(0.0, 1.2, 1.0, 0.9), cell(0.5, 0.4, 0.9, 0.1)]
    cells = [*other_rules, cell(0.8, 0.3, 1.0, 0.5), cell(0.8, 0.6, 1.0, 0.4), cell(0.8, 0.9, 0.5, 0.1)]
    search = SearchSettings(merge=Lines(), searched=("first",), objective="accuracy_bound")
    chosen = OBJECTIVES["accuracy_bound"].choose(cells, search)
    assert (chosen[MERGE_COLUMN], chosen["lambda2"]) == (Lines(0.8).text, 0.6)


def test_bisection_stays_at_the_rule_that_would_be_chosen(tmp_path):
    """Of each trial that the objective asks for: its rule is the one of an earlier trial."""

    def evaluate(alpha, lambda2, merge=None):
        kept = 1.0 if lambda2 <= 0.7 else 0.5
        scores = {"accuracy": kept, "normalized_accuracy_lower": kept, "e_rmse": 1.0, "infidelity_at_best_scale": abs(merge.first - 0.6)}
        return {"alpha": alpha, "lambda2": lambda2, MERGE_COLUMN: merge.text, **scores}

    search = SearchSettings(num_trials=20, lambdas=(0.0, 2.0), merge=Lines(), searched=("first",), objective="accuracy_bound")
    found = run_study("bound", "key", search, evaluate, tmp_path / "journal")
    for number in range(3, 20, 2):
        earlier = OBJECTIVES["accuracy_bound"].choose(found[:number], search)
        assert found[number][MERGE_COLUMN] == earlier[MERGE_COLUMN]
    chosen = OBJECTIVES["accuracy_bound"].choose(found, search)
    assert abs(parse_rule(chosen[MERGE_COLUMN]).first - 0.6) < 0.1 and chosen["lambda2"] > 0.0


def config(*arguments: str, command: str = "all_pairs"):
    module = {"all_pairs": all_pairs, "universal": universal}[command]
    return module.config_from(run.make_parser().parse_args([command, *arguments]))


def test_the_command_line_says_what_is_searched():
    search = config("--merge", "fisher:source_share=search").search
    assert (search.merge, search.searched, search.merge_text) == (Fisher(), ("source_share",), "fisher:source_share=search")
    search = config("--merge", "lines:last=2,first=search").search
    assert (search.merge, search.searched, search.merge_text) == (Lines(0.5, 2.0), ("first",), "lines:first=search,last=2.0")
    assert config("--merge", "fisher").search == replace(config().search, merge=Fisher())


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("all_pairs", ("--merge", "lines:first=search", "--search", "grid"), "take --search optuna, or give first a value"),
        ("all_pairs", ("--suite", "paper", "--merge", "ties:share=search"), "take --search optuna, or give share a value"),
        ("all_pairs", ("--merge", "lines:last=search"), "what a search may vary of it is first; give last a value"),
        ("all_pairs", ("--merge", "dare:seed=search"), "seed of dare is not searched: what a search may vary of it is drop_rate"),
        ("all_pairs", ("--merge", "addition:scale=search"), "addition has no parameter 'scale': it has none"),
        ("all_pairs", ("--merge", "lines:first=search", "--num-trials", "3"), "give --num-trials more than 3"),
        ("universal", ("--merge", "fisher:source_share=search"), "give source_share a value, or take --no-compare-objectives"),
        ("all_pairs", ("--merge", "lines:first=search", "--compare-objectives"), "one point of one rule is looked for that suits several"),
        ("all_pairs", ("--sources", "cars,scenes", "--combine", "consensus:threshold=search"), "threshold must be a number, not 'search'"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_fix(command, options, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    no_engines(monkeypatch)
    with pytest.raises(ConfigError, match=message):
        config(*options, command=command)
    assert run.main([command, *options]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def swept(two_sweeps, tmp_path_factory, new_database) -> tuple[Path, str, str]:
    """Where a sweep was run to its end whose Fisher merge has a searched share, what it said, and its result's key."""
    directory = tmp_path_factory.mktemp("swept")
    shutil.copytree(two_sweeps / "sweep_store", directory / "sweep_store")  # models and labels are the same
    shutil.copyfile(new_database, directory / "mlflow.db")
    options = [*SMALL_SWEEP, "--num-trials", "5", "--merge", "fisher:source_share=search"]
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(directory)
        here = engines_here(patch)
        assert run.main(["all_pairs", *options]) == 0
    (key,) = (work.key for work in here.works if work.kind == "result")
    return directory, said.getvalue(), key


def test_a_sweep_says_in_every_place_which_share_it_chose(swept):
    directory, said, key = swept
    store = Store(str(directory / "sweep_store"))
    result = SweepResult.from_directory(store.open(key).path("result.json").parent)
    assert list(result.cells.columns) == [*CELL_COLUMNS, MERGE_COLUMN] and len(result.cells) == 2 * (5 + 1)
    assert result.provenance["search.merge"] == "fisher:source_share=search" and "search.searched" not in result.provenance
    tested = result.cells[result.cells["split"] == "test"].set_index("target_domain")[MERGE_COLUMN]
    client = MlflowClient(f"sqlite:///{directory / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("all_pairs/miniature")
    pairs = client.search_runs([experiment.experiment_id], "tags.stage = 'pair'")
    assert {child.data.params["target_domain"]: child.data.params["merge"] for child in pairs} == tested.to_dict()
    (parent,) = client.search_runs([experiment.experiment_id], "tags.stage = 'sweep'")
    assert parent.data.params["merge"] == "fisher:source_share=search"
    page = store.open(key).path("report.html").read_text(encoding="utf-8")
    for text in tested:
        assert f'"merge":"{text}"' in page and f">{text}</t" in page and text in said
        assert 0.05 <= parse_rule(text).source_share <= 0.95


def test_the_same_sweep_again_computes_nothing(swept, monkeypatch):
    directory, _, _ = swept
    monkeypatch.chdir(directory)
    here = engines_here(monkeypatch)
    assert run.main(["all_pairs", *SMALL_SWEEP, "--num-trials", "5", "--merge", "fisher:source_share=search"]) == 0
    assert not here.works
