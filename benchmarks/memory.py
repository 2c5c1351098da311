"""Memory against the number of pictures: labels and training of a drawn data set of 2 000, 20 000 and 60 000 pictures.

    python -m benchmarks.memory [--sizes 2000 20000 60000] [--out DIRECTORY]

Two commands are watched for each size, in processes of their own with two Ray workers: `python -m sweep.run label` (every picture), and
the stages of a sweep that end in a self-explaining model: picture shards, head, the prediction-only training, the labels of the label
command taken over for the train split, labels of test pictures, the training with explanation labels: an epoch each, over every picture.

Several times a second the memory of the driver and of every Ray worker is read: resident memory less shared pages, since Ray's object
store and mapped libraries are shared memory and would be counted once a process. Written to benchmarks/results/memory.{md,json}: the
highest value of any process in each role, and the largest size's over the smallest's.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from core import miniature
from core.data.domains import write_parquet_split

RESULTS = Path(__file__).parent / "results"
DOMAIN = "traffic_signs"
NUM_DRAWN = 400
NUM_TEST = 400
ROWS_PER_FILE = 2000
EVERY_S = 0.2
MAX_SPREAD = 1.2
"""Largest over smallest peak of a role that is still flat."""

# What Ray calls its processes, and what they do here. A process that waits for its next task is still in the role it last had; Ray may
# give it another then, with what is left in its memory. Ray's actors for its own book-keeping hold no data of ours and are left out.
ROLES = {
    r"ray::(Map|ShardActor)": "label actor",
    r"ray::\S*TrainWorker": "training worker",
    r"ray::\S*TrainController": "training controller",
    r"ray::(_run|_fit)": "task worker",
}


def draw(directory: Path, num_pictures: int) -> None:
    """A data set in Parquet files of 2 000: some drawn pictures, each shifted and tinted otherwise each time it comes."""
    directory.mkdir(parents=True)
    class_names = miniature.domain_spec(DOMAIN).class_names
    drawn, class_ids = miniature.draw_split(DOMAIN, "train", NUM_DRAWN, 0)
    generator = np.random.default_rng(0)
    num_files = -(-num_pictures // ROWS_PER_FILE)
    for number in range(num_files):
        index = np.arange(number * ROWS_PER_FILE, min((number + 1) * ROWS_PER_FILE, num_pictures)) % NUM_DRAWN
        shifts = generator.integers(-3, 4, (len(index), 2))
        pictures = np.stack([np.roll(drawn[i], shift, (0, 1)) for i, shift in zip(index.tolist(), shifts, strict=True)])
        tints = generator.integers(0, 24, (len(index), 1, 1, 3), dtype=np.uint8)
        path = directory / f"train-{number:05d}-of-{num_files:05d}.parquet"
        write_parquet_split(path, np.maximum(pictures, tints), class_ids[index], class_names)
    write_parquet_split(directory / "test.parquet", *miniature.draw_split(DOMAIN, "test", NUM_TEST, 0), class_names)


# ---------------------------------------------------------------- what is watched


def label_command(data: Path, out: Path) -> list[str]:
    """`python -m sweep.run label` with the fewest evaluations that an estimator takes."""
    command = [sys.executable, "-m", "sweep.run", "label", "--data", str(data), "--split", "train", "--model", "miniature"]
    command += ["--out", str(out), "--estimator", "calibrated", "--budget", "2", "--calibration-pictures", "80"]
    return [*command, "--calibration-budget", "112", "--workers", "2", "--threads-per-worker", "1", "--batch-size", "64"]


def train(data: Path, labels: Path, store_directory: Path) -> None:
    """The stages of a sweep up to a self-explaining model, driven as a command drives them."""
    from core.base_models import describe_base
    from sweep.commands.options import Places
    from sweep.commands.session import Session
    from sweep.engines import interruption
    from sweep.experiment.config import DomainLocation
    from sweep.experiment.suites import miniature as suite
    from sweep.stages.base import BaseModel
    from sweep.stages.domains import look_at
    from sweep.stages.graph import SweepGraph, alone
    from sweep.stages.imported_labels import LabelledData
    from sweep.store.artifacts import Store

    config = suite()
    config = replace(
        config,
        domains=(DomainLocation("drawn", str(data), labels=str(labels)), DomainLocation(DOMAIN, f"miniature:{DOMAIN}")),
        data=replace(config.data, max_train_pictures=None, max_test_pictures=None),
        recipe=replace(config.recipe, num_steps=None, epochs=1, batch_size=64),
        labels=replace(config.labels, test=replace(config.labels.test, budget=112, num_perturbations=0), max_test=NUM_TEST),
    )
    store = Store(str(store_directory))
    with interruption.remembered(), Session(store, Places(num_workers=2, threads_per_worker=1), "cpu") as session:
        base = BaseModel(describe_base(config.base))
        session.compute([base], lambda work: None)
        imported = LabelledData.look_at(str(labels), "drawn", config.labels.train)
        facts = {"drawn": look_at(config.domains[0], config.data)}
        graph = SweepGraph("memory", config, base.load(store), facts, {"drawn": imported})
        targets = [graph.self_explaining(alone("drawn"), 0.5), graph.labels("drawn", "test")]
        session.compute(targets, lambda work: None)
    print({target.name: target.artifact(store).manifest["meta"]["num_pictures"] for target in targets})


# ---------------------------------------------------------------- watching


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command to its end; peak megabytes of any one process by role, and seconds. Raises CalledProcessError where it fails."""
    began = time.monotonic()
    peaks: dict[str, float] = {}
    roles: dict[int, str] = {}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        driver = psutil.Process(process.pid)
        while process.poll() is None:
            for role, megabytes in sample(driver, roles):
                peaks[role] = max(peaks.get(role, 0.0), megabytes)
            time.sleep(EVERY_S)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, text)
    seconds, said = round(time.monotonic() - began), text.strip().splitlines()[-1]
    return {"seconds": seconds, "said": said, "peak_mb": {role: round(peaks[role]) for role in sorted(peaks)}}


