"""Pictures a second fed to a training step: picture shards, torch's `DataLoader` and Ray Data's `iter_torch_batches`.

    python -m benchmarks.ingest [--quick] [--out DIRECTORY]

All three read the same drawn pictures, JPEGs of 224 pixels in a directory a class, decode and resize them with the same function to the
miniature's 56 pixels, and give batches of 64 in a shuffled order. The shards are decoded once, before the first step, and read again each
epoch: what that takes is reported by itself, with the number of epochs after which it has paid. The loader has two worker processes, Ray
two CPUs beside the process that trains; Ray does not shuffle within blocks (`local_shuffle_buffer_size`), which would cost it a third.

With a mocked step nothing is done with a batch: the ceiling. With the real one the miniature is trained (prediction only, one thread).
The ways take turns, several times over, so that what else the machine does meets them alike; the clock starts with a way's third batch, so
that what starts processes does not count. Written to benchmarks/results/ingest.{md,json}: medians of the turns, processor seconds of all
of a way's processes, and rates over the best of the two others' in the same turn.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.labels import cpu_name
from core import miniature
from core.data.domains import decode_picture
from core.data.picture_shards import PictureShards, write_pixels
from core.finetune import Recipe, finetune
from core.model import Base, Preprocessing, SelfExplainingClassifier, load_base
from core.shard_stream import ShardPart, ShardStream
from core.training_data import WHOLE, Batch, BatchSource, Share, TrainingData, load_ahead

RESULTS = Path(__file__).parent / "results"
DOMAIN = "traffic_signs"
SIZE = 224
PER_SHARD = 250
NUM_SHARDS_IN_WINDOW = 4
BATCH = 64
WARM_UP = 2
NUM_WORKERS = 2
OURS = ("shards, window shuffle", "shards, at random")


def draw(directory: Path, number: int) -> list[tuple[Path, int]]:
    """Drawn pictures as JPEGs of 224 pixels, some bytes of each its own; path and class of each."""
    drawn, class_ids = miniature.draw_split(DOMAIN, "train", min(number, 400), 0)
    generator = np.random.default_rng(0)
    found = []
    for i in range(number):
        class_id = int(class_ids[i % len(drawn)])
        tinted = np.maximum(drawn[i % len(drawn)], generator.integers(0, 24, (1, 1, 3), dtype=np.uint8))
        path = directory / f"{class_id:03d}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tinted).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(path, quality=90)
        found.append((path, class_id))
    return found


def decoded(path: str | Path, preprocessing: Preprocessing) -> np.ndarray:
    return preprocessing.pixels(decode_picture(Path(path).read_bytes()))


# ---------------------------------------------------------------- ours


@dataclass(frozen=True, eq=False)
class LocalShard:
    part: ShardPart

    def __len__(self) -> int:
        return len(self.part.rows)

    @contextmanager
    def opened(self) -> Iterator[ShardPart]:
        yield self.part


def write_shards(files: Sequence[tuple[Path, int]], directory: Path, preprocessing: Preprocessing) -> list[ShardPart]:
    """The pictures decoded once, in a fixed shuffled order (files lie sorted by class, shards of a data set seldom do)."""
    order = np.random.default_rng(0).permutation(len(files))
    parts = []
    for start in range(0, len(files), PER_SHARD):
        chosen = [files[i] for i in order[start : start + PER_SHARD].tolist()]
        path = directory / f"{start}.npy"
        number = write_pixels(path, (decoded(file, preprocessing) for file, _ in chosen))
        parts.append(ShardPart(path, torch.arange(number), torch.tensor([class_id for _, class_id in chosen]), None))
    return parts


# ---------------------------------------------------------------- the others


class JpegPictures(Dataset[tuple[Tensor, int]]):
    """As torchvision's ImageFolder, with this project's preprocessing."""

    def __init__(self, files: Sequence[tuple[Path, int]], preprocessing: Preprocessing) -> None:
        self.files, self.preprocessing = files, preprocessing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, class_id = self.files[index]
        return torch.from_numpy(np.ascontiguousarray(decoded(path, self.preprocessing))), class_id


@dataclass(frozen=True, eq=False)
class Loaded:
    """Another library's epochs as a training's batches; it shuffles as it does."""

    number: int
    preprocessing: Preprocessing
    epoch: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    is_labelled: bool = False

    def __len__(self) -> int:
        return self.number

    def without_labels(self) -> Loaded:
        return self

    def batches(
        self, batch_size: int, total_steps: int, seed: int, start: int = 0, share: Share = WHOLE
    ) -> Generator[Batch, None, None]:
        step = 0
        while step < total_steps:
            for pixels, class_ids in self.epoch():
                yield Batch(pixels, class_ids, None)
                step += 1
                if step == total_steps:
                    return


def torch_loader(files: Sequence[tuple[Path, int]], preprocessing: Preprocessing) -> Loaded:
    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        torch.manual_seed(0)
        dataset = JpegPictures(files, preprocessing)
        return iter(DataLoader(dataset, BATCH, shuffle=True, num_workers=NUM_WORKERS, drop_last=True, prefetch_factor=4))

    return Loaded(len(files), preprocessing, epoch)


def ray_data(files: Sequence[tuple[Path, int]], preprocessing: Preprocessing) -> Loaded:
    import ray.data

    class_of = {str(path): class_id for path, class_id in files}

    def decode(rows: dict[str, Any]) -> dict[str, Any]:
        pictures = [preprocessing.pixels(decode_picture(content)) for content in rows["bytes"]]
        return {"pixels": np.stack(pictures), "class_id": np.array([class_of[path] for path in rows["path"]])}

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        read = ray.data.read_binary_files(sorted(class_of), include_paths=True, shuffle="files")
        pictures = read.map_batches(decode, batch_size=BATCH)
        for batch in pictures.iter_torch_batches(batch_size=BATCH, drop_last=True, prefetch_batches=4):
            yield batch["pixels"], batch["class_id"]

    return Loaded(len(files), preprocessing, epoch)


# ---------------------------------------------------------------- timing


@dataclass(frozen=True)
class Turn:
    """pictures_per_s: by the clock; cpu_s_per_1000: processor seconds of all processes a thousand pictures."""

    pictures_per_s: float
    cpu_s_per_1000: float


class Clock:
    """Starts at the third step's beginning and stops with the last step."""

    def __init__(self, steps: int) -> None:
        self._left = steps - WARM_UP
        self._began: tuple[float, dict[int, float]] | None = None

    def start(self) -> None:
        self._began = time.monotonic(), processor_seconds()

    def turn(self) -> Turn:
        assert self._began is not None
        number = self._left * BATCH
        seconds, before, now = time.monotonic() - self._began[0], self._began[1], processor_seconds()
        cpu = sum(used - before.get(pid, 0.0) for pid, used in now.items())
        return Turn(number / seconds, 1000 * cpu / number)


