"""Fine-tuning: the one training loop, for prediction only (alpha = 1) and with explanation supervision (alpha < 1)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from core.losses import classification_loss, combined_loss, explanation_loss
from core.model import Preprocessing, SelfExplainingClassifier


@dataclass(frozen=True)
class Recipe:
    """AdamW with linear warm-up and cosine decay, gradients clipped at `clip_norm`. Steps are num_steps, or epochs of the data."""

    learning_rate: float
    batch_size: int
    num_steps: int | None = None
    epochs: int | None = None
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.num_steps is None) == (self.epochs is None):
            raise ValueError("a recipe has either num_steps or epochs")
        if self.batch_size < 1 or self.learning_rate <= 0 or (self.num_steps or self.epochs or 0) < 1:
            raise ValueError(f"a recipe's batch size, learning rate and length must be positive: {asdict(self)}")

    def total_steps(self, num_pictures: int) -> int:
        if self.num_steps is not None:
            return self.num_steps
        return (self.epochs or 0) * max(1, num_pictures // self.batch_size)

    def learning_rate_at(self, step: int, total_steps: int) -> float:
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class TrainingData:
    """N pictures in memory or memory-mapped. pixels uint8 [N, 3, S, S], class_ids [N], attribution_labels [N, M] or None."""

    pixels: Tensor
    class_ids: Tensor
    preprocessing: Preprocessing
    attribution_labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.class_ids)


@dataclass(frozen=True)
class Progress:
    """Where a training stands."""

    step: int
    total_steps: int
    loss: float
    classification_loss: float
    explanation_loss: float | None


def batches(num_pictures: int, batch_size: int, total_steps: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Indices of each step's batch from step `start` on: a function of seed and step only, alike for every training on the data."""
    size = min(batch_size, num_pictures)
    per_epoch = num_pictures // size
    order, epoch_of_order = torch.empty(0, dtype=torch.long), -1
    for step in range(start, total_steps):
        epoch, position = divmod(step, per_epoch)
        if epoch != epoch_of_order:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order, epoch_of_order = torch.randperm(num_pictures, generator=generator), epoch
        yield order[position * size : (position + 1) * size]


def finetune(
    classifier: SelfExplainingClassifier,
    data: TrainingData,
    recipe: Recipe,
    alpha: float = 1.0,
    *,
    checkpoint: Path | None = None,
    checkpoint_every_s: float = 60.0,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Progress]:
    """Train `classifier.visual` in place by eq. 4 and return the history, some 100 points of it.

    alpha: weight of the classification loss, in [0, 1]; 1 is prediction-only training and needs no labels.
    checkpoint: a file that a killed training continues from, with the same result as an undisturbed one; removed at the end.
    Raises ValueError for an alpha outside [0, 1] or missing labels.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], not {alpha}")
    if alpha < 1.0 and data.attribution_labels is None:
        raise ValueError("training with alpha < 1 needs attribution labels")
    if len(data) == 0:
        raise ValueError("no pictures to train on")
    device = classifier.head.device
    parameters = list(classifier.visual.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    total = recipe.total_steps(len(data))
    every = max(1, total // 100)
    history: list[Progress] = []
    start = _resume(checkpoint, classifier, optimizer, history)
    saved_at = time.monotonic()
    classifier.train()
    for step, index in enumerate(batches(len(data), recipe.batch_size, total, recipe.seed, start), start):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step, total)
        inputs = data.preprocessing.normalise(data.pixels[index].to(device))
        class_ids = data.class_ids[index].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            explanation = None
            if alpha < 1.0:
                assert data.attribution_labels is not None
                explained = classifier(inputs, class_ids)
                explanation = explanation_loss(explained.attributions, data.attribution_labels[index].to(device))
                classification = classification_loss(explained.logits, class_ids)
                loss = combined_loss(classification, explanation, alpha)
            else:
                loss = classification = classification_loss(classifier.logits(inputs), class_ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimizer.step()
        if step % every == 0 or step == total - 1:
            point = Progress(
                step + 1, total, loss.item(), classification.item(), None if explanation is None else explanation.item()
            )
            if not math.isfinite(point.loss):
                raise FloatingPointError(f"the loss is {point.loss} at step {step}: lower the learning rate")
            history.append(point)
            if on_progress is not None:
                on_progress(point)
        if checkpoint is not None and time.monotonic() - saved_at > checkpoint_every_s:
            _save(checkpoint, step + 1, classifier, optimizer, history)
            saved_at = time.monotonic()
    classifier.eval()
    for parameter in parameters:
        parameter.requires_grad_(False)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return history


def _save(
    checkpoint: Path,
    next_step: int,
    classifier: SelfExplainingClassifier,
    optimizer: torch.optim.Optimizer,
    history: list[Progress],
) -> None:
    state: dict[str, Any] = {
        "next_step": next_step,
        "visual": classifier.visual.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [asdict(point) for point in history],
    }
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    temporary = checkpoint.with_suffix(f".{os.getpid()}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, checkpoint)


def _resume(
    checkpoint: Path | None,
    classifier: SelfExplainingClassifier,
    optimizer: torch.optim.Optimizer,
    history: list[Progress],
) -> int:
    """Load a checkpoint if there is one; returns the step to go on with."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True, map_location=classifier.head.device)
    classifier.visual.load_state_dict(state["visual"])
    optimizer.load_state_dict(state["optimizer"])
    history.extend(Progress(**point) for point in state["history"])
    return int(state["next_step"])
