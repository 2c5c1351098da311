"""The source `concepts`: drawn like the domains, of no target's classes, with what matters at every place and of every size."""

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.miniature import DOMAIN_NAMES, SOURCE_NAMES, DrawnSplit, concepts, domain_spec, draw_split
from core.miniature.canvas import CANVAS_SIZE
from core.miniature.captions import draw_captioned
from sweep.experiment.config import ConfigError, DataSettings, DomainLocation
from sweep.stages.domains import look_at

NAMES = domain_spec("concepts").class_names
NUM_CUTOUTS = 20 * len(NAMES)


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def coverages() -> np.ndarray:
    """How much of each canvas pixel the concept covers, by the cut-outs alone: [NUM_CUTOUTS, CANVAS_SIZE, CANVAS_SIZE] in [0, 1]."""
    return np.stack([coverage(index, NAMES[index % len(NAMES)]) for index in range(NUM_CUTOUTS)])


def coverage(seed: int, name: str) -> np.ndarray:
    cutout, corner = concepts.draw_cutout(rng(seed), name)
    canvas = Image.new("L", (CANVAS_SIZE, CANVAS_SIZE))
    canvas.paste(cutout.getchannel("A"), corner)
    return np.asarray(canvas, np.float32) / 255


def patches(pixels: np.ndarray) -> np.ndarray:
    """[N, S, S] -> [N, 7, 7, pixels of a patch]"""
    num, side = len(pixels), pixels.shape[1] // 7
    return pixels.reshape(num, 7, side, 7, side).transpose(0, 1, 3, 2, 4).reshape(num, 7, 7, -1)


# A data set like the domains


def test_is_a_source_beside_the_eight_domains_with_many_classes():
    assert SOURCE_NAMES == ("concepts",)
    assert len(DOMAIN_NAMES) == 8 and "concepts" not in DOMAIN_NAMES
    assert len(set(NAMES)) == len(NAMES) >= 55
    assert {"lake", "volcano", "sailing boat", "heart", "bicycle", "letter A"} <= set(NAMES)
    templates = domain_spec("concepts").templates
    assert len(templates) >= 4 and all(template.count("{}") == 1 for template in templates)


def test_each_data_set_has_a_stream_of_its_own_and_those_of_the_domains_are_as_they_were():
    eight = "cars textures land_cover traffic_signs aerial_objects scenes street_digits clean_digits"
    for place, name in enumerate((*eight.split(), "concepts")):
        num_classes = len(domain_spec(name).class_names)
        for is_test, split in enumerate(("train", "test")):
            order = rng(3, place, is_test, 0, 0).permutation(num_classes)
            np.testing.assert_array_equal(DrawnSplit(name, split, num_classes, seed=3).class_ids, order)


def test_draws_the_same_pictures_from_the_same_seed_however_many_are_asked_for():
    pictures, class_ids = draw_split("concepts", "train", 24)
    fewer_pictures, fewer_class_ids = draw_split("concepts", "train", 9)
    assert pictures.dtype == np.uint8 and pictures.shape == (24, 56, 56, 3)
    np.testing.assert_array_equal(pictures[:9], fewer_pictures)
    np.testing.assert_array_equal(class_ids[:9], fewer_class_ids)


def test_draws_every_class_as_often_as_any_other():
    for num_pictures in (3 * len(NAMES), 3 * len(NAMES) + 2):
        counts = np.bincount(DrawnSplit("concepts", "test", num_pictures).class_ids, minlength=len(NAMES))
        assert counts.min() == 3
        assert counts.max() - counts.min() <= 1


def test_draws_no_picture_twice_within_or_across_splits_and_seeds():
    drawn = [draw_split("concepts", split, 90, seed)[0] for split, seed in (("train", 0), ("test", 0), ("train", 1))]
    assert len({hashlib.sha256(picture.tobytes()).digest() for pictures in drawn for picture in pictures}) == 270


def test_a_sweep_opens_it_by_its_location_and_names_it_among_the_choices():
    settings = DataSettings(max_train_pictures=20, max_test_pictures=10)
    facts = look_at(DomainLocation("concepts", "miniature:concepts"), settings)
    assert facts.class_names == NAMES
    assert facts.counts == (18, 2, 10)
    with pytest.raises(ConfigError, match="no domain 'concept'.*clean_digits, or the source concepts"):
        look_at(DomainLocation("concepts", "miniature:concept"), settings)


# Shared with no target


def normalised(name: str) -> str:
    """The name without case, separators and plural."""
    return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix("s")


def test_no_class_is_a_class_of_a_target():
    own = {normalised(name) for name in NAMES}
    assert len(own) == len(NAMES)
    for domain in DOMAIN_NAMES:
        assert not own & {normalised(name) for name in domain_spec(domain).class_names}, domain


