"""What each merge rule, and each way to make one vector of several, gains in explanation at equal accuracy.

    python -m sweep.run universal                          # first: its models, labels and vectors are taken from the store
    python -m benchmarks.merging [--store sweep_store] [--alpha 0.2] [--out DIRECTORY]

For every source, combination and rule the transferred models of the miniature's targets are scored on a grid of lambda2. Accuracy falls and
explanation grows with lambda2, so rules are compared at one lambda2 each for all targets: where the mean over the targets of the normalised
accuracy on validation falls to a level (straight between the grid's points). Scores are those on test there. Only what a rule needs besides
the vectors (Fisher information, gradients, coefficients) and the combined vectors are computed, and kept in the store.
Written to benchmarks/results/merging.{md,json}. The last rows' vector has its numbers permuted: what is left there is not the vector's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from core.merging.combination import COMBINATIONS, parse_combination
from core.merging.rules import MERGE_RULES, parse_rule
from core.task_vectors import TaskVector
from sweep.commands.sweep import check
from sweep.engines.progress import Progress
from sweep.experiment.config import SweepConfig
from sweep.experiment.suites import universal_miniature
from sweep.stages.base import BaseModel
from sweep.stages.coefficients import LearnedCoefficients
from sweep.stages.graph import SweepGraph
from sweep.stages.points import Transfer
from sweep.stages.stage import Stage
from sweep.stages.vectors import AnyVector, CombinedVector
from sweep.store.artifacts import Store

RESULTS = Path(__file__).parent / "results"
LAMBDAS = tuple(round(0.2 * i, 1) for i in range(16))
FURTHEST = 0.8
"""Of the normalised accuracy on validation: a target is followed until it has fallen below."""
LEVELS = (0.97, 0.95)
BOTH = "concepts,others"
PERMUTED = "permuted"
"""In place of a combination: the mean with its entries permuted within each tensor. What a rule still gives is not the vector's."""
SUITES_OWN = universal_miniature().search.merge.text
"""What `universal` merges by, beside every rule at its defaults."""
SCORES = ("normalized_accuracy", "correlation", "iou_at_10", "e_rmse")


def variants() -> Iterator[tuple[str, str, str]]:
    """(source, combination, merge rule): every rule on each single source, every combination of both, and rules on the default one."""
    for source in ("concepts", "others"):
        for rule in (*MERGE_RULES, SUITES_OWN):
            yield source, "", rule
    for combination in COMBINATIONS:
        yield BOTH, combination, "addition"
    for rule in ("lines", "ties", "fisher", "atlas", "atlas_rows", SUITES_OWN):
        yield BOTH, "mean", rule
    yield BOTH, "tsv_m", SUITES_OWN
    for rule in ("addition", "atlas", "atlas_rows"):
        yield BOTH, PERMUTED, rule


@dataclass(frozen=True, eq=False)
class PermutedVector(Stage):
    """A vector's numbers in another order: each tensor has the same ones, at random places."""

    kind = "permuted_vector"
    version = 1
    file_name = "explainability_vector.safetensors"

    vector: AnyVector

    @property
    def name(self) -> str:
        return f"{self.vector.name} permuted"

    @property
    def alpha(self) -> float:
        return self.vector.alpha

    @property
    def params(self) -> dict[str, Any]:
        return {"seed": 0}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.vector,)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        vector, generator = self.vector.load(store), torch.Generator().manual_seed(0)
        weights = {
            name: weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight)
            for name, weight in vector.weights.items()
        }
        TaskVector(weights, vector.base_fingerprint).save(directory / self.file_name, {})
        return {}

    def load(self, store: Store) -> TaskVector:
        return TaskVector.load(self.artifact(store).path(self.file_name))


def permuted(transfer: Transfer) -> Transfer:
    """With a permuted vector in place of the source's, and coefficients that are learned of that one."""
    (vector,) = transfer.source_vectors
    other: Any = PermutedVector(vector)
    evidence = tuple(replace(stage, vector=other) if isinstance(stage, LearnedCoefficients) else stage for stage in transfer.evidence)
    return replace(transfer, source_vectors=(other,), evidence=evidence)


