"""Exported models, run by the libraries they are for: in fresh processes without this project, they give what the model gave."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import as_hugging_face, as_timm
from patience import PATIENCE_S
from PIL import Image
from safetensors.torch import save_file
from transfers import CLASS_NAMES, stacked, transfer, write_checkpoint, write_explaining_model, write_pictures, write_vector

from core.attribution_head import AttributionHead
from core.base_models import open_clip_configuration
from core.checkpoint_formats import HUGGING_FACE, TIMM, in_layout, read_image_tower
from core.model import load_base
from core.model_directory import read_model
from core.value_function import ValueFunction
from sweep import run as command_line
from sweep.export import onnx_file
from sweep.export.head import head_of
from sweep.export.shipped.explaining_head import ExplainingHead

HEADS = {
    "efficiency": AttributionHead("efficiency", 1.7),
    "cosine": AttributionHead("cosine", 0.6),
    "log_odds": AttributionHead("efficiency", 1.3, ValueFunction("log_odds", 3.0, "drop")),
    "probability": AttributionHead("efficiency", 2.0, ValueFunction("probability")),
    "quick_gelu": AttributionHead("efficiency", 0.9),
}
LIBRARIES = {"hf": "transformers", "timm": "timm", "onnx": "onnxruntime"}
TOLERANCE = 1e-4
"""Of logits of up to 100 and attributions below 5: another order of the same float32 sums."""


@dataclass(frozen=True)
class Expected:
    """What the model itself gives. logits, attributions: of the inputs, [N, C] and [N, C, M]; picture_*: of the pictures."""

    tower: np.ndarray
    logits: np.ndarray
    attributions: np.ndarray
    pixels: np.ndarray
    picture_logits: np.ndarray
    picture_attributions: np.ndarray


def every_class(classifier, inputs):
    """Logits and attributions of each class by the classifier's own forward pass, a class at a time."""
    with torch.no_grad():
        explained = [classifier(inputs, torch.full((len(inputs),), n)) for n in range(classifier.head.shape[1])]
    return explained[0].logits.numpy(), torch.stack([e.attributions for e in explained], dim=1).numpy()


def with_quick_gelu(base, directory):
    """The miniature's weights in a model of another activation that squashes pictures and has colours of its own."""
    directory.mkdir()
    settings = open_clip_configuration(base)
    settings["model_cfg"]["quick_gelu"] = True
    settings["preprocess_cfg"] |= {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    (directory / "open_clip_config.json").write_text(json.dumps(settings))
    save_file({k: v.contiguous() for k, v in base.clip.state_dict().items()}, directory / "open_clip_model.safetensors")
    return load_base(str(directory))


def export(model, library, out):
    return command_line.main(["export", "--model", str(model), "--to", library, "--out", str(out)])


@pytest.fixture(scope="module")
def bases(base, vit, tmp_path_factory):
    quick = with_quick_gelu(base, tmp_path_factory.mktemp("bases") / "quick")
    return {"probability": vit, "quick_gelu": quick}


@pytest.fixture(scope="module")
def cases(base, bases, tmp_path_factory):
    """A directory of cases: each a model, exported for every library that can be, and pictures: of the model's size, and two larger."""
    root = tmp_path_factory.mktemp("cases")
    source = stacked(write_pictures(tmp_path_factory.mktemp("pictures"), 6, by_class=False))
    for name, head in HEADS.items():
        own = bases.get(name, base)
        write_explaining_model(root / name / "model", own, head)
        size = own.preprocessing.image_size
        sizes = [(size, size)] * 2 + [(3 * size, 2 * size), (2 * size + 1, 2 * size + 7)]
        pictures = [np.asarray(Image.fromarray(p).resize(s, Image.Resampling.BICUBIC)) for p, s in zip(source, sizes, strict=False)]
        inputs = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(0)).numpy()
        np.savez(root / name / "pictures.npz", inputs=inputs, **{f"p{n}": picture for n, picture in enumerate(pictures)})
        for library in LIBRARIES:
            if library != "onnx" or importlib.util.find_spec("onnx"):
                assert export(root / name / "model", library, root / name / library) == 0
    return root


@pytest.fixture(scope="module")
def expected(cases):
    """By case."""
    found = {}
    for name in HEADS:
        model = read_model(cases / name / "model")
        stored = np.load(cases / name / "pictures.npz")
        inputs = torch.from_numpy(stored["inputs"])
        pictures = [Image.fromarray(stored[key]) for key in sorted(stored) if key != "inputs"]
        pixels = model.preprocessing.normalise(torch.from_numpy(np.stack([model.preprocessing.pixels(p) for p in pictures])))
        with torch.no_grad():
            tower = model.classifier.visual(inputs)[0].numpy()
        found[name] = Expected(tower, *every_class(model.classifier, inputs), pixels.numpy(), *every_class(model.classifier, pixels))
    return found


