"""The command line: what options change, and bad input refused before any computation with exit code 2 and the fix."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_sets import write_noise
from in_process import no_engines

from core.games.attribution_labels import LabelSettings
from core.merging.lines import Lines
from core.merging.rules import MERGE_RULES
from core.shapley.estimators import ESTIMATORS
from sweep import run as command_line
from sweep.commands import all_pairs
from sweep.commands.label_export import LabelExport
from sweep.experiment.config import ConfigError, SweepConfig

THREE = ["--suite", "miniature", "--domains", "cars", "textures", "scenes"]


@pytest.fixture
def domains(tmp_path) -> list[Path]:
    return [write_noise(tmp_path / name) for name in ("one", "two")]


def refused(capsys, monkeypatch, tmp_path, *arguments: str) -> str:
    """The message of a command that must be refused with exit code 2, before Ray or the store is touched."""
    monkeypatch.chdir(tmp_path)
    no_engines(monkeypatch)
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(command_line.main(["all_pairs", *arguments]))
    assert caught.value.code == 2
    assert not (tmp_path / "sweep_store" / "artifacts").exists()
    assert not (tmp_path / "mlflow.db").exists() and not (tmp_path / "mlruns").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "minature"], "choose among miniature, paper"),
        (["--suite", "miniature", "--domains", "cars", "planes"], "no domain 'planes'"),
        (["--suite", "miniature", "--domains", "cars"], "at least two domains"),
        (["--search", "random"], "invalid choice"),
        (["--merge", "substraction"], "unknown merge rule 'substraction': choose among addition"),
        (["--merge", "lines:frist=0.2"], "lines has no parameter 'frist': it has first, last"),
        (["--merge", "ties:share=0"], "share of ties must lie in (0, 1], not 0.0"),
        (["--alphas", "0.5,1.5"], r"alpha must lie in [0, 1], not 1.5"),
        (["--alphas", "1.0"], "explainability vector is zero"),
        (["--alphas", "half"], "no list of finite numbers"),
        (["--alphas", "0.5,0.5"], "each once"),
        (["--lambdas", "0.1"], "two ends"),
        (["--lambdas", "nan,1"], "finite"),
        (["--num-trials", "0"], "at least one trial"),
        (["--num-steps", "0"], "must be positive"),
        (["--budget", "50"], "at least 102"),
        (["--estimator", "permutation", "--budget", "100"], "at least 192"),
        (["--estimator", "guess"], "invalid choice"),
        (["--estimator", "calibrated", "--calibration-budget", "40"], "at least 102"),
        (["--estimator", "calibrated", "--max-train-pictures", "40"], "cars/train: the calibrated estimator learns from at least 65"),
        (["--estimator", "calibrated", "--calibration-pictures", "20"], "at least 65 pictures"),
        (["--estimator", "surrogate"], "at least 480 pictures"),
        (["--test-budget", "201"], "even"),
        (["--base", "ViT-B-23:openai"], "unknown base model"),
        (["--base", "ViT-B-32"], "name the weights"),
        (["--domains", "/does/not/exist", "/neither"], "there is no directory"),
        (["--max-corrupt-share", "2"], "max_corrupt_share"),
        (["--max-train-pictures", "1"], "at least 2"),
        (["--store", "nosuchprotocol://bucket"], "nosuchprotocol"),
        (["--tracking-uri", "nosuchscheme://host"], "tracking"),
        ([*THREE, "--sources", "cars", "planes"], "there is no source 'planes': choose among the domains cars, textures, scenes, a union"),
        ([*THREE, "--sources", "cars+planes"], "there is no source 'planes'"),
        ([*THREE, "--sources", "cars+"], "there is no source ''"),
        ([*THREE, "--sources", "cars+cars"], "names a domain twice"),
        ([*THREE, "--sources", "others", "others"], "the source 'others' is named twice"),
        ([*THREE, "--targets", "planes"], "there is no target 'planes': choose among the domains cars, textures, scenes"),
        ([*THREE, "--targets", "others"], "there is no target 'others'"),
        ([*THREE, "--targets", "cars", "cars"], "the target 'cars' is named twice"),
        ([*THREE, "--sources", "cars", "cars+textures", "--targets", "cars"], "no source differs from every target"),
        ([*THREE, "--labels", "planes=labels"], "names no domain: write DOMAIN=LOCATION with one of cars, textures, scenes"),
        ([*THREE, "--labels", "labels"], "write DOMAIN=LOCATION"),
        ([*THREE, "--labels", "cars=a", "cars=b"], "names cars twice"),
        ([*THREE, "--labels", "cars=/does/not/exist"], "holds no labels.json: give a directory that `python -m sweep.run label` wrote"),
        ([*THREE, "--labels", "cars=nosuchprotocol://bucket"], "--labels"),
    ],
)
def test_bad_options_are_refused_with_the_fix(arguments, message, capsys, monkeypatch, tmp_path):
    assert message in refused(capsys, monkeypatch, tmp_path, *arguments)


def exported(directory: Path, *, num_files: int = 2, role: str = "train", **game: object) -> Path:
    """What the label command writes before its first shard, and empty files in the places of `num_files` of 2 shards."""
    out = LabelExport(str(directory))
    settings = {**LabelSettings().__dict__, **game}
    model = {"name": "a model", "fingerprint": "1" * 64, "base": "0" * 64}
    out.begin({"key": "k", "settings": settings, "role": role, "shards": 2, "model": model})
    for n in range(num_files):
        out.files.write(f"data/labels-{n:05d}-of-00002.parquet", b"")
    return directory


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({"role": "test"}, "are of the split 'test', and share coalitions with the sweep's own test labels: give labels of the train"),
        ({"role": "validation"}, "of the split 'validation'"),
        ({"fill": "drop"}, "explain another game (fill drop, the sweep's mean): label with the same fill"),
        ({"value": "log_odds"}, "explain another game (value log_odds, the sweep's logit)"),
        ({"label_scale": 1.0}, "explain another game (label_scale 1.0, the sweep's 3.5)"),
        ({"num_files": 1}, "has 1 of 2 shards: finish it with the same label command"),
    ],
)
def test_labels_that_do_not_suit_a_sweep_are_refused(what, message, capsys, monkeypatch, tmp_path):
    labels = exported(tmp_path / "labels", **what)
    assert message in refused(capsys, monkeypatch, tmp_path, *THREE, "--labels", f"cars={labels}")


def test_labels_of_a_changed_game_suit_a_sweep_that_plays_it(monkeypatch, tmp_path, capsys):
    """The check is of the two games against each other, not of a default."""
    labels = exported(tmp_path / "labels", fill="drop")
    no_engines(monkeypatch)
    assert command_line.main(["all_pairs", *THREE, "--labels", f"cars={labels}", "--fill", "drop", "--dry-run"]) == 0
    assert "3 domains" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"{}", b'{"shards": 2, "settings": {}}', b"\xff\xfe"])
def test_a_damaged_description_of_labels_is_refused(content, capsys, monkeypatch, tmp_path):
    labels = exported(tmp_path / "labels")
    (labels / "labels.json").write_bytes(content)
    assert "is damaged" in refused(capsys, monkeypatch, tmp_path, *THREE, "--labels", f"cars={labels}")


@pytest.mark.parametrize("missing", ["role", "key", "model", "shards"])
def test_a_description_of_labels_without_what_a_sweep_must_know_is_refused(missing, capsys, monkeypatch, tmp_path):
    labels = exported(tmp_path / "labels")
    settings = json.loads((labels / "labels.json").read_text())
    del settings[missing]
    (labels / "labels.json").write_text(json.dumps(settings))
    assert "is damaged" in refused(capsys, monkeypatch, tmp_path, *THREE, "--labels", f"cars={labels}")


def test_a_store_that_is_a_file_is_refused(capsys, monkeypatch, tmp_path):
    (tmp_path / "taken").write_text("")
    assert "--store" in refused(capsys, monkeypatch, tmp_path, "--store", str(tmp_path / "taken"))


def test_templates_without_a_place_for_the_class_name_are_refused(capsys, monkeypatch, tmp_path, domains):
    message = refused(capsys, monkeypatch, tmp_path, "--domains", *map(str, domains), "--templates", "a photo")
    assert "{}" in message


def test_parquet_that_is_no_image_data_set_is_refused(capsys, monkeypatch, tmp_path, domains):
    def replaced(table: pa.Table) -> str:
        pq.write_table(table, domains[1] / "train.parquet")
        return refused(capsys, monkeypatch, tmp_path, "--domains", *map(str, domains))

    good = pq.read_table(domains[0] / "train.parquet")
    assert "image" in replaced(good.drop_columns(["image"]))
    assert "label" in replaced(good.drop_columns(["label"]))
    at = good.column_names.index("label")
    assert "label" in replaced(good.set_column(at, "label", pa.array([7] * len(good), good.schema.field("label").type)))
    assert "class 2" in replaced(good.filter(pa.compute.not_equal(good["label"], 2)))
    assert "empty" in replaced(good.slice(0, 0))
    (domains[1] / "train.parquet").write_bytes(b"no parquet")
    assert "train.parquet" in refused(capsys, monkeypatch, tmp_path, "--domains", *map(str, domains))


def test_two_domains_of_one_name_are_refused(capsys, monkeypatch, tmp_path, domains):
    twin = write_noise(tmp_path / "other" / "one")
    assert "two domains are called 'one'" in refused(capsys, monkeypatch, tmp_path, "--domains", str(domains[0]), str(twin))


def config(*arguments: str) -> SweepConfig:
    return all_pairs.config_from(command_line.make_parser().parse_args(["all_pairs", *arguments]))


def test_options_change_the_suite_and_nothing_else():
    plain = config()
    assert plain.suite == "miniature" and len(plain.pairs) == 64
    changed = config("--alphas", "0.1:0.9:0.4", "--search", "grid", "--seed", "7", "--budget", "128")
    assert changed.search.alphas == (0.1, 0.5, 0.9)
    assert changed.search.method == "grid" and len(changed.search.lambdas) == 13 and changed.search.lambdas[-1] == 2.0
    assert changed.labels.train.budget == 128 and changed.labels.test.budget == plain.labels.test.budget
    assert {changed.recipe.seed, changed.data.seed, changed.labels.train.seed, changed.search.seed} == {7}
    assert changed.recipe.learning_rate == plain.recipe.learning_rate
    assert changed.search.merge == MERGE_RULES["addition"] == config("--merge", "addition").search.merge
    assert config("--merge", "lines:first=0.2").search.merge == Lines(first=0.2)
    assert config("--compare-objectives").search == replace(plain.search, compares_objectives=True) != plain.search


def test_sources_targets_and_labels_reach_the_configuration():
    chosen = config(*THREE, "--sources", "cars+textures", "others", "--targets", "scenes", "--labels", "cars=somewhere")
    assert [pair.names for pair in chosen.pairs] == [("cars+textures", "scenes"), ("others", "scenes")]
    assert [domain.labels for domain in chosen.domains] == ["somewhere", None, None]
    one = config(*THREE, "--sources", "cars", "--targets", "textures")
    assert [domain.name for domain in one.used_domains] == ["cars", "textures"]


def test_workers_share_the_models_of_diverse_sources_alone():
    many = config(*THREE, "--sources", "others", "cars", "--workers-per-model", "4")
    assert {pair.source.name: many.recipe_of(pair.source).workers_per_model for pair in many.pairs} == {"others": 4, "cars": 1}
    with pytest.raises(ConfigError, match="trains none: leave it out"):
        config(*THREE, "--sources", "cars", "--workers-per-model", "4")
    with pytest.raises(ConfigError, match="make the batch size a multiple"):
        config(*THREE, "--sources", "others", "--workers-per-model", "3", "--batch-size", "32")


def test_an_estimator_that_learns_reaches_every_split():
    changed = config("--estimator", "calibrated", "--calibration-budget", "200", "--calibration-pictures", "100")
    labels = changed.labels
    assert {labels.train.estimator, labels.validation.estimator, labels.test.estimator} == {"calibrated"}
    assert (labels.learning_budget, labels.learning_pictures) == (200, 100)


def test_train_labels_may_be_of_another_estimator_than_those_that_judge():
    def found(*arguments: str) -> list[tuple[str, int]]:
        labels = config(*arguments).labels
        return [(settings.estimator, settings.budget) for settings in (labels.train, labels.validation, labels.test)]

    plain = found()
    assert [estimator for estimator, _ in plain] == ["size_adjusted"] * 3
    assert found("--budget", "128") == [("size_adjusted", 128)] * 2 + plain[2:]
    assert found("--train-estimator", "surrogate") == [("surrogate", plain[0][1]), *plain[1:]]
    assert found("--train-estimator", "surrogate", "--budget", "48") == [("surrogate", 48), *plain[1:]], "too few for those that judge"
    mixed = found("--train-estimator", "calibrated", "--budget", "120", "--validation-budget", "130", "--test-budget", "140")
    assert mixed == [("calibrated", 120), ("size_adjusted", 130), ("size_adjusted", 140)]
    both = found("--estimator", "leverage", "--train-estimator", "surrogate")
    assert [estimator for estimator, _ in both] == ["surrogate", "leverage", "leverage"]


def test_train_labels_that_are_given_ask_for_no_pictures_to_learn_from(monkeypatch, tmp_path, capsys):
    few = ["all_pairs", "--suite", "miniature", "--max-train-pictures", "40", "--train-estimator", "surrogate", "--dry-run"]
    no_engines(monkeypatch)
    monkeypatch.chdir(tmp_path)
    assert command_line.main(few) == 2
    assert "at least 480 pictures" in capsys.readouterr().err
    assert command_line.main([*few, "--label-source", "grad_cam"]) == 0
    said = capsys.readouterr().out
    assert "labels by grad_cam (train), size_adjusted labels at 224 evaluations (validation), size_adjusted labels at 448" in said


def test_the_paper_suite_is_the_papers():
    paper = config("--suite", "paper")
    assert paper.base == "ViT-B-32:datacomp_xl_s13b_b90k" and paper.device == "cuda"
    assert len(paper.pairs) == 56 and paper.search.method == "grid"
    assert paper.search.alphas == tuple(round(0.1 * i, 1) for i in range(1, 10))
    assert paper.search.lambdas == tuple(round(0.1 * i, 1) for i in range(13))
    assert paper.labels.train.budget == 500
    assert [d.epochs for d in paper.domains] == [35, 76, 12, 11, 15, 14, 4, 5]


def test_own_domains_may_be_named(tmp_path):
    named = config("--domains", f"digits={tmp_path}", "miniature:cars", "hf://datasets/ylecun/mnist@abc")
    assert [d.name for d in named.domains] == ["digits", "cars", "mnist"]


def help_of(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        command_line.main([*arguments, "--help"])
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_says_what_to_type_first(capsys):
    text = help_of(capsys)
    assert "first steps: python -m sweep.run all_pairs the embedded miniature suite: minutes on a laptop, nothing to prepare" in text
    for line in ("all_pairs --domains A B", "label --data A --model miniature --out labels/", "mlflow ui", "COMMAND --help"):
        assert line in text
    for command in command_line.find_commands().values():
        assert command.__name__.rpartition(".")[2] in text


def test_who_brings_pictures_is_told_what_the_toy_base_is_worth_on_them(domains, monkeypatch, tmp_path, capsys):
    no_engines(monkeypatch)
    monkeypatch.chdir(tmp_path)
    own = ["all_pairs", "--domains", *map(str, domains), "--dry-run"]
    for arguments, is_told in ((own, True), ([*own, "--base", "ViT-S-32-alt:random"], False), (["all_pairs", *THREE, "--dry-run"], False)):
        assert command_line.main(arguments) == 0
        assert ("the base `miniature` has seen drawings only" in capsys.readouterr().out) == is_told


def test_what_help_says_to_type_is_accepted(domains, monkeypatch, tmp_path):
    """Each line of the first steps, with the directories of this test for A and B: parsed, and found fit by a dry run."""
    no_engines(monkeypatch)
    monkeypatch.chdir(tmp_path)
    lines = [line.split("  ")[0].split() for line in command_line.FIRST_STEPS.replace("  python", "python").splitlines()]
    typed = [words[3:] for words in lines if words[:3] == ["python", "-m", "sweep.run"] and "--help" not in words]
    assert [words[0] for words in typed] == ["all_pairs", "universal", "all_pairs", "label", "status"]
    assert command_line.make_parser().parse_args(typed.pop()).command == "status"  # it only reads: there is no dry run of it
    for words in typed:
        places = {"A": str(domains[0]), "B": str(domains[1])}
        assert command_line.main([*(places.get(word, word) for word in words), "--dry-run"]) == 0
    assert not (tmp_path / "sweep_store").exists() and not (tmp_path / "labels").exists()


@pytest.mark.parametrize("command", ["status", "why", "compare", "gc"])
def test_the_examples_of_commands_that_look_at_sweeps_are_accepted(command):
    lines = [line.strip() for line in command_line.find_commands()[command].DESCRIPTION.splitlines()]
    examples = [line.split()[3:] for line in lines if line.startswith("python -m sweep.run")]
    assert len(examples) >= 2 and {words[0] for words in examples} == {command}
    for words in examples:
        assert command_line.make_parser().parse_args(words).command == command


@pytest.mark.parametrize("command", ["all_pairs", "universal", "label"])
def test_help_tells_a_default_once_and_only_where_there_is_one(command, capsys):
    text = help_of(capsys, command)
    assert "default: None" not in text and "default: False" not in text
    assert "may be a fraction (default: 1.0)" in text
    assert not re.search(r"\(default[^()]*\) \(default", text)


def test_help_of_a_command_names_every_option(capsys):
    text = help_of(capsys, "all_pairs")
    for option in (
        *("--suite", "--domains", "--sources", "--targets", "--labels", "--merge", "--search", "--alphas", "--lambdas", "--num-trials"),
        *("--compare-objectives", "--no-compare-objectives"),
        *("--estimator", "--calibration-pictures", "--address", "--store", "--tracking-uri", "--dry-run"),
    ):
        assert option in text
    assert all(name in text for name in (*ESTIMATORS, *MERGE_RULES))
    text = help_of(capsys, "label")
    for option in ("--data", "--split", "--model", "--out", "--store", "--estimator", "--adaptive", "--price-per-hour", "--dry-run"):
        assert option in text
    assert "--tracking-uri" not in text
