"""What each stage computes: plain functions of the plan and the store, the same in this process, on a laptop and on a cluster.

Every function returns an artifact that exists already, or computes and publishes it. Which process runs which function is the matter of
`labelling`, `training` and `search`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from core import miniature
from core.checkpoints import FileCheckpoint
from core.data.domains import Domain, PictureError, decode_picture, read_domain, validation_indices, write_parquet_split
from core.finetune import Progress, finetune
from core.games.attribution_labels import AttributionLabels, Labeller
from core.model import Base, SelfExplainingClassifier, load_base
from core.task_vectors import TaskVector
from core.training_data import PicturesInMemory, TrainingData
from sweep.experiment.config import ConfigError, DataSettings
from sweep.experiment.suites import DRAWN
from sweep.stages.label_files import read_labels, write_labels
from sweep.stages.plan import LabelSplit, Plan, Stage
from sweep.store.artifacts import Artifact, Store

SPLITS = ("train", "validation", "test")
DRAWING_VERSION = 1


class CorruptPicturesError(ValueError):
    """More pictures of a domain than allowed cannot be read."""


@dataclass(frozen=True)
class PictureSplit:
    """A split's pictures. pixels: uint8 [N, 3, S, S], memory-mapped; class_ids: [N]; ids: N picture ids."""

    pixels: NDArray[np.uint8]
    class_ids: NDArray[np.int64]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def tensor(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The pixels of a range, in memory."""
        return torch.from_numpy(np.array(self.pixels[start:stop]))


def run(store: Store, stage: Stage, compute: Callable[[Path], Mapping[str, Any] | None], wait: bool = True) -> Artifact | None:
    """The stage's artifact, computed if it does not exist. None with wait=False while another process computes it."""
    return store.get_or_compute(
        stage.key,
        stage=stage.kind,
        params={"name": stage.name, **stage.params},
        inputs=stage.inputs,
        compute=compute,
        wait=wait,
    )


# ---------------------------------------------------------------- pictures


def domain_facts_of_drawing(name: str, data: DataSettings) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Fingerprint, class names and templates of a drawn domain, without drawing it."""
    try:
        spec = miniature.domain_spec(name)
    except ValueError as error:
        raise ConfigError(f"the miniature suite has no domain {name!r}: choose among {', '.join(miniature.DOMAIN_NAMES)}") from error
    fingerprint = f"drawn/{DRAWING_VERSION}/{name}/{data.max_train_pictures}/{data.max_test_pictures}/{data.seed}"
    return fingerprint, spec.class_names, spec.templates


def _draw(name: str, data: DataSettings, directory: Path) -> Domain:
    """Draw a domain of the miniature suite to Parquet and read it as any other."""
    spec = miniature.domain_spec(name)
    numbers: dict[Literal["train", "test"], int | None] = {"train": data.max_train_pictures, "test": data.max_test_pictures}
    for split, number in numbers.items():
        pictures, class_ids = miniature.draw_split(name, split, number or 500, data.seed)
        write_parquet_split(directory / f"{split}.parquet", pictures, class_ids, spec.class_names)
    return read_domain(str(directory), name=name, templates=spec.templates)


def compute_pictures(plan: Plan, store: Store, domain: str) -> Artifact:
    """Decode and resize a domain's pictures. Pictures that cannot be read are skipped and named in the manifest.

    Raises CorruptPicturesError when their share is larger than `max_corrupt_share`.
    """
    data, source = plan.config.data, plan.source(domain)

    def compute(directory: Path) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            if source.location.startswith(DRAWN):
                read = _draw(source.location.removeprefix(DRAWN), data, Path(scratch))
            else:
                read = read_domain(source.location, name=domain, templates=source.templates)
                if read.fingerprint != plan.domains[domain].fingerprint:
                    raise ConfigError(f"the files of {domain} changed while the sweep ran: start the sweep again")
            return _write_pictures(plan, read, directory)

    artifact = run(store, plan.pictures(domain), compute)
    assert artifact is not None
    return artifact


def _write_pictures(plan: Plan, domain: Domain, directory: Path) -> dict[str, Any]:
    data = plan.config.data
    train_ids = domain.splits["train"].ids
    train, validation = validation_indices(train_ids, data.validation_share, data.seed)
    limits = {"train": data.max_train_pictures, "validation": None, "test": data.max_test_pictures}
    if data.max_train_pictures is not None:
        num_validation = max(1, round(data.max_train_pictures * data.validation_share))
        limits |= {"validation": num_validation, "train": data.max_train_pictures - num_validation}
    indices = {"train": train, "validation": validation, "test": np.arange(len(domain.splits["test"]))}
    skipped: list[dict[str, str]] = []
    counts: dict[str, int] = {}
    num_seen = 0
    for split in SPLITS:
        origin = domain.splits["test" if split == "test" else "train"]
        index = _limited(indices[split], limits[split], data.seed)
        num_seen += len(index)
        counts[split] = _write_split(plan, origin, index, directory, split, skipped)
    share = len(skipped) / num_seen
    if share > data.max_corrupt_share:
        named = "; ".join(f"{s['id']}: {s['reason']}" for s in skipped[:5])
        raise CorruptPicturesError(
            f"{len(skipped)} of {num_seen} pictures of {domain.name} cannot be read ({share:.1%}, allowed {data.max_corrupt_share:.1%}): "
            f"{named}. Mend them, or allow more with --max-corrupt-share"
        )
    empty = [split for split in SPLITS if counts[split] == 0]
    if empty:
        raise CorruptPicturesError(f"no picture of {domain.name}/{empty[0]} is left: add pictures to it")
    return {"counts": counts, "skipped": skipped}


def _limited(index: NDArray[np.int64], most: int | None, seed: int) -> NDArray[np.int64]:
    """A seeded random choice of at most `most` of the indices, in order."""
    if most is None or len(index) <= most:
        return index
    return np.sort(np.random.default_rng(seed).choice(index, most, replace=False))


def _write_split(
    plan: Plan, origin: Any, index: NDArray[np.int64], directory: Path, split: str, skipped: list[dict[str, str]]
) -> int:
    """Write one split's pixels, class ids and picture ids; returns the number of pictures."""
    size = plan.preprocessing.image_size
    pixels = np.lib.format.open_memmap(
        directory / f"{split}.pixels.npy", mode="w+", dtype=np.uint8, shape=(max(1, len(index)), 3, size, size)
    )
    kept: list[int] = []
    for i in index.tolist():
        try:
            picture = plan.preprocessing.pixels(decode_picture(origin.read_bytes(i)))
        except PictureError as error:
            skipped.append({"split": split, "id": origin.ids[i], "reason": str(error)})
            continue
        pixels[len(kept)] = picture
        kept.append(i)
    pixels.flush()
    text = {"ids": [origin.ids[i] for i in kept], "class_ids": [int(origin.class_ids[i]) for i in kept]}
    (directory / f"{split}.json").write_text(json.dumps(text))
    return len(kept)


@lru_cache(maxsize=32)
def _open_split(text_file: str, pixels_file: str) -> PictureSplit:
    text = json.loads(Path(text_file).read_text())
    pixels = np.load(pixels_file, mmap_mode="r")
    return PictureSplit(pixels[: len(text["ids"])], np.array(text["class_ids"], dtype=np.int64), text["ids"])


def load_pictures(plan: Plan, store: Store, domain: str, split: str) -> PictureSplit:
    """A split of a domain whose pictures stage is done."""
    artifact = store.open(plan.pictures(domain).key)
    return _open_split(str(artifact.path(f"{split}.json")), str(artifact.path(f"{split}.pixels.npy")))


def count_pictures(plan: Plan, store: Store, domain: str) -> dict[str, int]:
    """Pictures in each split of a domain whose pictures stage is done."""
    return dict(store.open(plan.pictures(domain).key).manifest["meta"]["counts"])


# ---------------------------------------------------------------- models


@lru_cache(maxsize=2)
def cached_base(name: str) -> Base:
    return load_base(name)


@lru_cache(maxsize=64)
def _cached_head(base_name: str, class_names: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
    return cached_base(base_name).head(class_names, templates)


def zero_shot(plan: Plan, domain: str) -> SelfExplainingClassifier:
    """The base's weights with the domain's head."""
    facts = plan.domains[domain]
    base = cached_base(plan.config.base)
    if base.fingerprint != plan.base_fingerprint:
        raise ConfigError(f"the base {plan.config.base} changed while the sweep ran: start the sweep again")
    return base.classifier(_cached_head(plan.config.base, tuple(facts.class_names), tuple(facts.templates)))


def compute_model(
    plan: Plan,
    store: Store,
    domain: str,
    alpha: float,
    *,
    wait: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> Artifact | None:
    """Train one model (alpha = 1: prediction-only). A killed training continues from its checkpoint."""
    stage = plan.model(domain, alpha)

    def compute(directory: Path) -> dict[str, Any]:
        pictures = load_pictures(plan, store, domain, "train")
        number = len(pictures)
        labels: Tensor | None = None
        if alpha < 1.0:
            labelled = load_labels(plan, store, domain, "train")
            number = len(labelled)
            labels = torch.from_numpy(labelled.attributions)
        data = TrainingData(
            PicturesInMemory(pictures.tensor(0, number)), torch.from_numpy(pictures.class_ids[:number]), plan.preprocessing, labels
        )
        classifier = zero_shot(plan, domain).to(plan.config.device)
        recipe = type(plan.config.recipe)(**stage.params["recipe"])
        checkpoint = FileCheckpoint(store.checkpoint_directory / f"{stage.key}.checkpoint")
        history = finetune(classifier, data, recipe, alpha, checkpoint=checkpoint, on_progress=on_progress)
        save_file({k: v.contiguous().cpu() for k, v in classifier.visual.state_dict().items()}, directory / "visual.safetensors")
        (directory / "history.json").write_text(json.dumps([asdict(point) for point in history]))
        return {"num_pictures": number, "final_loss": history[-1].loss}

    return run(store, stage, compute, wait)


def load_weights(plan: Plan, store: Store, domain: str, alpha: float) -> dict[str, Tensor]:
    """Image-tower weights of a trained model."""
    return _load_file(str(store.open(plan.model(domain, alpha).key).path("visual.safetensors")))


@lru_cache(maxsize=6)
def _load_file(path: str) -> dict[str, Tensor]:
    return load_file(path)


def load_classifier(plan: Plan, store: Store, domain: str, alpha: float) -> SelfExplainingClassifier:
    """A trained model on the sweep's device."""
    classifier = zero_shot(plan, domain)
    classifier.visual.load_state_dict(load_weights(plan, store, domain, alpha))
    return classifier.to(plan.config.device)


def target_task_vector(plan: Plan, store: Store, domain: str) -> TaskVector:
    """tau_ft: prediction-only minus base."""
    base = dict(cached_base(plan.config.base).visual.state_dict())
    return TaskVector.between(load_weights(plan, store, domain, 1.0), base, plan.base_fingerprint)


def explainability_vector(plan: Plan, store: Store, domain: str, alpha: float) -> TaskVector:
    """tau_star: self-explaining minus prediction-only, of one domain."""
    return TaskVector.between(
        load_weights(plan, store, domain, alpha), load_weights(plan, store, domain, 1.0), plan.base_fingerprint
    )


# ---------------------------------------------------------------- labels


def compute_label_shard(
    plan: Plan, store: Store, domain: str, split: LabelSplit, start: int, stop: int, batch_size: int = 64
) -> Artifact:
    """Label the pictures start .. stop - 1 of a split with the domain's prediction-only model."""

    def compute(directory: Path) -> dict[str, Any]:
        pictures = load_pictures(plan, store, domain, "test" if split == "ceiling" else split)
        classifier = _cached_prediction_only(plan, store, domain)
        settings = plan.label_settings(split)
        labeller = Labeller(classifier, settings, role=split, batch_size=batch_size)
        inputs = plan.preprocessing.normalise(pictures.tensor(start, stop).to(plan.config.device))
        class_ids = torch.from_numpy(pictures.class_ids[start:stop]).to(plan.config.device)
        labels = labeller.label(inputs, class_ids, pictures.ids[start:stop])
        provenance = {"label_set": plan.label_set(domain, split).key, "grid": plan.preprocessing.image_size, **asdict(settings)}
        path = directory / "labels.parquet"
        write_labels(path, pictures.ids[start:stop], pictures.class_ids[start:stop], labels, provenance)
        evaluator = labeller.evaluator
        return {
            "num_pictures": stop - start,
            "evaluations": evaluator.num_evaluations,
            "evaluation_seconds": round(evaluator.seconds, 3),
        }

    artifact = run(store, plan.label_shard(domain, split, start, stop), compute)
    assert artifact is not None
    return artifact


_last_classifier: tuple[str, SelfExplainingClassifier] | None = None


def _cached_prediction_only(plan: Plan, store: Store, domain: str) -> SelfExplainingClassifier:
    """The classifier to label with: shards come domain by domain, so that the last one is usually the right one."""
    global _last_classifier
    key = plan.prediction_only(domain).key
    if _last_classifier is None or _last_classifier[0] != key:
        _last_classifier = (key, load_classifier(plan, store, domain, 1.0))
    return _last_classifier[1]


def load_labels(plan: Plan, store: Store, domain: str, split: LabelSplit) -> AttributionLabels:
    """All labels of a split, in the order of its pictures (the first ones, where fewer are labelled)."""
    count = count_pictures(plan, store, domain)["test" if split == "ceiling" else split]
    shards = [plan.label_shard(domain, split, *bounds) for bounds in plan.shard_ranges(count, split)]
    return _load_shards(tuple(str(store.open(shard.key).path("labels.parquet")) for shard in shards))


@lru_cache(maxsize=64)
def _load_shards(paths: tuple[str, ...]) -> AttributionLabels:
    return AttributionLabels.concatenate([read_labels(Path(path))[1] for path in paths])
