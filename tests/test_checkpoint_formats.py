"""Checkpoints of four libraries become one tower, with the libraries themselves as oracles; what cannot be used is refused unrun."""

from __future__ import annotations

import copy
import json
import os

import open_clip
import pytest
import torch
from checkpoints import as_hugging_face, as_timm, moved
from safetensors.torch import save_file

from core.checkpoint_files import CheckpointError
from core.checkpoint_formats import FARTHEST_FINE_TUNED, read_image_tower, relative_distance
from core.finetune import Recipe, finetune
from core.miniature.weights import load_state_dict
from core.training_data import PicturesInMemory, TrainingData


@pytest.fixture(scope="module")
def tower(base):
    return moved(dict(base.visual.state_dict()))


def write(path, state, **beside):
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save({"state_dict": state, **beside} if beside else state, path)
    return path


def prefixed(prefix, state):
    return {f"{prefix}{k}": v for k, v in state.items()}


def same(found, tower):
    assert found.keys() == tower.keys()
    assert all(torch.equal(found[k], tower[k]) and found[k].dtype == torch.float32 for k in tower)


LAYOUTS = {
    "visual only": (lambda tower: tower, "open_clip"),
    "full CLIP": (lambda tower: {**prefixed("visual.", tower), "transformer.resblocks.0.ln_1.weight": torch.ones(64)}, "open_clip"),
    "trained in parallel": (lambda tower: prefixed("module.visual.", tower), "open_clip"),
    "task-vectors": (lambda tower: prefixed("model.visual.", tower), "task-vectors"),
    "its classifier": (
        lambda tower: {**prefixed("image_encoder.model.visual.", tower), "classification_head.weight": torch.ones(3, 64)},
        "task-vectors",
    ),
    "timm": (as_timm, "timm"),
    "Hugging Face": (as_hugging_face, "Hugging Face CLIP"),
    "Hugging Face in a classifier": (lambda tower: prefixed("clip.", as_hugging_face(tower)), "Hugging Face CLIP"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_gives_the_same_tower(base, tower, tmp_path, kind, suffix):
    make, name = LAYOUTS[kind]
    found = read_image_tower(write(tmp_path / f"model{suffix}", make(tower)), base)
    same(found.weights, tower)
    assert found.layout == name and found.distance == pytest.approx(0.05, rel=0.01)


def test_a_training_scripts_checkpoint_and_half_precision_are_read(base, tower, tmp_path):
    found = read_image_tower(write(tmp_path / "epoch.pt", prefixed("module.visual.", tower), epoch=3, optimizer={"state": {}}), base)
    same(found.weights, tower)
    half = {k: v.half() for k, v in tower.items()}
    same(read_image_tower(write(tmp_path / "half.safetensors", half), base).weights, {k: v.float() for k, v in half.items()})


def test_hugging_faces_own_clip_computes_what_the_converted_tower_computes(base, tmp_path, signs):
    transformers = pytest.importorskip("transformers", reason="transformers comes with the extra `export`")
    torch.manual_seed(3)
    vision = transformers.CLIPVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=3,
        image_size=56, patch_size=8, projection_dim=64, hidden_act="gelu",
    )  # fmt: skip
    theirs = transformers.CLIPVisionModelWithProjection(vision).eval()
    with torch.no_grad():  # biases and normalisations of a new model are constants that would hide a mix-up
        for parameter in theirs.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path / "hf")
    found = read_image_tower(tmp_path / "hf", base, trust_base=True)
    ours = copy.deepcopy(base.visual)
    ours.load_state_dict(found.weights)
    ours.output_tokens = False
    with torch.no_grad():
        expected = theirs(pixel_values=signs.inputs).image_embeds
        torch.testing.assert_close(ours(signs.inputs), expected, atol=1e-5, rtol=1e-5)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config, "hidden_act": "quick_gelu"}))
    with pytest.raises(CheckpointError, match="computes with quick_gelu, the base miniature with gelu"):
        read_image_tower(tmp_path / "hf", base, trust_base=True)
    transformers.CLIPVisionModel(vision).save_pretrained(tmp_path / "without_projection")
    with pytest.raises(CheckpointError, match="no projection.*CLIPVisionModelWithProjection"):
        read_image_tower(tmp_path / "without_projection", base)


def test_timms_own_clip_computes_what_the_converted_tower_computes(base, tmp_path, signs):
    timm = pytest.importorskip("timm")
    torch.manual_seed(4)
    sizes = dict(img_size=56, patch_size=8, embed_dim=96, depth=3, num_heads=3, num_classes=64)
    theirs = timm.models.vision_transformer.VisionTransformer(**sizes, pre_norm=True, norm_layer=torch.nn.LayerNorm).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter)) if name != "head.bias" else parameter.zero_()
    ours = copy.deepcopy(base.visual)
    ours.load_state_dict(read_image_tower(write(tmp_path / "timm.safetensors", theirs.state_dict()), base, trust_base=True).weights)
    ours.output_tokens = False
    with torch.no_grad():
        torch.testing.assert_close(ours(signs.inputs), theirs(signs.inputs), atol=1e-5, rtol=1e-5)
        theirs.head.bias.add_(1.0)
    with pytest.raises(CheckpointError, match="head.bias is not zero"):
        read_image_tower(write(tmp_path / "timm.safetensors", theirs.state_dict()), base, trust_base=True)


