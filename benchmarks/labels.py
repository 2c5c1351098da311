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
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.label_errors import LABELLED, errors
from benchmarks.peers import PEERS, Plain, pictures
from core import miniature
from core.data.domains import write_parquet_split
from core.games.attribution_labels import fast_precision
from core.games.coalition_values import CoalitionEvaluator
from core.games.flops import flops_per_evaluation
from core.model import Base, load_base
from core.shapley.estimators import ESTIMATORS
from core.shapley.kernel_shap import sample_coalitions
from sweep.experiment.cost import GPUS
from sweep.store.artifacts import Store

RESULTS = Path(__file__).parent / "results"

# ---------------------------------------------------------------- speed


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


# ---------------------------------------------------------------- scaling


def scaling(num_pictures: int, budget: int, rounds: int, device: str) -> dict[str, Any]:
    """Pictures a second of the label command past start-up, with one and two workers of a thread each, and time outside the model.

    Medians over rounds, in each of which one run follows the other.
    """
    rates: dict[int, list[float]] = {1: [], 2: []}
    outside: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        spec = miniature.domain_spec("traffic_signs")
        drawn, class_ids = miniature.draw_split("traffic_signs", "train", num_pictures, 0)
        data = Path(scratch) / "data"
        data.mkdir()
        write_parquet_split(data / "train.parquet", drawn, class_ids, spec.class_names)
        for turn, workers in ((turn, workers) for turn in range(rounds) for workers in (1, 2)):
            out_directory = f"{scratch}/out{turn}-{workers}"
            command = [sys.executable, "-m", "sweep.run", "label", "--data", str(data), "--model", "miniature", "--out", out_directory]
            command += ["--budget", str(budget), "--workers", str(workers), "--device", device, "--shard-size", "32"]
            command += ["--threads-per-worker", "1", "--batch-size", "64", "--precision", fast_precision(device)]
            text = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}).stdout
            share = re.search(r"([\d.]+)% of the workers' time was outside the model", text)
            assert share, text
            rates[workers].append(steady_rate(Store(f"{out_directory}/store")))
            outside[workers].append(float(share[1]) / 100)
    out: dict[str, Any] = {
        str(workers): {"pictures_per_s": median(rates[workers]), "outside_model": median(outside[workers])} for workers in rates
    }
    out["speedup"] = median(two / one for one, two in zip(rates[1], rates[2], strict=True))
    out["rounds"] = rounds
    print("scaling:", out, flush=True)
    return out


def steady_rate(store: Store) -> float:
    """Pictures a second from the first finished label shard of a store to the last: start-up left out."""
    shards = sorted((store.open(key).manifest for key in store.keys("label")), key=lambda manifest: manifest["created"])
    later = sum(manifest["meta"]["num_pictures"] for manifest in shards[1:])
    return later / (shards[-1]["created"] - shards[0]["created"])


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
            learns = estimator in ESTIMATORS and ESTIMATORS[estimator].learning is not None
            counted = f", learning counted in over {LABELLED} pictures" if learns else ""
            faster = f"{row['times_faster']:.1f}x faster{counted}"
            lines.append(f"- {estimator} with {row['budget']} evaluations: no larger error than shap with 500, {faster}")
        lines.append("")
    if "scaling" in results:
        s = results["scaling"]
        lines += [
            f"**Label command on Ray Data**, past start-up, medians of {s.get('rounds', 1)} rounds: "
            f"{s['1']['pictures_per_s']:.2f} pictures/s with one worker of one thread, "
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
            ticks = [16, 32, 64, 100, 150, 250, 500] if row == 0 else [0.02, 0.05, 0.1, 0.2, 0.4]
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
        results["scaling"] = scaling(128 if quick else 384, 500, 1 if quick else 5, device)
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