def in_a_fresh_process(cases, library):
    """What a library makes of every case, by case."""
    pytest.importorskip(LIBRARIES[library], reason=f"{LIBRARIES[library]} comes with the extra `export`")
    program = [sys.executable, str(Path(__file__).parent / "exported_folder.py"), str(cases), library]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(cases / "hf_home")}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: np.load(cases / name / f"{library}.npz") for name in HEADS}


@pytest.fixture(scope="module")
def in_transformers(cases):
    return in_a_fresh_process(cases, "hf")


@pytest.fixture(scope="module")
def in_timm(cases):
    return in_a_fresh_process(cases, "timm")


@pytest.fixture(scope="module")
def in_onnxruntime(cases):
    pytest.importorskip("onnx", reason="onnx comes with the extra `export`")
    return in_a_fresh_process(cases, "onnx")


def near(found, wanted, tolerance=TOLERANCE):
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", HEADS)
def test_the_head_gives_every_class_what_the_classifier_gives_one(cases, expected, name):
    classifier = read_model(cases / name / "model").classifier
    head, inputs = head_of(classifier), torch.from_numpy(np.load(cases / name / "pictures.npz")["inputs"])
    with torch.no_grad():
        cls, patches = classifier.visual(inputs)
        logits, attributions = head(3.0 * cls, 0.5 * patches @ classifier.visual.proj)  # lengths do not count
    near(logits.numpy(), expected[name].logits)
    near(attributions.numpy(), expected[name].attributions)


