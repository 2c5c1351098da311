"""The miniature suite: its drawings, its pretraining, and the base weights in the package."""

import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from core.miniature import DOMAIN_NAMES, domain_spec, draw_split, load_state_dict
from core.miniature.captions import draw_captioned
from core.miniature.digits import handwritten_sources
from core.miniature.pretrain import (
    CONFIG,
    Recipe,
    augment,
    contrastive_loss,
    draw_pictures,
    load_base,
    preprocess,
    train,
    zero_shot_accuracies,
)
from core.miniature.weights import BASE_DIRECTORY, save_state_dict

WEIGHTS = BASE_DIRECTORY / "open_clip_model.safetensors"
NUM_ZERO_SHOT = 120


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The suite shares its machine, and results are reproducible on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base() -> CLIP:
    return load_base()


# Drawings


def test_names_eight_domains():
    paper_order = "cars textures land_cover traffic_signs aerial_objects scenes street_digits clean_digits"
    assert " ".join(DOMAIN_NAMES) == paper_order


@pytest.mark.parametrize("name", DOMAIN_NAMES)
def test_describes_a_domain_for_prompting(name):
    domain = domain_spec(name)
    assert domain.name == name
    assert len(set(domain.class_names)) == len(domain.class_names) >= 8
    assert len(domain.templates) >= 4
    assert all(template.count("{}") == 1 for template in domain.templates)


@pytest.mark.parametrize("name", DOMAIN_NAMES)
def test_draws_the_same_pictures_from_the_same_seed_however_many_are_asked_for(name):
    pictures, class_ids = draw_split(name, "train", 24)
    fewer_pictures, fewer_class_ids = draw_split(name, "train", 9)
    assert pictures.dtype == np.uint8 and pictures.shape == (24, 56, 56, 3)
    assert class_ids.dtype == np.int64 and class_ids.shape == (24,)
    np.testing.assert_array_equal(pictures[:9], fewer_pictures)
    np.testing.assert_array_equal(class_ids[:9], fewer_class_ids)


@pytest.mark.parametrize("name", DOMAIN_NAMES)
def test_draws_no_picture_twice_within_or_across_splits_and_seeds(name):
    drawn = [
        draw_split(name, "train", 60)[0],
        draw_split(name, "test", 60)[0],
        draw_split(name, "train", 60, seed=1)[0],
    ]
    digests = [hashlib.sha256(picture.tobytes()).digest() for pictures in drawn for picture in pictures]
    assert len(set(digests)) == 180


@pytest.mark.parametrize("name", DOMAIN_NAMES)
def test_draws_every_class_as_often_as_any_other(name):
    num_classes = len(domain_spec(name).class_names)
    for num_pictures in (3 * num_classes, 3 * num_classes + 2):
        counts = np.bincount(draw_split(name, "test", num_pictures)[1], minlength=num_classes)
        assert counts.min() == 3
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("name", DOMAIN_NAMES)
def test_class_order_is_not_the_same_in_every_round(name):
    num_classes = len(domain_spec(name).class_names)
    rounds = draw_split(name, "train", 3 * num_classes)[1].reshape(3, num_classes)
    assert not (rounds == rounds[0]).all()


def test_handwritten_train_and_test_digits_come_from_disjoint_sources():
    for digit in range(10):
        train_sources, test_sources = (handwritten_sources(digit, is_test=is_test) for is_test in (False, True))
        assert not set(train_sources) & set(test_sources)
        assert len(test_sources) >= 30
        assert len(train_sources) > 3 * len(test_sources)


def test_unknown_domain_and_split_are_refused_with_the_choices():
    with pytest.raises(ValueError, match="land_cover"):
        domain_spec("landcover")
    with pytest.raises(ValueError, match="use one of"):
        draw_split("birds", "train", 1)
    with pytest.raises(ValueError, match='"train" or "test"'):
        draw_split("cars", "validation", 1)  # type: ignore[arg-type]


def test_drawing_needs_neither_torch_nor_open_clip():
    program = (
        "import sys; from core.miniature import draw_split; draw_split('scenes', 'train', 1); "
        "sys.exit(' '.join({'torch', 'open_clip'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Pretraining


def test_pretraining_pictures_are_reproducible_and_captioned_beyond_the_domains():
    drawn = [draw_captioned(0, index) for index in range(300)]
    again, phrase = draw_captioned(0, 7)
    np.testing.assert_array_equal(drawn[7][0], again)
    assert drawn[7][1] == phrase
    class_names = {class_name for name in DOMAIN_NAMES for class_name in domain_spec(name).class_names}
    phrases = {phrase for _, phrase in drawn}
    assert phrases & class_names
    assert {"letter A", "heart", "bicycle", "volcano"} & phrases


def test_contrastive_loss_is_clips_where_every_phrase_stands_beside_each_of_its_images():
    generator = torch.Generator().manual_seed(0)
    images, phrases = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (5, 3))
    phrase_of_image = torch.tensor([0, 1, 0, 2, 0])
    # Written out: one column an image; an image's positives are all columns with its phrase.
    logits = (2.0 * images @ phrases[phrase_of_image].T).numpy()
    is_positive = phrase_of_image.numpy()[:, None] == phrase_of_image.numpy()[None]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    image_loss = -np.log((probabilities * is_positive).sum(1)).mean()
    log_probabilities = logits - np.log(np.exp(logits).sum(0, keepdims=True))
    phrase_loss = -((log_probabilities * is_positive).sum(0) / is_positive.sum(0)).mean()
    loss = contrastive_loss(images, phrases, phrase_of_image, torch.tensor(2.0))
    # float32 counts enter a float64 computation: six digits.
    assert loss.item() == pytest.approx((image_loss + phrase_loss) / 2, rel=1e-6)


