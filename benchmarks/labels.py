"""The label engine against what a user would reach for instead: one command, one run, one table and plot.

    python -m benchmarks.labels [--quick] [--device cuda] [--only PART]

Three parts, written to benchmarks/results/labels.{md,json,png} (one part alone: to labels_PART):

1. Speed on one core (or one GPU): evaluations and pictures a second of this engine, a plain masked forward loop,
   `shap.KernelExplainer`, captum `KernelShap` and shapiq `KernelSHAP`: same model, pictures, coalitions a picture and threads.
   Rounds alternate between the tools; ratios are medians over rounds.
2. Error against evaluations and seconds: every estimator against references of a high budget, and shap itself.
3. Scaling from one worker to two, and the share of time outside the model, of `python -m sweep.run label` on Ray Data.

Peers are given what their documentation says: a batched function on masked pictures. They need `pip install -e '.[benchmark]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core import miniature
from core.attribution_labels import fast_precision
from core.calibration import CalibratedSolver, Games, calibrate, is_held_out
from core.coalition_values import CoalitionEvaluator
from core.domains import write_parquet_split
from core.estimators import ESTIMATORS, LEARNED, make_design
from core.flops import flops_per_evaluation
from core.kernel_shap import sample_coalitions
from core.metrics import iou_at
from core.model import Base, SelfExplainingClassifier, load_base
from core.patch_features import patch_features
from core.residual_posterior import ResidualSolver, draw_coalitions
from core.surrogate import EvaluatedPictures, Surrogate, fit_surrogate
from sweep.projection import GPUS
from sweep.surrogate_job import NUM_REFERENCES

RESULTS = Path(__file__).parent / "results"
SCALE = 3.5
REFERENCE_BUDGET = 512
LABELLED = 5000
"""Pictures over which the cost of learning is counted; the surrogate learns from that many."""

Game = Callable[[np.ndarray], np.ndarray]


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


# ---------------------------------------------------------------- 1. speed


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


def speed(name: str, base: Base, budget: int, per_round: int, rounds: int, device: str) -> dict[str, Any]:
    """Pictures and evaluations a second of every tool, and ratios to ours in float32 and the fast precision."""
    classifier, inputs, class_ids = pictures(base, "traffic_signs", "train", max(8, per_round), device)
    batch_size = 64 if device == "cpu" else 2048
    precisions = list(dict.fromkeys(["float32", fast_precision(device)]))
    engines = {
        f"this engine, {p}": CoalitionEvaluator(classifier, dtype=getattr(torch, p), batch_size=batch_size) for p in precisions
    }
    matrix = sample_coalitions(base.num_patches, budget, 0)
    games = np.concatenate([matrix.coalitions, np.zeros((1, base.num_patches), bool), np.ones((1, base.num_patches), bool)])

    def ours(engine: CoalitionEvaluator, seed: int) -> None:
        values = engine.values(inputs[:per_round], class_ids[:per_round], torch.from_numpy(games)).cpu().numpy()
        phi = matrix.solver.attributions(values[:, :-2], values[:, -2], values[:, -1])
        matrix.solver.standard_error(values[:, :-2], values[:, -2], values[:, -1])
        assert phi.shape == (per_round, base.num_patches)

    seconds: dict[str, list[float]] = {tool: [] for tool in [*engines, *PEERS]}
    for turn in range(rounds + 1):  # the first one warms up
        for tool in seconds:
            began = time.perf_counter()
            if tool in engines:
                ours(engines[tool], turn)
                number = per_round
            else:
                plain = Plain(classifier, inputs[turn % len(inputs)], int(class_ids[turn % len(inputs)]), batch_size)
                PEERS[tool](plain, budget, turn)
                number = 1
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[tool].append((time.perf_counter() - began) / number)
    rows = {}
    for tool, times in seconds.items():
        ratios = {p: median(t / o for t, o in zip(times, seconds[f"this engine, {p}"], strict=True)) for p in precisions}
        rows[tool] = {"pictures_per_s": 1 / median(times), "evaluations_per_s": (budget + 2) / median(times), "slower_than_ours": ratios}
        if device == "cuda" and tool in engines:
            gpu = next((g for g in GPUS if g in torch.cuda.get_device_name()), None)
            if gpu:
                rows[tool]["share_of_bf16_peak"] = flops_per_evaluation(base.visual) * (budget + 2) / median(times) / GPUS[gpu]
    print(f"speed, {name}:", {k: round(v["evaluations_per_s"]) for k, v in rows.items()}, flush=True)
    return {"model": name, "budget": budget, "rounds": rounds, "tools": rows}


# ---------------------------------------------------------------- 2. error


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
    residual = found[:, 2:] - predicted.values(coalitions)
    zeros = np.zeros(len(found))
    return predicted.attributions + ResidualSolver(coalitions, surrogate.prior).attributions(residual, zeros, zeros)


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
            if estimator == "surrogate" or budget < {"permutation": 4 * (players - 1), "calibrated": 2}.get(estimator, 2 * (players + 2)):
                continue
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


# ---------------------------------------------------------------- 3. scaling


def scaling(num_pictures: int, budget: int, device: str) -> dict[str, Any]:
    """Pictures a second of the label command past start-up, with one and two workers of a thread each, and time outside the model."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        spec = miniature.domain_spec("traffic_signs")
        drawn, class_ids = miniature.draw_split("traffic_signs", "train", num_pictures, 0)
        data = Path(scratch) / "data"
        data.mkdir()
        write_parquet_split(data / "train.parquet", drawn, class_ids, spec.class_names)
        for workers in (1, 2):
            command = [sys.executable, "-m", "sweep.run", "label", "--data", str(data), "--model", "miniature"]
            command += ["--out", f"{scratch}/out{workers}", "--budget", str(budget), "--workers", str(workers), "--device", device]
            command += ["--shard-size", "32", "--threads-per-worker", "1", "--batch-size", "64", "--precision", fast_precision(device)]
            text = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout
            rate = re.search(r"([\d.,]+) pictures/s past start-up", text)
            outside = re.search(r"([\d.]+)% of the workers' time was outside the model", text)
            assert rate and outside, text
            out[str(workers)] = {"pictures_per_s": float(rate[1].replace(",", "")), "outside_model": float(outside[1]) / 100}
    out["speedup"] = out["2"]["pictures_per_s"] / out["1"]["pictures_per_s"]
    print("scaling:", out, flush=True)
    return out


