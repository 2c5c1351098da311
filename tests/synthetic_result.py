"""A SweepResult of made-up but plausible numbers, for tests of the report: drawn from a seed, no model involved."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from core.metrics import SCORES, chance_iou_at
from sweep.report.example import EXAMPLE_ATTRIBUTIONS, Example, LambdaMaps
from sweep.report.result import (
    CELL_COLUMNS,
    CONVERGENCE_COLUMNS,
    INTERVAL_COLUMNS,
    ONE_PASS_COLUMNS,
    PAPER_POINT_COLUMNS,
    REFERENCE_COLUMNS,
    REFERENCE_INTERVAL_COLUMNS,
    SIMILARITY_COLUMNS,
    SOURCE_MODEL_COLUMNS,
    SweepResult,
)

DOMAINS = (
    "cars", "textures", "land_cover", "traffic_signs", "aerial_objects", "scenes", "street_digits", "clean_digits",
)  # fmt: skip
GRID = 7


def synthetic_result(
    domains: Sequence[str] = DOMAINS,
    *,
    sources: Sequence[str] | None = None,
    command: str = "all_pairs",
    alphas: Sequence[float] = (0.3, 0.5, 0.7),
    lambdas: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2),
    select: str = "validation",
    num_examples: int = 4,
    has_source_models: bool = False,
    has_convergence: bool = False,
    seed: int = 0,
) -> SweepResult:
    """A pair transfers the better the more alike the hidden directions of its domains are.

    domains: the targets, and the sources where none are named.
    """
    rng = np.random.default_rng(seed)
    sources = domains if sources is None else sources
    directions = {name: _unit(rng.normal(size=6) + 0.4) for name in dict.fromkeys([*domains, *sources])}
    base_error = dict(zip(domains, rng.uniform(1.6, 1.9, len(domains)), strict=True))
    base_accuracy = dict(zip(domains, rng.uniform(0.8, 0.99, len(domains)), strict=True))
    cells, similarities = [], []
    for source in sources:
        for target in domains:
            if source == target:
                continue
            likeness = float(directions[source] @ directions[target])
            for alpha in alphas:
                similarities.append((source, target, alpha, 0.1 + 0.5 * likeness, 0.5 * likeness + rng.normal(0, 0.03)))
            rows = []
            for trial, alpha in enumerate(alphas):
                for lambda2 in lambdas:
                    rows.append((alpha, lambda2, trial, _scores(rng, likeness, alpha, lambda2)))
            chosen = min(range(len(rows)), key=lambda index: rows[index][3]["normalized_e_rmse"])
            for index, (alpha, lambda2, trial, scores) in enumerate(rows):
                scores = _finished(scores, base_accuracy[target], base_error[target])
                cell = {
                    "source_domain": source, "target_domain": target, "alpha": alpha, "lambda1": 1.0,
                    "lambda2": lambda2, "trial": trial, "is_chosen": index == chosen, "attribution_scale": 0.8,
                    "normalized_accuracy_lower": 0.9, "few_labels_e_rmse": 1.0,
                }  # fmt: skip
                cells.append(cell | {"split": select} | scores)
                if index == chosen and select == "validation":
                    again = _finished(_scores(rng, likeness, alpha, lambda2), base_accuracy[target], base_error[target])
                    cells.append(cell | {"split": "test"} | again)
    return SweepResult(
        sweep_key="5f" * 20,
        command=command,
        suite="miniature",
        sources=tuple(sources),
        targets=tuple(domains),
        pairs=tuple((source, target) for source in sources for target in domains if source != target),
        provenance={
            "select": select, "seed": seed, "search.seed": seed, "base_sha256": "ab" * 32, "budget": 512, "fill": "mean",
            "value_output": "logit", "num_players": GRID * GRID, "search": "optuna", "lambda1": 1.0,
            "search.min_normalized_accuracy": 0.9,
        },  # fmt: skip
        cells=pd.DataFrame(cells)[list(CELL_COLUMNS)],
        references=(references := _references(rng, domains, alphas, base_accuracy, base_error)),
        similarities=pd.DataFrame(similarities, columns=list(SIMILARITY_COLUMNS)),
        examples=[_example(rng, domains, sources, lambdas, index) for index in range(num_examples)],
        artifacts={
            (source, target): {"search of the pair": f"{i:040x}", "explainability vector of the source": f"{sources.index(source):040x}"}
            for i, (source, target) in enumerate((s, t) for s in sources for t in domains if s != t)
        },
        intervals=_intervals(cells),
        reference_intervals=_reference_intervals(references),
        convergence=_convergence(domains if has_convergence else ()),
        one_pass=_one_pass(cells if has_convergence else ()),
        paper_points=_paper_points(cells, alphas),
        source_models=_source_models(sources, domains, alphas if has_source_models else ()),
    )


def _paper_points(cells: Sequence[Mapping[str, Any]], alphas: Sequence[float]) -> pd.DataFrame:
    """Of each pair its cell that is nearest to the paper's point, with a factor's worth more of error. No random number is drawn."""
    alpha, nearest = min(alphas, key=lambda alpha: abs(alpha - 0.5)), {}
    for cell in cells:
        if cell["alpha"] == alpha:
            pair = cell["source_domain"], cell["target_domain"]
            nearest[pair] = min(nearest.get(pair, cell), cell, key=lambda cell: abs(cell["lambda2"] - 0.8))
    rows = [cell | {"lambda2": 0.8, "e_rmse": 1.25 * cell["e_rmse"]} for cell in nearest.values()]
    return pd.DataFrame(rows)[list(PAPER_POINT_COLUMNS)]


def _source_models(sources: Sequence[str], domains: Sequence[str], alphas: Sequence[float]) -> pd.DataFrame:
    """Models of the source: inaccurate on the target; the self-explaining one explains well. No random number is drawn."""
    rows = []
    for s, source in enumerate(sources):
        for t, target in enumerate(domains):
            if source == target or not alphas:
                continue
            wave = 0.02 * np.sin(3.0 * s + t)
            for alpha in (None, *alphas):
                name = "source_prediction_only" if alpha is None else "source_self_explaining"
                scores = {"correlation": 0.0, "normalized_accuracy": 0.4 + wave, "iou_at_10": 0.09 + wave, "normalized_e_rmse": 1.0}
                if alpha is not None:
                    scores = {"correlation": 0.4 + wave, "normalized_accuracy": 0.4 - wave, "iou_at_10": 0.3 + wave}
                    scores["normalized_e_rmse"] = 0.4
                finished = _finished(scores, 0.9, 1.7)
                rows.append({"source_domain": source, "target_domain": target, "model": name, "alpha": alpha, **finished})
    return pd.DataFrame(rows, columns=list(SOURCE_MODEL_COLUMNS))


def _intervals(cells: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Of the measured scores and the normalised accuracy, 0.1 wide. No random number is drawn."""
    names = [score.name for score in SCORES if score.function is not None or score.name == "normalized_accuracy"]
    chosen = [cell for cell in cells if cell["is_chosen"] and cell["split"] == "test"]
    rows = [
        (cell["source_domain"], cell["target_domain"], n, cell[n], cell[n] - 0.04, cell[n] + 0.06, 120 if "accuracy" in n else 40)
        for cell in chosen
        for n in names
    ]
    return pd.DataFrame(rows, columns=list(INTERVAL_COLUMNS))