def drawing_functions(draw: Callable[[], object]) -> set[tuple[str, str]]:
    """(file, name) of the functions of `core/miniature` that run while something is drawn."""
    ran = set()

    def note(frame, event, _):
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.parent.name == "miniature":
            ran.add((file.name, frame.f_code.co_qualname))

    sys.setprofile(note)
    try:
        draw()
    finally:
        sys.setprofile(None)
    return ran


@pytest.fixture(scope="module")
def own_functions() -> set[tuple[str, str]]:
    def draw() -> None:
        for index, name in enumerate(2 * NAMES):
            concepts.draw(rng(index), name)

    return drawing_functions(draw)


@pytest.mark.parametrize("domain", DOMAIN_NAMES)
def test_shares_only_primitives_with_the_drawings_of_a_target(domain, own_functions):
    names = domain_spec(domain).class_names
    draw_split(domain, "train", 1)  # what it imports when it first draws is not watched: that takes a minute
    of_target = drawing_functions(lambda: draw_split(domain, "train", 4 * len(names)))
    assert {file for file, _ in of_target & own_functions} <= {"canvas.py"}
    assert {file for file, _ in of_target} > {"suite.py", "canvas.py"}


def test_shares_shapes_and_objects_and_primitives_with_the_pretraining_pictures(own_functions):
    of_pretraining = drawing_functions(lambda: [draw_captioned(0, index) for index in range(200)])
    assert {file for file, _ in of_pretraining & own_functions} == {"canvas.py", "shapes.py", "objects.py"}


# What matters is everywhere and of every size


def test_a_picture_holds_its_concept_where_the_cutout_lies():
    for index, name in enumerate(NAMES):
        cutout, corner = concepts.draw_cutout(rng(index), name)
        canvas = Image.new("RGBA", (CANVAS_SIZE, CANVAS_SIZE))
        canvas.paste(cutout, corner)
        expected = np.asarray(canvas)
        is_covered = expected[..., 3] == 255
        assert is_covered.any(), name
        np.testing.assert_array_equal(np.asarray(concepts.draw(rng(index), name))[is_covered], expected[is_covered][:, :3])


def test_no_drawing_is_cut_off_by_its_cutout():
    for index in range(NUM_CUTOUTS):
        alpha = np.asarray(concepts.draw_cutout(rng(index), NAMES[index % len(NAMES)])[0].getchannel("A"))
        border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert not border.any(), NAMES[index % len(NAMES)]


def test_concepts_cover_every_position_of_the_grid(coverages):
    mass = patches(coverages).mean((0, 3))
    # A place drawn evenly at random gives the corners 0.1 of the mean.
    assert mass.min() > 0.18 * mass.mean()
    assert mass.max() < 2.2 * mass.mean()
    # Each position is, in some pictures in a hundred, more than touched by an edge.
    assert ((patches(coverages).mean(3) > 0.25).mean(0) > 0.03).all()


def test_pixels_of_the_finished_pictures_vary_at_every_position_of_the_grid():
    pictures = draw_split("concepts", "train", 6 * len(NAMES))[0].astype(np.float32).mean(-1)
    variance = patches(pictures).var(3).mean(0)
    assert variance.min() > 0.15 * variance.mean()


def test_concepts_are_small_and_large(coverages):
    share = coverages.mean((1, 2))
    # A patch is 0.02 of a picture.
    assert share.min() > 0.015
    assert np.quantile(share, 0.1) < 0.07 and np.quantile(share, 0.9) > 0.2


def test_concepts_stand_out_from_their_backgrounds(coverages):
    brightness = np.stack([
        np.asarray(concepts.draw(rng(index), NAMES[index % len(NAMES)]).convert("L"), np.float32) for index in range(NUM_CUTOUTS)
    ])
    inside = (brightness * coverages).sum((1, 2)) / coverages.sum((1, 2))
    outside = (brightness * (1 - coverages)).sum((1, 2)) / (1 - coverages).sum((1, 2))
    contrast = np.abs(inside - outside)
    # Compared with what lies around it, a part of the background, contrast may be less than drawing asks for.
    assert np.median(contrast) > 60 and np.quantile(contrast, 0.02) > 30


def test_pictures_of_one_class_differ_in_place_size_and_colour():
    for name in NAMES:
        seeds = range(8)
        covered = [coverage(seed, name) for seed in seeds]
        middles = np.array([np.argwhere(one > 0.5).mean(0) for one in covered])
        areas = np.array([one.mean() for one in covered])
        colours = np.array([np.asarray(concepts.draw(rng(seed), name), np.float32).mean((0, 1)) for seed in seeds])
        assert (middles.std(0) > 8).all(), name
        assert areas.max() > 1.5 * areas.min(), name  # lines do not grow with what they are drawn for
        assert (colours.std(0) > 10).all(), name


def test_an_unknown_concept_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="no concept is called 'digit'.*volcano"):
        concepts.draw(rng(0), "digit")