# ---------------------------------------------------------------- output


def markdown(results: dict[str, Any]) -> str:
    lines = [f"Made by `{results['command']}` on {results['machine']}.", ""]
    for found in results["speed"]:
        fast = list(next(iter(found["tools"].values()))["slower_than_ours"])
        lines += [f"**{found['model']}**, {found['budget']} evaluations a picture, medians of {found['rounds']} alternating rounds:", ""]
        lines += ["| | evaluations/s | pictures/s | " + " | ".join(f"slower than ours, {p}" for p in fast) + " |"]
        lines += ["| --- " * (3 + len(fast)) + "|"]
        for tool, row in found["tools"].items():
            ratios = " | ".join(f"{row['slower_than_ours'][p]:.2f}x" for p in fast)
            peak = f" ({row['share_of_bf16_peak']:.0%} of the bf16 peak)" if "share_of_bf16_peak" in row else ""
            lines.append(f"| {tool}{peak} | {row['evaluations_per_s']:,.0f} | {row['pictures_per_s']:.2f} | {ratios} |")
        lines.append("")
    for found in results["errors"]:
        budgets = sorted({r["budget"] for r in found["rows"]})
        own = found["reference_relative_error"]
        lines += [f"**{found['domain']}**: relative error / IoU@10 against references that have a relative error of {own:.2f}", ""]
        lines += ["| evaluations | " + " | ".join(map(str, budgets)) + " |", "| --- " * (1 + len(budgets)) + "|"]
        for estimator in dict.fromkeys(r["estimator"] for r in found["rows"]):
            cells = {r["budget"]: f"{r['relative_error']:.2f} / {r['iou_at_10']:.2f}" for r in found["rows"] if r["estimator"] == estimator}
            lines.append(f"| {estimator} | " + " | ".join(cells.get(b, "") for b in budgets) + " |")
        lines.append("")
        for estimator, row in sorted(found["at_equal_error"].items()):
            counted = f", learning counted in over {LABELLED} pictures" if estimator in LEARNED else ""
            faster = f"{row['times_faster']:.1f}x faster{counted}"
            lines.append(f"- {estimator} with {row['budget']} evaluations: no larger error than shap with 500, {faster}")
        lines.append("")
    if "scaling" in results:
        s = results["scaling"]
        lines += [
            f"**Label command on Ray Data**, past start-up: {s['1']['pictures_per_s']:.2f} pictures/s with one worker of one thread, "
            f"{s['2']['pictures_per_s']:.2f} with two ({s['speedup']:.2f}x); {s['1']['outside_model']:.1%} and "
            f"{s['2']['outside_model']:.1%} of the workers' time outside the model.",
            "",
        ]
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    domains = results["errors"]
    figure, axes = plt.subplots(2, len(domains), figsize=(4.2 * len(domains), 7), squeeze=False, sharey="row")
    for column, found in enumerate(domains):
        for row, x in enumerate(("budget", "seconds_per_picture")):
            ax = axes[row][column]
            for estimator in dict.fromkeys(r["estimator"] for r in found["rows"]):
                points = sorted((r[x], r["relative_error"]) for r in found["rows"] if r["estimator"] == estimator)
                is_peer = estimator.startswith("shap")
                ax.plot(*zip(*points, strict=True), marker="*" if is_peer else "o", ms=11 if is_peer else 4, label=estimator)
            ax.set(xscale="log", yscale="log", xlabel="evaluations a picture" if row == 0 else "seconds a picture, one core")
            ticks = [64, 100, 150, 250, 500] if row == 0 else [0.02, 0.05, 0.1, 0.2, 0.4]
            low, high = ax.get_xlim()
            ax.set_xticks([t for t in ticks if low <= t <= high])
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
            if row == 0:
                ax.set_title(found["domain"].replace("_", " "))
            if column == 0:
                ax.set_ylabel("relative error")
            ax.grid(alpha=0.3, which="both")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="a few pictures and rounds, to try the script")
    parser.add_argument("--only", choices=("speed", "errors", "scaling"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    quick, device = options.quick, options.device
    machine = torch.cuda.get_device_name() if device == "cuda" else f"one core of {cpu_name()} ({os.cpu_count()} cores)"
    given = (("--quick", quick), ("--device cuda", device == "cuda"), (f"--only {options.only}", options.only))
    flags = [flag for flag, is_given in given if is_given]
    results: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.labels", *flags]),
        "machine": f"{machine}, torch {torch.__version__}",
        "speed": [],
        "errors": [],
    }
    mini = load_base("miniature")
    if options.only in (None, "speed"):
        vit = load_base("ViT-B-32:random")
        results["speed"] = [
            speed("miniature base", mini, 500, 4, 2 if quick else 7, device),
            speed("ViT-B/32, random weights", vit, 100, 1 if device == "cpu" else 16, 1 if quick else 2, device),
        ]
    if options.only in (None, "errors"):
        domains = ["traffic_signs"] if quick else ["traffic_signs", "land_cover", "street_digits"]
        budgets = [80, 500] if quick else [64, 104, 150, 250, 500]
        few = [32] if quick else [16, 48, 104]
        results["errors"] = [errors(mini, d, device, 16 if quick else 40, 160, budgets, few) for d in domains]
    if options.only in (None, "scaling"):
        results["scaling"] = scaling(128 if quick else 640, 500, device)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "_".join(["labels", *([device] if device != "cpu" else []), *([options.only] if options.only else [])])
    (options.out / f"{name}.json").write_text(json.dumps(results, indent=1))
    (options.out / f"{name}.md").write_text(markdown(results))
    if results["errors"]:
        plot(results, options.out / f"{name}.png")
    print(markdown(results))


def cpu_name() -> str:
    try:
        return next(line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
