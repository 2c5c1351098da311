"""Attributions that the user brings for a domain's training pictures, human annotations say: plain Parquet, a picture a row."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from core.games.attribution_labels import AttributionLabels
from core.patch_grid import patch_means
from sweep.experiment.config import ConfigError
from sweep.stages.label_files import METADATA_KEY
from sweep.store.files import FileTree

MAPS = "attributions"
ROWS_AT_ONCE = 1024
Map = NDArray[np.float64]
"""Of a picture: [g * g] patches row by row, or [H, W]."""


@dataclass(frozen=True)
class BroughtLabels:
    """Parquet files of the user's, with the columns `attributions` and `id`.

    attributions: a list of g * g numbers, the patches row by row, or a list of rows, a map of the whole picture, which is averaged over
    each patch (`core.patch_grid`). They are taken as they are: in the unit of the game, as the model is to give them. A picture without
    attributions (null) has no label.
    id: as the domain's reader names the picture (`train/cats/1.png`, `train/000012.png`); `path`, or the `path` of the pictures in a
    column `image`, do where there is no `id`. The split's name may be left out.
    location, names: where the files lie; fingerprint: checksum of their content and of the grid; num_patches: M, g * g.
    """

    location: str
    names: tuple[str, ...]
    fingerprint: str
    num_patches: int

    model_fingerprint = "brought by the user"
    """In place of that of a model that the labels explain."""

    @property
    def provenance(self) -> dict[str, Any]:
        files = FileTree(self.location, option="--labels")
        return {"imported_from": "brought by the user", "location": str(files), "files": list(self.names), "sha256": self.fingerprint}

    @staticmethod
    def find(location: str) -> tuple[str, tuple[str, ...]]:
        """Directory and names of the Parquet file, or of those in the directory, at a location; no names where there are none."""
        if location.lower().endswith(".parquet"):
            directory, _, name = location.rpartition("/")
            return directory or ("/" if location.startswith("/") else "."), (name,)
        names = FileTree(location, option="--labels").names("")
        return location, tuple(name for name in names if name.lower().endswith(".parquet"))

    @staticmethod
    def look_at(directory: str, names: Sequence[str], domain: str, num_patches: int) -> BroughtLabels:
        """Read everything once, before work starts. Raises ConfigError, with the file, the row and the fix."""
        files = FileTree(directory, option="--labels")
        brought = BroughtLabels(files.url, tuple(names), _checksum(files, names, num_patches), num_patches)
        seen: dict[str, str] = {}
        for name in names:
            where = f"--labels {domain}={files}: {name}"
            for row, (picture_id, _) in enumerate(_rows(files, name, where, num_patches)):
                if picture_id in seen:
                    raise ConfigError(f"{where}, row {row} (from 0): {picture_id!r} is in {seen[picture_id]} too: give one row a picture")
                seen[picture_id] = name
        if not seen:
            raise ConfigError(f"--labels {domain}={files} holds no attributions: give a row a picture")
        return brought

    def check_base(self, domain: str, fingerprint: str) -> None:
        """They explain no model, and so suit every base."""

    def shards(self, train_ids: Container[str], resize_mode: str) -> Iterator[tuple[list[str], AttributionLabels]]:
        """Picture ids and labels, some rows at a time. train_ids: of the pictures; resize_mode: how they become the tower's input.

        Raises ConfigError where the files changed since they were looked at, or a picture has two rows.
        """
        files = FileTree(self.location, option="--labels")
        if _checksum(files, self.names, self.num_patches) != self.fingerprint:
            raise ConfigError(f"the labels in {files} changed while they were in use: start again")
        grid, given = math.isqrt(self.num_patches), set[str]()
        ids: list[str] = []
        maps: list[NDArray[np.float32]] = []
        for name in self.names:
            for picture_id, found in _rows(files, name, f"{files}/{name}", self.num_patches):
                if picture_id not in train_ids and f"train/{picture_id}" in train_ids:
                    picture_id = f"train/{picture_id}"
                if picture_id in given:
                    raise ConfigError(f"{files}/{name}: {picture_id!r} has two rows, one without the split's name: give one row a picture")
                given.add(picture_id)
                ids.append(picture_id)
                maps.append(found.astype(np.float32) if found.ndim == 1 else patch_means(found, grid, resize_mode))
                if len(ids) == ROWS_AT_ONCE:
                    yield ids, _labels(maps)
                    ids, maps = [], []
        if ids:
            yield ids, _labels(maps)


def _labels(maps: Sequence[NDArray[np.float32]]) -> AttributionLabels:
    """Nothing is known of them but themselves."""
    attributions = np.stack(maps)
    number, unknown = len(maps), np.full(len(maps), np.nan, np.float32)
    errors = np.full_like(attributions, np.nan)
    return AttributionLabels(attributions, errors, unknown, unknown, np.empty((number, 0), np.float32), np.zeros(number, np.int32))


def _checksum(files: FileTree, names: Sequence[str], num_patches: int) -> str:
    digest = hashlib.sha256(json.dumps([list(names), num_patches]).encode())
    for name in names:
        try:
            with files.open(name) as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except FileNotFoundError:
            raise ConfigError(f"there is no file {files}/{name}: check the path given to --labels") from None
    return digest.hexdigest()


def _rows(files: FileTree, name: str, where: str, num_patches: int) -> Iterator[tuple[str, Map]]:
    """Id and map of every picture of a file that has one. Raises ConfigError."""
    try:
        with files.open(name) as file, pq.ParquetFile(file) as parquet:
            ids_column = _check_columns(parquet.schema_arrow, where)
            first = 0
            for batch in parquet.iter_batches(ROWS_AT_ONCE, columns=[ids_column, MAPS]):
                ids = pc.struct_field(batch["image"], "path") if ids_column == "image.path" else batch[ids_column]
                for row, (picture_id, cell) in enumerate(zip(ids.to_pylist(), batch[MAPS], strict=True), first):
                    if cell.is_valid:
                        if not picture_id:
                            raise ConfigError(f"{where}, row {row} (from 0): the picture's id is missing: name the picture")
                        yield str(picture_id), _map(cell.values, f"{where}, row {row} (from 0)", num_patches)
                first += len(batch)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} is not a Parquet file, or is damaged ({error}): write it again") from error
    except OSError as error:
        if type(error) is not OSError or error.errno is not None:  # Arrow reports damaged pages as a bare OSError
            raise
        raise ConfigError(f"{where} is damaged ({error}): write it again") from error


def _check_columns(schema: pa.Schema, where: str) -> str:
    """The column of the ids."""
    if METADATA_KEY.encode() in (schema.metadata or {}):
        raise ConfigError(f"{where} was written by `python -m sweep.run label`: give the directory that holds its labels.json")
    there = f"it has: {', '.join(schema.names)}"
    if MAPS not in schema.names:
        raise ConfigError(f"{where} has no column {MAPS!r} ({there}): rename the column that holds the maps")
    kind, depth = schema.field(MAPS).type, 0
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind, depth = kind.value_type, depth + 1
    if depth not in (1, 2) or not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise ConfigError(f"{where}: {MAPS} is {schema.field(MAPS).type}: give a list of numbers, or a list of rows of numbers")
    image = schema.field("image").type if "image" in schema.names else pa.null()
    for name in ("id", "path"):
        if name in schema.names:
            return name
    if pa.types.is_struct(image) and image.get_field_index("path") >= 0:
        return "image.path"
    raise ConfigError(f"{where} has no column 'id' ({there}): add one that names the pictures as the data set does")


def _map(values: pa.Array, where: str, num_patches: int) -> Map:
    """A cell's numbers, checked."""
    shape: tuple[int, ...] = (len(values),)
    if not pa.types.is_primitive(values.type):
        lengths = sorted(set(pc.fill_null(pc.list_value_length(values), 0).to_pylist()))
        if len(lengths) != 1 or not lengths[0]:
            raise ConfigError(f"{where}: the rows of a map must be of one length, not {lengths[:5]}: make it rectangular")
        shape, values = (len(values), lengths[0]), values.flatten()
    elif len(values) != num_patches:
        side = math.isqrt(num_patches)
        raise ConfigError(
            f"{where}: {len(values)} attributions for the base's {side} x {side} patches: give {num_patches}, row by row, or a map of "
            "the picture as a list of rows"
        )
    found = np.asarray(values.to_numpy(zero_copy_only=False)).astype(np.float64).reshape(shape)
    if values.null_count or not np.isfinite(found).all():
        raise ConfigError(f"{where}: an attribution is no finite number: correct it, or leave the picture's attributions null")
    return found
