"""The stages in this process, without Ray, on a store that is not a local disk: the same code as on a cluster."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from in_process import compute, graph_of
from safetensors import safe_open

from core.attribution_head import COSINE
from core.finetune import finetune
from core.metrics import SCORES, e_rmse
from sweep.experiment.sources import Source
from sweep.stages.heads import load_heads
from sweep.stages.objectives import OBJECTIVES
from sweep.stages.scoring import SplitEvaluator, hardly_differ
from sweep.stages.stage import closure
from sweep.store.artifacts import Store

SMALL = [
    *("--alphas", "0.5", "--num-steps", "2", "--num-source-steps", "2"),
    *("--max-train-pictures", "20", "--max-test-pictures", "12", "--max-test-labels", "4"),
    *("--validation-share", "0.1"),
    *("--budget", "104", "--test-budget", "104", "--search", "grid", "--lambdas", "0,0.8", "--precision", "float32"),
]
DIGITS = ["--suite", "miniature", "--domains", "clean_digits", "street_digits"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Store and graph of a finished sweep, and what was computed for it."""
    store = Store("memory://stages", str(tmp_path_factory.mktemp("cache")))
    graph = graph_of(store, *DIGITS, *SMALL)
    return store, graph, compute(store, graph.result)


def test_every_stage_on_a_remote_store(finished):
    store, graph, computed = finished
    assert {stage.key for stage in graph.stages} <= {work.key for work in computed}
    assert graph.pictures("clean_digits").counts(store) == {"train": 18, "validation": 2, "test": 12}
    result = graph.result.load(store)
    assert len(result.cells) == 2 * (2 + 1)
    assert len(result.examples) == 4 and result.provenance["select"] == "validation"
    label, second = (graph.labels("clean_digits", role).load(store).attributions for role in ("test", "ceiling"))
    row = result.references.query("domain == 'clean_digits' and reference == 'label_ceiling'").iloc[0]
    assert abs(row["e_rmse"] - e_rmse(second, label[: len(second)])) < 1e-6


def test_every_pair_has_the_intervals_of_its_scores_over_the_test_pictures(finished):
    store, graph, _ = finished
    result = graph.result.load(store)
    measured = {score.name for score in SCORES if score.function is not None}
    for pair in map(graph.pair, graph.config.pairs):
        cell, run = pair.chosen(store, "test"), pair.child_run(store)
        of_pair = result.intervals[result.intervals["target_domain"] == pair.transfer.target].set_index("score")
        assert set(of_pair.index) == measured | {"normalized_accuracy", "normalized_e_rmse"}
        for score, row in of_pair.iterrows():
            assert row["estimate"] == cell[score] and row["low"] <= row["estimate"] <= row["high"]
            assert row["n"] == (12 if "accuracy" in score else 4)
            assert [run.metrics[f"{score}{end}"] for end in ("", "_low", "_high")] == row[["estimate", "low", "high"]].to_list()
        assert of_pair.loc["correlation", "low"] < of_pair.loc["correlation", "high"]


def test_every_reference_has_the_intervals_of_its_scores_over_the_test_pictures(finished):
    """Chance is an expectation, and the other domain's mean map the mean over several: of these no picture's score is known."""
    store, graph, _ = finished
    result = graph.result.load(store)
    keys = ["domain", "reference", "alpha"]
    rows = result.references.set_index(keys)
    assert set(result.reference_intervals["reference"]) == set(result.references["reference"]) - {"chance", "other_mean_map"}
    for key, found in result.reference_intervals.groupby(keys, dropna=False):
        row, of_score = rows.loc[key], found.set_index("score")
        assert set(of_score.index) == set(row.dropna().index)
        for score, interval in of_score.iterrows():
            assert interval["estimate"] == pytest.approx(row[score], rel=1e-12)
            assert interval["low"] <= interval["estimate"] <= interval["high"]
    of_target = result.reference_intervals[result.reference_intervals["domain"] == "clean_digits"].set_index(["reference", "score"])
    assert of_target.loc[("prediction_only", "normalized_e_rmse"), ["low", "high"]].to_list() == [1.0, 1.0]
    assert of_target.loc[("supervised", "accuracy"), "n"] == 12 and of_target.loc[("grad_cam", "correlation"), "n"] == 4
    run = graph.reference("clean_digits").child_run(store)
    assert [run.metrics[f"supervised_alpha_0.5.correlation_{end}"] for end in ("low", "high")] == of_target.loc[
        ("supervised", "correlation"), ["low", "high"]
    ].to_list()


