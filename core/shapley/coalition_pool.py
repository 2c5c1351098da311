"""The pool of coalition designs that a label set is made with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

from core.shapley.estimator import Coalitions, Design, Estimator, Learned, Sample, role_seed


@dataclass(frozen=True)
class CoalitionPool:
    """A fixed pool of designs; a picture takes one by the hash of its id.

    With one design for all pictures the estimator's own error would be a map common to all of them, which a model learns and
    transfers. Pools of different `role` ("train", "test", ...) are independent, so that this error cannot pass from train to test.
    """

    estimator: Estimator
    num_players: int
    budget: int
    size: int
    role: str
    seed: int = 0
    l1_reg: str = "none"

    def member_of(self, picture_id: str) -> int:
        """Which member of the pool labels the picture."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{picture_id}".encode()).digest()[:8], "big") % self.size

    def sample(self, member: int, budget: int | None = None) -> Sample:
        """The coalitions of a member, whatever is learned from them; with `budget`, the first only. Raises IndexError outside the pool."""
        if not 0 <= member < self.size:
            raise IndexError(f"the pool has members 0 to {self.size - 1}, not {member}")
        sample = _drawn(self, member)
        return sample if budget is None or budget >= len(sample.coalitions) else sample.prefix(budget)

    def design(self, member: int, budget: int | None = None, learned: Learned | None = None) -> Design:
        """The design of a member; with `budget`, its first coalitions only. Raises IndexError outside the pool."""
        return _design(self, member, budget, learned)

    def coalitions(self, member: int) -> Coalitions:
        """What the pictures of a member are evaluated on. [P, M]"""
        return self.sample(member).coalitions


@lru_cache(maxsize=256)
def _design(pool: CoalitionPool, member: int, budget: int | None, learned: Learned | None) -> Design:
    sample = pool.sample(member, budget)
    return Design(sample, pool.estimator.solver(sample, learned, pool.l1_reg))


@lru_cache(maxsize=256)
def _drawn(pool: CoalitionPool, member: int) -> Sample:
    return pool.estimator.draw(pool.num_players, pool.budget, role_seed(pool.seed, pool.role, member))