def test_log_odds_have_digits_where_a_class_is_all_but_certain():
    cosines = torch.tensor([[0.5, 0.1, 0.1], [0.3, 0.3, 0.3], [-0.9, 0.9, 0.0]])
    head = ExplainingHead(3, 3, kind="efficiency", scale=1.0, value="log_odds", label_scale=2.0, logit_scale=100.0)
    wide = 100.0 * cosines.double()
    others = torch.stack([wide[:, [j for j in range(3) if j != c]].logsumexp(1) for c in range(3)], dim=1)
    torch.testing.assert_close(head.values(cosines), (0.02 * (wide - others)).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_transformers_gives_the_same_logits_and_attributions(in_transformers, expected, name):
    found, own = in_transformers[name], expected[name]
    near(found["logits"], own.logits)
    near(found["attributions"], own.attributions)
    near(found["tower"], own.tower)
    assert found["readme_maps"].shape == (4, len(CLASS_NAMES), 7, 7)


@pytest.mark.parametrize("name", HEADS)
def test_the_image_processor_prepares_pictures_as_the_model_does(in_transformers, expected, name):
    found, own = in_transformers[name], expected[name]
    assert "".join(found["processor"]).startswith("ViTImageProcessor" if name == "quick_gelu" else "CLIPImageProcessor")
    near(found["pixels"][:2], own.pixels[:2], 1e-5)
    near(found["readme_logits"][:2], own.picture_logits[:2])
    near(found["readme_maps"][:2].reshape(own.picture_attributions[:2].shape), own.picture_attributions[:2])
    # Where it resizes, it rounds tensors where this project rounds Pillow's numbers: a grey level here and there, 1 / 255 / std.
    near(found["pixels"], own.pixels, 1 / 255 / 0.2)
    assert np.abs(found["pixels"] - own.pixels).mean() < 1e-3
    assert (found["readme_logits"].argmax(1) == [CLASS_NAMES.index(c) for c in found["classes"]]).all()
    assert list(found["piped"]) == list(found["classes"])


@pytest.mark.parametrize("name", HEADS)
def test_the_lines_for_timm_give_the_same_logits_and_attributions(in_timm, expected, name):
    found, own = in_timm[name], expected[name]
    near(found["tower"], own.tower)
    near(found["pixels"], own.pixels, 1e-5)
    near(found["readme_logits"], own.picture_logits)
    near(found["readme_attributions"], own.picture_attributions)


@pytest.mark.parametrize("name", HEADS)
def test_onnxruntime_gives_the_same_for_any_number_of_pictures(in_onnxruntime, expected, name):
    found, own = in_onnxruntime[name], expected[name]
    for number in (1, 2, 5):
        near(found[f"logits_{number}"], own.logits[:number])
        near(found[f"attributions_{number}"], own.attributions[:number])
    near(found["pixels"], own.pixels, 1e-5)
    near(found["readme_logits"], own.picture_logits)
    near(found["readme_maps"].reshape(own.picture_attributions.shape), own.picture_attributions)
    assert list(found["classes"]) == [CLASS_NAMES[i] for i in own.picture_logits.argmax(1)]


@pytest.mark.parametrize("library", ["hf", "timm"])
def test_what_is_exported_can_be_fine_tuned_and_transferred_again(base, cases, library):
    """`transfer` reads the layouts: an exported tower comes back as it was, and the layouts' names are each other's inverse."""
    tower = dict(read_model(cases / "efficiency" / "model").classifier.visual.state_dict())
    found = read_image_tower(cases / "efficiency" / library, base)
    assert found.layout == {"hf": HUGGING_FACE, "timm": TIMM}[library].name
    assert found.weights.keys() == tower.keys() and all(torch.equal(found.weights[k], tower[k]) for k in tower)


def test_the_names_are_those_of_an_independent_converter(base):
    tower = dict(base.visual.state_dict())
    in_timm, in_transformers = in_layout(tower, TIMM), in_layout(tower, HUGGING_FACE, "vision_model.")
    for found, wanted in ((in_timm, as_timm(tower)), (in_transformers, as_hugging_face(tower))):
        assert found.keys() == wanted.keys() and all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_the_card_tells_what_made_the_model(base, tmp_path):
    write_checkpoint(tmp_path / "mine.safetensors", base)
    write_vector(tmp_path / "vector.safetensors", base)
    pictures = write_pictures(tmp_path / "pictures")
    assert transfer(tmp_path, "--validation", str(pictures), "--lambda2", "0.5", "--max-calibration", "2", "--license", "mit") == 0
    original = (tmp_path / "model" / "README.md").read_text()
    told = original[original.index("## How it was made") :]
    for library in ("hf", "timm"):
        assert export(tmp_path / "model", library, tmp_path / library) == 0
        card = (tmp_path / library / "README.md").read_text()
        assert card.startswith('---\nlicense: "mit"\nlibrary_name: ') and "\n---\n# " in card
        assert card.rstrip().endswith(told.rstrip())
        assert (tmp_path / library / "provenance.json").read_text() == (tmp_path / "model" / "provenance.json").read_text()


def test_what_is_there_is_left_alone(cases, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert export(cases / "cosine" / "model", "hf", tmp_path) == 2
    assert "not empty: give another --out" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_bad_input_is_refused_with_the_fix_and_nothing_is_written(cases, tmp_path, capsys, monkeypatch):
    assert export(tmp_path, "hf", tmp_path / "out") == 2
    assert "make one with `transfer`" in capsys.readouterr().err
    if importlib.util.find_spec("onnx"):
        monkeypatch.setattr(onnx_file, "_LARGEST", 1_000_000)
        assert export(cases / "cosine" / "model", "onnx", tmp_path / "out") == 2
        assert "an ONNX file holds" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tower_that_is_no_original_clip_goes_to_onnx_only(base, tmp_path, capsys):
    settings = open_clip_configuration(base)
    settings["model_cfg"]["vision_cfg"] |= {"ls_init_value": 0.1, "norm_kwargs": {"eps": 1e-6}}
    tmp_path.joinpath("base").mkdir()
    scales = {f"visual.transformer.resblocks.{n}.ls_{i}.gamma": torch.full((96,), 0.1) for n in range(3) for i in (1, 2)}
    weights = {k: v.contiguous() for k, v in base.clip.state_dict().items()}
    save_file({**weights, **scales}, tmp_path / "base" / "open_clip_model.safetensors")
    (tmp_path / "base" / "open_clip_config.json").write_text(json.dumps(settings))
    write_explaining_model(tmp_path / "model", load_base(str(tmp_path / "base")), HEADS["cosine"])
    for library, name in (("hf", "transformers"), ("timm", "timm")):
        assert export(tmp_path / "model", library, tmp_path / "out") == 2
        assert f"{name}'s CLIP cannot be this image tower, which has layer scale: take --to onnx" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    pytest.importorskip("onnx", reason="onnx comes with the extra `export`")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime comes with the extra `export`")
    assert export(tmp_path / "model", "onnx", tmp_path / "out") == 0
    inputs = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    found = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx")).run(None, {"pixel_values": inputs.numpy()})
    for theirs, own in zip(found, every_class(read_model(tmp_path / "model").classifier, inputs), strict=True):
        near(theirs, own)


def test_without_the_library_onnx_the_command_names_what_to_install(cases, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)  # Python's own mark of a module that is not there
    assert export(cases / "cosine" / "model", "onnx", tmp_path / "out") == 2
    assert "pip install -e '.[export]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
