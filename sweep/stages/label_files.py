"""Attribution labels as Parquet that any reader opens: fixed-size lists of float32, no tensor extension."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.games.attribution_labels import AttributionLabels
from sweep.store.artifacts import Artifact

METADATA_KEY = "attribution_labels"


def write_labels(
    path: Path,
    ids: Sequence[str],
    class_ids: NDArray[np.int64],
    labels: AttributionLabels,
    provenance: Mapping[str, Any],
) -> None:
    """Write the labels of N pictures.

    Columns: id, class_id, attributions [M], standard_error [M], value_empty, value_full, perturbation_values [I] (where there are
    any), budget. `provenance` goes into the file's metadata as JSON.
    """
    columns: dict[str, pa.Array] = {"id": pa.array(list(ids)), "class_id": pa.array(class_ids)}
    for field in fields(labels):
        values = np.ascontiguousarray(getattr(labels, field.name))
        if values.ndim == 2 and values.shape[1] == 0:
            continue  # Parquet has no lists of length 0
        flat = pa.array(values.ravel())
        columns[field.name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat
    table = pa.table(columns).replace_schema_metadata({METADATA_KEY: json.dumps(provenance, sort_keys=True)})
    pq.write_table(table, path)


def read_labels(file: Path | BinaryIO) -> tuple[list[str], AttributionLabels]:
    """Picture ids and labels of a file."""
    table = pq.read_table(file)

    def column(name: str) -> NDArray[Any]:
        if name not in table.column_names:
            return np.empty((len(table), 0), dtype=np.float32)
        values = table[name].combine_chunks()
        if pa.types.is_fixed_size_list(values.type):
            return values.flatten().to_numpy().reshape(len(values), values.type.list_size)
        return values.to_numpy()

    return table["id"].to_pylist(), AttributionLabels(**{f.name: column(f.name) for f in fields(AttributionLabels)})


def read_attributions(file: Path | BinaryIO) -> NDArray[np.float32]:
    """The attributions of a file alone. [N, M]"""
    column = pq.read_table(file, columns=["attributions"])["attributions"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), column.type.list_size)


def count_labels(file: Path | BinaryIO) -> int:
    """Labels of a file, by its footer."""
    return pq.read_metadata(file).num_rows


@dataclass(frozen=True, eq=False)
class AttributionRanges:
    """The attributions of N labels in several files, read a range at a time.

    files: artifact and name of each, in their order. starts: number of the first label of each, and of the end. order [N]: which of the
    files' labels come first, second and so on; None: as they stand.
    """

    files: tuple[tuple[Artifact, str], ...]
    starts: NDArray[np.int64]
    order: NDArray[np.int64] | None = None

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """The attributions start .. stop - 1, from the files that hold them. [stop - start, M]"""
        wanted = np.arange(start, stop) if self.order is None else self.order[start:stop]
        file_of = np.searchsorted(self.starts, wanted, side="right") - 1
        found: NDArray[np.float32] | None = None
        for number in np.unique(file_of).tolist():
            artifact, name = self.files[number]
            with artifact.borrowed(name) as path:
                attributions = read_attributions(path)
            here = file_of == number
            if found is None:
                found = np.empty((len(wanted), attributions.shape[1]), dtype=np.float32)
            found[here] = attributions[wanted[here] - self.starts[number]]
        assert found is not None, "an empty range of labels"
        return found


def read_provenance(file: Path | BinaryIO) -> dict[str, Any]:
    """What made the labels of a file, from its metadata."""
    return json.loads(pq.read_schema(file).metadata[METADATA_KEY.encode()])
