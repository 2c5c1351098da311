"""`python -m sweep.run recommend` on the store of a finished sweep: the rank, what is said of it, what is tried, what is refused."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transfers import CLASS_NAMES, transfer, write_checkpoint, write_pictures

from core.merging.combination import Mean
from core.merging.rules import parse_rule
from core.task_vectors import TaskVector, load_attribution_fisher
from sweep import run as command_line
from sweep.commands import recommending
from sweep.report.relation import Relation, similarity_relation
from sweep.stages.catalogue import results_of, stored_vectors
from sweep.stages.other_targets import common_point
from sweep.store.artifacts import Store


@pytest.fixture
def store(two_seeds: Path) -> Store:
    return Store(str(two_seeds / "sweep_store"))


def recommended(two_seeds: Path, capsys, *arguments: str) -> dict:
    assert command_line.main(["recommend", "--store", str(two_seeds / "sweep_store"), "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def place_of(two_seeds: Path, key: str) -> Path:
    return two_seeds / "sweep_store" / "artifacts" / key[:2] / key / "explainability_vector.safetensors"


def test_every_vector_of_the_store_is_ranked_by_its_cosine_with_the_targets(two_seeds, store, base, tmp_path, capsys):
    tower = write_checkpoint(tmp_path / "mine.safetensors", base)
    found = recommended(two_seeds, capsys, "--target", str(tmp_path / "mine.safetensors"))["vectors"]
    # Of two seeds: concepts, and either domain, each once though it is `others` for the other one too; and for each target both made one.
    domains = ("clean_digits", "street_digits")
    single = [("concepts", ["concepts"]), *((domain, [domain]) for domain in domains)]
    combined = [("concepts,others", ["concepts", domain]) for domain in domains]
    assert sorted((row["source"], row["domains"]) for row in found) == sorted(2 * [*single, *combined])
    own = TaskVector.between(tower, dict(base.visual.state_dict()), base.fingerprint)
    similarities = [row["similarity"] for row in found]
    assert similarities == sorted(similarities, reverse=True)
    for vector in stored_vectors(store, base.fingerprint):
        (row,) = [row for row in found if row["key"] == vector.key]
        made = store.open(vector.key)
        members = made.manifest["inputs"] if made.manifest["stage"] == "combined_vector" else [vector.key]
        starts = [store.open(store.open(key).manifest["inputs"][1]) for key in members]
        towers = [load_file(start.path("visual.safetensors")) for start in starts]
        task = Mean().combine([TaskVector.between(one, dict(base.visual.state_dict()), base.fingerprint) for one in towers])
        assert row["similarity"] == pytest.approx(own.cosine_similarity(task), abs=1e-6)


def test_a_target_that_was_a_source_finds_itself_most_alike(two_seeds, store, base, tmp_path, capsys):
    vector = next(v for v in stored_vectors(store, base.fingerprint) if v.source == "concepts")
    start = store.open(vector.key).manifest["inputs"][1]
    (tmp_path / "mine.safetensors").write_bytes(store.open(start).path("visual.safetensors").read_bytes())
    best = recommended(two_seeds, capsys, "--target", str(tmp_path / "mine.safetensors"))["vectors"][0]
    assert best["key"] == vector.key and best["similarity"] == pytest.approx(1.0, abs=1e-5)


def test_the_best_ranked_are_tried_on_pictures(two_seeds, base, tmp_path, capsys):
    write_checkpoint(tmp_path / "mine.safetensors", base)
    pictures = str(write_pictures(tmp_path / "pictures", 12))
    arguments = ["--target", str(tmp_path / "mine.safetensors"), "--validation", pictures, "--most", "2"]
    found = recommended(two_seeds, capsys, *arguments, "--write", str(tmp_path / "vector.safetensors"))
    tried = [row["tried"] for row in found["vectors"]]
    assert all(tried[:2]) and not any(tried[2:])
    assert all(point["infidelity"] > 0 and point["accuracy"] is not None for point in tried[:2])
    least = min(found["vectors"][:2], key=lambda row: row["tried"]["infidelity"])
    assert found["best"] == least["key"]
    written, kept = (TaskVector.load(p).weights for p in (tmp_path / "vector.safetensors", place_of(two_seeds, found["best"])))
    assert written.keys() == kept.keys() and all(bool((written[k] == kept[k]).all()) for k in kept)


def test_the_lambda2_that_the_sweeps_targets_keep_their_accuracy_at_goes_into_the_file_with_its_rule(
    two_seeds, store, base, tmp_path, capsys, monkeypatch
):
    """And transfer takes it where there are no labelled pictures. `concepts` has two targets here.

    The sweep merged by Fisher information, of which the file brings the source's part: once as it is, once as if it had added.
    """
    vector = next(v for v in stored_vectors(store, base.fingerprint) if v.source == "concepts")
    start = store.open(vector.key).manifest["inputs"][1]
    (tmp_path / "mine.safetensors").write_bytes(store.open(start).path("visual.safetensors").read_bytes())
    cells = results_of(store, base.fingerprint)[0].cells.query("source_domain == 'concepts' and split == 'validation'")
    expected = common_point([of_target for _, of_target in cells.groupby("target_domain")], 0.95)[1]
    photos = ["--class-names", *CLASS_NAMES, "--calibrate", str(write_pictures(tmp_path / "photos", 4, by_class=False))]
    (model, _), rule = store.open(vector.key).manifest["inputs"], "fisher:source_share=0.3"
    measured = (store.open(key) for key in store.keys("sensitivity"))
    (fisher,) = (a for a in measured if a.manifest["inputs"][0] == model and a.manifest["params"]["need"] == "attribution_fisher")

    def written(name: str) -> tuple[dict[str, str], dict]:
        """Metadata of the file, and how transfer chose by it."""
        file, more = str(tmp_path / f"{name}.safetensors"), [] if name == "addition" else ["--merge", rule]
        capsys.readouterr()
        best = recommended(two_seeds, capsys, "--target", str(tmp_path / "mine.safetensors"), "--write", file)["vectors"][0]
        assert best["source"] == "concepts" and best["lambda2"] == expected
        assert transfer(tmp_path, *photos, "--vector", file, "--out", str(tmp_path / name), *more) == 0
        with safe_open(file, framework="pt") as opened:
            return opened.metadata(), json.loads((tmp_path / name / "provenance.json").read_text())["choice"]

    metadata, choice = written("fisher")
    assert float(metadata["lambda2"]) == expected and metadata["merge"] == rule and metadata["domain"] == "concepts"
    assert choice["rule"] == "vector" and choice["chosen"]["lambda2"] == expected
    brought, kept = load_attribution_fisher(tmp_path / "fisher.safetensors"), load_file(fisher.path("sensitivity.safetensors"))
    assert brought.keys() == kept.keys() and all(torch.equal(brought[name], kept[name]) for name in kept)

    added = [replace(r, provenance={**r.provenance, "search.merge": "addition"}) for r in results_of(store, base.fingerprint)]
    monkeypatch.setattr(recommending, "results_of", lambda *_: added)
    metadata, choice = written("addition")
    assert metadata["merge"] == "addition" and choice["rule"] == "vector" and choice["chosen"]["lambda2"] == expected
    assert load_attribution_fisher(tmp_path / "addition.safetensors") is None


def test_a_sweeps_rule_that_cannot_be_followed_recommends_nothing(two_seeds, store, base, tmp_path, capsys, monkeypatch):
    write_checkpoint(tmp_path / "mine.safetensors", base)
    other = [replace(r, provenance={**r.provenance, "search.merge": "of_another_version"}) for r in results_of(store, base.fingerprint)]
    monkeypatch.setattr(recommending, "results_of", lambda *_: other)
    found = recommended(two_seeds, capsys, "--target", str(tmp_path / "mine.safetensors"))["vectors"]
    assert {(row["lambda2"], row["merge"]) for row in found} == {(None, "addition")}


def as_if_merged_by(monkeypatch, store, base, rule: str) -> None:
    """Have the store's sweep say that it merged by another rule."""
    other = [replace(r, provenance={**r.provenance, "search.merge": rule}) for r in results_of(store, base.fingerprint)]
    monkeypatch.setattr(recommending, "results_of", lambda *_: other)


