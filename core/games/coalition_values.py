"""Values v(S) of a classifier's game on a picture, for many coalitions at once, exactly as the plain masked forward pass gives them.

The players are the M patches. A patch outside S is replaced by the data set's mean colour (`fill=mean`), or its token is left out
(`fill=drop`: another game, with shorter sequences). Patches do not overlap, so both are exact in token space, and two things are
computed once instead of once a coalition: the patch embeddings, and the first block's query, key and value of each patch in its two
states. Of the last block only the CLS row is computed, since nothing else is read.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from core.model import SelfExplainingClassifier
from core.tower import Block, ImageTower, block_output, embed
from core.value_function import Fill, Value, ValueFunction

__all__ = ["CoalitionEvaluator", "Fill", "Value", "is_out_of_memory"]

_log = logging.getLogger(__name__)

LONG_TRIAL_S = 1.0
"""A trial of the batch size that takes longer is the last: of a model so slow, what passes between two batches is nothing."""


class CoalitionEvaluator:
    """Evaluates v(S) of one classifier.

    value, label_scale, fill: see `ValueFunction`, and the module.
    dtype: the arithmetic of the tower (float32 or bfloat16); the last normalisation and product are float32 always.
    batch_size: coalitions evaluated at once. Halved, and said so, whenever the device's memory does not suffice.
    """

    def __init__(
        self,
        classifier: SelfExplainingClassifier,
        *,
        value: Value = "logit",
        label_scale: float = 3.5,
        fill: Fill = "mean",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
    ) -> None:
        self.game, self.fill, self.batch_size = ValueFunction(value, label_scale, fill), fill, batch_size
        self.head, self.logit_scale = classifier.head.float(), classifier.logit_scale
        self.dtype = dtype
        self.tower = _cast(classifier.visual, dtype)
        self.num_evaluations = 0
        self.seconds = 0.0
        """Spent in `values`, the device's work included."""

    def values(self, inputs: Tensor, class_ids: Tensor, coalitions: Tensor) -> Tensor:
        """v(S) of each picture's class. inputs: normalised [N, 3, S, S]; class_ids [N]; coalitions bool [P, M] -> float32 [N, P]."""
        began = time.perf_counter()
        while True:
            try:
                out = self._values(inputs, class_ids, coalitions)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.batch_size == 1:
                    raise
            self.batch_size //= 2
            _log.warning("out of memory: the label engine goes on with batches of %d coalitions", self.batch_size)
            if inputs.is_cuda:
                torch.cuda.empty_cache()
        if inputs.is_cuda:
            torch.cuda.synchronize(inputs.device)
        self.num_evaluations += out.numel()
        self.seconds += time.perf_counter() - began
        return out

    def find_batch_size(self, inputs: Tensor, class_ids: Tensor, coalitions: Tensor, smallest: int = 32, largest: int = 16384) -> int:
        """Set the batch size by trial: doubled while that is more than 3 % faster and the memory suffices. Returns it.

        A slow model is not tried for long (LONG_TRIAL_S). The trial evaluations count neither as evaluations nor as seconds.
        """
        counted = self.num_evaluations, self.seconds
        best_rate, size = 0.0, smallest
        while size <= min(largest, max(smallest, len(inputs) * len(coalitions))):
            num_pictures = min(len(inputs), max(1, 2 * size // len(coalitions)))
            games = coalitions[: max(1, 2 * size // num_pictures)]
            self.batch_size = size
            seconds = []
            for _ in range(2 if best_rate else 3):  # the first run of all also warms up
                before = self.seconds
                self.values(inputs[:num_pictures], class_ids[:num_pictures], games)
                seconds.append(self.seconds - before)
            if self.batch_size < size:
                break  # the memory did not suffice: what it went back to stands
            rate = num_pictures * len(games) / min(seconds)
            if rate < 1.03 * best_rate:
                self.batch_size = size // 2
                break
            if min(seconds) > LONG_TRIAL_S:
                break
            best_rate, size = rate, 2 * size
        self.num_evaluations, self.seconds = counted
        return self.batch_size

    @torch.inference_mode()
    def _values(self, inputs: Tensor, class_ids: Tensor, coalitions: Tensor) -> Tensor:
        first = self.tower.transformer.resblocks[0]
        states = self._states(first, embed(self.tower, inputs.to(self.dtype)))  # [N, T, 4 D]
        is_present = F.pad(coalitions.to(inputs.device), (1, 0), value=True)  # the CLS token is no player
        out = torch.empty(len(inputs), len(coalitions), device=inputs.device)
        if self.fill == "mean":
            fill = self._states(first, embed(self.tower, torch.zeros_like(inputs[:1], dtype=self.dtype)))[0]  # [T, 4 D]
            num_tokens = len(fill)
            # Rows of a table, the filled picture's first and then each picture's, are gathered in a quarter of the time of a `where`.
            table = torch.cat([fill, states.flatten(0, 1)])
            own = torch.arange(1, len(inputs) + 1, device=inputs.device) * num_tokens  # where each picture's rows begin
            row = torch.arange(num_tokens, device=inputs.device)
            for n, p in self._batches(len(inputs), len(coalitions)):
                rows = row + is_present[p] * own[n, None, None]  # [N', P', T]
                out[n, p] = self._value(self._cls_features(F.embedding(rows.flatten(0, 1), table)), class_ids[n])
            return out
        sizes = is_present.sum(1)
        for size in sizes.unique().tolist():
            same = (sizes == size).nonzero()[:, 0]
            kept = is_present[same].nonzero()[:, 1].view(len(same), size)  # [P', s + 1]
            for n, p in self._batches(len(inputs), len(same)):
                tokens = states[n][:, kept[p]]  # [N', P'', s + 1, 4 D]
                out[n, same[p]] = self._value(self._cls_features(tokens.flatten(0, 1)), class_ids[n])
        return out

    def _batches(self, num_pictures: int, num_coalitions: int) -> Iterator[tuple[slice, slice]]:
        """Pictures and coalitions of each batch."""
        chunk = min(self.batch_size, num_coalitions)
        at_once = max(1, self.batch_size // num_coalitions)
        for n in range(0, num_pictures, at_once):
            for p in range(0, num_coalitions, chunk):
                yield slice(n, n + at_once), slice(p, p + chunk)

    def _states(self, block: Block, tokens: Tensor) -> Tensor:
        """A token beside its query, key and value in the first block: none depends on the other tokens. [N, T, D] -> [N, T, 4 D]"""
        return torch.cat([tokens, F.linear(block.ln_1(tokens), block.attn.in_proj_weight, block.attn.in_proj_bias)], dim=-1)

    def _cls_features(self, states: Tensor) -> Tensor:
        """Unit CLS features [B, K] in float32 from first-block states [B, T, 4 D]."""
        blocks: list[Block] = list(self.tower.transformer.resblocks)
        width = states.shape[-1] // 4
        tokens = states[..., :width]
        for j, block in enumerate(blocks):
            qkv = states[..., width:] if j == 0 else None
            tokens = block_output(block, tokens, qkv, cls_only=j == len(blocks) - 1)
        return F.normalize((self.tower.ln_post(tokens[:, 0]) @ self.tower.proj).float(), dim=-1)

    def _value(self, cls: Tensor, class_ids: Tensor) -> Tensor:
        """cls [N x P, K], class_ids [N] -> [N, P]"""
        return self.game.of_features(cls.unflatten(0, (len(class_ids), -1)), class_ids, self.head, self.logit_scale)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error under torch says that memory could not be had, on a GPU or the CPU.

    oneDNN's "could not create a primitive" is taken for one: it gives no reason, and on some processors says no more where memory ends.
    """
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(said in str(error) for said in _SAID_ON_A_CPU)


_SAID_ON_A_CPU = ("can't allocate memory", "could not create a primitive", "could not execute a primitive")


def _cast(visual: ImageTower, dtype: torch.dtype) -> ImageTower:
    """The tower in another precision: itself where it has it already, else a copy."""
    if next(visual.parameters()).dtype == dtype:
        return visual
    return copy.deepcopy(visual).to(dtype)
