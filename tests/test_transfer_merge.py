"""`transfer --merge`: every rule of sweeps in a user's model, what it reads of pictures and vectors, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from in_process import TINY_UNIVERSAL
from PIL import Image
from safetensors.torch import load_file, save_file
from transfers import CLASS_NAMES, stacked, transfer, write_checkpoint, write_pictures, write_vector

from core.attribution_head import AttributionHead
from core.games.learned_coefficients import learn_coefficients
from core.low_rank import LowRankVector
from core.merging.atlas import Atlas, AtlasRows
from core.merging.rule import Evidence, Merger
from core.merging.rules import MERGE_RULES, parse_rule
from core.sensitivity import class_fisher, class_gradient
from core.task_vectors import TaskVector
from core.training_data import PicturesInMemory, TrainingData
from sweep import run as command_line
from sweep.commands import universal
from sweep.commands.sweep import check
from sweep.commands.target_pictures import MAX_CALIBRATION, OwnersPictures, labelled_pixels, read_validation, spread
from sweep.stages.base import BaseModel
from sweep.stages.graph import SweepGraph
from sweep.store.artifacts import Store

NAMES = ["--class-names", *CLASS_NAMES]
RULES = {**MERGE_RULES, "atlas": Atlas(num_steps=4), "atlas_rows": AtlasRows(num_steps=4)}  # short fits
EVERY_RULE = pytest.mark.parametrize("rule", [pytest.param(rule, id=name) for name, rule in RULES.items()])


@pytest.fixture
def place(base, tmp_path):
    """A checkpoint, and a vector whose file brings information of the source's attributions, in tmp_path."""
    write_checkpoint(tmp_path / "mine.safetensors", base)
    vector = write_vector(tmp_path / "vector.safetensors", base)
    generator = torch.Generator().manual_seed(3)
    fisher = {name: torch.rand(weight.shape, generator=generator) ** 4 for name, weight in vector.weights.items()}
    vector.save(tmp_path / "vector.safetensors", {"domain": "textures", "alpha": "0.5"}, fisher)
    save_file(fisher, tmp_path / "fisher.safetensors")
    return tmp_path


def provenance(place: Path, model: str = "model") -> dict:
    return json.loads((place / model / "provenance.json").read_text())


def tower(place: Path, model: str = "model") -> dict[str, torch.Tensor]:
    written = load_file(place / model / "open_clip_model.safetensors")
    return {name.removeprefix("visual."): weight for name, weight in written.items() if name.startswith("visual.")}


