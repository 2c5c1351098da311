"""A transferred model in a user's hands: it classifies pictures and says, in the same pass, which patches spoke for the class."""

from __future__ import annotations

import difflib
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.pictures import PictureError
from core.model import SelfExplainingClassifier
from core.model_directory import LoadedModel, read_model
from sweep.explain.pictures import Pictures, PicturesError, each_picture

if TYPE_CHECKING:
    from sweep.explain.explanation import Explanation

_log = logging.getLogger(__name__)

BATCH_SIZE = 32


class UnknownClassError(ValueError):
    """A class that the model does not have; the message names close ones."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Of N pictures and C classes. names: the pictures' [N]; class_ids: int64 [N]; class_names: [N]; probabilities: float32 [N, C]."""

    names: tuple[str, ...]
    class_ids: NDArray[np.int64]
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Maps:
    """What one pass gives for N pictures and J classes each.

    logits: [N, C]; class_ids: int64 [N, J]; attributions: [N, J, g, g]; empty: v(empty) [N, J].
    """

    logits: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    attributions: NDArray[np.float32]
    empty: NDArray[np.float32]


class ExplainingModel:
    """`sweep.load(DIR)`. classifier: the network, on its device; class_names: in the order of its logits."""

    def __init__(self, loaded: LoadedModel, device: str = "cpu") -> None:
        self.loaded = loaded
        self.device = torch.device(device)
        self.classifier: SelfExplainingClassifier = loaded.classifier.to(self.device)
        self.class_names = loaded.class_names
        self.preprocessing = loaded.preprocessing
        self.grid = loaded.grid

    @staticmethod
    def load(directory: Path, device: str = "cpu") -> ExplainingModel:
        """Raises ModelDirectoryError, with the fix, for a directory without a whole model."""
        return ExplainingModel(read_model(directory), device)

    def predict(self, pictures: Pictures, batch_size: int = BATCH_SIZE) -> Predictions:
        """Classes and probabilities of pictures (`sweep.explain.pictures`), in batches."""
        names, logits = [], []
        for some, pixels in self._batches(pictures, batch_size):
            names += some
            logits.append(self._logits(pixels))
        scores = np.concatenate(logits)
        class_ids = scores.argmax(axis=1)
        return Predictions(tuple(names), class_ids, tuple(self.class_names[i] for i in class_ids), softmax(scores))

    def explain(self, pictures: Pictures, classes: str | Sequence[str] | None = None, batch_size: int = BATCH_SIZE) -> Explanation:
        """Maps of pictures for classes, as a `shap.Explanation` (see `Explanation`).

        pictures: paths of files or folders, PIL pictures, RGB arrays; one or several. classes: names, the same for every picture; without
        them each picture's predicted class. A damaged picture is left out with a warning. Raises UnknownClassError, PicturesError.
        """
        from sweep.explain.explanation import Explanation  # shap takes seconds

        ids = None if classes is None else [self.class_id(name) for name in ([classes] if isinstance(classes, str) else classes)]
        began = time.perf_counter()
        names: list[str] = []
        pixels, maps = [], []
        for some, batch in self._batches(pictures, batch_size):
            names += some
            pixels.append(batch.numpy().transpose(0, 2, 3, 1))
            maps.append(self.maps(batch, None if ids is None else np.tile(np.array(ids), (len(batch), 1))))
        return Explanation(
            np.concatenate([m.attributions for m in maps]),
            np.concatenate([m.empty for m in maps]),
            np.concatenate(pixels),
            [[self.class_names[i] for i in row] for m in maps for row in m.class_ids],
            names,
            time.perf_counter() - began,
        )

    @torch.inference_mode()
    def maps(self, pixels: Tensor, class_ids: NDArray[np.int64] | None = None) -> Maps:
        """One pass over pixels, uint8 [N, 3, S, S]. class_ids: [N, J]; without, the predicted class of each (J = 1)."""
        inputs = self.preprocessing.normalise(pixels.to(self.device))
        cls, patches = self.classifier.features(inputs)
        logits = self.classifier.logit_scale * cls @ self.classifier.head
        ids = logits.argmax(dim=1)[:, None] if class_ids is None else torch.from_numpy(class_ids).to(self.device)
        attributions = torch.stack([self._attributions(cls, patches, own) for own in ids.unbind(dim=1)], dim=1)
        return Maps(
            logits.cpu().numpy(),
            ids.cpu().numpy(),
            attributions.unflatten(-1, self.grid).cpu().numpy(),
            self._empty(ids).cpu().numpy(),
        )

    @torch.inference_mode()
    def attribute(self, inputs: Tensor, target: int | Tensor | None = None) -> Tensor:
        """As Captum's `attribute`: attributions in the shape of the inputs, normalised [N, 3, S, S]; a patch's is spread over its pixels.

        target: a class id, one a picture [N], or None for the predicted classes.
        """
        inputs = inputs.to(self.device)
        cls, patches = self.classifier.features(inputs)
        attributions = self._attributions(cls, patches, self._targets(target, cls)).unflatten(-1, self.grid)
        height, width = inputs.shape[2] // self.grid[0], inputs.shape[3] // self.grid[1]
        spread = attributions.repeat_interleave(height, 1).repeat_interleave(width, 2) / (inputs.shape[1] * height * width)
        out = torch.zeros_like(inputs)
        out[:, :, : spread.shape[1], : spread.shape[2]] = spread[:, None]
        return out

    @torch.inference_mode()
    def compute_convergence_delta(
        self, attributions: Tensor, start_point: Tensor | None, end_point: Tensor, target: int | Tensor | None = None
    ) -> Tensor:
        """As Captum's: the sum of a picture's attributions minus v(end_point) - v(start_point), [N]; 0 where efficiency holds.

        start_point: baselines as normalised inputs; None: the picture that shows nothing, as the model's own game has it.
        """
        cls, _ = self.classifier.features(end_point.to(self.device))
        ids = self._targets(target, cls)
        if start_point is None:
            start = self._empty(ids[:, None])[:, 0]
        else:
            start = self._value(self.classifier.features(start_point.to(self.device))[0], ids)
        return attributions.to(self.device).flatten(1).sum(dim=1) - (self._value(cls, ids) - start)

    def class_id(self, name: str) -> int:
        """The position of a class. Raises UnknownClassError, with close names."""
        if name in self.class_names:
            return self.class_names.index(name)
        close = difflib.get_close_matches(name.lower(), [n.lower() for n in self.class_names], n=3, cutoff=0.4)
        shown = [n for n in self.class_names if n.lower() in close] or list(self.class_names[:5])
        named = ", ".join(map(repr, shown))
        fix = f"did you mean {named}?" if close else f"it has {len(self.class_names)}, {named} among them"
        raise UnknownClassError(f"the model has no class {name!r}: {fix}")

    def _batches(self, pictures: Pictures, batch_size: int) -> Iterator[tuple[list[str], Tensor]]:
        """Names and pixels, uint8 [N, 3, S, S], of the pictures that can be read. Raises PicturesError where there is none."""
        names: list[str] = []
        pixels: list[NDArray[np.uint8]] = []
        found = False
        for loose in each_picture(pictures):
            if isinstance(loose.picture, PictureError):
                _log.warning("%s is left out: %s", loose.name, loose.picture)
                continue
            found = True
            names.append(loose.name)
            pixels.append(self.preprocessing.pixels(loose.picture))
            if len(names) == batch_size:
                yield names, torch.from_numpy(np.stack(pixels))
                names, pixels = [], []
        if names:
            yield names, torch.from_numpy(np.stack(pixels))
        if not found:
            raise PicturesError("there is no picture that can be read: give others")

    @torch.inference_mode()
    def _logits(self, pixels: Tensor) -> NDArray[np.float32]:
        return self.classifier.logits(self.preprocessing.normalise(pixels.to(self.device))).cpu().numpy()

    def _attributions(self, cls: Tensor, patches: Tensor, ids: Tensor) -> Tensor:
        """Of one class a picture: [N, M]; the same as the classifier's forward pass."""
        model, head = self.classifier, self.classifier.attribution_head
        cosines = torch.einsum("nmk,kn->nm", patches, model.head[:, ids])
        gap = head.gap(cls, self._empty_feature, ids, model.head, model.logit_scale) if head.needs_empty else None
        return head.attributions(cosines, gap)

    def _targets(self, target: int | Tensor | None, cls: Tensor) -> Tensor:
        if target is None:
            return (cls @ self.classifier.head).argmax(dim=1)
        return torch.as_tensor(target, device=self.device).expand(len(cls))

    def _value(self, cls: Tensor, ids: Tensor) -> Tensor:
        """v of CLS features [N, K] for classes [N] -> [N]"""
        game = self.classifier.attribution_head.game
        return game.of_features(cls[:, None], ids, self.classifier.head, self.classifier.logit_scale)[:, 0]

    def _empty(self, ids: Tensor) -> Tensor:
        """v(empty) of classes [N, J] -> [N, J]"""
        flat = ids.flatten()
        return self._value(self._empty_feature.expand(len(flat), -1), flat).view(ids.shape)

    @property
    def _empty_feature(self) -> Tensor:
        assert self.classifier.empty is not None, "read_model fixes it"
        return self.classifier.empty


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, C] -> probabilities [N, C]"""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))