def processor_seconds() -> dict[int, float]:
    """By process: this one and all below it that live (Ray's are below it, too). What one that has ended used is missing."""
    found = {}
    for process in [(own := psutil.Process()), *own.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        ended = times.children_user + times.children_system if process.pid == own.pid else 0.0
        found[process.pid] = times.user + times.system + ended
    return found


def mocked(source: BatchSource, steps: int) -> Turn:
    clock = Clock(steps)
    with closing(load_ahead(source.batches(BATCH, steps, seed=0), torch.device("cpu"))) as batches:
        for step, _ in enumerate(batches, 1):
            if step == WARM_UP:
                clock.start()
        return clock.turn()


def trained(source: BatchSource, steps: int, base: Base, head: Tensor) -> Turn:
    classifier: SelfExplainingClassifier = base.classifier(head)
    clock = Clock(steps)
    recipe = Recipe(learning_rate=5e-4, batch_size=BATCH, num_steps=steps)
    finetune(classifier, source, recipe, on_progress=lambda at: clock.start() if at.step == WARM_UP else None)
    return clock.turn()


# ---------------------------------------------------------------- output


def ratios(turns: dict[str, list[Turn]]) -> dict[str, list[float]]:
    """Of each way, rate over the better of the two others' in the same turn."""
    others = [name for name in turns if name not in OURS]
    best = [max(turns[name][i].pictures_per_s for name in others) for i in range(len(turns[others[0]]))]
    return {name: [turn.pictures_per_s / b for turn, b in zip(found, best, strict=True)] for name, found in turns.items()}


def table(title: str, turns: dict[str, list[Turn]]) -> list[str]:
    lines = [
        f"| {title} | pictures/s, median (lowest to highest) | processor s a 1000 | over the better of the two others (lowest turn) |",
        "| --- | --- | --- | --- |",
    ]
    over = ratios(turns)
    for name, found in turns.items():
        rates = [turn.pictures_per_s for turn in found]
        cpu = median(turn.cpu_s_per_1000 for turn in found)
        rate = f"{median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        lines.append(f"| {name} | {rate} | {cpu:.2f} | {median(over[name]):.2f} ({min(over[name]):.2f}) |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures and one turn, to try the script")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    number, rounds, steps = (1000, 1, 12) if options.quick else (4000, 3, 60)
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's workers stand back by 15 otherwise, the loader's do not
    import ray.data

    base = load_base("miniature")
    spec = miniature.domain_spec(DOMAIN)
    head = base.head(spec.class_names, spec.templates)
    mock: dict[str, list[Turn]] = {}
    real: dict[str, list[Turn]] = {}
    ray.init(num_cpus=NUM_WORKERS + 1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as scratch:
        files = draw(Path(scratch), number)
        began, cpu = time.monotonic(), time.process_time()
        (shards := Path(scratch) / "shards").mkdir()
        parts = write_shards(files, shards, base.preprocessing)
        once = {"seconds": time.monotonic() - began, "cpu_s": time.process_time() - cpu}
        at_random = TrainingData(
            PictureShards([part.path for part in parts]), torch.cat([part.class_ids for part in parts]), base.preprocessing
        )
        ways: dict[str, BatchSource] = {
            OURS[0]: ShardStream([LocalShard(part) for part in parts], NUM_SHARDS_IN_WINDOW, base.preprocessing, False),
            OURS[1]: at_random,
            "torch DataLoader, 2 workers": torch_loader(files, base.preprocessing),
            "Ray Data, iter_torch_batches": ray_data(files, base.preprocessing),
        }
        for _ in range(rounds):
            for name, source in ways.items():
                mock.setdefault(name, []).append(mocked(source, steps))
                real.setdefault(name, []).append(trained(source, max(steps // 2, 8), base, head))
                print(name, mock[name][-1], real[name][-1], flush=True)
    ray.shutdown()
    others = [name for name in ways if name not in OURS]
    saved = min(median(t.cpu_s_per_1000 for t in mock[n]) for n in others) - median(t.cpu_s_per_1000 for t in mock[OURS[0]])
    epochs = once["cpu_s"] / (saved * number / 1000)
    flag = " --quick" if options.quick else ""
    machine = f"{os.cpu_count()} cores of {cpu_name()}, torch {torch.__version__}, ray {ray.__version__}, load {os.getloadavg()[2]:.0f}"
    lines = [
        f"Made by `python -m benchmarks.ingest{flag}` on {machine}: {number} drawn JPEGs of {SIZE} pixels, batches of {BATCH} at "
        f"{base.preprocessing.image_size} pixels, {rounds} turns.",
        "",
        *table("mocked step", mock),
        *table("the miniature's training step", real),
        f"The shards are decoded once: {once['cpu_s']:.1f} processor seconds ({once['seconds']:.1f} s by the clock, one process) for "
        f"{number} pictures, {1000 * once['cpu_s'] / number:.2f} a thousand. The cheaper of the two others spends {saved:.2f} processor "
        f"seconds a thousand more than the shards each epoch: paid after {epochs:.1f} epochs.",
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "ingest.md").write_text("\n".join(lines) + "\n")
    results = {"machine": machine, "once": once, "break_even_epochs": epochs}
    for kind, found in (("mocked", mock), ("trained", real)):
        results[kind] = {name: [vars(turn) for turn in turns] for name, turns in found.items()}  # type: ignore[assignment]
    (options.out / "ingest.json").write_text(json.dumps(results, indent=1))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
