"""Labels by estimators that learn from the pictures first: through the label command and in a sweep, in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from image_sets import damage, write_drawn
from in_process import EnginesHere, compute, engines_here
from in_process import graph_of as sweep_graph_of
from labelling import DAMAGED, all_labels, arguments, graph_of, label, maps

from core.shapley.learning import CalibrationReport
from core.shapley.surrogate_fit import LEAST_PICTURES
from sweep import run as command_line
from sweep.stages.learned import REPORT, Learned
from sweep.store.artifacts import Store

CALIBRATED = ["--estimator", "calibrated", "--budget", "104", "--calibration-pictures", "84", "--calibration-budget", "200"]
SURROGATE = ["--estimator", "surrogate", "--budget", "24", "--calibration-budget", "200", "--shard-size", "128"]


def signs(directory: Path, number: int) -> Path:
    write_drawn(directory, "traffic_signs", train=number)
    damage(directory / "train.parquet", DAMAGED)
    return directory


@pytest.fixture
def here(monkeypatch) -> EnginesHere:
    return engines_here(monkeypatch)


def report_in(out: Path) -> CalibrationReport:
    store = Store(str(out / "store"))
    (key,) = store.keys("learned")
    return CalibrationReport(**store.open(key).read_json(REPORT))


def test_calibrated_labels_are_nearer_to_the_truth_and_the_card_reports_bias(tmp_path, here, capsys):
    data = signs(tmp_path / "signs", 100)
    label(data, tmp_path / "calibrated", *CALIBRATED, "--max-corrupt-share", "0.02")
    report, said = report_in(tmp_path / "calibrated"), capsys.readouterr().out
    games = [work for work in here.works if work.kind == "games"]
    assert sum(len(work.request.indices) for work in games) == 84
    assert report.relative_error < 0.6 * report.kernel_shap_relative_error and report.num_held_out >= 20
    assert 0.7 < report.z_spread < 1.4
    assert f"Learned, on {report.num_held_out} held-out pictures: relative error {report.relative_error:.3f}" in said
    card = (tmp_path / "calibrated" / "README.md").read_text()
    assert "shrinkage" in card and "bias" in card and f"{report.relative_error:.3f}" in card
    found = all_labels(tmp_path / "calibrated")
    assert len(found) == 99
    np.testing.assert_allclose(maps(found).sum(1), found["value_full"] - found["value_empty"], atol=1e-3)
    here.works.clear()
    label(data, tmp_path / "again", *CALIBRATED, "--max-corrupt-share", "0.02", "--store", str(tmp_path / "calibrated" / "store"))
    assert here.works == [] and "Evaluating" not in capsys.readouterr().out


def test_too_few_pictures_that_can_be_read_are_too_few_to_learn_from(tmp_path, here, capsys):
    """66 suffice, and 66 there are; only once they are decoded is it known that 26 are damaged."""
    data = write_drawn(tmp_path / "signs", "traffic_signs", train=66)
    for index in range(0, 52, 2):
        damage(data / "train.parquet", index)
    options = ["--estimator", "calibrated", "--budget", "104", "--calibration-budget", "102", "--max-corrupt-share", "0.5"]
    assert command_line.main(arguments(data, tmp_path / "out", *options)) == 2
    assert "raise --calibration-pictures, or take another estimator" in capsys.readouterr().err
    assert not list((tmp_path / "out" / "data").glob("*"))


def test_a_surrogates_labels_need_no_evaluation_twice_and_survive_the_loss_of_its_files(tmp_path, here, capsys, monkeypatch):
    """Evaluate, fit, label. Then some files are lost."""
    data, out = signs(tmp_path / "many_signs", LEAST_PICTURES + 10), tmp_path / "out"
    label(data, out, *SURROGATE)
    said = capsys.readouterr().out
    assert "held-out pictures" in said
    labels = all_labels(out)
    assert len(labels) == LEAST_PICTURES + 9 and labels["id"].is_unique and (labels["budget"] == 24).all()
    np.testing.assert_allclose(maps(labels).sum(1), labels["value_full"] - labels["value_empty"], atol=1e-3)
    assert (np.stack(labels["standard_error"]) > 0).all()
    report = report_in(out)
    assert report.relative_error < 0.8 and 0.6 < report.z_spread < 1.6 and report.num_held_out >= 47
    evaluations = (LEAST_PICTURES + 9) * 26 + report.num_held_out * 200
    assert f"{evaluations:,} evaluations" in said and said.count("outside the model") == 1  # none when labels are made
    card = (out / "README.md").read_text()
    assert "a network learned" in card and f"tried on {report.num_held_out} others" in card and f"{DAMAGED:06d}.png" in card

    store = Store(str(out / "store"))
    shards = [work for work in here.works if work.kind == "label"]
    games = [work for work in here.works if work.kind == "games"]
    lost_games, lost_shard = games[3], shards[1]
    for lost in (lost_games, lost_shard):
        (out / "store" / "artifacts" / lost.key[:2] / lost.key / "manifest.json").unlink()
    (out / "data" / "labels-00001-of-00004.parquet").unlink()
    (out / "README.md").unlink()
    here.works.clear()
    monkeypatch.setattr("sweep.stages.labels._last", None)  # as in the process that comes after
    label(data, out, *SURROGATE)
    assert [work.key for work in here.works] == [lost_shard.key]
    in_both = set(lost_games.request.indices) & set(range(lost_shard.start, lost_shard.stop)) - {DAMAGED}
    assert in_both and lost_shard.artifact(store).manifest["meta"]["evaluations"] == 26 * len(in_both)
    again = all_labels(out).set_index("id").loc[labels["id"]]
    np.testing.assert_allclose(maps(again), maps(labels), atol=1e-4)
    assert (out / "README.md").read_text() == card


def test_what_was_learned_of_one_split_is_not_taken_for_another(tmp_path):
    """Pools and the choice of pictures are of the role too, so that what is learned of two splits shares no coalitions."""
    data = write_drawn(tmp_path / "signs", "traffic_signs", train=70, test=70)
    options = ["--estimator", "calibrated", "--calibration-budget", "102"]
    train, test = (graph_of(data, tmp_path / "out", *options, "--split", split).learned for split in ("train", "test"))
    pools = [learned.lesson.learning for learned in (train, test)]
    assert train.key != test.key
    coalitions = [{row.tobytes() for k in range(4) for row in pool._reference(train.games[k].request).coalitions} for pool in pools]
    # Single coalitions of one player, or of all but one, are in any draw: what is common must be those alone.
    assert len(coalitions[0] & coalitions[1]) < 0.5 * len(coalitions[0])


SWEEP = [
    *("--validation-share", "0.1"),
    *("--alphas", "0.5", "--num-steps", "2", "--max-train-pictures", "74", "--max-test-pictures", "12", "--max-test-labels", "4"),
    *("--search", "grid", "--lambdas", "0,0.8", "--precision", "float32", "--suite", "miniature", "--domains", "clean_digits"),
    *("street_digits", "--sources", "clean_digits", "--targets", "street_digits"),
]


def test_a_sweep_takes_an_estimator_that_learns(tmp_path, here, monkeypatch, capsys, new_database):
    """Through the command: each label set's estimator learns from training pictures of its domain, in its own role, and labels differ."""
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(new_database, "mlflow.db")
    options = ["--estimator", "calibrated", "--budget", "48", "--test-budget", "104", "--calibration-budget", "102"]
    assert command_line.main(["all_pairs", *SWEEP, *options]) == 0, capsys.readouterr().err
    assert "clean_digits -> street_digits" in capsys.readouterr().out
    learned = [work for work in here.works if isinstance(work, Learned)]
    assert sorted((work.lesson.title, work.lesson.role) for work in learned) == [
        ("clean_digits train", "train"),
        *((f"street_digits {role}", role) for role in ("ceiling", "test", "train", "validation")),
    ]
    assert all(work.lesson.pictures.params == {"split": "train"} for work in learned)
    store = Store(str(tmp_path / "sweep_store"))
    assert len({json.dumps(work.artifact(store).read_json(REPORT)) for work in learned}) == 5
    (shard,) = (work for work in here.works if work.kind == "label" and work.role == "test")
    labels = shard.load(store)
    assert len(labels) == 4 and labels.perturbation_values.shape == (4, 64)
    assert shard.artifact(store).manifest["meta"]["evaluations"] == 4 * (104 + 2 + 64)