def merger_by_hand(rule, place: Path, base, vector: TaskVector) -> Merger:
    """As a sweep merges, with what the rule needs measured on the labelled pictures of `place`; coefficients learned on half of them."""
    mine = {name.removeprefix("visual."): weight for name, weight in load_file(place / "mine.safetensors").items()}
    classifier = base.classifier(base.head(sorted(CLASS_NAMES), ["a photo of a {}."]), AttributionHead("efficiency")).eval()
    classifier.visual.load_state_dict(mine)
    pixels = torch.from_numpy(stacked(place / "pictures").transpose(0, 3, 1, 2).copy())
    paths = sorted((place / "pictures").rglob("*.png"))
    class_ids = torch.tensor([sorted(CLASS_NAMES).index(path.parent.name.replace("_", " ")) for path in paths])
    data = TrainingData(PicturesInMemory(pixels), class_ids, base.preprocessing)
    if not isinstance(rule, Atlas):
        evidence = Evidence(class_fisher(classifier, data), load_file(place / "fisher.safetensors"), class_gradient(classifier, data))
    else:
        half = spread(len(data), len(data) // 2)
        data = TrainingData(PicturesInMemory(pixels[half]), class_ids[half], base.preprocessing)
        evidence = Evidence(coefficients=learn_coefficients(classifier, data, vector, rule).of_vector(0))
    start = dict(base.visual.state_dict())
    return rule.prepare(start, TaskVector.between(mine, start, base.fingerprint), vector, evidence=evidence)


def differs(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max((a[name] - b[name]).abs().max().item() for name in b)


@EVERY_RULE
def test_every_rule_merges_into_a_users_model_as_it_does_in_a_sweep(rule, base, place):
    pictures = write_pictures(place / "pictures", 40 if isinstance(rule, Atlas) else 6)
    vector = TaskVector.load(place / "vector.safetensors")
    merger = merger_by_hand(rule, place, base, vector)
    expected = merger.weights(1.0, 0.7)
    classes = ["--class-names", *sorted(CLASS_NAMES), "--templates", "a photo of a {}."]
    assert transfer(place, "--validation", str(pictures), "--lambda2", "0.7", "--merge", rule.text, *classes) == 0
    assert differs(tower(place), expected) < 1e-6  # the sum is taken from the base there, from the checkpoint here: float32
    made = provenance(place)["merge"]
    assert made["rule"] == rule.name and set(made.get("evidence", {})) == set(rule.needs)
    if rule.name != "addition":
        by_addition = vector.apply_to(merger.weights(1.0, 0.0), 0.7)
        assert differs(by_addition, expected) > 1e-4  # so that the line above says something


@pytest.mark.parametrize("source", ["concepts", "concepts,others"])
def test_a_vector_of_a_store_gives_the_tower_that_the_sweep_itself_merged(source, two_seeds, base, tmp_path, capsys):
    """The advertised merge: the store brings the source's information, of two sources their mean; the target's is measured here, on the
    pictures that the sweep measured it on."""
    store = Store(str(two_seeds / "sweep_store"))
    config = universal.config_from(command_line.make_parser().parse_args(["universal", "--suite", "miniature", *TINY_UNIVERSAL]))
    checked = check(config)
    graph = SweepGraph("universal", config, BaseModel(checked.base).load(store), checked.domains, checked.imported)
    (pair,) = (pair for pair in config.pairs if pair.names == (source, "clean_digits"))
    swept = graph.transfer(pair)
    own = swept.prediction_only.classifier.model
    save_file({f"visual.{name}": weight for name, weight in own.load(store).items()}, tmp_path / "mine.safetensors")
    data = own.training_data(store)
    (tmp_path / "photos").mkdir()
    for n, picture in enumerate(data.pictures.gather(torch.arange(len(data)))):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{n:03d}.png")
    expected = dict(swept.evaluator(store, config.search).classifier(0.5, 0.7).visual.state_dict())
    head, (vector,) = graph.head("clean_digits"), swept.source_vectors
    classes = ["--class-names", *head.class_names, "--templates", *head.templates]
    where = ["--vector", f"{store.url}/artifacts/{vector.key[:2]}/{vector.key}", "--calibrate", str(tmp_path / "photos")]
    arguments = [*classes, *where, "--lambda2", "0.7"]
    assert transfer(tmp_path, *arguments, "--merge", config.search.merge.text) == 0
    assert "lambda2 = 0.7, merge rule fisher:source_share=0.3" in capsys.readouterr().out
    assert differs(tower(tmp_path), expected) < 1e-6
    assert transfer(tmp_path, *arguments, "--out", str(tmp_path / "added")) == 0
    assert differs(tower(tmp_path, "added"), expected) > 1e-4


def test_provenance_and_card_name_the_rule_its_parameters_and_what_it_was_measured_on(place):
    pictures = write_pictures(place / "loose", 5, by_class=False)
    given = ["--merge", "fisher:source_share=0.3", "--calibrate", str(pictures), "--lambda2", "0.5"]
    assert transfer(place, *NAMES, *given) == 0
    assert provenance(place)["merge"] == {
        "rule": "fisher",
        "parameters": {"source_share": 0.3},
        "evidence": {
            "class_fisher": {"source": "loose", "num_pictures": 5, "num_skipped": 0},
            "attribution_fisher": {"source": "vector.safetensors"},
        },
        "lambda1": 1.0,
        "lambda2": 0.5,
    }
    text = ModelCard.load(place / "model" / "README.md").text
    merge = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert merge["merge_method"] == "fisher" and merge["parameters"] == {"source_share": 0.3}
    assert "`class_fisher`, measured on 5 pictures of `loose`, and `attribution_fisher`, which came with the vector." in text


def test_a_vector_of_low_rank_is_edited_too(base, place):
    assert transfer(place, *NAMES, "--lambda2", "0.7", "--rank", "3", "--merge", "lines:first=0.2,last=1") == 0
    low = LowRankVector.of(TaskVector.load(place / "vector.safetensors"), 3).vector()
    edited = parse_rule("lines:first=0.2,last=1").edited(low, low)
    mine = {name.removeprefix("visual."): weight for name, weight in load_file(place / "mine.safetensors").items()}
    assert differs(tower(place), edited.apply_to(mine, 0.7)) < 1e-6


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--merge", "fisher"], "--merge fisher:source_share=0.5 needs class_fisher.*--calibrate.*--validation.*--merge addition"),
        (["--merge", "atlas"], "needs coefficients, how much of each tensor.*--calibrate.*--validation, or take --merge addition"),
        (["--merge", "gradient_sign", "--calibrate", "PICTURES"], "needs class_gradient.*--validation, or take --merge addition"),
        (
            ["--merge", "fisher", "--calibrate", "PICTURES", "--vector", "bare.safetensors"],
            "needs attribution_fisher.*bare.safetensors does not bring.*STORE/artifacts/XX/KEY.*recommend --write.*--merge addition",
        ),
        (["--merge", "substraction"], "--merge: unknown merge rule 'substraction': choose among addition"),
        (["--merge", "ties:share=0"], "--merge: share of ties must lie in"),
    ],
)
def test_a_rule_whose_needs_are_not_there_is_refused_with_the_fix(base, place, monkeypatch, capsys, more, message):
    monkeypatch.chdir(place)
    write_vector(place / "bare.safetensors", base)
    write_pictures(place / "PICTURES", 2, by_class=False)
    assert transfer(place, *NAMES, "--lambda2", "1", *more) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
    assert not (place / "model").exists()