def _reference_intervals(references: pd.DataFrame) -> pd.DataFrame:
    """As those of the pairs, 0.1 wide."""
    scores = references.melt(["domain", "reference", "alpha"], var_name="score", value_name="estimate").dropna(subset="estimate")
    known = scores[~scores["reference"].isin(["chance", "other_mean_map"])].copy()
    known["low"], known["high"] = known["estimate"] - 0.04, known["estimate"] + 0.06
    known["n"] = np.where(known["score"].str.contains("accuracy"), 120, 40)
    return known[list(REFERENCE_INTERVAL_COLUMNS)]


def _convergence(domains: Sequence[str]) -> pd.DataFrame:
    """Kernel SHAP agrees the better the more evaluations it has: 0.1 at 64, 0.5 at 1024, straight in log x, with a wave a picture."""
    rows = [
        (domain, budget, picture, 0.1 + 0.1 * (np.log2(budget) - 6) + 0.05 * np.sin(5 * d + picture))
        for d, domain in enumerate(domains)
        for budget in (64, 128, 256, 512, 1024)
        for picture in range(6)
    ]
    return pd.DataFrame(rows, columns=list(CONVERGENCE_COLUMNS))


def _one_pass(cells: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Of the pictures of `_convergence`; a pair's mean is a little above its overlap on all test pictures."""
    rows = [
        (cell["source_domain"], cell["target_domain"], picture, min(max(cell["iou_at_10"] + 0.02 * picture, 0.0), 1.0))
        for cell in cells
        if cell["is_chosen"] and cell["split"] == "test"
        for picture in range(6)
    ]
    return pd.DataFrame(rows, columns=list(ONE_PASS_COLUMNS))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _scores(rng: np.random.Generator, likeness: float, alpha: float, lambda2: float) -> dict[str, float]:
    noise = rng.normal(0, 0.02, 4)
    gain = (0.1 + 0.5 * max(likeness, 0)) * min(lambda2, 1.0) * (1.2 - alpha)
    loss = (0.02 + 0.3 * (1 - likeness)) * lambda2**2 * (1.3 - alpha) * 0.5
    return {
        "normalized_e_rmse": max(1 - gain + noise[0] * lambda2, 0.05),
        "normalized_accuracy": max(1 - loss + noise[1] * lambda2, 0.0),
        "correlation": float(np.clip(0.9 * gain + noise[2], -1, 1)),
        "iou_at_10": float(np.clip(0.08 + 0.45 * gain + noise[3], 0, 1)),
    }


def _finished(scores: dict[str, float], accuracy: float, e_rmse: float) -> dict[str, float]:
    known = scores | {
        "normalized_accuracy_lower": max(scores["normalized_accuracy"] - 0.03, 0.0),
        "accuracy": min(scores["normalized_accuracy"] * accuracy, 1.0),
        "e_rmse": scores["normalized_e_rmse"] * e_rmse,
        "e_rmse_at_best_scale": 0.66 * float(np.sqrt(1 - min(scores["correlation"], 1) ** 2)),
        "iou_at_1": scores["iou_at_10"] / 3,
        "infidelity": 3 * scores["normalized_e_rmse"],
        "infidelity_at_best_scale": 0.4 * scores["normalized_e_rmse"],
    }
    return {score.name: 0.25 for score in SCORES} | known


def _references(
    rng: np.random.Generator,
    domains: Sequence[str],
    alphas: Sequence[float],
    accuracy: dict[str, float],
    e_rmse: dict[str, float],
) -> pd.DataFrame:
    chance = {"iou_at_1": chance_iou_at(1, GRID * GRID), "iou_at_10": chance_iou_at(10, GRID * GRID)}
    rows = []
    for domain in domains:
        zero = float(rng.uniform(0.57, 0.83))
        known: list[dict[str, object]] = [
            {"reference": "zero_predictor", "e_rmse": zero, "e_rmse_at_best_scale": zero, "infidelity": 0.6},
            {"reference": "mean_map", "e_rmse": 0.96 * zero, "correlation": 0.2, "iou_at_10": rng.uniform(0.14, 0.27)},
            {"reference": "other_mean_map", "e_rmse": 1.03 * zero, "correlation": 0.05, "iou_at_10": 0.13},
            {"reference": "chance", "correlation": 0.0, **chance},
            {"reference": "label_ceiling", "correlation": 0.85, "iou_at_10": rng.uniform(0.38, 0.62)},
            {
                "reference": "prediction_only", "accuracy": accuracy[domain], "e_rmse": e_rmse[domain],
                "correlation": 0.02, "iou_at_1": 0.01, "iou_at_10": rng.uniform(0.03, 0.13), "infidelity": 3.0,
            },
            {
                "reference": "zero_shot", "accuracy": 0.66 * accuracy[domain], "e_rmse": 1.05 * e_rmse[domain],
                "correlation": 0.0, "iou_at_10": 0.09,
            },
        ]  # fmt: skip
        known += [
            {
                "reference": "supervised", "alpha": alpha, "accuracy": 0.99 * accuracy[domain], "e_rmse": 0.75 * zero,
                "e_rmse_at_best_scale": 0.72 * zero, "correlation": 0.7 - 0.2 * alpha, "iou_at_1": 0.3,
                "iou_at_10": 0.5 - 0.2 * alpha, "infidelity": 0.4,
            }
            for alpha in alphas
        ]  # fmt: skip
        rows += [{"domain": domain} | row for row in known]
    return pd.DataFrame(rows).reindex(columns=list(REFERENCE_COLUMNS))


def _example(
    rng: np.random.Generator, domains: Sequence[str], sources: Sequence[str], lambdas: Sequence[float], index: int
) -> Example:
    """A bright disc on a striped ground; the label is high on the disc."""
    side = 56
    y, x = np.mgrid[:side, :side]
    centre = rng.uniform(14, 42, 2)
    disc = np.hypot(y - centre[0], x - centre[1]) < 11
    colour, ground = rng.integers(120, 255, 3), rng.integers(20, 120, 3)
    pixels = np.where(disc[:, :, None], colour, ground + 30 * ((x // 4) % 2)[:, :, None]).astype(np.uint8)
    patches = disc.reshape(GRID, side // GRID, GRID, side // GRID).mean(axis=(1, 3)).ravel()

    def blurred(strength: float) -> np.ndarray:
        return (strength * patches + 0.3 * rng.normal(size=GRID * GRID)).astype(np.float32)

    domain = domains[index % len(domains)]
    others = [source for source in sources if source != domain]
    strengths = {"label": 2.0, "transferred": 0.8, "prediction_only": 0.0, "supervised": 1.4, "zero_shot": 0.1}
    if "," not in others[index % len(others)]:
        strengths |= {"source_prediction_only": 0.05, "source_self_explaining": 1.0}
    noise = rng.normal(size=GRID * GRID)
    shown = sorted({lambdas[0], lambdas[len(lambdas) // 2], lambdas[-1]})
    return Example(
        domain=domain,
        source_domain=others[index % len(others)],
        class_name=f"a disc {index}",
        pixels=pixels,
        attributions={name: blurred(strengths[name]) for name in EXAMPLE_ATTRIBUTIONS if name in strengths},
        over_lambda={
            source: LambdaMaps(
                lambdas=tuple(shown),
                attributions=np.stack([(value * patches + 0.3 * noise).astype(np.float32) for value in shown]),
                class_names=tuple(f"a disc {index if value < 1 else index + 1}" for value in shown),
                probabilities=tuple(1.0 - 0.5 * min(max(value, 0.0), 1.0) for value in shown),
            )
            for source in others
        },
    )
