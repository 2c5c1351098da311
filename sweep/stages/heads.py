"""Text heads: the class embeddings of a domain's prompts, computed once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sweep.experiment.config import Device
from sweep.stages.base import BaseFacts
from sweep.stages.stage import Stage
from sweep.store.artifacts import Store


@dataclass(frozen=True, eq=False)
class TextHead(Stage):
    """The zero-shot head W [K, C] of class names and prompt templates."""

    kind = "head"
    version = 1
    uses_device = True

    domain: str
    base: BaseFacts
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    device: Device

    @property
    def name(self) -> str:
        return f"{self.domain} head"

    @property
    def params(self) -> dict[str, Any]:
        return {"base": self.base.fingerprint, "class_names": self.class_names, "templates": self.templates, "device": self.device}

    def compute(self, store: Store, directory: Path) -> None:
        head = self.base.load().head(self.class_names, self.templates, device=self.device)
        save_file({"head": head.contiguous().cpu()}, directory / "head.safetensors")

    def load(self, store: Store) -> Tensor:
        """[K, C]"""
        return load_file(self.artifact(store).path("head.safetensors"))["head"]


def load_heads(store: Store, heads: tuple[TextHead, ...]) -> Tensor:
    """The heads of several domains side by side. [K, sum of C]"""
    return torch.cat([head.load(store) for head in heads], dim=1)
