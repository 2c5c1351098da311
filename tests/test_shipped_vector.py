"""The vector in this package: with nothing but pictures and class names the base itself becomes a classifier that explains."""

from __future__ import annotations

import json

import numpy as np
import torch
from transfers import CLASS_NAMES, write_pictures

import sweep
from core.low_rank import load_vector
from core.metrics import correlation, iou_at
from core.miniature.weights import VECTOR_FILE
from sweep import run as command_line


def test_it_is_of_the_base_in_this_package(base):
    assert load_vector(VECTOR_FILE, base.fingerprint).norm() > 0


def test_three_commands_from_loose_pictures_to_maps_that_follow_the_picture(base, signs, sign_classifier, references, tmp_path, capsys):
    """Installing is the first. The labels are Shapley values of the zero-shot classifier, by permutations."""
    pictures = write_pictures(tmp_path / "photos", 24, by_class=False)
    command = ["transfer", "--checkpoint", "miniature", "--vector", "miniature", "--class-names", *CLASS_NAMES]
    assert command_line.main([*command, "--calibrate", str(pictures), "--out", str(tmp_path / "model")]) == 0
    assert "the base itself, zero-shot" in capsys.readouterr().out
    shown = ["explain", "--model", str(tmp_path / "model"), "--image", str(pictures), "--out", str(tmp_path / "explanations")]
    assert command_line.main(shown) == 0
    assert len((tmp_path / "explanations" / "explanations.jsonl").read_text().splitlines()) == 24
    provenance = json.loads((tmp_path / "model" / "provenance.json").read_text())
    assert provenance["choice"]["rule"] == "vector" and provenance["merge"]["lambda2"] == 1.21
    assert provenance["vector"]["domain"] == "concepts" and provenance["checkpoint"]["relative_distance"] == 0.0

    model, ids = sweep.load(tmp_path / "model"), signs.class_ids[:16]
    ours = model.maps(signs.pixels[:16], ids[:, None].numpy()).attributions.reshape(16, -1)
    with torch.no_grad():
        own = sign_classifier(signs.inputs[:16], ids).attributions.numpy()
    before, after = (correlation(maps, references.attributions) for maps in (own, ours))
    assert after > before + 0.4 and after > 0.2, (before, after)
    assert iou_at(10, ours, references.attributions) > iou_at(10, own, references.attributions)
    probabilities = model.predict([np.ascontiguousarray(p.permute(1, 2, 0).numpy()) for p in signs.pixels[:16]]).probabilities
    kept = (probabilities.argmax(axis=1) == sign_classifier.logits(signs.inputs[:16]).argmax(dim=1).numpy()).mean()
    assert kept >= 0.75