def test_directories_of_open_clip_and_in_parts_are_read(base, tower, tmp_path):
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "visual.safetensors"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / name, prefixed("visual.", tower))
        same(read_image_tower(tmp_path / name, base).weights, tower)
    names = list(as_hugging_face(tower))
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, own in parts.items():
        write(tmp_path / part, {k: as_hugging_face(tower)[k] for k in own})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {k: part for part, own in parts.items() for k in own}}))
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    (tmp_path / "visual.safetensors").rename(tmp_path / "too")
    (tmp_path / "open_clip_model.safetensors").rename(tmp_path / "and")
    (tmp_path / "open_clip_pytorch_model.bin").rename(tmp_path / "this")
    same(read_image_tower(tmp_path, base).weights, tower)
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(CheckpointError, match="names no files beside it"):
        read_image_tower(tmp_path, base)


class Exploit:
    """Runs a command when it is unpickled, unless nothing is."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_the_code_does_not_run(base, tower, tmp_path, zipped):
    mark = tmp_path / "it_ran"
    torch.save({"state_dict": tower, "more": Exploit(mark)}, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="holds more than weights.*nothing was run.*state_dict"):
        read_image_tower(tmp_path / "evil.pt", base)
    assert not mark.exists()
    torch.save(base.visual, tmp_path / "module.pt")  # how the task-vectors repository keeps its encoders
    with pytest.raises(CheckpointError, match="holds more than weights.*open_clip"):
        read_image_tower(tmp_path / "module.pt", base)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_files_that_are_cut_short_are_refused(base, tower, tmp_path, suffix, share):
    path = write(tmp_path / f"model{suffix}", tower)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="again"):
        read_image_tower(path, base)


def changed(tower, name, weight):
    return {**tower, name: weight}


REFUSED = {
    "missing": (lambda t: {k: v for k, v in t.items() if k != "ln_post.bias"}, "1 are missing, e.g. ln_post.bias"),
    "more blocks": (lambda t: changed(t, "transformer.resblocks.3.ln_1.weight", torch.ones(96)), "1 are unknown.*--base"),
    "wider": (lambda t: changed(t, "ln_post.bias", torch.ones(128)), r"another architecture.*\[128\].*\[96\].*--base"),
    "a classifier's head": (lambda t: changed(t, "proj", torch.ones(96, 10)), "projects to 10 numbers.*projection kept"),
    "quantised": (lambda t: changed(t, "proj", torch.ones(96, 64, dtype=torch.int8)), "int8, quantised: save the weights in float32"),
    "8-bit floats": (lambda t: changed(t, "proj", torch.ones(96, 64).to(torch.float8_e4m3fn)), "float8_e4m3fn, quantised"),
    "diverged": (lambda t: changed(t, "proj", torch.full((96, 64), torch.nan)), "not finite: the training diverged"),
    "no tower": (lambda t: {"fc.weight": torch.ones(2, 2)}, "no CLIP image tower.*fc.weight.*open_clip, Hugging Face"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_weights_that_are_not_the_bases_are_refused_with_the_fix(base, tower, tmp_path, what):
    change, message = REFUSED[what]
    with pytest.raises(CheckpointError, match=message):
        read_image_tower(write(tmp_path / "model.safetensors", change(tower)), base)


def test_places_without_weights_are_refused(base, tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_image_tower(tmp_path / "nothing.pt", base)
    with pytest.raises(CheckpointError, match="holds no weights: it needs one of"):
        read_image_tower(tmp_path, base)
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(CheckpointError, match="no named weights"):
        read_image_tower(tmp_path / "epoch.pt", base)


def in_another_order(weights, seed):
    """The same function in other weights, its channels permuted: a pretraining that differs by no more than the symmetry of its seed."""
    order = torch.randperm(96, generator=torch.Generator().manual_seed(seed))
    out = {}
    for name, w in weights.items():
        reads = name.endswith(("in_proj_weight", "c_fc.weight", "positional_embedding"))
        keeps = name.endswith(("in_proj_bias", "c_fc.bias"))
        out[name] = w if keeps else w[:, order] if reads else w[order]
    return out


def test_another_pretraining_is_told_from_a_fine_tuned_base_by_its_distance(base, sign_classifier, signs, tower, tmp_path):
    start = dict(base.visual.state_dict())
    classifier = copy.deepcopy(sign_classifier)
    data = TrainingData(PicturesInMemory(signs.pixels), signs.class_ids, base.preprocessing, None)
    finetune(classifier, data, Recipe(learning_rate=5e-4, batch_size=24, num_steps=12, warmup_steps=2), 1.0)
    fine_tuned = relative_distance(classifier.visual.state_dict(), start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        fresh = dict(open_clip.CLIP(**load_state_dict()[0]["model_cfg"]).visual.state_dict())
    twin = in_another_order(start, 0)
    same_function = copy.deepcopy(base.visual)
    same_function.load_state_dict(twin)
    with torch.no_grad():
        torch.testing.assert_close(same_function(signs.inputs[:2]), base.visual(signs.inputs[:2]), atol=1e-4, rtol=1e-4)
    others = [relative_distance(fresh, start), relative_distance(twin, start)]
    assert 0.0 < fine_tuned < 0.5 * FARTHEST_FINE_TUNED and min(others) > 1.5 * FARTHEST_FINE_TUNED, (fine_tuned, others)
    path = write(tmp_path / "fresh.safetensors", fresh)
    with pytest.raises(CheckpointError, match="is no fine-tuned miniature.*--base.*--trust-base"):
        read_image_tower(path, base)
    same(read_image_tower(path, base, trust_base=True).weights, fresh)


def test_a_text_tower_that_was_trained_too_is_noticed(base, tower, tmp_path):
    full = {**prefixed("visual.", tower), "text_projection": base.clip.text_projection.detach().clone()}
    assert not read_image_tower(write(tmp_path / "same.safetensors", full), base).has_other_text_tower
    full["text_projection"] = moved({"w": full["text_projection"]}, share=0.3)["w"]
    assert read_image_tower(write(tmp_path / "other.safetensors", full), base).has_other_text_tower
