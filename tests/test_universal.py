"""`python -m sweep.run universal` in this process: both sources of the miniature for two targets, two seeds, what it records and says."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from in_process import TINY_UNIVERSAL, no_engines
from mlflow import MlflowClient
from scipy import stats
from synthetic_result import synthetic_result

from core.merging.combination import Mean, TsvM
from core.merging.fisher import Fisher
from core.merging.rule import Evidence
from core.task_vectors import TaskVector
from sweep import run
from sweep.commands import seeds, universal
from sweep.commands.options import Places
from sweep.commands.sweep import check
from sweep.experiment.config import ConfigError, SweepConfig
from sweep.report.result import SweepResult
from sweep.report.table1 import ROWS
from sweep.report.tables import chosen_pairs
from sweep.stages.base import BaseModel
from sweep.stages.graph import SweepGraph
from sweep.stages.other_targets import common_point
from sweep.stages.result import read_result
from sweep.store.artifacts import Store


def config(*arguments: str) -> SweepConfig:
    return universal.config_from(run.make_parser().parse_args(["universal", *arguments]))


def facts(store: Store):
    """What a graph of the configuration needs besides it."""
    checked = check(config("--suite", "miniature", *TINY_UNIVERSAL))
    return BaseModel(checked.base).load(store), checked.domains, checked.imported


def tables(directory: Path, name: str) -> list[pd.DataFrame]:
    """A table of the result of every sweep."""
    return [pd.read_parquet(path) for path in sorted((directory / "sweep_store" / "artifacts").glob(f"*/*/{name}.parquet"))]


@pytest.fixture
def swept(two_seeds: Path) -> Path:
    return two_seeds


def test_both_sources_serve_both_targets_at_each_seed(swept):
    found = tables(swept, "source_models")
    assert len(found) == 2  # a sweep a seed
    for table in found:
        assert set(zip(table["source_domain"], table["target_domain"], strict=True)) == {
            (source, target) for source in ("concepts", "others") for target in ("clean_digits", "street_digits")
        }


def test_seeds_share_the_pictures_and_nothing_that_is_trained(swept):
    manifests = list((swept / "sweep_store" / "artifacts").glob("*/*/manifest.json"))
    stages = pd.Series([pd.read_json(path, typ="series")["stage"] for path in manifests]).value_counts()
    # Prediction-only and self-explaining of each; for two targets `others` is the other one, whose models it shares.
    assert stages["pictures"] == 3 and stages["finetune"] == 2 * 3 * 2 and stages["result"] == 2


def test_a_source_of_several_has_no_model_of_its_own_to_show(swept):
    graph = SweepGraph("universal", config("--suite", "miniature", *TINY_UNIVERSAL), *facts(Store(str(swept / "sweep_store"))))
    examples = graph.examples("clean_digits")
    models_of = zip(examples.pairs, examples.source_models, strict=True)
    names = {pair.transfer.source: [name for name, _ in models] for pair, models in models_of}
    own = ["source_prediction_only", "source_self_explaining"]
    assert names == {"concepts": own, "others": own, "concepts,others": []}


def test_a_source_of_several_trains_nothing_and_its_vector_is_the_others_in_one(swept):
    """Of each seed the combination of the two vectors that the pair's own sources have; the one trained on the target has no part in it."""
    store = Store(str(swept / "sweep_store"))
    made = [store.open(key) for key in store.keys("combined_vector")]
    explaining = [artifact for artifact in made if "explainability_vector.safetensors" in artifact.manifest["files"]]
    assert len(explaining) == 2 * 2  # a target and a seed each
    for artifact in explaining:
        name = "explainability_vector.safetensors"
        members = [TaskVector.load(store.open(key).path(name)) for key in artifact.manifest["inputs"]]
        found, expected = TaskVector.load(artifact.path(name)), Mean().combine(members)
        assert all(torch.equal(found.weights[k], expected.weights[k]) for k in expected.weights)
    results = [table for table in tables(swept, "cells") if table["source_domain"].nunique() == 3]
    assert len(results) == 2
    for table in results:
        of_both = table[table["source_domain"] == "concepts,others"]
        assert set(of_both["target_domain"]) == {"clean_digits", "street_digits"}
        others = table[table["source_domain"] == "others"]
        assert of_both["correlation"].notna().all() and not of_both["correlation"].isin(others["correlation"]).all()