@pytest.mark.parametrize("rule", ["atlas", "atlas_rows"])
def test_a_rule_that_learns_is_tried_on_pictures_that_it_has_not_learned_on(rule, two_seeds, store, base, tmp_path, capsys, monkeypatch):
    rule = f"{rule}:num_steps=2"
    as_if_merged_by(monkeypatch, store, base, rule)
    vector = next(v for v in stored_vectors(store, base.fingerprint) if v.source == "concepts")  # whose lambda2 two targets say
    start = store.open(vector.key).manifest["inputs"][1]
    (tmp_path / "mine.safetensors").write_bytes(store.open(start).path("visual.safetensors").read_bytes())
    pictures = str(write_pictures(tmp_path / "pictures", 44))
    options = ["--target", str(tmp_path / "mine.safetensors"), "--validation", pictures, "--most", "1"]
    best = recommended(two_seeds, capsys, *options)["vectors"][0]
    assert best["source"] == "concepts" and best["tried"]["merge"] == parse_rule(rule).text and best["tried"]["infidelity"] > 0
    assert round(best["tried"]["accuracy"] * 22, 6) % 1 == 0  # judged on the other half


def test_too_few_pictures_for_every_rule_that_could_be_tried_are_refused_before_the_target_is_trained(
    two_seeds, store, base, tmp_path, capsys, monkeypatch
):
    as_if_merged_by(monkeypatch, store, base, "atlas_rows")
    monkeypatch.setattr(recommending, "finetune", lambda *_, **__: pytest.fail("the target was about to be trained"))
    pictures = str(write_pictures(tmp_path / "pictures", 24))
    command = ["recommend", "--store", str(two_seeds / "sweep_store"), "--target", pictures]
    every = str(len(stored_vectors(store, base.fingerprint)))
    assert command_line.main([*command, "--validation", pictures, "--most", every]) == 2
    assert "give at least 40 different ones" in capsys.readouterr().err
    assert command_line.main([*command, "--calibrate", "nowhere", "--class-names", *CLASS_NAMES]) == 2
    assert "there is no picture and no directory nowhere" in capsys.readouterr().err