class Bench:
    """A store with a finished `universal` of the miniature."""

    def __init__(self, store: Store, config: SweepConfig) -> None:
        self._store, self._config, self._checked = store, config, check(config)
        self._base = BaseModel(self._checked.base).load(store)

    def _graph(self, config: SweepConfig) -> SweepGraph:
        return SweepGraph("universal", config, self._base, self._checked.domains, self._checked.imported)

    def curves(self, source: str, combination: str, rule: str, progress: Progress) -> pd.DataFrame:
        """Columns target, lambda2, kept (normalised accuracy on validation), and SCORES on test."""
        search = replace(self._config.search, merge=parse_rule(rule))
        config = replace(self._config, search=search, sources=(source,))
        config = replace(config, combine=parse_combination(combination)) if combination in COMBINATIONS else config
        graph, rows = self._graph(config), []
        for pair in config.pairs:
            transfer = graph.transfer(pair)
            vectors = [vector for vector in transfer.source_vectors if isinstance(vector, CombinedVector)]
            if combination == PERMUTED:
                transfer = permuted(transfer)
                vectors += transfer.source_vectors
            for stage in (*vectors, *transfer.evidence):
                stage.publish(self._store)
            points = transfer.evaluator(self._store, search)
            for lambda2 in LAMBDAS:
                kept = points.on("validation")(search.alphas[0], lambda2)["normalized_accuracy"]
                on_test = points.on("test")(search.alphas[0], lambda2)
                rows.append({"target": pair.target, "lambda2": lambda2, "kept": kept, **{score: on_test[score] for score in SCORES}})
                if kept < FURTHEST:
                    break
            progress.advance()
        return pd.DataFrame(rows)

    def mean_map(self) -> pd.DataFrame:
        """The scores on test of the mean map of each target's training labels: index target."""
        graph = self._graph(self._config)
        rows = [row for target in graph.targets for row in graph.reference(target).rows(self._store)]
        table = pd.DataFrame(rows)
        return table[(table["reference"] == "mean_map") & (table["split"] == "test")].set_index("domain")


def at_level(curves: pd.DataFrame, level: float) -> tuple[float, pd.DataFrame] | None:
    """The smallest lambda2 at which the mean of `kept` is `level`, and SCORES there, a row a target; None where it stays above."""
    followed = curves.groupby("lambda2")["target"].size() == curves["target"].nunique()
    kept = curves.groupby("lambda2")["kept"].mean()[followed]
    below = np.flatnonzero(kept.to_numpy() < level)
    if not len(below) or below[0] == 0:
        return None
    low, high = kept.index[below[0] - 1], kept.index[below[0]]
    lambda2 = low + (high - low) * (kept[low] - level) / (kept[low] - kept[high])
    scores = {
        target: {score: float(np.interp(lambda2, found["lambda2"], found[score])) for score in SCORES}
        for target, found in curves.groupby("target")
    }
    return float(lambda2), pd.DataFrame(scores).T


def report(table: pd.DataFrame, alpha: float, num_targets: int) -> str:
    """Markdown."""
    lines = [
        "# Merge rules and combinations at equal accuracy",
        "",
        f"`python -m benchmarks.merging --alpha {alpha:g}`: {num_targets} targets of the miniature, seed 0. Each row: one lambda2 for all",
        "targets, at which their mean normalised accuracy on validation is the level; all other columns are on test. Last: on how many",
        "targets correlation and IoU@10 are above the mean map's.",
    ]
    for level, rows in table.groupby("level", sort=False):
        lines += ["", f"## Validation accuracy {level:.2f} of the prediction-only models'", ""]
        lines.append("| source | combined by | rule | lambda2 | norm. accuracy | correlation | IoU@10 | E-RMSE | above the mean map |")
        lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for _, row in rows.sort_values("correlation", ascending=False).iterrows():
            numbers = " | ".join(f"{row[name]:.3f}" for name in ("normalized_accuracy", "correlation", "iou_at_10", "e_rmse"))
            above = f"{row['above_correlation']:.0f}, {row['above_iou_at_10']:.0f}"
            lines.append(f"| {row['source']} | {row['combination'] or '-'} | {row['rule']} | {row['lambda2']:.2f} | {numbers} | {above} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default="sweep_store")
    parser.add_argument("--alpha", type=float, default=0.2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    template = universal_miniature()
    config = replace(template, search=replace(template.search, alphas=(options.alpha,)))
    bench, todo = Bench(Store(options.store), config), list(variants())
    bars = bench.mean_map()
    progress, rows = Progress("merging", len(todo) * len(bars), "targets"), []
    for source, combination, rule in todo:
        curves = bench.curves(source, combination, rule, progress)
        for level in LEVELS:
            found = at_level(curves, level)
            if found is not None:
                lambda2, scores = found
                counts = {f"above_{s}": int((scores[s] > bars.loc[scores.index, s]).sum()) for s in ("correlation", "iou_at_10")}
                rows.append(
                    {"level": level, "source": source, "combination": combination, "rule": parse_rule(rule).text, "lambda2": lambda2}
                    | scores.mean().to_dict()
                    | counts
                )
    table = pd.DataFrame(rows)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "merging.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = report(table, options.alpha, len(bars))
    (options.out / "merging.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
