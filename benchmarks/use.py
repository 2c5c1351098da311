"""What a user waits for: `transfer` of a ViT-B/32, and `explain` on a folder against Kernel SHAP of the same model.

    python -m benchmarks.use [--out DIRECTORY]

Weights are random (their size is what matters here), pictures are drawn. `transfer` runs as a command in a process of its own,
NUM_TRANSFERS times: wall-clock and CPU seconds, interpreter and imports included, and the highest resident memory, with and without the
pages of mapped files, which the system takes back when it needs them; where this process may make a control group, once more in one of
LIMIT_MB. `explain` against Kernel SHAP of the same model at 500 evaluations, by this engine and by `shap.KernelExplainer`, in one run:
seconds a picture and their ratio.
Written to benchmarks/results/use.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from safetensors.torch import save_file

from core import miniature
from core.games.attribution_labels import Labeller, LabelSettings
from core.model import load_base
from core.model_directory import CONFIGURATION, WEIGHTS
from core.task_vectors import TaskVector
from sweep.explain.model import ExplainingModel

RESULTS = Path(__file__).parent / "results"
BASE = "ViT-B-32"
CLASSES = ("cat", "dog", "bird")
BUDGET = 500
NUM_EXPLAINED, NUM_BY_ENGINE, NUM_BY_SHAP = 64, 4, 2
EVERY_S = 0.02
LIMIT_MB = 2000
NUM_TRANSFERS = 3


def write_base(directory: Path) -> None:
    """A ViT-B/32 with random weights as open_clip keeps a local model."""
    import open_clip

    torch.manual_seed(0)
    clip = open_clip.create_model(BASE)
    directory.mkdir()
    save_file({name: weight.contiguous() for name, weight in clip.state_dict().items()}, directory / WEIGHTS)
    described = {"model_cfg": open_clip.get_model_config(BASE), "preprocess_cfg": open_clip.get_model_preprocess_cfg(clip)}
    (directory / CONFIGURATION).write_text(json.dumps(described))


def write_models(directory: Path) -> None:
    """A fine-tuned checkpoint and a vector: the base's weights moved at random by a fiftieth, and a hundredth, of their spread."""
    base = load_base(str(directory / "base"))
    generator = torch.Generator().manual_seed(1)

    def moved(share: float) -> dict[str, torch.Tensor]:
        return {
            name: weight + share * (weight.std() if weight.numel() > 1 else 0.0) * torch.randn(weight.shape, generator=generator)
            for name, weight in base.visual.state_dict().items()
        }

    torch.save({f"visual.{name}": weight for name, weight in moved(0.02).items()}, directory / "mine.pt")
    start = dict(base.visual.state_dict())
    TaskVector.between(moved(0.01), start, base.fingerprint).save(directory / "vector.safetensors", {"domain": "random", "alpha": "0.5"})


def watched(command: list[str]) -> dict[str, float]:
    """Run a command to its end: seconds and MB. Raises CalledProcessError where it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"})
    peaks = {"rss": 0.0, "own": 0.0}

    def watch() -> None:
        while process.poll() is None:
            try:
                memory = psutil.Process(process.pid).memory_info()
            except psutil.Error:
                return
            peaks["rss"] = max(peaks["rss"], memory.rss)
            peaks["own"] = max(peaks["own"], memory.rss - memory.shared)
            time.sleep(EVERY_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        raise subprocess.CalledProcessError(code, command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "resident_mb": peaks["rss"] / 2**20,
        "without_mapped_files_mb": peaks["own"] / 2**20,
    }


@contextmanager
def control_group(limit_mb: int) -> Iterator[Path | None]:
    """The file that puts a process into a new group of at most so much memory, page cache included; None where none can be made."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(root) / f"benchmark_{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(limit_mb * 1_000_000))
                yield group / "cgroup.procs"
                return
        finally:
            group.rmdir()
    yield None


