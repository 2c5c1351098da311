"""The fit of a surrogate: the network to evaluated pictures, and the prior of what it leaves to pictures it was not fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from core.shapley.estimator import Values
from core.shapley.residual_posterior import ResidualPrior, Residuals, fit_residual_prior
from core.shapley.surrogate_net import Surrogate, SurrogateNet, coalition_tensors

BATCH_SIZE = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
EPOCHS, MOST_EPOCHS = 12, 30
"""Passes over the pictures: more where these are few, up to as many steps as 12 passes over 5000 take."""

HELD_OUT_SHARE, LEAST_HELD_OUT = 0.1, 120
"""Share and smallest number of pictures that take no part in the fit: what is left of their games is what the prior is fitted to."""

LEAST_PICTURES = 480


@dataclass(frozen=True, eq=False)
class EvaluatedPictures:
    """What a surrogate is fitted to. features: [N, M, D], of any floating type. members: [N], which design each picture has.

    coalitions: [K, P, M] of the K designs. values: [N, P]; value_empty, value_full: [N].
    """

    features: Tensor
    members: NDArray[np.int64]
    coalitions: NDArray[np.bool_]
    values: Values
    value_empty: Values
    value_full: Values

    def __len__(self) -> int:
        return len(self.members)


def default_epochs(num_pictures: int) -> int:
    """Passes over the pictures of a fit."""
    return min(MOST_EPOCHS, max(EPOCHS, round(EPOCHS * 5000 / num_pictures)))


class SurrogateFit:
    """A fit, epoch by epoch, on the features' device. The first pictures (`num_held_out`) are for the prior alone.

    Raises ValueError for fewer than `LEAST_PICTURES` pictures.
    """

    def __init__(self, pictures: EvaluatedPictures, *, epochs: int | None = None, seed: int = 0) -> None:
        if len(pictures) < LEAST_PICTURES:
            raise ValueError(f"a surrogate is learned from at least {LEAST_PICTURES} pictures, not {len(pictures)}")
        self.pictures = pictures
        self.epochs = epochs or default_epochs(len(pictures))
        self.num_held_out = max(int(HELD_OUT_SHARE * len(pictures)), LEAST_HELD_OUT)
        self.num_fitted = len(pictures) - self.num_held_out
        totals = pictures.value_full - pictures.value_empty
        shares = pictures.coalitions.mean(2)[pictures.members]
        target = pictures.values - pictures.value_empty[:, None] - totals[:, None] * shares  # [N, P]
        self._device = pictures.features.device
        self._generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = SurrogateNet(pictures.features.shape[-1], pictures.features.shape[1])
        _standardise(self.net, pictures.features[self.num_held_out :], totals, target)
        self.net.to(self._device).train()
        self._coalitions, self._terms = coalition_tensors(pictures.coalitions, self._device)
        self._target = torch.from_numpy((target / float(self.net.value_scale)).astype(np.float32)).to(self._device)
        self._total = torch.from_numpy(totals.astype(np.float32)).to(self._device)
        self._members = torch.from_numpy(pictures.members).to(self._device)
        self._optimiser = torch.optim.AdamW(self.net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        num_steps = self.epochs * -(-self.num_fitted // BATCH_SIZE)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimiser, LEARNING_RATE, total_steps=num_steps, pct_start=0.15)

    def epoch(self) -> float:
        """One pass over the pictures; call it `epochs` times. Returns the mean squared error in units of the values' variance."""
        order = (self.num_held_out + torch.randperm(self.num_fitted, generator=self._generator)).to(self._device)
        sum_loss = torch.zeros((), device=self._device)
        for index in order.split(BATCH_SIZE):
            member = self._members[index]
            game = self.net(self.pictures.features[index].float(), self._total[index])
            loss = F.mse_loss(game.values(self._coalitions[member], self._terms[member]), self._target[index])
            self._optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self._optimiser.step()
            self._schedule.step()
            sum_loss += loss.detach() * len(index)
        return float(sum_loss) / self.num_fitted

    def finish(self) -> Surrogate:
        """The network as it is now, and the prior of what it leaves of games that it was not fitted to."""
        self.net.eval()
        return Surrogate(self.net, _residual_prior(self.net, self.pictures, self.num_held_out))


def fit_surrogate(pictures: EvaluatedPictures, *, epochs: int | None = None, seed: int = 0) -> Surrogate:
    """`SurrogateFit`, to its end."""
    fit = SurrogateFit(pictures, epochs=epochs, seed=seed)
    for _ in range(fit.epochs):
        fit.epoch()
    return fit.finish()


@torch.no_grad()
def _standardise(net: SurrogateNet, features: Tensor, totals: Values, target: Values) -> None:
    some = features[:: max(1, len(features) // 1024)].float()
    net.feature_mean.copy_(some.mean((0, 1)))
    net.feature_scale.copy_(some.std((0, 1)).clamp_min(1e-6))
    net.total_mean.fill_(float(totals.mean()))
    net.total_scale.fill_(max(float(totals.std()), 1e-6))
    net.value_scale.fill_(max(float(target.std()), 1e-9))


def _residual_prior(net: SurrogateNet, pictures: EvaluatedPictures, num_held_out: int) -> ResidualPrior:
    """The prior of what the network leaves of games it was not fitted to."""
    surrogate = Surrogate(net, ResidualPrior(pictures.coalitions.shape[2], np.eye(1), 1.0))
    games = []
    for member in np.unique(pictures.members[:num_held_out]):
        index = np.flatnonzero(pictures.members[:num_held_out] == member)
        predicted = surrogate.predict(pictures.features[index].float(), pictures.value_empty[index], pictures.value_full[index])
        coalitions = pictures.coalitions[member]
        games.append(Residuals(coalitions, pictures.values[index] - predicted.values(coalitions)))
    return fit_residual_prior(games)