def test_the_papers_point_is_scored_with_the_maps_of_the_head(finished):
    """Figure 3 compares pairs at one alpha and lambda2; a factor fitted to each would leave the error of the target."""
    store, graph, _ = finished
    for pair in map(graph.pair, graph.config.pairs):
        (found,) = pair.paper_point(store).to_dict("records")
        at = {how: pair.transfer.evaluator(store, replace(pair.search, calibration=how)).on("test")(0.5, 0.8) for how in ("none", "scale")}
        assert at["scale"]["e_rmse"] < found["e_rmse"] == pytest.approx(at["none"]["e_rmse"], rel=1e-6)
        assert [found[name] for name in ("alpha", "lambda2", "accuracy")] == [0.5, 0.8, at["none"]["accuracy"]]
    assert len(graph.result.load(store).paper_points) == len(graph.config.pairs)


def test_what_objectives_would_have_chosen_is_told_where_it_is_asked_for(finished):
    """On a grid, of which everything else is in the store already."""
    store, graph, _ = finished
    compared, left_out = (graph_of(store, *DIGITS, *SMALL, f"--{no}compare-objectives") for no in ("", "no-"))
    assert left_out.result.key == graph.result.key
    pair = compared.pair(compared.config.pairs[0])
    (computed,) = compute(store, pair)
    assert computed is pair and pair.cells(store).equals(graph.pair(graph.config.pairs[0]).cells(store))
    found = pair.objectives(store).set_index("objective")
    assert len(found) == len(OBJECTIVES) + 4 and set(found["lambda2"]) <= {0.0, 0.8}
    assert found.loc[pair.search.objective, "correlation"] == pytest.approx(pair.chosen(store, "test")["correlation"], rel=1e-5)
    as_in_the_paper = graph_of(store, *DIGITS, *SMALL, "--compare-objectives", "--select", "test")
    of_test = as_in_the_paper.pair(as_in_the_paper.config.pairs[0])
    compute(store, of_test)
    assert len(of_test.cells(store)) == 2  # which are on test, so that nothing is scored again for the comparison
    assert set(of_test.objectives(store)["e_rmse"]) <= set(of_test.cells(store)["e_rmse"])
    error = of_test.intervals(store).set_index("score").loc["e_rmse", "estimate"]
    assert error == pytest.approx(of_test.chosen(store, "test")["e_rmse"], rel=1e-6)


def test_maps_over_lambda2_begin_at_prediction_only_and_hold_the_transferred_one(finished):
    """lambda2 = 0 adds nothing: whatever the head adds to every patch and its scale, the map has the prediction-only one's shape."""
    store, graph, _ = finished
    result = graph.result.load(store)
    chosen = result.cells[result.cells["is_chosen"] & (result.cells["split"] == "test")].set_index("target_domain")
    for example in result.examples:
        (maps,) = example.over_lambda.values()
        assert maps.lambdas == (0.0, 0.8) and list(example.over_lambda) == [example.source_domain]
        assert np.corrcoef(maps.attributions[0], example.attributions["prediction_only"])[0, 1] > 1 - 1e-5
        at_chosen = maps.attributions[maps.lambdas.index(chosen.loc[example.domain, "lambda2"])]
        np.testing.assert_array_equal(at_chosen, example.attributions["transferred"])
        assert all(0 < p <= 1 for p in maps.probabilities)
    pair = graph.pair(graph.config.pairs[0])
    assert result.artifacts[pair.transfer.source, pair.transfer.target]["search of the pair"] == pair.key
    assert {key for keys in result.artifacts.values() for key in keys.values()} <= {stage.key for stage in graph.stages}


