"""What the label engine is measured against: a plain masked forward loop, shap, captum and shapiq on one classifier and pictures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core import miniature
from core.model import Base, SelfExplainingClassifier
from core.shapley.kernel_shap import sample_coalitions

SCALE = 3.5


def pictures(base: Base, domain: str, split: str, number: int, device: str) -> tuple[SelfExplainingClassifier, Tensor, Tensor]:
    """Classifier, normalised inputs and class ids of a drawn domain, resized to the base's input."""
    spec = miniature.domain_spec(domain)
    drawn, class_ids = miniature.draw_split(domain, split, number, 0)
    pixels = torch.from_numpy(np.ascontiguousarray(drawn.transpose(0, 3, 1, 2)))
    inputs = base.preprocessing.normalise(pixels)
    if inputs.shape[-1] != base.preprocessing.image_size:
        inputs = F.interpolate(inputs, size=base.preprocessing.image_size, mode="bilinear")
    classifier = base.classifier(base.head(spec.class_names, spec.templates)).eval().requires_grad_(False)
    return classifier.to(device), inputs.to(device), torch.from_numpy(class_ids).to(device)


class Plain:
    """The value function as a user would write it: mask the picture, run the classifier in batches."""

    def __init__(self, classifier: SelfExplainingClassifier, picture: Tensor, class_id: int, batch_size: int) -> None:
        self.classifier, self.picture, self.class_id, self.batch_size = classifier, picture, class_id, batch_size
        self.grid = classifier.visual.grid_size[0]

    @torch.inference_mode()
    def logits(self, batch: Tensor) -> Tensor:
        return SCALE / self.classifier.logit_scale * self.classifier.logits(batch)[:, self.class_id]

    def __call__(self, z: np.ndarray) -> np.ndarray:
        kept = torch.from_numpy(np.asarray(z) > 0.5).to(self.picture.device).float().view(-1, 1, self.grid, self.grid)
        side = self.picture.shape[-1] // self.grid
        out = []
        for part in kept.split(self.batch_size):
            mask = part.repeat_interleave(side, 2).repeat_interleave(side, 3)
            out.append(self.logits(self.picture * mask).float().cpu().numpy())
        return np.concatenate(out)

    def patch_ids(self) -> Tensor:
        side = self.picture.shape[-1] // self.grid
        ids = torch.arange(self.grid**2, device=self.picture.device).view(1, 1, self.grid, self.grid)
        return ids.repeat_interleave(side, 2).repeat_interleave(side, 3).expand(1, 3, -1, -1)


def plain_loop(plain: Plain, budget: int, seed: int) -> np.ndarray:
    matrix = sample_coalitions(plain.grid**2, budget, seed)
    ends = plain(np.stack([np.zeros(plain.grid**2), np.ones(plain.grid**2)]))
    return matrix.solver.attributions(plain(matrix.coalitions)[None], ends[:1], ends[1:])[0]


def with_shap(plain: Plain, budget: int, seed: int) -> np.ndarray:
    import shap

    np.random.seed(seed)
    explainer = shap.KernelExplainer(plain, np.zeros((1, plain.grid**2)), silent=True)
    return np.asarray(explainer.shap_values(np.ones((1, plain.grid**2)), nsamples=budget, l1_reg=False, silent=True)).ravel()


def with_captum(plain: Plain, budget: int, seed: int) -> np.ndarray:
    from captum.attr import KernelShap

    torch.manual_seed(seed)
    found = KernelShap(plain.logits).attribute(
        plain.picture[None], baselines=0.0, feature_mask=plain.patch_ids(), n_samples=budget, perturbations_per_eval=plain.batch_size
    )
    side = plain.picture.shape[-1] // plain.grid
    return found[0, 0, ::side, ::side].flatten().cpu().numpy()


def with_shapiq(plain: Plain, budget: int, seed: int) -> np.ndarray:
    from shapiq import KernelSHAP

    found = KernelSHAP(n=plain.grid**2, pairing_trick=True, random_state=seed).approximate(budget + 2, plain)
    return np.asarray([found[(i,)] for i in range(plain.grid**2)])


PEERS: dict[str, Callable[[Plain, int, int], np.ndarray]] = {
    "plain masked forward loop": plain_loop,
    "shap.KernelExplainer": with_shap,
    "captum KernelShap": with_captum,
    "shapiq KernelSHAP": with_shapiq,
}