def test_a_files_lambda2_is_taken_for_the_rule_that_it_is_of_alone(place, capsys):
    vector, rule = TaskVector.load(place / "vector.safetensors"), "fisher:source_share=0.3"
    vector.save(place / "vector.safetensors", {"lambda2": "0.4", "merge": rule}, load_file(place / "fisher.safetensors"))
    photos = ["--calibrate", str(write_pictures(place / "loose", 3, by_class=False)), "--lambdas", "0,1"]
    assert transfer(place, *NAMES, *photos, "--merge", rule) == 0
    choice = provenance(place)["choice"]
    assert choice["rule"] == "vector" and choice["chosen"]["lambda2"] == 0.4
    assert transfer(place, *NAMES, *photos, "--out", str(place / "added")) == 0
    assert provenance(place, "added")["choice"]["rule"] == "infidelity"
    assert f"recommends a lambda2 for --merge {rule}" in capsys.readouterr().out
    assert transfer(place, *NAMES, "--out", str(place / "unseen")) == 2
    assert f"the vector's file names one for --merge {rule} alone" in capsys.readouterr().err


def counted(pixels: torch.Tensor) -> set[bytes]:
    return {picture.numpy().tobytes() for picture in pixels}


@pytest.mark.parametrize("place_of", ["--validation", "--calibrate", "both"])
def test_a_rule_that_learns_is_judged_on_other_pictures(place_of, base, tmp_path):
    """Of each class some are learned on; the same pictures given twice, labelled and unlabelled, change nothing."""
    pictures = str(write_pictures(tmp_path / "pictures", 90))
    labelled, names = read_validation(None if place_of == "--calibrate" else pictures, tuple(sorted(CLASS_NAMES)))
    calibrate = None if place_of == "--validation" else pictures
    found = OwnersPictures.read(labelled, names, calibrate, base, rules=[Atlas(num_pictures=30)])
    assert found.learned is not None and found.calibration is not None and len(found.learned.pixels) == 30
    learned = counted(found.learned.pixels)
    judged = counted(found.calibration.pixels) | (counted(found.validation.pixels) if found.validation else set())
    assert not learned & judged and len(judged) >= 30
    if place_of == "--validation":
        everything = labelled_pixels(labelled, names, base.preprocessing, 90)
        assert counted(everything.pixels) == learned | counted(found.validation.pixels)
        assert set(found.learned.class_ids) == set(found.validation.class_ids) == set(everything.class_ids)


def test_unlabelled_pictures_alone_are_enough_for_both_parts_and_other_rules_take_what_they_took(base, tmp_path):
    pictures = str(write_pictures(tmp_path / "loose", 150, by_class=False))
    sizes = {}
    for rule in (parse_rule("addition"), Atlas(), AtlasRows()):
        found = OwnersPictures.read(None, CLASS_NAMES, pictures, base, rules=[rule])
        sizes[rule.name] = (len(found.learned.pixels) if found.learned else 0, len(found.calibration.pixels))
    assert sizes == {"addition": (0, MAX_CALIBRATION), "atlas": (64, 64), "atlas_rows": (75, 75)}


def test_the_card_says_that_no_score_is_of_the_pictures_that_were_learned_on(place):
    photos = ["--calibrate", str(write_pictures(place / "loose", 44, by_class=False))]
    assert transfer(place, *NAMES, *photos, "--merge", "atlas:num_steps=1", "--lambdas", "0,1") == 0
    made = provenance(place)
    assert made["merge"]["evidence"]["coefficients"]["num_pictures"] == made["calibration"]["num_pictures"] == 22
    text = ModelCard.load(place / "model" / "README.md").text
    assert "`coefficients`, learned on 22 pictures of `loose` that no score here is of." in text
    assert "measured on the pictures that lambda2 and scale were chosen on" in text


def test_too_few_pictures_for_a_rule_that_learns_are_refused_with_the_number(place, capsys):
    photos = ["--calibrate", str(write_pictures(place / "loose", 39, by_class=False))]
    assert transfer(place, *NAMES, *photos, "--merge", "atlas", "--lambda2", "1") == 2
    assert "give at least 40 different ones" in capsys.readouterr().err and not (place / "model").exists()
