"""Numbers and names that no sweep can be made of are refused before anything is computed, and ranges end where they say."""

from __future__ import annotations

import pytest
import torch
from in_process import no_engines

from sweep import run
from sweep.commands import all_pairs, universal
from sweep.commands.options import numbers
from sweep.experiment.config import ConfigError

DIGITS = ["--suite", "miniature", "--domains", "clean_digits", "street_digits"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-train-labels", "0"], "max_train_labels must be at least 1"),
        (["--max-test-labels", "-5"], "max_test_labels must be at least 1"),
        (["--max-validation-labels", "0"], "max_validation_labels must be at least 1"),
        (["--lambda1", "nan"], "lambda1 must be a finite number"),
        (["--learning-rate", "nan"], "--learning-rate must be positive and finite, not nan"),
        (["--learning-rate", "inf"], "--learning-rate must be positive and finite, not inf"),
        (["--batch-size", "0"], "--batch-size must be positive and finite, not 0"),
        (["--num-source-steps", "-1"], "--num-source-steps must be positive and finite, not -1"),
        (["--budget", "1000000000"], "beyond what memory holds for 49 players: give at most 171196"),
        (["--test-budget", "1000000000"], "give at most 171196"),
        (["--estimator", "calibrated", "--calibration-budget", "1000000000"], "give at most 171196"),
        (["--templates", "a {}."], "the drawn domains have prompts of their own (clean_digits, street_digits)"),
        (["--workers", "-3"], "--workers must be at least 1"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--threads-per-worker", "-2"], "--threads-per-worker must be at least 1"),
        (["--gpus-per-worker", "nan"], "--gpus-per-worker must be positive"),
        (["--seed", "-1"], "a seed must not be negative"),
        (["--num-steps", "5", "--epochs", "2"], "two lengths of one training"),
        (["--search", "grid", "--lambdas", "0:inf:0.1"], "is no list of finite numbers"),
        (["--search", "grid", "--lambdas", "0,0,1"], "give each lambda2 once"),
        (["--alphas", "0.9:0.1:0.1"], "is no list of finite numbers"),
        (["--alphas", "nan"], "is no list of finite numbers"),
        (["--labels", "clean_digits="], "names no place: write DOMAIN=LOCATION"),
    ],
)
def test_what_cannot_be_is_refused_with_the_option_to_mend(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    no_engines(monkeypatch)
    assert run.main(["all_pairs", *DIGITS, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (["--domains", "a=", "b=miniature:cars"], "--domains 'a=' names no place"),
        (["--suite", "miniature", "--domains", "cars=", "textures"], "or cars for the suite's own"),
        (["--domains", "others=miniature:cars", "b=miniature:scenes"], "no domain can be called 'others'"),
    ],
)
def test_a_domain_without_a_place_or_with_the_name_of_a_source_is_refused(domains, message, capsys, monkeypatch, tmp_path):
    """An unset variable of the shell leaves `NAME=`: it must not read the current directory, or the suite's own pictures."""
    monkeypatch.chdir(tmp_path)
    no_engines(monkeypatch)
    assert run.main(["all_pairs", *domains, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_a_given_length_is_that_of_every_training_of_the_paper_suite():
    """Its domains have lengths of their own."""

    def epochs(*arguments: str) -> set[int | None]:
        config = all_pairs.config_from(run.make_parser().parse_args(["all_pairs", "--suite", "paper", *arguments]))
        return {config.recipe_of(source).epochs for pair in config.pairs for source in pair.source.trained}

    assert len(epochs()) > 1 and epochs("--epochs", "1") == {1}
    options = run.make_parser().parse_args(["universal", "--suite", "paper", "--num-source-steps", "3"])
    with pytest.raises(ConfigError, match="trains all sources alike"):
        universal.config_from(options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:2:0.3", 1.8), ("0.1:0.9:0.1", 0.9), ("0:1.2:0.1", 1.2), ("0:1:0.6", 0.6), ("0.5:0.5:0.1", 0.5), ("0.2,0.7", 0.7)],
)
def test_a_range_ends_at_its_end_or_before(text, expected):
    assert numbers(text)[-1] == expected


@pytest.mark.parametrize("command", [["transfer", "--checkpoint", "x", "--vector", "y", "--out", "z"], ["recommend", "--target", "x"]])
def test_a_gpu_that_is_not_there_is_said_at_once(command, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main([*command, "--device", "cuda"]) == 2
    assert "this machine has no GPU that torch sees" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["transfer", "--checkpoint", "x", "--vector", "y", "--class-names", "a", "b"],
        ["explain", "--model", "x", "--image", "y"],
        ["export", "--model", "x", "--to", "hf"],
    ],
)
@pytest.mark.parametrize("place", ["file/model", "file/models/mine", "dangling"])
def test_a_directory_that_cannot_be_made_is_refused_at_once(command, place, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("no directory")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "else")
    assert run.main([*command, "--out", place]) == 2
    assert "is no directory that can be written to: give another --out" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "no directory"


@pytest.mark.parametrize("name", ["session", "sweep", "labelling", "nothing"])
def test_what_is_no_command_is_answered_with_those_that_are(name, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main([name])
    assert "'all_pairs', 'compare', 'explain'" in capsys.readouterr().err


def test_a_base_of_fewer_patches_than_the_scores_compare_is_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    no_engines(monkeypatch)
    (tmp_path / "coarse").mkdir()
    (tmp_path / "coarse" / "open_clip_model.safetensors").write_bytes(b"")
    (tmp_path / "coarse" / "open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {"image_size": 48, "patch_size": 16}}}')
    assert run.main(["all_pairs", *DIGITS, "--base", "coarse"]) == 2
    assert "--base coarse has 9 patches a picture, and models are scored by the 10 strongest" in capsys.readouterr().err


def test_a_ranking_is_not_begun_where_its_vector_could_not_be_written(capsys, tmp_path):
    assert run.main(["recommend", "--target", "x", "--write", str(tmp_path / "missing" / "vector.safetensors")]) == 2
    assert "make its directory first" in capsys.readouterr().err
