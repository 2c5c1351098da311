"""The pretraining pictures: the base's weights were trained on these and no others."""

import hashlib
import json
import string
from pathlib import Path

from core.miniature import aerial, objects, scenes, shapes, signs, textures, vehicles
from core.miniature.captions import draw_captioned

RECORD = Path(__file__).parent / "pretraining_pictures.json"
"""{concept: [index of a picture of seed 0 that shows it, first 16 digits of the sha256 of its pixels]}, recorded before shapes and
objects had modules of their own."""
LAST_BIT = {"radial", "swirly", "marbled", "woven"}
"""Textures whose shade is a sine of float32, which processors round differently: not recorded."""


def recorded() -> dict[str, tuple[int, str]]:
    return {concept: (index, digest) for concept, (index, digest) in json.loads(RECORD.read_text()).items()}


def test_a_picture_of_every_concept_is_recorded():
    of_domains = {*aerial.LAND_COVER_NAMES, *aerial.OBJECT_NAMES, *scenes.NAMES, *signs.NAMES, *textures.NAMES, *vehicles.NAMES}
    alone = {*aerial.PRETRAINING_ONLY_NAMES, *scenes.PRETRAINING_ONLY_NAMES, *signs.PRETRAINING_ONLY_NAMES}
    characters = {*(f"number {digit}" for digit in range(10)), *(f"letter {letter}" for letter in string.ascii_uppercase)}
    concepts = of_domains | alone | characters | {*shapes.NAMES, *objects.PRETRAINING_NAMES}
    assert concepts - LAST_BIT <= set(recorded())


def test_pretraining_pictures_are_those_that_the_base_was_trained_on_to_the_byte():
    changed = []
    for concept, (index, digest) in recorded().items():
        picture, phrase = draw_captioned(0, index)
        assert concept in phrase
        if hashlib.sha256(picture.tobytes()).hexdigest()[:16] != digest:
            changed.append(concept)
    assert changed == []