def test_the_miniatures_rule_weighs_a_source_of_several_by_the_mean_of_their_information(swept):
    store = Store(str(swept / "sweep_store"))
    graph = SweepGraph("universal", config("--suite", "miniature", *TINY_UNIVERSAL), *facts(store))
    (pair,) = (p for p in graph.config.pairs if p.names == ("concepts,others", "clean_digits"))
    transfer, search = graph.transfer(pair), graph.config.search
    assert search.merge == Fisher(source_share=0.3)
    needs = [stage.need for stage in transfer.evidence]
    assert needs == ["class_fisher", "attribution_fisher", "attribution_fisher"]
    target, *sources = (stage.load(store) for stage in transfer.evidence)
    mean = {name: (sources[0][name] + sources[1][name]) / 2 for name in target}
    start = dict(graph.base.load().visual.state_dict())
    vectors = transfer.target_task.load(store), transfer.source_vectors[0].load(store)
    expected = search.merge.prepare(start, *vectors, torch.device("cpu"), Evidence(class_fisher=target, attribution_fisher=mean))
    found = transfer.evaluator(store, search).classifier(0.5, 0.7).visual.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in expected.weights(1.0, 0.7).items())


def test_table1_and_all_tables_are_recorded_and_the_seeds_as_a_run_of_their_own(swept):
    client = MlflowClient(f"sqlite:///{swept / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("universal/miniature")
    runs = client.search_runs([experiment.experiment_id], "tags.stage = 'sweep'")
    names = [{artifact.path for artifact in client.list_artifacts(found.info.run_id)} for found in runs]
    sweeps = [found for found in names if "report.html" in found]
    assert len(sweeps) == 2
    for found in sweeps:
        assert {f"{name}.parquet" for name in ("cells", "table1", "source_models", "objectives", "convergence")} <= found
    (together,) = (run for run, found in zip(runs, names, strict=True) if "seeds.parquet" in found)
    table = pd.read_parquet(client.download_artifacts(together.info.run_id, "seeds.parquet"))
    assert table["seed"].nunique() == 2 and {"concepts", "others", "concepts,others", "all"} == set(table["source_domain"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (first, second) = (
        pd.read_parquet(client.download_artifacts(run.info.run_id, "table1.parquet"))
        for run, found in zip(runs, names, strict=True)
        if "table1.parquet" in found
    )
    assert set(first.loc[~first["is_reference"], "model"]) == {row.model for row in ROWS}
    assert {"chance", "side_head", "gradient_rollout"} <= set(first.loc[first["is_reference"], "model"])
    assert not first["mean"].equals(second["mean"])


def test_the_run_of_the_seeds_says_what_its_sweeps_share_and_each_source_by_itself(new_database, tmp_path, monkeypatch):
    """Of made-up sweeps whose two sources differ in one character."""
    shutil.copyfile(new_database, tmp_path / "mlflow.db")

    def made_up(command: str, config: SweepConfig, *_: object) -> SweepResult:
        seed = config.search.seed
        made = synthetic_result(sources=["cars+scenes", "cars,scenes"], command=command, num_examples=0, seed=seed)
        return replace(made, sweep_key=f"{seed:040x}")

    monkeypatch.setattr(seeds, "run_sweep", made_up)
    asked = config("--suite", "miniature", "--merge", "ties:share=0.3", "--head", "efficiency", "--seed", "4")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    table = seeds.run_seeds("universal", asked, 3, Places(tracking_uri=uri), lambda text: None)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("universal/miniature")
    (found,) = client.search_runs([experiment.experiment_id])
    params = found.data.params
    shared = {"merge": "ties:share=0.3", "objective": "accuracy_bound", "head": "efficiency", "base": "miniature", "seeds": "[4, 5, 6]"}
    assert shared.items() <= params.items() and params["sweep_keys"].count(",") == 2
    assert {"alphas", "lambdas", "label_budget", "test_label_budget", "num_pairs"} < params.keys()
    assert "merged by `ties:share=0.3`" in found.data.tags["mlflow.note.content"]
    for source, name in (("cars+scenes", "cars with scenes"), ("cars,scenes", "cars and scenes")):
        of_source = table[(table["source_domain"] == source) & (table["model"] == "transferred")]
        values = of_source.loc[of_source["measure"] == "correlation", "value"]
        mean = found.data.metrics[f"{name}.correlation"]
        assert mean == pytest.approx(values.mean())
        low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
        assert (found.data.metrics[f"{name}.correlation.low"], found.data.metrics[f"{name}.correlation.high"]) == pytest.approx((low, high))


def test_objectives_are_compared_with_what_an_oracle_finds_on_test(swept):
    for table in tables(swept, "objectives"):
        for _, of_pair in table.groupby(["source_domain", "target_domain"]):
            is_result = table["source_domain"].nunique() == 3  # which has what the other target chooses besides
            assert of_pair["objective"].nunique() == len(of_pair) == 6 + 4 + is_result
            accurate = of_pair.set_index("objective").loc["oracle_98_percent"]
            assert accurate["normalized_accuracy"] >= min(0.98, of_pair["normalized_accuracy"].max())


def test_every_interval_is_around_the_score_of_the_chosen_point(swept):
    store = Store(str(swept / "sweep_store"))
    for key in store.keys("result"):
        result = read_result(store.open(key))
        chosen = chosen_pairs(result).set_index(["source_domain", "target_domain"])
        assert len(chosen) == 6 and set(result.intervals["score"]) > {"normalized_accuracy", "e_rmse", "correlation", "iou_at_10"}
        for (*pair, score), row in result.intervals.set_index(["source_domain", "target_domain", "score"]).iterrows():
            assert row["estimate"] == chosen.loc[tuple(pair), score] and row["low"] <= row["estimate"] <= row["high"]


def test_figure_6_takes_the_budgets_that_the_suite_says(swept):
    for table in tables(swept, "convergence"):
        assert set(table["budget"]) <= {104, 128, 160, 208, 256, 336, 448} and table["iou_at_10"].between(0, 1).all()


def test_the_levels_of_figure_6_are_of_its_pictures(swept):
    """So few have labels here that it takes all of them: each pair's mean is its score."""
    store = Store(str(swept / "sweep_store"))
    for key in store.keys("result"):
        result = read_result(store.open(key))
        means = result.one_pass.groupby(["source_domain", "target_domain"])["iou_at_10"].mean()
        chosen = chosen_pairs(result).set_index(["source_domain", "target_domain"])["iou_at_10"]
        assert set(result.one_pass["picture"]) == set(result.convergence["picture"]) == {0, 1, 2, 3}
        np.testing.assert_allclose(means.reindex(chosen.index), chosen)


def test_own_domains_get_the_vector_of_the_others_and_the_miniatures_head(tmp_path):
    places = [str(tmp_path / name) for name in ("a", "b", "c")]
    for place in places:
        Path(place).mkdir()
    own = config("--domains", *places)
    assert own.sources == ("others",) and own.head == "efficiency" and own.scores_source_models
    assert {pair.source.parts for pair in own.pairs} == {("b", "c"), ("a", "c"), ("a", "b")}


def test_a_suites_own_sources_need_not_be_among_the_chosen_domains():
    assert config("--suite", "miniature", "--domains", "cars", "textures", "scenes").sources == ("others",)
    three = config("--suite", "miniature", "--domains", "cars", "textures", "concepts")
    assert three.sources == ("concepts", "others", "concepts,others")
    assert three.search.compares_objectives and not config("--suite", "miniature", "--no-compare-objectives").search.compares_objectives


def test_how_several_become_one_is_an_option():
    several = config("--suite", "miniature", "--sources", "cars+textures,concepts", "--combine", "tsv_m", "--targets", "scenes")
    ((source, target),) = [(pair.source, pair.target) for pair in several.pairs]
    assert (source.parts, target, several.combine) == (("cars", "textures", "concepts"), "scenes", TsvM())
    assert [member.parts for member in source.members] == [("cars", "textures"), ("concepts",)]
    for options, message in (
        (("--sources", "cars,cars"), "have one twice"),
        (("--sources", "cars,nothing"), "there is no source 'nothing'"),
        (("--combine", "median"), "--combine: unknown combination 'median'"),
    ):
        with pytest.raises(ConfigError, match=message):
            config("--suite", "miniature", *options)


def test_the_papers_is_of_imagenet_to_ten_targets():
    paper = config("--suite", "paper")
    assert len(paper.pairs) == 10 and {pair.source.name for pair in paper.pairs} == {"imagenet"}
    assert "imagenet" not in paper.target_names and paper.head == "cosine" and paper.recipe_of(paper.pairs[0].source).epochs == 4


def test_one_seed_is_refused_as_several(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    no_engines(monkeypatch)
    assert run.main(["universal", "--suite", "miniature", *TINY_UNIVERSAL, "--seeds", "1"]) == 2
    assert "leave --seeds out for one" in capsys.readouterr().err


def test_a_targets_own_cells_have_no_part_in_what_the_other_targets_choose(swept):
    """With two targets, each one's point is the other's bound."""
    store = Store(str(swept / "sweep_store"))
    made = [store.open(key) for key in store.keys("other_targets_point")]
    assert len(made) == 2 * 3 * 2  # seeds, sources, targets
    pairs = {artifact.key: artifact for artifact in map(store.open, store.keys("pair"))}
    for point in made:
        (other,) = (pairs[key] for key in point.manifest["inputs"] if key in pairs)
        cells = pd.read_parquet(other.path("cells.parquet"))
        (row,) = pd.read_parquet(point.path("objective.parquet")).to_dict("records")
        assert set(cells["source_domain"]) == {row["source_domain"]} and row["target_domain"] not in set(cells["target_domain"])
        assert (row["alpha"], row["lambda2"]) == common_point([cells[cells["split"] == "validation"]], 0.95)
    for table in tables(swept, "objectives"):
        assert not table.duplicated(["source_domain", "target_domain", "objective"]).any()
