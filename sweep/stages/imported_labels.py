"""Train labels that the label command wrote or the user brings, taken for a domain of a sweep: checked, joined to its pictures by id."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Container, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.games.attribution_labels import AttributionLabels, LabelSettings
from sweep.experiment.config import ConfigError
from sweep.stages.brought_labels import BroughtLabels
from sweep.stages.label_files import AttributionRanges, count_labels, read_labels, write_labels
from sweep.stages.labels import MEAN_MAP, LabelMeans, LabelSet
from sweep.stages.pictures import Pictures
from sweep.stages.stage import ChildRun, Stage
from sweep.store.artifacts import Artifact, Store
from sweep.store.files import FileTree

SETTINGS = "labels.json"
SAME_GAME = ("value", "label_scale", "fill")
"""Settings in which a game differs from another; train and test labels must be of one game."""


@dataclass(frozen=True)
class LabelledData:
    """What the label command wrote. fingerprint: of its settings and the names of its files; key: as its labels.json says.

    model_name, model_fingerprint, model_base: of the classifier that the labels explain, and of the base that it was trained from.
    """

    location: str
    fingerprint: str
    key: str
    model_name: str
    model_fingerprint: str
    model_base: str

    @staticmethod
    def look_at(location: str, domain: str, wanted: LabelSettings) -> LabelledData:
        """Read what must be known before work starts. Raises ConfigError, with the fix, for labels that do not suit the sweep."""
        files = FileTree(location, option="--labels")
        content = files.read(SETTINGS)
        if content is None:
            raise ConfigError(
                f"--labels {domain}={files} holds no {SETTINGS}: give a directory that `python -m sweep.run label` wrote, or Parquet of "
                "your own with the columns id and attributions"
            )
        try:
            settings = json.loads(content)
            number, role, key = int(settings["shards"]), str(settings["role"]), str(settings["key"])
            made = {name: settings["settings"][name] for name in SAME_GAME}
            model = {name: str(settings["model"][name]) for name in ("name", "fingerprint", "base")}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{SETTINGS} of --labels {domain}={files} is damaged, or of a version before 0.2, whose labels of different splits share "
                f"coalitions ({type(error).__name__}: {error}): label again"
            ) from None
        names = files.names("data")
        if len(names) < number:
            raise ConfigError(f"--labels {domain}={files} has {len(names)} of {number} shards: finish it with the same label command")
        if role in ("validation", "test", "ceiling"):
            raise ConfigError(
                f"--labels {domain}={files} are of the split {role!r}, and share coalitions with the sweep's own {role} labels: give "
                "labels of the train split"
            )
        for name in SAME_GAME:
            if made[name] != getattr(wanted, name):
                games = f"{name} {made[name]}, the sweep's {getattr(wanted, name)}"
                raise ConfigError(f"--labels {domain}={files} explain another game ({games}): label with the same {name}")
        digest = hashlib.sha256(content + "\n".join(names).encode()).hexdigest()
        return LabelledData(files.url, digest, key, **{f"model_{name}": value for name, value in model.items()})

    @property
    def provenance(self) -> dict[str, Any]:
        return {"imported_from": self.key}

    def check_base(self, domain: str, fingerprint: str) -> None:
        """Raises ConfigError where the labels explain models of another base."""
        if self.model_base != fingerprint:
            other = f"{self.model_name}, of another base than the sweep's"
            raise ConfigError(f"--labels {domain}={self.location} explain {other}: label with that")

    def shards(self) -> Iterator[tuple[list[str], AttributionLabels]]:
        """Picture ids and labels of each file."""
        files = FileTree(self.location, option="--labels")
        for name in files.names("data"):
            with tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / "labels.parquet"
                path.write_bytes(files.read(f"data/{name}") or b"")
                yield read_labels(path)


GivenLabels = LabelledData | BroughtLabels
"""What `--labels` may name."""


def look_at_labels(location: str, domain: str, wanted: LabelSettings, num_patches: int) -> GivenLabels:
    """Read what must be known before work starts. Raises ConfigError, with the fix, for labels that do not suit the sweep."""
    directory, names = BroughtLabels.find(location)
    if names and not (directory == location and FileTree(location, option="--labels").exists(SETTINGS)):
        return BroughtLabels.look_at(directory, names, domain, num_patches)
    return LabelledData.look_at(location, domain, wanted)


@dataclass(frozen=True, eq=False)
class ImportedLabels(LabelSet):
    """A label set whose labels others made. Pictures of the train split without a label are left out of the training.

    Raises ConfigError where no picture has one.
    """

    kind = "imported_labels"
    version = 2
    is_index = False

    pictures: Pictures
    data: GivenLabels
    most: int | None

    @property
    def params(self) -> dict[str, Any]:
        return {"labels": self.data.fingerprint, "max_pictures": self.most}

    @property
    def inputs(self) -> tuple[Stage, ...]:
        return (self.pictures,)

    def compute(self, store: Store, directory: Path) -> dict[str, Any]:
        """Files: labels-NNNNN.parquet, as the label command's, one at a time, and rows.npy, which rows of the split they are."""
        split = self.pictures.load(store, self.split)
        row_of = {picture_id: row for row, picture_id in enumerate(split.ids)}
        means, evaluations = LabelMeans(), 0
        rows: list[NDArray[np.int64]] = []
        for number, (ids, labels) in enumerate(self._shards(row_of)):
            known = np.array([n for n, picture_id in enumerate(ids) if picture_id in row_of], dtype=np.int64)
            known = known if self.most is None else known[: self.most - means.number]
            if not len(known):
                continue
            own = [ids[n] for n in known.tolist()]
            rows.append(np.array([row_of[picture_id] for picture_id in own], dtype=np.int64))
            labels = labels.take(known)
            write_labels(directory / f"labels-{number:05d}.parquet", own, split.class_ids[rows[-1]], labels, self.data.provenance)
            means.add(labels)
            evaluations += int(labels.budget.sum())
        if not rows:
            where = f"no picture of {self.domain}/{self.split} has a label in {self.data.location}"
            named = f"its pictures are named {', '.join(map(repr, split.ids[:2]))} and so on"
            raise ConfigError(f"{where}: it labels other pictures ({named}); give the labels of this data set")
        np.save(directory / "rows.npy", np.concatenate(rows))
        means.save_map(directory / MEAN_MAP)
        fingerprint = self.data.model_fingerprint
        return {**means.as_meta(), "evaluations": evaluations, "seconds": 0.0, "started": 0.0, "model_fingerprint": fingerprint}

    def _shards(self, train_ids: Container[str]) -> Iterator[tuple[list[str], AttributionLabels]]:
        if isinstance(self.data, LabelledData):
            return self.data.shards()
        return self.data.shards(train_ids, self.pictures.shards[0].preprocessing.resize_mode)

    def child_run(self, store: Store) -> ChildRun:
        """Of labels that the user brings, no settings are known."""
        found = super().child_run(store)
        if isinstance(self.data, LabelledData):
            return found
        own = {name: value for name, value in found.params.items() if not name.startswith("label.")}
        return replace(found, params={**own, "labels": "brought by the user", "labels_sha256": self.data.fingerprint})

    def load(self, store: Store) -> AttributionLabels:
        """In the order of `rows`: the pictures', whatever that of the files was."""
        labels = AttributionLabels.concatenate([read_labels(path)[1] for path in self._files(store)])
        return labels.take(np.argsort(self._as_read(store), kind="stable"))

    def attributions(self, store: Store) -> NDArray[np.float32]:
        return super().attributions(store)[np.argsort(self._as_read(store), kind="stable")]

    def attributions_by_range(self, store: Store) -> AttributionRanges:
        artifact = self.artifact(store)
        counts = [count_labels(path) for path in self._files(store)]
        files = tuple((artifact, name) for name in self._names(artifact))
        return AttributionRanges(files, np.cumsum([0, *counts]), np.argsort(self._as_read(store), kind="stable"))

    def _files(self, store: Store) -> list[Path]:
        artifact = self.artifact(store)
        return [artifact.path(name) for name in self._names(artifact)]

    def _names(self, artifact: Artifact) -> list[str]:
        return [name for name in sorted(artifact.manifest["files"]) if name.startswith("labels-")]

    def rows(self, store: Store) -> NDArray[np.int64]:
        return np.sort(self._as_read(store))

    def _as_read(self, store: Store) -> NDArray[np.int64]:
        return np.load(self.artifact(store).path("rows.npy"))


def imported(label_set: LabelSet, pictures: Pictures, data: GivenLabels, most: int | None) -> ImportedLabels:
    """In place of a label set that the sweep would make itself."""
    own = {f.name: getattr(label_set, f.name) for f in fields(LabelSet)}
    return ImportedLabels(**own, pictures=pictures, data=data, most=most)