def runs_within(command: list[str], limit_mb: int) -> bool | None:
    """Whether a command ends well with so much memory; None where this process may not limit it."""
    with control_group(limit_mb) as members:
        if members is None:
            return None
        entered = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(members), *command]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(entered, stdout=subprocess.DEVNULL, env=environment).returncode == 0


def explained(directory: Path) -> dict[str, float]:
    """Seconds a picture: the whole `explain` on a folder, one pass alone, and Kernel SHAP by this engine and by shap."""
    model = ExplainingModel.load(directory / "explaining_0")
    size = model.preprocessing.image_size
    pixels, _ = miniature.draw_split("scenes", "test", NUM_EXPLAINED)
    (directory / "pictures").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).resize((size, size)).save(directory / "pictures" / f"{number:03d}.png")
    model.explain(str(directory / "pictures" / "000.png"))  # the first pass of all warms up
    began = time.perf_counter()
    explanation = model.explain(str(directory / "pictures"))
    folder_s = (time.perf_counter() - began) / NUM_EXPLAINED
    inputs = model.preprocessing.normalise(torch.from_numpy(np.asarray(explanation.data).transpose(0, 3, 1, 2).copy()))
    found = {"explain a folder, decoding included": folder_s}
    class_ids = torch.zeros(len(inputs), dtype=torch.long)
    for name, estimator, number in (("this engine", "kernel_shap", NUM_BY_ENGINE), ("shap.KernelExplainer", "shap", NUM_BY_SHAP)):
        labeller = Labeller(model.classifier, LabelSettings(budget=BUDGET, estimator=estimator), "benchmark")
        began = time.perf_counter()
        labeller.label(inputs[:number], class_ids[:number], [str(n) for n in range(number)])
        found[f"Kernel SHAP, {BUDGET} evaluations, {name}"] = (time.perf_counter() - began) / number
    return found


def table(transfers: list[dict[str, float]], fits: bool | None, explain: dict[str, float]) -> str:
    own = next(iter(explain.values()))
    seconds, cpu = (", ".join(f"{transfer[name]:.1f}" for transfer in transfers) for name in ("seconds", "cpu_s"))
    resident, own_memory = (max(transfer[name] for transfer in transfers) for name in ("resident_mb", "without_mapped_files_mb"))
    limited = {None: "could not be tried", True: "ends well", False: "fails"}[fits]
    lines = [
        f"Made by `python -m benchmarks.use` on {os.cpu_count()} cores, one thread: a {BASE} with random weights.",
        "",
        f"`transfer` of a checkpoint with a vector, as a command, {len(transfers)} times: {seconds} s ({cpu} s of CPU), at most "
        f"{resident:.0f} MB resident, {own_memory:.0f} MB without the pages of mapped files. "
        f"In a control group of {LIMIT_MB} MB, page cache included, it {limited}.",
        "",
        "| | ms a picture | times as long |",
        "| --- | --- | --- |",
        *(f"| {name} | {1000 * each:.1f} | {each / own:.0f} |" for name, each in explain.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="directory of the results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        write_base(directory / "base")
        write_models(directory)
        command = [sys.executable, "-m", "sweep.run", "transfer", "--base", str(directory / "base"), "--class-names", *CLASSES]
        command += ["--checkpoint", str(directory / "mine.pt"), "--vector", str(directory / "vector.safetensors")]
        command += ["--lambda2", "1", "--out"]
        transfers = [watched([*command, str(directory / f"explaining_{n}")]) for n in range(NUM_TRANSFERS)]
        fits = runs_within([*command, str(directory / "again")], LIMIT_MB)
        explain = explained(directory)
    text = table(transfers, fits, explain)
    found: dict[str, Any] = {"transfers": transfers, "explain_s": explain, "cores": os.cpu_count(), "threads": 1}
    found[f"transfer_within_{LIMIT_MB}_mb"] = fits
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "use.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "use.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
