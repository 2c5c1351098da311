"""A model as one ONNX file: pixels in, logits and the attributions of every class out, for any number of pictures."""

from __future__ import annotations

import importlib.util
import json
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from core.model import BaseModelError
from core.model_directory import LoadedModel
from core.tower import ImageTower
from sweep.experiment.config import ConfigError
from sweep.export.head import head_of

MODEL = "model.onnx"
INPUT, OUTPUTS = "pixel_values", ("logits", "attributions")
_OPSET = 17
"""The first with layer normalisation as one operation."""
_LARGEST = 2_000_000_000
"""Bytes of weights: a protobuf message, which an ONNX file is, ends at 2 GiB."""


class _EveryClass(nn.Module):
    """open_clip's own forward pass, which consists of operations that ONNX has, and the head."""

    def __init__(self, visual: ImageTower, head: nn.Module) -> None:
        super().__init__()
        self.visual, self.head = visual, head

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised [N, 3, S, S] -> logits [N, C], attributions [N, C, M]"""
        cls, patches = self.visual(inputs)
        logits, attributions = self.head(cls, patches @ self.visual.proj)
        return logits, attributions


def write_onnx(model: LoadedModel, out: Path) -> None:
    """The file into a directory, which is made.

    Raises, before it writes, ConfigError without the library onnx and BaseModelError where the tower is too large.
    """
    check_library()
    import onnx

    visual = model.classifier.visual
    size = sum(parameter.numel() * 4 for parameter in visual.parameters())
    if size > _LARGEST:
        raise BaseModelError(f"the image tower has {size / 1e9:.1f} GB of weights, an ONNX file holds {_LARGEST / 1e9:.0f}: take --to hf")
    out.mkdir(parents=True, exist_ok=True)
    network = _EveryClass(visual, head_of(model.classifier)).eval()
    # Two pictures: of one, nn.MultiheadAttention would write the number down as a constant.
    pictures = torch.zeros(2, 3, *visual.image_size)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for the whole attention, which ONNX does not have
    try:
        with warnings.catch_warnings():
            # The tracer tells of each Python number it meets, and of the newer exporter, which needs another library.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (pictures,),
                str(out / MODEL),
                dynamo=False,
                opset_version=_OPSET,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_axes={name: {0: "pictures"} for name in (INPUT, *OUTPUTS)},
            )
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    written = onnx.load(str(out / MODEL))
    onnx.helper.set_model_props(written, _metadata(model))
    onnx.checker.check_model(written)
    onnx.save(written, str(out / MODEL))


def check_library() -> None:
    """Raise ConfigError, with the fix, where the library onnx is not installed."""
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError("--to onnx needs the library onnx: pip install -e '.[export]' (or pip install onnx)")


def _metadata(model: LoadedModel) -> dict[str, str]:
    """What a user of the file alone needs to know; JSON each."""
    head = model.classifier.attribution_head
    meaning = {"kind": head.kind, "scale": head.scale, "value": head.game.value, "label_scale": head.game.label_scale, "grid": model.grid}
    known = {"class_names": model.class_names, "preprocessing": asdict(model.preprocessing), "attributions": meaning}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in known.items()}
