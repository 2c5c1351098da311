"""The network of the surrogate estimator: patch features in, a game for each picture out, whose Shapley values cost little."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.shapley.estimator import Coalitions, Learned, Seed, Values
from core.shapley.kernel_shap import sample_coalitions
from core.shapley.residual_posterior import ResidualPrior, ResidualSolver, size_terms
from core.shapley.size_adjustment import SizeAdjustedSolver, num_size_terms

WIDTH = 96
NUM_HEADS = 3
POOL_CHANNELS = 32
POOL_HEADS = 16
POOL_HIDDEN = 64
INTEGRATION_EVALUATIONS_A_PLAYER = 80
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
            z, terms = coalition_tensors(coalitions, self._game.linear.device)
            number = len(self._game.linear)
            found = self._game.values(z.expand(number, -1, -1), terms.expand(number, -1, -1)).double().cpu().numpy()
        return scale * found + self._value_empty[:, None] + self._totals[:, None] * coalitions.mean(1)

    def corrected(self, coalitions: Coalitions, solver: ResidualSolver, values: Values) -> tuple[Values, Values]:
        """Attributions and standard errors [N, M] with what the prediction leaves of values [N, P] on the solver's coalitions [P, M]."""
        residual, zeros = values - self.values(coalitions), np.zeros(len(values))
        return self.attributions + solver.attributions(residual, zeros, zeros), solver.standard_error(residual, zeros, zeros)


def coalition_tensors(coalitions: Coalitions, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coalitions and their size terms in float32."""
    terms = size_terms(coalitions).astype(np.float32)
    return torch.from_numpy(coalitions.astype(np.float32)).to(device), torch.from_numpy(terms).to(device)


@lru_cache(maxsize=32)
def _integration(num_players: int, seed: Seed) -> SizeAdjustedSolver:
    budget = INTEGRATION_EVALUATIONS_A_PLAYER * num_players // 2 * 2
    return SizeAdjustedSolver(sample_coalitions(num_players, budget, (*(seed if isinstance(seed, tuple) else (seed,)), 11)))


@dataclass(frozen=True, eq=False)
class Surrogate(Learned):
    """A fitted network and the prior of what it leaves of a game."""

    net: SurrogateNet
    prior: ResidualPrior

    @torch.inference_mode()
    def predict(self, features: Tensor, value_empty: Values, value_full: Values, seed: Seed = 0) -> PredictedGames:
        """The games of N pictures. features [N, M, D] of `patch_features`, on the network's device; value_empty, value_full [N].

        seed: of the coalitions that the Shapley values of the network's interactions are computed on.
        """
        totals = value_full - value_empty
        game = self.net(features, torch.from_numpy(totals.astype(np.float32)).to(features.device))
        number, num_players = game.linear.shape
        solver = _integration(num_players, seed)
        coalitions = coalition_tensors(solver.coalitions, features.device)[0]
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

    @classmethod
    def from_bytes(cls, content: bytes) -> Surrogate:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            state = {name.removeprefix("net."): torch.from_numpy(arrays[name]) for name in arrays.files if name.startswith("net.")}
            scalars, covariance = json.loads(str(arrays["scalars"])), arrays["covariance"]
        net = SurrogateNet(len(state["feature_mean"]), scalars["num_players"])
        net.load_state_dict(state)
        return cls(net.eval(), ResidualPrior(covariance=covariance, **scalars))
