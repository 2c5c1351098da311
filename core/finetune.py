"""Fine-tuning: the one training loop, for prediction only (alpha = 1) and with explanation supervision (alpha < 1)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from core.checkpoints import Checkpoint
from core.compiler import compiler_deferred
from core.data_parallel import DataParallel
from core.losses import classification_loss, combined_loss, explanation_loss
from core.model import SelfExplainingClassifier
from core.training_data import WHOLE, Batch, BatchSource, load_ahead


@dataclass(frozen=True)
class Recipe:
    """AdamW with linear warm-up and cosine decay, gradients clipped at `clip_norm`. Steps are num_steps, or epochs of the data.

    workers_per_model: workers that share every batch; the batches are the same for any number, the sums within them differ in the last
    digits.
    """

    learning_rate: float
    batch_size: int
    num_steps: int | None = None
    epochs: int | None = None
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    workers_per_model: int = 1

    def __post_init__(self) -> None:
        if (self.num_steps is None) == (self.epochs is None):
            raise ValueError("a recipe has either num_steps or epochs")
        for name in ("learning_rate", "batch_size", "num_steps", "epochs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"a recipe's {name} must be positive and finite, not {value}")
        if self.workers_per_model < 1 or self.batch_size % self.workers_per_model:
            raise ValueError(
                f"{self.workers_per_model} workers cannot share a batch of {self.batch_size} pictures evenly: make the batch size a "
                "multiple of the workers"
            )

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
class Progress:
    """Where a training stands."""

    step: int
    total_steps: int
    loss: float
    classification_loss: float
    explanation_loss: float | None


@compiler_deferred()
def finetune(
    classifier: SelfExplainingClassifier,
    data: BatchSource,
    recipe: Recipe,
    alpha: float = 1.0,
    *,
    checkpoint: Checkpoint | None = None,
    checkpoint_every_s: float = 60.0,
    on_progress: Callable[[Progress], None] | None = None,
    workers: DataParallel | None = None,
) -> list[Progress]:
    """Train `classifier.visual` in place by eq. 4 and return the history, some 100 points of it.

    alpha: weight of the classification loss, in [0, 1]; 1 is prediction-only training and needs no labels.
    checkpoint: what a killed training continues from, with the same result as an undisturbed one; the caller removes
    it once the weights are safe.
    workers: those that train this model together; each calls this with the same data, recipe and checkpoint, which the first one writes.
    All end with the same weights and history, that of one worker but for the order in which a batch's gradients are summed.
    Raises ValueError for an alpha outside [0, 1], missing labels, no pictures or fewer than workers can share, FloatingPointError where
    the loss is no number any more.
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1], not {alpha}")
    if alpha < 1.0 and not data.is_labelled:
        raise ValueError("training with alpha < 1 needs attribution labels")
    if len(data) == 0:
        raise ValueError("no pictures to train on")
    if alpha == 1.0:
        data = data.without_labels()
    if workers is not None and min(recipe.batch_size, len(data)) % workers.share.size:
        raise ValueError(f"{workers.share.size} workers cannot share {len(data)} pictures evenly: train on one worker")
    device = classifier.head.device
    parameters = list(classifier.visual.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = make_optimizer(parameters, recipe, device)
    total = recipe.total_steps(len(data))
    every = max(1, total // 100)
    history: list[Progress] = []
    state = None if checkpoint is None else checkpoint.load()
    if workers is not None and not workers.agree(0 if state is None else state["next_step"], device):
        state = None  # some cannot read it: all begin anew
    start = 0 if state is None else _resume(state, classifier, optimizer, history)
    is_keeper, saved_at = workers is None or workers.is_first, time.monotonic()
    classifier.train()
    objective: torch.nn.Module = _Objective(classifier, alpha)
    if workers is not None:
        objective = workers.averaging(objective)
    batches = data.batches(recipe.batch_size, total, recipe.seed, start, WHOLE if workers is None else workers.share)
    with closing(load_ahead(batches, device)) as loaded:
        for step, batch in enumerate(loaded, start):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step, total)
            inputs = data.preprocessing.normalise(batch.pixels)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                losses: _Losses = objective(inputs, batch)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
            optimizer.step()
            if step % every == 0 or step == total - 1:
                point = losses.progress(step + 1, total, workers)
                if not math.isfinite(point.loss):
                    raise FloatingPointError(f"the loss is {point.loss} at step {step}: lower the learning rate")
                history.append(point)
                if on_progress is not None:
                    on_progress(point)
            if checkpoint is not None and is_keeper and time.monotonic() - saved_at > checkpoint_every_s:
                checkpoint.save(_state(step + 1, classifier, optimizer, history))
                saved_at = time.monotonic()
    classifier.eval()
    for parameter in parameters:
        parameter.requires_grad_(False)
    return history


@dataclass(frozen=True, eq=False)
class _Losses:
    total: Tensor
    classification: Tensor
    explanation: Tensor | None

    def progress(self, step: int, total_steps: int, workers: DataParallel | None) -> Progress:
        found = torch.stack([self.total, self.classification, *([] if self.explanation is None else [self.explanation])])
        values = (found if workers is None else workers.mean(found)).tolist()
        return Progress(step, total_steps, values[0], values[1], values[2] if len(values) == 3 else None)


class _Objective(torch.nn.Module):
    """The losses of a batch: one module, whose pass is all that a step takes gradients of."""

    def __init__(self, classifier: SelfExplainingClassifier, alpha: float) -> None:
        super().__init__()
        self.classifier, self.alpha = classifier, alpha

    def forward(self, inputs: Tensor, batch: Batch) -> _Losses:
        if batch.attribution_labels is None:
            classification = classification_loss(self.classifier.logits(inputs), batch.class_ids)
            return _Losses(classification, classification, None)
        explained = self.classifier(inputs, batch.class_ids)
        explanation = explanation_loss(explained.attributions, batch.attribution_labels)
        classification = classification_loss(explained.logits, batch.class_ids)
        return _Losses(combined_loss(classification, explanation, self.alpha), classification, explanation)


def make_optimizer(parameters: list[torch.nn.Parameter], recipe: Recipe, device: torch.device) -> torch.optim.AdamW:
    """AdamW as one operation over all weights where torch has that (it differs from the loop over tensors in the last digits)."""
    is_fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=is_fused)


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[int, Any]) -> None:
    """Take over the moments of a checkpoint, tensors on the CPU, and nothing of how the other optimizer worked.

    torch puts the moments where the weights are; the number of steps only where the optimizer is fused, and leaves it on the CPU otherwise:
    an optimizer that is not fused reads it once a weight, and a GPU would have to be waited for each time.
    """
    optimizer.load_state_dict({"state": dict(state), "param_groups": optimizer.state_dict()["param_groups"]})


def _state(
    next_step: int, classifier: SelfExplainingClassifier, optimizer: torch.optim.Optimizer, history: list[Progress]
) -> dict[str, Any]:
    return {
        "next_step": next_step,
        "visual": classifier.visual.state_dict(),
        "optimizer": optimizer.state_dict()["state"],
        "history": [asdict(point) for point in history],
    }


def _resume(
    state: Mapping[str, Any], classifier: SelfExplainingClassifier, optimizer: torch.optim.Optimizer, history: list[Progress]
) -> int:
    """Go back to a saved state; returns the step to go on with."""
    classifier.visual.load_state_dict(state["visual"])
    restore_optimizer(optimizer, state["optimizer"])
    history.extend(Progress(**point) for point in state["history"])
    return int(state["next_step"])
