"""A model's directory: plain open_clip loads it and gives the same logits; what is read back is what was written."""

from __future__ import annotations

import copy
import json

import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from transfers import write_explaining_model

from core import miniature
from core.attribution_head import AttributionHead
from core.base_models import hub_repository, open_clip_configuration
from core.model import BaseModelError, SelfExplainingClassifier, load_base
from core.model_directory import WEIGHTS, ModelDirectoryError, read_model, write_model
from core.value_function import ValueFunction

SPEC = miniature.domain_spec("traffic_signs")
HEAD = AttributionHead("efficiency", 1.7, ValueFunction("log_odds", 3.0, "drop"))


@pytest.fixture(scope="module")
def classifier(base):
    torch.manual_seed(0)
    visual = copy.deepcopy(base.visual)
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter)) if parameter.ndim > 1 else None
    return SelfExplainingClassifier(visual, base.head(SPEC.class_names, SPEC.templates), base.logit_scale, HEAD).eval()


@pytest.fixture(scope="module")
def directory(base, classifier, tmp_path_factory):
    written = tmp_path_factory.mktemp("models") / "signs"
    write_model(written, classifier, base, SPEC.class_names, SPEC.templates, {"format": 1, "who": "a test"})
    return written


def test_plain_open_clip_gives_the_same_logits(classifier, directory, signs):
    clip, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    clip.eval()
    pictures = [Image.fromarray(p) for p in signs.pixels.permute(0, 2, 3, 1).numpy()]
    inputs = torch.stack([preprocess(picture) for picture in pictures])
    torch.testing.assert_close(inputs, signs.inputs, atol=1e-5, rtol=1e-5)
    head = load_file(directory / "head.safetensors")["class_embeddings"]
    with torch.no_grad():
        features = clip.encode_image(inputs, normalize=True)
        logits = clip.logit_scale.exp() * features @ head
        torch.testing.assert_close(logits, classifier.logits(signs.inputs), atol=1e-5 * logits.abs().max().item(), rtol=0)
        prompts = open_clip.get_tokenizer(f"local-dir:{directory}")([t.format(SPEC.class_names[2]) for t in SPEC.templates])
        embedding = F.normalize(F.normalize(clip.encode_text(prompts), dim=-1).mean(0), dim=0)
    torch.testing.assert_close(embedding, head[:, 2], atol=1e-5, rtol=0)


def test_what_is_read_is_what_was_written(classifier, directory, signs):
    found = read_model(directory)
    assert found.class_names == SPEC.class_names and found.templates == SPEC.templates
    assert found.provenance["who"] == "a test" and found.grid == (7, 7)
    assert found.classifier.attribution_head == HEAD
    assert not any(p.requires_grad for p in found.classifier.parameters())
    with torch.no_grad():
        own, theirs = classifier(signs.inputs, signs.class_ids), found.classifier(signs.inputs, signs.class_ids)
    torch.testing.assert_close(theirs.logits, own.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs.attributions, own.attributions, atol=1e-5, rtol=1e-5)


def test_a_directory_that_holds_files_is_left_alone(base, classifier, directory, tmp_path):
    before = {p.name: p.stat().st_mtime_ns for p in directory.iterdir()}
    with pytest.raises(ModelDirectoryError, match="not empty: give another --out"):
        write_model(directory, classifier, base, SPEC.class_names, SPEC.templates, {})
    assert {p.name: p.stat().st_mtime_ns for p in directory.iterdir()} == before
    with pytest.raises(ModelDirectoryError, match="9 class names for 10 classes"):
        write_model(tmp_path / "new", classifier, base, SPEC.class_names[1:], SPEC.templates, {})
    assert not (tmp_path / "new").exists()


def without_first_class(content):
    described = json.loads(content)
    return json.dumps({**described, "class_names": described["class_names"][1:]}).encode()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("attribution_head.json", None, "attribution_head.json is missing; make one with `transfer`"),
        ("open_clip_model.safetensors", None, "open_clip_model.safetensors is missing"),
        ("head.safetensors", lambda content: content[:40], "cannot be read.*write the model again"),
        ("attribution_head.json", lambda content: content.replace(b'"format": 1', b'"format": 9'), "format 9"),
        ("attribution_head.json", lambda content: content.replace(b"efficiency", b"other"), "none of cosine, efficiency"),
        ("attribution_head.json", without_first_class, "is not of the 9 classes"),
        ("attribution_head.json", lambda content: b"[", "cannot be read"),
    ],
)
def test_a_directory_that_is_not_whole_is_refused_with_the_fix(directory, tmp_path, file, change, message):
    for path in directory.iterdir():
        if path.name != file:
            (tmp_path / path.name).symlink_to(path)
    content = (directory / file).read_bytes()
    if change is not None:
        (tmp_path / file).write_bytes(change(content))
    with pytest.raises(ModelDirectoryError, match=message):
        read_model(tmp_path)


def test_configurations_are_those_that_open_clip_builds_the_base_from(base, directory):
    again = load_base(f"local-dir:{directory}")
    assert open_clip_configuration(again) == json.loads((directory / "open_clip_config.json").read_text()) == open_clip_configuration(base)
    assert open_clip.CLIP(**open_clip_configuration(base)["model_cfg"]).visual.grid_size == (7, 7)
    with pytest.raises(BaseModelError, match="is a NoneType, no plain CLIP"):
        open_clip_configuration(base.without_text_tower())


def test_the_hub_repository_of_a_base_is_open_clips_own():
    assert hub_repository("ViT-B-32:laion2b_s34b_b79k") == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert hub_repository("miniature") is None and hub_repository("ViT-B-32:random") is None


def test_weights_that_are_changed_in_memory_stay_as_they_are_on_disk(tmp_path, base):
    """A base's weights are its file, mapped; `transfer` merges into them."""
    directory = write_explaining_model(tmp_path / "model", base, AttributionHead("cosine"))
    before = (directory / WEIGHTS).read_bytes()
    loaded = load_base(str(directory))
    with torch.no_grad():
        for weight in loaded.visual.parameters():
            weight.add_(1.0)
    assert (directory / WEIGHTS).read_bytes() == before
    assert load_base(str(directory)).fingerprint == loaded.fingerprint
