"""The training losses: equations 4 and 5 of the paper, and two that need no explanation labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, class_ids: Tensor) -> Tensor:
    """Mean cross-entropy, L_cls. logits [N, C] in float32, class_ids [N]."""
    return F.cross_entropy(logits, class_ids)


def explanation_loss(attributions: Tensor, attribution_labels: Tensor) -> Tensor:
    """Mean over pictures of the squared L2 distance between predicted and label attributions, L_exp, eq. 5. Both [N, M]."""
    return (attributions - attribution_labels).square().sum(dim=1).mean()


def infidelity_loss(attributions: Tensor, removed: Tensor, value_full: Tensor, perturbation_values: Tensor) -> Tensor:
    """Infidelity (Yeh et al., 2019) as `core.metrics` measures it, with a gradient: it asks for values of the game, not for its solution.

    attributions [N, M]; removed: float [I, M], 1 where a perturbation removes a patch; value_full [N]; perturbation_values [N, I],
    v(all without I).
    """
    return (attributions @ removed.T - (value_full[:, None] - perturbation_values)).square().mean()


def shape_loss(attributions: Tensor, removed: Tensor, changes: Tensor) -> Tensor:
    """1 minus the mean over pictures of the correlation, over perturbations that remove as many patches, of what a map says a perturbation
    changes and what it changes: infidelity for the order of the patches alone. In [0, 2]; 1 for maps that know nothing.

    Infidelity itself falls by shrinking maps towards 0, and at the best scale it is blind to their sign; a constant that is added to a map
    (the efficiency head's) moves it most of all. The correlation is partial, given the perturbation's size: none of these has a part in it.

    attributions [N, M]; removed: float [I, M], 1 where a perturbation removes a patch; changes: [N, I], v(all) - v(all without I).
    """
    size = removed.sum(dim=1)
    known, _ = torch.linalg.qr(torch.stack([torch.ones_like(size), size], dim=1))
    told, found = (values - (values @ known) @ known.T for values in (attributions @ removed.T, changes))
    return 1.0 - F.cosine_similarity(told, found, dim=1).mean()


def combined_loss(classification: Tensor, explanation: Tensor, alpha: float) -> Tensor:
    """alpha L_cls + (1 - alpha) L_exp, eq. 4."""
    return alpha * classification + (1.0 - alpha) * explanation