@torch.inference_mode()
def test_examples_hold_the_sources_own_models_with_the_targets_classes(finished):
    """Against the same pictures through the network, put together here: prediction-only with cosines, self-explaining with the sweep's."""
    store, graph, _ = finished
    for pair in graph.config.pairs:
        (first, *_) = graph.examples(pair.target).load(store)
        pixels = torch.from_numpy(first.pixels.transpose(2, 0, 1)[None].copy())
        inputs = graph.base.preprocessing.normalise(pixels)
        class_ids = torch.tensor([graph.domains[pair.target].class_names.index(first.class_name)])
        models = {
            "source_prediction_only": (graph.prediction_only(pair.source), COSINE),
            "source_self_explaining": (graph.self_explaining(pair.source, 0.5), graph.config.attribution_head),
        }
        for name, (model, head) in models.items():
            classifier = graph.base.load().classifier(load_heads(store, [graph.head(pair.target)]), head)
            classifier.visual.load_state_dict(model.load(store))
            expected = classifier.eval()(inputs, class_ids).attributions[0]
            np.testing.assert_allclose(first.attributions[name], expected, atol=1e-5)  # two pictures in a batch, or one


def test_inputs_come_first_and_each_stage_once(finished):
    _, graph, _ = finished
    seen: set[str] = set()
    for stage in closure([graph.result]):
        assert {other.key for other in stage.inputs} <= seen and stage.key not in seen
        seen.add(stage.key)


def test_nothing_is_missing_of_what_is_finished_and_little_after_a_new_alpha(finished):
    store, graph, _ = finished
    assert compute(store, graph.result) == []
    more = graph_of(store, *DIGITS, *SMALL[2:], "--alphas", "0.5,0.8")
    assert more.reference("clean_digits").key != graph.reference("clean_digits").key
    new = Counter(work.kind for work in compute(store, more.result))
    assert new["finetune"] == 2 and "label" not in new and "picture_shard" not in new


def test_the_heads_prompts_are_names_and_not_wordnet_ids(tmp_path):
    """A sweep over ImageNet's class folders must not ask for 'a photo of a n01440764'."""
    from core.data.domains import write_parquet_split

    names = [f"n{i:08d}" for i in range(1000)]
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            pixels = np.zeros((1000, 8, 8, 3), np.uint8)
            write_parquet_split(tmp_path / name / f"{split}.parquet", pixels, np.arange(1000), names)
    store = Store(str(tmp_path / "store"))
    graph = graph_of(store, "--domains", str(tmp_path / "one"), str(tmp_path / "two"), "--num-steps", "2")
    assert graph.head("one").class_names[:2] == ("tench", "goldfish")


def test_a_union_has_pictures_and_classes_side_by_side_and_labels_nothing_anew(finished):
    store, _, _ = finished
    domains = ["--suite", "miniature", "--domains", "clean_digits", "street_digits", "land_cover"]
    graph = graph_of(store, *domains, *SMALL, "--sources", "clean_digits+street_digits", "others", "--targets", "land_cover")
    assert [pair.names for pair in graph.config.pairs] == [("clean_digits+street_digits", "land_cover"), ("others", "land_cover")]
    union = Source("clean_digits+street_digits", ("clean_digits", "street_digits"))
    model = graph.self_explaining(union, 0.5)
    computed = compute(store, model)
    assert "label" not in {work.kind for work in computed}
    data = model.training_data(store)
    assert len(data) == 36 and int(data.class_ids.max()) >= 10
    own = graph.labels("street_digits", "train").load(store).attributions
    np.testing.assert_array_equal(data.attribution_labels[18:].numpy(), own)
    pixels = graph.pictures("street_digits").load(store, "train").pixels.range(0, 18)
    gathered = data.pictures.gather(data.class_ids.new_tensor(range(18, 36)))
    assert (gathered == pixels).all()