def test_augmentation_fills_whole_patches_of_about_the_stated_share_of_pictures():
    recipe = Recipe(masked_share=0.5, largest_shift=0)
    pixels = augment(torch.ones(400, 3, 56, 56), recipe, torch.Generator().manual_seed(0))
    patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).mean((1, 4, 5))
    assert set(patches.unique().tolist()) == {0.0, 1.0}
    num_filled = (patches == 0).sum((1, 2))
    # Standard error of the share is 0.025.
    assert 0.4 < (num_filled > 0).float().mean() < 0.6


def test_training_is_reproducible_from_its_seed():
    recipe = Recipe(num_pictures=192, num_steps=6, batch_size=32, warmup_steps=1)
    data = draw_pictures(recipe)
    (first, token_ids), (second, _) = train(recipe, data), train(recipe, data)
    for name, parameter in first.state_dict().items():
        assert torch.equal(parameter, second.state_dict()[name]), name
    assert token_ids.tolist() == sorted(token_ids.tolist())


def test_saved_weights_come_back_with_the_trained_rows_in_their_places(tmp_path):
    small = {**CONFIG["model_cfg"], "text_cfg": {**CONFIG["model_cfg"]["text_cfg"], "vocab_size": 3}}
    state_dict = CLIP(**small).state_dict()
    save_state_dict(tmp_path, CONFIG, state_dict, [0, 320, 49407], seed=5)
    config, restored = load_state_dict(tmp_path)
    assert config == CONFIG
    for name, tensor in state_dict.items():
        kept = restored[name][[0, 320, 49407]] if name == "token_embedding.weight" else restored[name]
        assert kept.dtype == torch.float32
        assert torch.equal(kept, tensor.half().float()), name


# The base weights in the package


def test_base_is_small_and_its_checksum_is_recorded():
    assert sum(path.stat().st_size for path in BASE_DIRECTORY.iterdir()) < 2_000_000
    recorded = re.findall(r"`([0-9a-f]{64})`", (BASE_DIRECTORY / "README.md").read_text())
    assert recorded == [hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()]


def test_base_fills_open_clips_model_strictly_with_all_token_rows():
    config, state_dict = load_state_dict()
    assert config == CONFIG
    assert all(tensor.dtype == torch.float32 for tensor in state_dict.values())
    assert state_dict["token_embedding.weight"].shape == (49408, 64)
    CLIP(**config["model_cfg"]).load_state_dict(state_dict, strict=True)


def test_base_has_trained_rows_for_every_token_of_the_domains_prompts():
    trained = json.loads((BASE_DIRECTORY / "open_clip_config.json").read_text())["token_rows"]["trained_ids"]
    tokenizer = SimpleTokenizer(context_length=16)
    for name in DOMAIN_NAMES:
        domain = domain_spec(name)
        prompts = [template.format(class_name) for template in domain.templates for class_name in domain.class_names]
        assert set(tokenizer(prompts).unique().tolist()) <= set(trained)


def test_class_names_that_pretraining_never_saw_get_reproducible_rows_of_their_own(base):
    rows = load_state_dict()[1]["token_embedding.weight"]
    assert torch.equal(rows, base.token_embedding.weight)
    tokenizer = SimpleTokenizer(context_length=16)
    first, second = (tokenizer(name)[0, 1] for name in ("axolotl", "espresso"))
    assert (rows[first] - rows[second]).norm() > rows[first].norm()
    # 3.2 million values: their standard deviation is known to 0.04 %, the trained rows' to about 1 %.
    recorded = json.loads((BASE_DIRECTORY / "open_clip_config.json").read_text())["token_rows"]
    trained = rows[recorded["trained_ids"]]
    assert rows.std().item() == pytest.approx(trained.std().item(), rel=0.01)
    with torch.inference_mode():
        features = base.encode_text(tokenizer(["a photo of an axolotl", "a photo of an espresso"]), normalize=True)
    assert features[0] @ features[1] < 0.99


def test_base_names_pictures_of_every_domain_better_than_chance(base):
    accuracies = zero_shot_accuracies(base, NUM_ZERO_SHOT)
    for name, accuracy in accuracies.items():
        chance = 1 / len(domain_spec(name).class_names)
        assert accuracy > chance + 2 * (chance * (1 - chance) / NUM_ZERO_SHOT) ** 0.5, name
    assert 0.55 < np.mean(list(accuracies.values())) < 0.9


def test_base_still_names_pictures_with_a_third_of_their_patches_filled(base):
    """The game that Shapley labels play is within the base's experience."""
    domain = domain_spec("aerial_objects")
    pictures, class_ids = draw_split(domain.name, "test", NUM_ZERO_SHOT)
    tokenizer = SimpleTokenizer(context_length=16)
    with torch.inference_mode():
        class_features = base.encode_text(tokenizer([f"aerial photo of {name}" for name in domain.class_names]))
        pixels = preprocess(pictures)
        is_filled = torch.rand(len(pixels), 1, 7, 7, generator=torch.Generator().manual_seed(0)) < 1 / 3
        pixels = pixels * ~is_filled.repeat_interleave(8, 2).repeat_interleave(8, 3)
        logits = base.encode_image(pixels, normalize=True) @ torch.nn.functional.normalize(class_features, dim=-1).T
    assert (logits.argmax(1).numpy() == class_ids).mean() > 0.5
