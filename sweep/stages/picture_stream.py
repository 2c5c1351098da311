"""A sweep's pictures and labels as a stream of shards, for trainings on more than fits: each comes to the node for its window alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from core.model import Preprocessing
from core.shard_stream import ShardPart, ShardStream
from sweep.stages.label_files import AttributionRanges
from sweep.stages.pictures import Pictures
from sweep.stages.stage import artifacts_of
from sweep.store.artifacts import Artifact, Store

if TYPE_CHECKING:
    from sweep.stages.labels import LabelSet

STREAMED_ABOVE_BYTES = 16e9
"""Pixels of a training's pictures above which it reads shard by shard: about what a node with a GPU keeps in its disk cache."""
WINDOW_SHARDS = 8
"""Shards of 2 000 pictures that are shuffled together, 2.4 GB each window at 224 pixels."""


def stream_window(pictures: Sequence[Pictures], preprocessing: Preprocessing) -> int | None:
    """How many shards a training on these pictures shuffles together; None where all of them are shuffled, since they fit."""
    number = sum(each.domain.count("train") for each in pictures)
    return WINDOW_SHARDS if number * 3 * preprocessing.image_size**2 > STREAMED_ABOVE_BYTES else None


@dataclass(frozen=True, eq=False)
class StoredShard:
    """Pictures of one shard with their labels, in a store.

    rows: which of the shard's pictures are trained on. first_class: number of the domain's first class. labels, first_label: where their
    labels are, in the order of the rows; None without.
    """

    artifact: Artifact
    rows: NDArray[np.int64]
    first_class: int
    labels: AttributionRanges | None
    first_label: int

    def __len__(self) -> int:
        return len(self.rows)

    @contextmanager
    def opened(self) -> Iterator[ShardPart]:
        with self.artifact.borrowed("pictures.json") as path:
            class_ids = torch.tensor(json.loads(path.read_text())["class_ids"], dtype=torch.long)
        rows = torch.from_numpy(self.rows)
        labels = None if self.labels is None else self.labels.read(self.first_label, self.first_label + len(rows))
        with self.artifact.borrowed("pixels.npy") as path:
            yield ShardPart(path, rows, self.first_class + class_ids[rows], None if labels is None else torch.from_numpy(labels))


def picture_stream(
    store: Store,
    pictures: Sequence[Pictures],
    num_classes: Sequence[int],
    labels: Sequence[LabelSet],
    preprocessing: Preprocessing,
    window: int,
    with_labels: bool = True,
) -> ShardStream:
    """The train pictures of some domains side by side, with the labels of each, if any; a picture without one is left out.

    num_classes: of each domain; classes of the later ones follow those of the first. with_labels: False leaves the labels unread.
    """
    shards: list[StoredShard] = []
    first_class = 0
    for n, domain in enumerate(pictures):
        label_set = labels[n] if labels else None
        labelled = None if label_set is None else label_set.rows(store)
        ranges = None if label_set is None or not with_labels else label_set.attributions_by_range(store)
        start = 0
        for artifact in artifacts_of(domain.of_range("train", 0, domain.domain.count("train")), store):
            number = artifact.manifest["meta"]["num_pictures"]
            rows, first_label = np.arange(number), 0
            if labelled is not None:
                first_label, end = np.searchsorted(labelled, (start, start + number)).tolist()
                rows = labelled[first_label:end] - start
            if len(rows):
                shards.append(StoredShard(artifact, rows, first_class, ranges, first_label))
            start += number
        first_class += num_classes[n]
    return ShardStream(shards, window, preprocessing, with_labels and bool(labels))