def test_the_next_command_names_the_rule(two_seeds, base, tmp_path, capsys):
    write_checkpoint(tmp_path / "mine.safetensors", base)
    pictures = str(write_pictures(tmp_path / "pictures", 6))
    command = ["recommend", "--store", str(two_seeds / "sweep_store"), "--target", str(tmp_path / "mine.safetensors")]
    assert command_line.main([*command, "--alpha", "0.5", "--validation", pictures, "--most", "20"]) == 0
    out = capsys.readouterr().out
    (following,) = (line for line in out.splitlines() if line.startswith("Next: "))
    best = following.split("/artifacts/")[1].split("/")[1].split()[0]
    (row,) = (line for line in out.splitlines() if f" {best[:12]} " in line)
    rule = row.split()[-1]
    assert (f"--merge {rule}" in following) == (rule != "addition")
    words = shlex.split(following.removeprefix("Next: "))[3:]
    assert words[words.index("--validation") + 1] == pictures
    words[words.index("explaining/")] = str(tmp_path / "explaining")
    assert command_line.main(words) == 0 and (tmp_path / "explaining" / "open_clip_model.safetensors").is_file()


def test_without_pictures_the_next_command_says_what_is_missing_and_brings_the_sweeps_lambda2(two_seeds, base, tmp_path, capsys):
    write_checkpoint(tmp_path / "mine.safetensors", base)
    command = ["recommend", "--store", str(two_seeds / "sweep_store"), "--target", str(tmp_path / "mine.safetensors")]
    assert command_line.main(command) == 0
    (following,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: "))
    request = command_line.make_parser().parse_args(shlex.split(following.removeprefix("Next: "))[3:])
    assert request.class_names == ["CLASS", "CLASS"] and request.lambda2 not in (None, "auto") and request.validation is None


def test_labelled_pictures_are_fine_tuned_on_as_the_sources_were(two_seeds, tmp_path, capsys):
    pictures = write_pictures(tmp_path / "pictures", 24)
    assert command_line.main(["recommend", "--store", str(two_seeds / "sweep_store"), "--target", str(pictures)]) == 0
    out = capsys.readouterr().out
    assert "concepts" in out and "sweep.run transfer --checkpoint MINE" in out and "similarity: cosine" in out


def test_the_relation_is_that_of_the_sweeps_chosen_points(store, base):
    result = results_of(store, base.fingerprint)[0]
    relation = similarity_relation(result, "correlation")
    assert relation.num_pairs == len(result.pairs) == 6
    chosen = result.cells[(result.cells["split"] == "test") & result.cells["is_chosen"]]
    merged = chosen.merge(result.similarities, on=["source_domain", "target_domain", "alpha"])
    expected = np.corrcoef(merged["similarity_prediction_only"], merged["correlation"])[0, 1]
    assert relation.r.estimate == pytest.approx(expected)
    less_mean = merged[["correlation", "similarity_prediction_only"]] - merged.groupby("target_domain")[
        ["correlation", "similarity_prediction_only"]
    ].transform("mean")
    assert relation.r_within.estimate == pytest.approx(np.corrcoef(less_mean.to_numpy().T)[0, 1])
    slope, intercept = np.polyfit(merged["similarity_prediction_only"], merged["correlation"], 1)
    assert relation.expected(0.3) == pytest.approx(0.3 * slope + intercept)


def test_a_relation_whose_interval_holds_zero_is_no_relation():
    from core.statistics import Interval, Line

    def relation(low: float, high: float) -> Relation:
        among, within = Interval(0.5, -0.9, 0.9, 8, 0.95), Interval(0.5, low, high, 8, 0.95)
        return Relation("correlation", "0", Line(1.0, 0.0), among, 0.1, within, 0.1, 0.1, 56)

    assert relation(0.1, 0.8).is_told_from_none and relation(-0.8, -0.1).is_told_from_none
    assert not relation(-0.1, 0.8).is_told_from_none and not relation(float("nan"), float("nan")).is_told_from_none


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "0.9"], "holds no explainability vectors of alpha 0.9"),
        (["--calibrate", "pictures"], "--calibrate asks for the classes too"),
        (["--write", "mine.safetensors"], "must be a new file"),
        (["--most", "0"], "--most must be at least 1"),
        (["--target", "nowhere"], "nowhere"),
        (["--base", "ViT-S-32-alt:random"], "run a sweep with this --base"),
    ],
)
def test_bad_input_is_refused(two_seeds, base, tmp_path, monkeypatch, capsys, arguments, message):
    write_checkpoint(tmp_path / "mine.safetensors", base)
    monkeypatch.chdir(tmp_path)
    command = ["recommend", "--store", str(two_seeds / "sweep_store"), "--target", str(tmp_path / "mine.safetensors"), *arguments]
    assert command_line.main(command) == 2
    assert message in capsys.readouterr().err


def test_an_empty_store_is_refused_with_what_fills_it(base, tmp_path, capsys):
    write_checkpoint(tmp_path / "mine.safetensors", base)
    assert command_line.main(["recommend", "--store", str(tmp_path / "store"), "--target", str(tmp_path / "mine.safetensors")]) == 2
    assert "run a sweep" in capsys.readouterr().err


def test_the_store_is_only_read(two_seeds, base, tmp_path, capsys):
    before = sorted(p for p in (two_seeds / "sweep_store").rglob("*"))
    write_checkpoint(tmp_path / "mine.safetensors", base)
    recommended(two_seeds, capsys, "--target", str(tmp_path / "mine.safetensors"))
    assert sorted(p for p in (two_seeds / "sweep_store").rglob("*")) == before