def test_faster_arithmetic_is_taken_only_where_it_changes_scores_less_than_their_own_error():
    generator = np.random.default_rng(0)
    logits, maps, errors = generator.normal(size=(200, 5)), generator.normal(size=(40, 49)), np.full((40, 49), 0.1)
    class_ids = logits.argmax(axis=1)
    class_ids[:60] = (class_ids[:60] + 1) % 5  # an accuracy of 0.7
    exact = logits, maps
    assert hardly_differ(exact, (logits + 1e-6, maps + 0.005 * generator.normal(size=maps.shape)), class_ids, errors)
    assert not hardly_differ(exact, (logits, maps + 0.05 * generator.normal(size=maps.shape)), class_ids, errors)
    wrong = logits.copy()
    wrong[60:63] = -wrong[60:63]
    assert not hardly_differ(exact, (wrong, maps), class_ids, errors)


def test_an_evaluator_on_a_gpu_tries_tf32_on_its_second_model_and_goes_on_with_it(finished):
    """Told here that it were on one: torch's setting is read while the model computes."""
    store, graph, _ = finished
    pictures, labels = graph.pictures("street_digits"), graph.labels("street_digits", "validation")
    evaluator = SplitEvaluator(store, pictures, labels, graph.base.preprocessing, "cpu")
    classifier = graph.classifier("street_digits", 1.0).load(store)
    seen: list[str] = []
    classifier.visual.ln_post.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    evaluator._takes_tf32 = None
    plain = evaluator.outputs(classifier)
    assert set(seen) == {"highest"}, "of a single model a trial would be twice the work"
    seen.clear()
    exact = evaluator.outputs(classifier)
    assert seen[0] == "highest" and seen[-1] == "high" and torch.get_float32_matmul_precision() == "highest"
    assert all(np.array_equal(a, b) for a, b in zip(plain, exact, strict=True))
    seen.clear()
    evaluator.outputs(classifier)
    assert set(seen) == {"high"}, "a CPU computes the same either way, so that the trial speaks for it"


def test_a_self_explaining_model_may_start_from_the_prediction_only_weights(finished):
    store, before, _ = finished
    graph = graph_of(store, *DIGITS, *SMALL, "--start", "prediction_only")
    source = Source("clean_digits", ("clean_digits",))
    start, model = graph.prediction_only(source), graph.self_explaining(source, 0.5)
    assert start.key == before.prediction_only(source).key and model.key != before.self_explaining(source, 0.5).key
    assert [work.kind for work in compute(store, model)] == ["finetune"]
    data, recipe = model.training_data(store), model.recipe
    classifier = graph.classifier("clean_digits", 1.0, model.attribution_head).load(store)  # the weights it starts from
    finetune(classifier, data, recipe, 0.5)
    for name, weight in model.load(store).items():
        torch.testing.assert_close(classifier.visual.state_dict()[name], weight)


def test_a_vectors_file_says_what_made_it(finished):
    store, graph, _ = finished
    vector = graph.explainability_vector(Source("clean_digits", ("clean_digits",)), 0.5)
    with safe_open(vector.artifact(store).path("explainability_vector.safetensors"), framework="pt") as file:
        said = file.metadata()
    assert (said["domain"], said["alpha"], json.loads(said["domains"])) == ("clean_digits", "0.5", ["clean_digits"])
    assert said["base_fingerprint"] == graph.base.fingerprint and json.loads(said["recipe"])["num_steps"] == 2
    assert json.loads(said["attribution_head"])["kind"] == "efficiency" and json.loads(said["labels"])["budget"] == 104
