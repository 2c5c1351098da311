"""Label error against evaluations and seconds: every estimator, and shap itself, against references of a high budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import Plain, pictures, with_shap
from core.games.attribution_labels import fast_precision
from core.games.coalition_values import CoalitionEvaluator
from core.games.patch_features import patch_features
from core.metrics import iou_at
from core.model import Base
from core.shapley.calibration import CalibratedSolver, Games, calibrate, is_held_out
from core.shapley.estimators import ESTIMATORS, make_design
from core.shapley.kernel_shap import sample_coalitions
from core.shapley.residual_posterior import ResidualSolver, draw_coalitions
from core.shapley.surrogate import NUM_REFERENCES
from core.shapley.surrogate_fit import EvaluatedPictures, fit_surrogate
from core.shapley.surrogate_net import Surrogate

REFERENCE_BUDGET = 512
LABELLED = 5000
"""Pictures over which the cost of learning is counted; the surrogate learns from that many."""


def surrogates(
    engine: CoalitionEvaluator,
    base: Base,
    domain: str,
    device: str,
    test: tuple[Tensor, Tensor, list[slice]],
    budgets: list[int],
) -> Iterator[dict[str, Any]]:
    """Estimates of test pictures by surrogates that learn from `LABELLED` others, with all that takes: a row a budget.

    The others are evaluated once at the largest budget; a smaller one takes the first of their coalitions, at that rate.
    """
    inputs, class_ids, parts = test
    players, num_designs = base.num_patches, 16
    ends = np.stack([np.zeros(players, bool), np.ones(players, bool)])
    _, train, train_ids = pictures(base, domain, "train", LABELLED, device)

    def values(coalitions: np.ndarray, x: Tensor, y: Tensor) -> np.ndarray:
        return engine.values(x, y, torch.from_numpy(np.concatenate([ends, coalitions]))).cpu().numpy().astype(np.float64)

    def features(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([patch_features(engine, a, b).bfloat16() for a, b in zip(x.split(64), y.split(64), strict=True)])

    designs = [draw_coalitions(players, max(budgets), (94, k)).coalitions for k in range(num_designs)]
    members = np.arange(LABELLED) % num_designs
    evaluated = np.empty((LABELLED, 2 + max(budgets)))
    before = engine.seconds
    for k, design in enumerate(designs):
        evaluated[members == k] = values(design, train[k::num_designs], train_ids[k::num_designs])
    rate = evaluated.size / (engine.seconds - before)
    began = time.perf_counter()
    learned_from = features(train, train_ids)
    feature_seconds = time.perf_counter() - began
    for budget in budgets:
        began = time.perf_counter()
        coalitions = np.stack([design[:budget] for design in designs])
        games = EvaluatedPictures(learned_from, members, coalitions, evaluated[:, 2 : 2 + budget], evaluated[:, 0], evaluated[:, 1])
        surrogate = fit_surrogate(games)
        for k in range(len(parts)):  # the integration of interactions is set up once a design
            surrogate.predict(learned_from[:1].float(), evaluated[:1, 0], evaluated[:1, 1], seed=k)
        seconds = feature_seconds + time.perf_counter() - began + NUM_REFERENCES * REFERENCE_BUDGET / rate
        before = engine.seconds
        began = time.perf_counter()
        estimates = [surrogate_estimate(surrogate, engine, values, inputs[s], class_ids[s], (95, k), budget) for k, s in enumerate(parts)]
        solving = time.perf_counter() - began - (engine.seconds - before)
        yield {
            "estimator": "surrogate",
            "budget": budget,
            "estimate": np.concatenate(estimates),
            "seconds_of_all": seconds,
            "seconds_per_picture": (budget + 2) / rate + solving / len(inputs),
        }


def surrogate_estimate(
    surrogate: Surrogate,
    engine: CoalitionEvaluator,
    values: Callable[[np.ndarray, Tensor, Tensor], np.ndarray],
    inputs: Tensor,
    class_ids: Tensor,
    seed: tuple[int, int],
    budget: int,
) -> np.ndarray:
    """Attributions of pictures that share coalitions [N, M]."""
    coalitions = draw_coalitions(surrogate.prior.num_players, budget, seed).coalitions
    found = values(coalitions, inputs, class_ids)
    predicted = surrogate.predict(patch_features(engine, inputs, class_ids), found[:, 0], found[:, 1], seed=seed[1])
    return predicted.corrected(coalitions, ResidualSolver(coalitions, surrogate.prior), found[:, 2:])[0]


def errors(
    base: Base, domain: str, device: str, num_test: int, num_calibration: int, budgets: list[int], surrogate_budgets: list[int]
) -> dict[str, Any]:
    """Relative error and IoU@10 of every estimator on test pictures, against references of 4032 evaluations in permutations.

    The references' own noise is taken off the errors.
    """
    classifier, inputs, class_ids = pictures(base, domain, "test", num_test, device)
    _, train, train_ids = pictures(base, domain, "train", num_calibration, device)
    batch_size = 64 if device == "cpu" else 2048
    engine = CoalitionEvaluator(classifier, dtype=getattr(torch, fast_precision(device)), batch_size=batch_size)
    players = base.num_patches
    ends = np.stack([np.zeros(players, bool), np.ones(players, bool)])

    def games(sample: Any, x: Tensor, y: Tensor) -> Games:
        values = engine.values(x, y, torch.from_numpy(np.concatenate([sample.coalitions, ends]))).cpu().numpy().astype(np.float64)
        return Games(sample, values[:, :-2], values[:, -2], values[:, -1])

    def groups(number: int, parts: int) -> list[slice]:
        edges = np.linspace(0, number, parts + 1).astype(int)
        return [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]

    parts = groups(num_test, 8)  # each group of pictures has its own coalitions, as in a pool
    high = [games(make_design("permutation", players, 4032, (90, k)).sample, inputs[s], class_ids[s]) for k, s in enumerate(parts)]
    truth = np.concatenate([g.matrix.attributions(*g.arguments()) for g in high])
    noise = np.square(np.concatenate([g.matrix.standard_error(*g.arguments()) for g in high])).sum()
    size = np.square(truth).sum() - noise

    def scores(phi: np.ndarray) -> dict[str, float]:
        return {
            "relative_error": float(np.sqrt(max(np.square(phi - truth).sum() - noise, 0.0) / size)),
            "iou_at_10": float(iou_at(10, phi, truth)),
        }

    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    cal_parts = groups(num_calibration, 16)
    references = [games(sample_coalitions(players, REFERENCE_BUDGET, (91, k)), train[s], train_ids[s]) for k, s in enumerate(cal_parts)]
    reference_seconds = time.perf_counter() - began
    rate = 0.0
    for budget in budgets:
        began = time.perf_counter()
        designs = [
            games(sample_coalitions(players, budget, (92, k), must_determine=False), train[s], train_ids[s]) if is_held_out(k) else None
            for k, s in enumerate(cal_parts)
        ]
        prior, report = calibrate(references, designs)
        calibration_seconds = reference_seconds + time.perf_counter() - began
        for estimator in ESTIMATORS:
            if estimator in ("surrogate", "shap") or budget < ESTIMATORS[estimator].smallest_budget(players):
                continue  # these two have rows of their own below
            estimates = []
            before = engine.seconds
            began = time.perf_counter()
            for k, s in enumerate(parts):
                if estimator == "calibrated":
                    sample = sample_coalitions(players, budget, (93, k), must_determine=False)
                    g = games(sample, inputs[s], class_ids[s])
                    estimates.append(CalibratedSolver(sample, prior).attributions(*g.arguments()))
                else:
                    design = make_design(estimator, players, budget, (93, k))
                    sample = design.sample
                    estimates.append(design.solver.attributions(*games(sample, inputs[s], class_ids[s]).arguments()))
            rate = num_test * (sample.budget + 2) / (engine.seconds - before)
            row = {"estimator": estimator, "budget": sample.budget, **scores(np.concatenate(estimates))}
            row["seconds_per_picture"] = (sample.budget + 2) / rate
            if estimator == "calibrated":
                row["seconds_per_picture"] += calibration_seconds / LABELLED
                row["calibration_seconds"] = calibration_seconds
                row["report"] = report.__dict__
            rows.append(row)
    for found in surrogates(engine, base, domain, device, test=(inputs, class_ids, parts), budgets=surrogate_budgets):
        seconds_of_all = found.pop("seconds_of_all")
        seconds_per_picture = found.pop("seconds_per_picture") + seconds_of_all / LABELLED
        estimate = found.pop("estimate")
        rows.append({**found, **scores(estimate), "seconds_per_picture": seconds_per_picture, "learning_seconds": seconds_of_all})
    seconds, found = [], []
    for n in range(num_test):
        plain = Plain(classifier, inputs[n], int(class_ids[n]), batch_size)
        began = time.perf_counter()
        found.append(with_shap(plain, 500, n))
        seconds.append(time.perf_counter() - began)
    shap_row = {"estimator": "shap.KernelExplainer", "budget": 500, **scores(np.stack(found)), "seconds_per_picture": median(seconds)}
    rows.append(shap_row)
    equal = [r for r in rows if r["estimator"] != "shap.KernelExplainer" and r["relative_error"] <= shap_row["relative_error"]]
    speedup = {}
    for estimator in {r["estimator"] for r in equal}:
        least = min((r for r in equal if r["estimator"] == estimator), key=lambda r: r["seconds_per_picture"])
        times_faster = shap_row["seconds_per_picture"] / least["seconds_per_picture"]
        speedup[estimator] = {"budget": least["budget"], "times_faster": times_faster}
    print(f"error, {domain}: shap 500 -> {shap_row['relative_error']:.3f}; at no larger error:", speedup, flush=True)
    return {"domain": domain, "rows": rows, "reference_relative_error": float(np.sqrt(noise / size)), "at_equal_error": speedup}