def sample(driver: psutil.Process, roles: dict[int, str]) -> list[tuple[str, float]]:
    """Role and own resident memory, in megabytes, of the driver and of each Ray worker under it. roles: what each was last seen doing."""
    found = []
    try:
        found.append(("driver", own_megabytes(driver)))
        below = driver.children(recursive=True)
    except psutil.NoSuchProcess:
        return found
    for process in below:
        try:
            title = " ".join(process.cmdline())
            role = next((role for pattern, role in ROLES.items() if re.match(pattern, title)), None)
            if role is not None:
                roles[process.pid] = role
            elif not title.startswith("ray::IDLE"):
                roles.pop(process.pid, None)
            if title.startswith("ray::") and process.pid in roles:
                found.append((roles[process.pid], own_megabytes(process)))
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def own_megabytes(process: psutil.Process) -> float:
    """Resident memory that is no shared page."""
    memory = process.memory_info()
    return (memory.rss - memory.shared) / 1e6


# ---------------------------------------------------------------- output


def markdown(results: dict[str, Any]) -> str:
    sizes = results["sizes"]
    lines = [
        f"Made by `{results['command']}` on {os.cpu_count()} cores: peak of any one process, MB of resident memory less shared pages "
        "(Ray's object store and mapped libraries are shared).",
        "",
        "| pictures | " + " | ".join(f"{size:,}" for size in sizes) + " | largest / smallest |",
        "| --- " * (len(sizes) + 2) + "|",
    ]
    for part in ("label", "train"):
        for role in results["spread"][part]:
            cells = [str(results["runs"][str(size)][part]["peak_mb"].get(role, "")) for size in sizes]
            lines.append(f"| {part}: {role} | " + " | ".join(cells) + f" | {results['spread'][part][role]:.2f} |")
        seconds = [str(results["runs"][str(size)][part]["seconds"]) for size in sizes]
        lines.append(f"| {part}: seconds | " + " | ".join(seconds) + " | |")
    return "\n".join(lines) + "\n"


def spread(runs: dict[str, Any], part: str) -> dict[str, float]:
    """Largest over smallest peak of each role."""
    roles = dict.fromkeys(role for run in runs.values() for role in run[part]["peak_mb"])
    peaks = {role: [run[part]["peak_mb"][role] for run in runs.values() if role in run[part]["peak_mb"]] for role in roles}
    return {role: round(max(found) / min(found), 3) for role, found in peaks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000, 60_000], help="pictures of the drawn data sets")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--train", nargs=3, type=Path, metavar=("DATA", "LABELS", "STORE"), help="be the driver that is watched")
    options = parser.parse_args()
    if options.train:
        train(*options.train)
        return
    runs: dict[str, Any] = {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            data, labels, store = (Path(scratch) / name for name in ("data", "labels", "store"))
            draw(data, size)
            run = {"label": watched(label_command(data, labels))}
            run["train"] = watched([sys.executable, "-m", "benchmarks.memory", "--train", str(data), str(labels), str(store)])
            runs[str(size)] = run
            print(size, run, flush=True)
    sizes = [] if options.sizes == [2_000, 20_000, 60_000] else ["--sizes", *map(str, options.sizes)]
    results = {
        "command": " ".join(["python -m benchmarks.memory", *sizes]),
        "sizes": options.sizes,
        "runs": runs,
        "spread": {part: spread(runs, part) for part in ("label", "train")},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "memory.json").write_text(json.dumps(results, indent=1))
    (options.out / "memory.md").write_text(markdown(results))
    print(markdown(results))
    grown = {f"{part}: {role}": s for part, roles in results["spread"].items() for role, s in roles.items() if s > MAX_SPREAD}
    if grown:
        sys.exit(f"not flat: {grown}")


if __name__ == "__main__":
    main()