def test_a_sweeps_surrogate_labels_its_training_pictures_without_another_evaluation(tmp_path, monkeypatch):
    monkeypatch.setattr("core.shapley.surrogate_fit.MOST_EPOCHS", 4)  # how good it is, other tests ask
    store = Store(str(tmp_path / "store"))
    sizes = ["--validation-share", "0.1", "--max-train-pictures", str(LEAST_PICTURES * 10 // 9 + 2)]
    sizes += ["--budget", "16", "--test-budget", "16"]
    graph = sweep_graph_of(store, *SWEEP, *sizes, "--estimator", "surrogate", "--calibration-budget", "102")
    train, test = graph.labels("street_digits", "train"), graph.labels("street_digits", "test")
    graph_pictures = graph.pictures("street_digits")
    assert graph_pictures.domain.count("train") >= LEAST_PICTURES
    compute(store, train)
    assert train.artifact(store).manifest["meta"]["evaluations"] == 0
    found = train.load(store)
    assert len(found) == graph_pictures.domain.count("train") and np.isfinite(found.attributions).all()
    assert train.shards[0].learned.known(store, train.shards[0].pictures)
    # Other pictures, of other splits, may bear the same ids: what is known of these says nothing of them.
    assert train.shards[0].learned.known(store, test.shards[0].pictures) == {}
