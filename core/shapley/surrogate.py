"""A surrogate of a data set's games: one network, learned from few evaluations each of many pictures, that predicts every value v(S).

Estimators that treat each picture alone pay for each attribution in evaluations. But the games of one classifier's pictures are one
function of picture and coalition, and a network can learn it (amortised Shapley values: Jethani et al., 2022; Covert et al., 2023, 2024).
Three things make the prediction a *label*, with an error bar that holds:

- It is fitted to the very evaluations that are labels' own, so that learning costs no further evaluations.
- It predicts the game, not only its attributions, in a form whose Shapley values cost little: a linear part and a part that takes from a
  coalition what a CLS token takes from its sequence, averages over the tokens, each in one of two states.
- What it leaves of a picture's own evaluations corrects it (`residual_posterior`): the prediction is a control variate. However bad it
  is, the label tends to the Shapley values as the budget grows; the better it is, the fewer evaluations do.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from core.shapley.kernel_shap import Coalitions, Values, sample_coalitions
from core.shapley.residual_posterior import ResidualPrior, Residuals, ResidualSolver, fit_residual_prior, size_terms
from core.shapley.size_adjustment import SizeAdjustedSolver, num_size_terms

WIDTH = 96
NUM_HEADS = 3
POOL_CHANNELS = 32
POOL_HEADS = 16
POOL_HIDDEN = 64
BATCH_SIZE = 64
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 0.05
EPOCHS, MOST_EPOCHS = 12, 30
"""Passes over the pictures: more where these are few, up to as many steps as 12 passes over 5000 take."""

HELD_OUT_SHARE, LEAST_HELD_OUT = 10, 120
"""One of so many pictures, at least so many, take no part in the fit: what is left of their games is what the prior is fitted to."""

LEAST_PICTURES = 480
INTEGRATION_BUDGET = 80
"""Times M: coalitions on which the Shapley values of the network's own interactions are computed. The network is cheap to evaluate."""

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Numbers in a hidden layer at once: on a CPU, what its caches hold."""


class SurrogateNet(nn.Module):
    """Patch features [N, M, D] and totals [N] -> what the game of each picture is made of (`Game`).

    One attention block over the patches, and linear read-outs. All values are in units of `value_scale`.
    """

    feature_mean: Tensor
    feature_scale: Tensor
    total_mean: Tensor
    total_scale: Tensor
    value_scale: Tensor

    def __init__(self, num_features: int, num_players: int, width: int = WIDTH) -> None:
        super().__init__()
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_scale", torch.ones(num_features))
        self.register_buffer("total_mean", torch.zeros(()))
        self.register_buffer("total_scale", torch.ones(()))
        self.register_buffer("value_scale", torch.ones(()))
        self.read = nn.Linear(num_features + 1, width)
        self.position = nn.Parameter(torch.randn(num_players, width) * 0.02)
        self.norm_1, self.norm_2, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.linear, self.linear_position = _zero(nn.Linear(width, 1)), nn.Parameter(torch.zeros(num_players))
        self.sizes = _zero(nn.Linear(1, 2 * num_size_terms(num_players)))
        self.states = nn.Linear(width, 2 * POOL_CHANNELS + 2 * POOL_HEADS)
        self.hidden, self.out = nn.Linear(POOL_CHANNELS, POOL_HIDDEN), _zero(nn.Linear(POOL_HIDDEN, 1, bias=False))

    def forward(self, features: Tensor, totals: Tensor) -> Game:
        """features [N, M, D], totals v(N) - v(empty) [N]."""
        total = ((totals - self.total_mean) / self.total_scale)[:, None]
        standard = ((features - self.feature_mean) / self.feature_scale).clamp(-8, 8)
        tokens = self.read(torch.cat([standard, total[:, None].expand(-1, features.shape[1], 1)], dim=-1)) + self.position
        query, key, value = self.qkv(self.norm_1(tokens)).unflatten(-1, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4)
        tokens = tokens + self.mix(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        tokens = self.norm_out(tokens + self.mlp(self.norm_2(tokens)))
        linear = self.linear(tokens)[..., 0] + self.linear_position
        return Game(self, linear - linear.mean(1, keepdim=True), self.sizes(total), *self._pool(self.states(tokens)))

    def _pool(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Numerators and denominators of the average: what each patch adds by its presence, and sums with none present.

        states [N, M, 2 R + 2 H] -> [N, M, R + H], [N, 1, R + H]
        """
        present, absent, weigh, weigh_absent = states.split([POOL_CHANNELS, POOL_CHANNELS, POOL_HEADS, POOL_HEADS], dim=-1)
        weigh, weigh_absent = weigh.clamp(-6, 6).exp(), (weigh_absent.clamp(-6, 6) - 1).exp()
        spread = POOL_CHANNELS // POOL_HEADS
        with_it = torch.cat([present * weigh.repeat_interleave(spread, -1), weigh], dim=-1)
        without = torch.cat([absent * weigh_absent.repeat_interleave(spread, -1), weigh_absent], dim=-1)
        return with_it - without, without.sum(1, keepdim=True)

    def pooled_value(self, sums: Tensor) -> Tensor:
        """sums [N, K, R + H] -> [N, K]"""
        weight = sums[..., POOL_CHANNELS:].repeat_interleave(POOL_CHANNELS // POOL_HEADS, -1)
        return self.out(F.gelu(self.hidden(2 * sums[..., :POOL_CHANNELS] / weight.clamp_min(1e-3))))[..., 0]


def _zero(layer: nn.Linear) -> nn.Linear:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


@dataclass(frozen=True, eq=False)
class Game:
    """Predicted games of N pictures, without v(empty) and everyone's equal share of the total: 0 for the empty and the grand coalition.

    linear: [N, M], sum zero. sizes: [N, J], of `size_terms`. presence, base: see `SurrogateNet._pool`.
    """

    net: SurrogateNet
    linear: Tensor
    sizes: Tensor
    presence: Tensor
    base: Tensor

    def values(self, coalitions: Tensor, terms: Tensor) -> Tensor:
        """coalitions 0 or 1 [N, K, M], terms [N, K, J] -> [N, K]"""
        plain = torch.einsum("nkm,nm->nk", coalitions - 0.5, self.linear) + torch.einsum("nkj,nj->nk", terms, self.sizes)
        return plain + self.interactions(coalitions)

    def interactions(self, coalitions: Tensor) -> Tensor:
        """The part that is not linear, less a line between its values for the empty and the grand coalition. [N, K, M] -> [N, K]"""
        sums = self.base + torch.cat([coalitions @ self.presence, torch.zeros_like(self.base), self.presence.sum(1, keepdim=True)], dim=1)
        value = self.net.pooled_value(sums)
        share = coalitions.mean(-1)
        return value[:, :-2] - (1 - share) * value[:, -2:-1] - share * value[:, -1:]


@dataclass(frozen=True, eq=False)
class PredictedGames:
    """Games of N pictures as a surrogate sees them. attributions: their Shapley values [N, M]."""

    attributions: Values
    _game: Game
    _value_empty: Values
    _totals: Values

    def values(self, coalitions: Coalitions) -> Values:
        """Predicted v(S). coalitions [P, M] -> [N, P]"""
        scale = float(self._game.net.value_scale)
        with torch.inference_mode():
            z, terms = _tensors(coalitions, self._game.linear.device)
            number = len(self._game.linear)
            found = self._game.values(z.expand(number, -1, -1), terms.expand(number, -1, -1)).double().cpu().numpy()
        return scale * found + self._value_empty[:, None] + self._totals[:, None] * coalitions.mean(1)

    def corrected(self, coalitions: Coalitions, solver: ResidualSolver, values: Values) -> tuple[Values, Values]:
        """Attributions and standard errors [N, M] with what the prediction leaves of values [N, P] on the solver's coalitions [P, M]."""
        residual, zeros = values - self.values(coalitions), np.zeros(len(values))
        return self.attributions + solver.attributions(residual, zeros, zeros), solver.standard_error(residual, zeros, zeros)


def _tensors(coalitions: Coalitions, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coalitions and their size terms in float32."""
    terms = size_terms(coalitions).astype(np.float32)
    return torch.from_numpy(coalitions.astype(np.float32)).to(device), torch.from_numpy(terms).to(device)


@lru_cache(maxsize=32)
def _integration(num_players: int, seed: int) -> SizeAdjustedSolver:
    budget = INTEGRATION_BUDGET * num_players // 2 * 2
    return SizeAdjustedSolver(sample_coalitions(num_players, budget, (seed, 11)))


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A fitted network and the prior of what it leaves of a game."""

    net: SurrogateNet
    prior: ResidualPrior

    @torch.inference_mode()
    def predict(self, features: Tensor, value_empty: Values, value_full: Values, seed: int = 0) -> PredictedGames:
        """The games of N pictures. features [N, M, D] of `patch_features`, on the network's device; value_empty, value_full [N].

        seed: of the coalitions that the Shapley values of the network's interactions are computed on.
        """
        totals = value_full - value_empty
        game = self.net(features, torch.from_numpy(totals.astype(np.float32)).to(features.device))
        number, num_players = game.linear.shape
        solver = _integration(num_players, seed)
        coalitions = _tensors(solver.coalitions, features.device)[0]
        at_once = max(1, CHUNK[features.device.type] // (len(coalitions) * POOL_HIDDEN))
        found = []
        for start in range(0, number, at_once):
            part = slice(start, start + at_once)
            few = replace(game, linear=game.linear[part], presence=game.presence[part], base=game.base[part])
            found.append(few.interactions(coalitions.expand(len(few.linear), -1, -1)).double().cpu().numpy())
        zeros = np.zeros(number)
        interactions = solver.attributions(np.concatenate(found), zeros, zeros)
        scale = float(self.net.value_scale)
        own = scale * (game.linear.double().cpu().numpy() + interactions) + totals[:, None] / num_players
        return PredictedGames(own, game, value_empty, totals)

    def to(self, device: str) -> Surrogate:
        return replace(self, net=self.net.to(device))

    def to_bytes(self) -> bytes:
        """An npz file: weights and prior."""
        arrays = {f"net.{name}": value.cpu().numpy() for name, value in self.net.state_dict().items()}
        scalars = {"num_players": self.prior.num_players, "noise": self.prior.noise, "error_scale": self.prior.error_scale}
        content = io.BytesIO()
        np.savez(content, covariance=self.prior.covariance, scalars=np.array(json.dumps(scalars)), **arrays)
        return content.getvalue()

    @staticmethod
    def from_bytes(content: bytes) -> Surrogate:
        """Of `to_bytes`; nothing in it is executed."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            state = {name.removeprefix("net."): torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("net.")}
            scalars, covariance = json.loads(str(arrays["scalars"])), arrays["covariance"]
        net = SurrogateNet(len(state["feature_mean"]), scalars["num_players"])
        net.load_state_dict(state)
        return Surrogate(net.eval(), ResidualPrior(covariance=covariance, **scalars))


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
    """A fit, epoch by epoch, on the features' device. The first pictures (`HELD_OUT_SHARE`) are for the prior alone.

    Raises ValueError for fewer than `LEAST_PICTURES` pictures.
    """

    def __init__(self, pictures: EvaluatedPictures, *, epochs: int | None = None, seed: int = 0) -> None:
        if len(pictures) < LEAST_PICTURES:
            raise ValueError(f"a surrogate is learned from at least {LEAST_PICTURES} pictures, not {len(pictures)}")
        self.pictures = pictures
        self.epochs = epochs or default_epochs(len(pictures))
        self.num_held_out = max(len(pictures) // HELD_OUT_SHARE, LEAST_HELD_OUT)
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
        self._coalitions, self._terms = _tensors(pictures.coalitions, self._device)
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
