"""The self-explaining classifier and the loading of base models."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from core import miniature
from core.model import BaseModelError, Preprocessing, load_base


def test_logits_are_those_of_open_clip(base, signs, sign_classifier):
    with torch.no_grad():
        explained = sign_classifier(signs.inputs, signs.class_ids)
        features = F.normalize(base.clip.encode_image(signs.inputs), dim=-1)
    torch.testing.assert_close(explained.logits, base.logit_scale * features @ sign_classifier.head, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sign_classifier.logits(signs.inputs), explained.logits, atol=1e-4, rtol=1e-4)


def test_attributions_are_cosines_of_patch_tokens_and_the_class(base, signs, sign_classifier):
    with torch.no_grad():
        explained = sign_classifier(signs.inputs, signs.class_ids)
        visual = sign_classifier.visual
        tokens = visual.ln_post(visual.transformer(visual._embeds(signs.inputs)))[:, 1:] @ visual.proj
        expected = F.cosine_similarity(tokens, sign_classifier.head[:, signs.class_ids].T[:, None], dim=-1)
    assert explained.attributions.shape == (24, 49)
    torch.testing.assert_close(explained.attributions, expected, atol=1e-5, rtol=1e-4)


def test_without_class_ids_the_predicted_class_is_explained(signs, sign_classifier):
    with torch.no_grad():
        explained = sign_classifier(signs.inputs)
        again = sign_classifier(signs.inputs, explained.logits.argmax(1))
    torch.testing.assert_close(explained.attributions, again.attributions)


def test_the_head_is_no_trained_weight(sign_classifier):
    assert all(name.startswith("visual.") for name, _ in sign_classifier.named_parameters())


def test_class_names_the_base_has_never_seen_get_embeddings_of_their_own(base):
    head = base.head(["zyzzyva", "quokka", "stop sign"], ["a photo of a {}"])
    cosine = head.T @ head
    assert (cosine - torch.eye(3)).abs().max() < 0.999
    torch.testing.assert_close(head, base.head(["zyzzyva", "quokka", "stop sign"], ["a photo of a {}"]))


def head_class_by_class(base, class_names, templates):
    columns = []
    with torch.no_grad():
        for name in class_names:
            embeddings = base.clip.encode_text(base.tokenizer([template.format(name) for template in templates]))
            columns.append(F.normalize(F.normalize(embeddings, dim=-1).mean(0), dim=0))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("batch_size", [2, 7, 256])
def test_a_head_is_that_of_one_class_after_the_other_whatever_the_batches(base, batch_size):
    spec = miniature.domain_spec("textures")
    head = base.head(spec.class_names, spec.templates, batch_size=batch_size)
    # float32 products may be summed in another order for another number of rows
    torch.testing.assert_close(head, head_class_by_class(base, spec.class_names, spec.templates), atol=1e-6, rtol=0)


def test_a_base_without_its_text_tower_still_makes_classifiers(base, signs, sign_classifier):
    lean = base.without_text_tower()
    assert lean.fingerprint == base.fingerprint and lean.num_patches == 49
    classifier = lean.classifier(sign_classifier.head).eval()
    with torch.no_grad():
        assert torch.equal(classifier.logits(signs.inputs), sign_classifier.logits(signs.inputs))
    with pytest.raises(BaseModelError, match="no text tower"):
        lean.head(["cat"], ["a photo of a {}."])


def test_preprocessing_equals_open_clips_evaluation_transform():
    generator = np.random.default_rng(0)
    preprocessing = Preprocessing(56, (0.48, 0.46, 0.41), (0.27, 0.27, 0.27))
    transform = open_clip.image_transform(56, is_train=False, mean=preprocessing.mean, std=preprocessing.std)
    for width, height in ((56, 56), (90, 60), (31, 200), (25, 25)):
        picture = Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8))
        ours = preprocessing.normalise(torch.from_numpy(preprocessing.pixels(picture).copy())[None])[0]
        torch.testing.assert_close(ours, transform(picture), atol=1e-5, rtol=1e-5)


def test_vit_b_32_with_random_weights_works_in_the_bases_place():
    base = load_base("ViT-B-32:random")
    assert base.num_patches == 49 and base.preprocessing.image_size == 224
    classifier = base.classifier(base.head(["cat", "dog"], ["a photo of a {}."]))
    with torch.no_grad():
        explained = classifier(torch.randn(1, 3, 224, 224), torch.tensor([1]))
    assert explained.logits.shape == (1, 2) and explained.attributions.shape == (1, 49)
    assert load_base("ViT-B-32:random").fingerprint == base.fingerprint != load_base("miniature").fingerprint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ViT-B-23:openai", "unknown base model"),
        ("ViT-B-32", "name the weights"),
        ("ViT-B-32:datacomp", "no pretrained weights"),
        ("RN50:random", "image tower is a"),
        ("local-dir:/does/not/exist", "open_clip_config.json is missing"),
    ],
)
def test_bases_that_cannot_be_used_are_refused_with_the_fix(name, message):
    with pytest.raises(BaseModelError, match=message):
        load_base(name)


def test_a_model_directory_loads_and_weights_that_do_not_match_are_refused(base, tmp_path):
    config = {
        "model_cfg": {
            "embed_dim": 64,
            "vision_cfg": {"image_size": 56, "layers": 3, "width": 96, "patch_size": 8, "head_width": 32},
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
        },
        "preprocess_cfg": {"mean": base.preprocessing.mean, "std": base.preprocessing.std},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    weights = {k: v.contiguous() for k, v in base.clip.state_dict().items()}
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    loaded = load_base(str(tmp_path))
    assert loaded.fingerprint == base.fingerprint  # the same weights and preprocessing are the same base, wherever they lie

    config["model_cfg"]["vision_cfg"]["layers"] = 4
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(BaseModelError, match="do not match"):
        load_base(str(tmp_path))
    raw = (tmp_path / "open_clip_model.safetensors").read_bytes()
    (tmp_path / "open_clip_model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(BaseModelError, match="write the model again"):
        load_base(str(tmp_path))


def test_a_base_with_weights_of_its_own_draws_none_at_random():
    """They would be thrown away, and take longer to draw than the weights to read."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    load_base("miniature")
    assert torch.equal(torch.get_rng_state(), before)
