"""What the tests of transferred models share: a checkpoint, a vector of the miniature base, pictures as files, the command."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from checkpoints import moved
from PIL import Image
from safetensors.torch import save_file

from core import miniature
from core.attribution_head import AttributionHead
from core.model import Base, SelfExplainingClassifier
from core.model_directory import write_model
from core.task_vectors import TaskVector
from sweep import run as command_line

DOMAIN = "traffic_signs"
CLASS_NAMES = miniature.domain_spec(DOMAIN).class_names


def write_checkpoint(path: Path, base: Base, share: float = 0.02) -> dict[str, torch.Tensor]:
    """A fine-tuned tower as open_clip keeps it; returns its weights."""
    tower = moved(dict(base.visual.state_dict()), share=share)
    save_file({f"visual.{k}": v.contiguous() for k, v in tower.items()}, path)
    return tower


def write_vector(path: Path, base: Base, share: float = 0.02, fingerprint: str | None = None) -> TaskVector:
    """A difference of weights in the place of an explainability vector."""
    start = dict(base.visual.state_dict())
    vector = TaskVector.between(moved(start, seed=1, share=share), start, fingerprint or base.fingerprint)
    vector.save(path, {"domain": "textures", "alpha": "0.5"})
    return vector


def write_pictures(directory: Path, number: int = 12, by_class: bool = True, split: str = "test") -> Path:
    """Traffic signs as PNG files, in a directory per class or loose."""
    pixels, class_ids = miniature.draw_split(DOMAIN, split, number)
    for n, (picture, class_id) in enumerate(zip(pixels, class_ids, strict=True)):
        folder = directory / CLASS_NAMES[class_id].replace(" ", "_") if by_class else directory
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / f"{n:03d}.png")
    return directory


def stacked(directory: Path) -> np.ndarray:
    """All pictures below a directory in the order of their paths, uint8 [N, H, W, 3]."""
    return np.stack([np.asarray(Image.open(path)) for path in sorted(directory.rglob("*.png"))])


def transfer(tmp_path: Path, *more: str) -> int:
    """Run the command on what lies in tmp_path; its exit code."""
    required = ["--checkpoint", str(tmp_path / "mine.safetensors"), "--vector", str(tmp_path / "vector.safetensors")]
    return command_line.main(["transfer", *required, "--out", str(tmp_path / "model"), *more])


def write_explaining_model(directory: Path, base: Base, head: AttributionHead) -> Path:
    """A transferred model of traffic signs, as the command leaves it."""
    visual = copy.deepcopy(base.visual)
    visual.load_state_dict(moved(dict(base.visual.state_dict()), share=0.02))
    classifier = SelfExplainingClassifier(visual, base.head(CLASS_NAMES, ["a photo of a {}"]), base.logit_scale, head).eval()
    write_model(directory, classifier, base, CLASS_NAMES, ["a photo of a {}"], {})
    return directory
