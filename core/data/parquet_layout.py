"""Parquet in the Hugging Face image layout: `image` struct<bytes, path>, `label`, class names in the schema."""

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.data.directory import READ_AHEAD_BYTES, DataDirectory, DomainError
from core.data.parquet_split import ParquetSplit, Shard, reading_parquet
from core.data.pictures import encode_png

_log = logging.getLogger(__name__)

# A split is named by its files (train.parquet, train-00000-of-00002.parquet, train_0.parquet) or their folder.
SPLIT_NAMES = {"train": "train", "test": "test", "validation": "validation", "valid": "validation", "val": "validation"}
# After the split's name come shard numbers and the like only: test-noisy.parquet is another split, not a part of test.
_SPLIT_FILE = re.compile(
    r"(train|test|validation|valid|val)(?:[-_.]?(?:\d+|of|part|shard|[0-9a-f]{16}))*\.parquet", re.I
)
_SHARD_NUMBER = re.compile(r"-(\d{5})-of-(\d{5})")

_LABEL_COLUMNS = ("label", "fine_label")
_ROW_GROUP_ROWS = 256
_LARGE_ROW_GROUP_BYTES = 2**30


class WithheldLabelsError(DomainError):
    """A split whose labels are all -1, as benchmarks publish their test split."""


def find_parquet_splits(files: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Parquet files by the folder of their data set ("" is the top), then by split: train, test, validation."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        path = PurePosixPath(file)
        if path.suffix.lower() != ".parquet":
            continue
        match = _SPLIT_FILE.fullmatch(path.name)
        if path.parent.name.lower() in SPLIT_NAMES:
            found[str(path.parent.parent)][SPLIT_NAMES[path.parent.name.lower()]].append(file)
        elif match is not None:
            found[str(path.parent)][SPLIT_NAMES[match[1].lower()]].append(file)
    return {("" if base == "." else base): dict(splits) for base, splits in found.items()}


def read_parquet_split(
    directory: DataDirectory, name: str, relatives: Sequence[str]
) -> tuple[ParquetSplit, tuple[str, ...], list[str]]:
    """The split in these shards, its class names, and the files it consists of. Decodes nothing. Raises DomainError."""
    _check_shards_complete(directory, name, relatives)
    shards = [_read_shard(directory, relative) for relative in relatives]
    for shard in shards[1:]:
        if shard.class_names != shards[0].class_names:
            raise DomainError(
                f"{directory.describe(shard.relative)} and {directory.describe(relatives[0])} name different classes "
                "in their schemas; write all shards with the same ClassLabel"
            )
    files = list(relatives)
    for shard in shards:
        for row in shard.outside_rows:
            files.append(_check_outside_picture(directory, shard, row))
    return ParquetSplit(directory, name, shards), shards[0].class_names, sorted(set(files))


def write_parquet_split(
    path: str | os.PathLike[str], pictures: np.ndarray, class_ids: np.ndarray, class_names: Sequence[str]
) -> None:
    """Write uint8 pictures [N, H, W, 3] and class ids [N] as one Parquet file, pictures as PNG; same input, same bytes.

    The file appears whole or not at all. Raises ValueError where shapes, types or class ids do not fit.
    """
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise ValueError(f"pictures must be uint8 [N, H, W, 3], not {pictures.dtype} {list(pictures.shape)}")
    if class_ids.shape != pictures.shape[:1] or not np.issubdtype(class_ids.dtype, np.integer):
        raise ValueError(
            f"class_ids must be {pictures.shape[0]} integers, not {class_ids.dtype} {list(class_ids.shape)}"
        )
    if len(class_ids) and not (class_ids.min() >= 0 and class_ids.max() < len(class_names)):
        raise ValueError(f"class_ids must lie in 0 .. {len(class_names) - 1}, one for each of class_names")
    features = {"image": {"_type": "Image"}, "label": {"names": list(class_names), "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.unfinished")
    try:
        with pq.ParquetWriter(unfinished, schema, compression="none") as writer:
            for start in range(0, len(pictures), _ROW_GROUP_ROWS):
                rows = range(start, min(start + _ROW_GROUP_ROWS, len(pictures)))
                images = [{"bytes": encode_png(pictures[row]), "path": f"{row:06d}.png"} for row in rows]
                labels = [int(class_ids[row]) for row in rows]
                writer.write_table(pa.table({"image": images, "label": labels}, schema=schema))
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_shards_complete(directory: DataDirectory, name: str, relatives: Sequence[str]) -> None:
    numbers = [tuple(map(int, match.groups())) for file in relatives if (match := _SHARD_NUMBER.search(file))]
    if not numbers:
        return
    totals = {total for _, total in numbers}
    if len(totals) > 1 or len(numbers) < len(relatives):
        raise DomainError(
            f"{directory} holds the files of more than one writing of split {name!r} ({', '.join(relatives[:4])} ...); "
            "remove those that do not belong"
        )
    (total,) = totals
    missing = sorted(set(range(total)) - {number for number, _ in numbers})
    if missing:
        raise DomainError(
            f"{directory} lacks {len(missing)} of the {total} shards of split {name!r}, number {missing[0]:05d} first; "
            "copy them there"
        )


def _read_shard(directory: DataDirectory, relative: str) -> Shard:
    where = directory.describe(relative)
    with reading_parquet(directory, relative, DomainError), directory.open(relative) as file:
        metadata = pq.read_metadata(file)
    # The labels of small row groups lie close together: to read what is between them takes fewer requests.
    num_bytes = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    with (
        reading_parquet(directory, relative, DomainError),
        directory.open(relative, read_ahead=num_bytes < metadata.num_row_groups * READ_AHEAD_BYTES) as file,
        pq.ParquetFile(file, metadata=metadata, pre_buffer=True) as parquet,
    ):
        schema = parquet.schema_arrow
        label_column = _check_schema(schema, where)
        class_names = _read_class_names(schema, label_column, where)
        has_path = schema.field("image").type.get_field_index("path") >= 0
        table = parquet.read(columns=[label_column, "image.path"] if has_path else [label_column])
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        if sum(group.num_rows for group in groups) != len(table):
            raise pa.ArrowInvalid(f"its row groups do not add up to its {len(table)} rows")
        _warn_of_large_row_groups(groups, where)
        return Shard(
            relative=relative,
            group_rows=[group.num_rows for group in groups],
            class_names=class_names,
            class_ids=_read_class_ids(table.column(label_column), len(class_names), where),
            paths=pc.struct_field(table.column("image"), "path").to_pylist() if has_path else [None] * len(table),
            outside_rows=_find_outside_rows(parquet),
        )


def _check_schema(schema: pa.Schema, where: str) -> str:
    columns = ", ".join(schema.names)
    if schema.get_field_index("image") < 0:
        raise DomainError(
            f"{where} has no column 'image' (it has: {columns}); rename the column that holds the pictures"
        )
    label_column = next((name for name in _LABEL_COLUMNS if schema.get_field_index(name) >= 0), None)
    if label_column is None:
        raise DomainError(
            f"{where} has no column 'label' (it has: {columns}); rename the column that holds the classes"
        )
    image = schema.field("image").type
    data = image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else None
    # null is what writers infer where no row has bytes
    if data is None or not (pa.types.is_binary(data) or pa.types.is_large_binary(data) or pa.types.is_null(data)):
        raise DomainError(
            f"{where}: column 'image' is {image}, not struct<bytes: binary, path: string>; "
            "write it as an Image feature of the datasets library"
        )
    path = image.field("path").type if image.get_field_index("path") >= 0 else pa.null()
    if not (_is_text(path) or pa.types.is_null(path) or (pa.types.is_dictionary(path) and _is_text(path.value_type))):
        raise DomainError(f"{where}: the paths in column 'image' are {path}, not strings; write them as text")
    label = schema.field(label_column).type
    if not pa.types.is_integer(label):
        raise DomainError(
            f"{where}: column {label_column!r} is {label}, not integers; encode it as class ids, e.g. with "
            f"class_encode_column({label_column!r}) of the datasets library"
        )
    return label_column


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _read_class_names(schema: pa.Schema, label_column: str, where: str) -> tuple[str, ...]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
    except (KeyError, TypeError, ValueError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DomainError(
            f"{where}: the schema's 'huggingface' metadata names no classes for column {label_column!r}; write the "
            f"file with the datasets library after cast_column({label_column!r}, ClassLabel(names=[...]))"
        )
    return tuple(names)


def _read_class_ids(column: pa.ChunkedArray, num_classes: int, where: str) -> np.ndarray:
    """int64 [rows], each in 0 .. num_classes - 1."""
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DomainError(f"{where}, row {row} (from 0): the label is null; give it a class or drop the row")
    if len(column) and pc.all(pc.equal(column, -1)).as_py():
        raise WithheldLabelsError(
            f"{where}: every label is -1, so its labels are withheld; use a split that has labels"
        )
    class_ids = column.to_numpy()
    outside = np.flatnonzero((class_ids < 0) | (class_ids >= num_classes))
    if len(outside):
        row = int(outside[0])
        raise DomainError(
            f"{where}, row {row} (from 0): label {class_ids[row]} is outside 0 .. {num_classes - 1}, the {num_classes} "
            f"class names of the schema ({len(outside)} such rows); correct the labels or the names"
        )
    return class_ids.astype(np.int64)


def _warn_of_large_row_groups(groups: Sequence[pq.RowGroupMetaData], where: str) -> None:
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest > _LARGE_ROW_GROUP_BYTES:
        _log.warning(
            "%s has row groups of up to %.1f GiB, which are held in memory whole; write it with row groups of %d rows",
            where,
            largest / 2**30,
            _ROW_GROUP_ROWS,
        )


def _find_outside_rows(parquet: pq.ParquetFile) -> list[int]:
    """Rows without bytes. The statistics usually say that there are none; else the pictures' bytes are read for it."""
    rows: list[int] = []
    start = 0
    for index in range(parquet.metadata.num_row_groups):
        group = parquet.metadata.row_group(index)
        columns = (group.column(column) for column in range(group.num_columns))
        statistics = next((column.statistics for column in columns if column.path_in_schema == "image.bytes"), None)
        num_null = statistics.null_count if statistics is not None and statistics.has_null_count else None
        if num_null == group.num_rows:
            rows.extend(range(start, start + group.num_rows))
        elif num_null != 0:
            data = pc.struct_field(parquet.read_row_group(index, columns=["image.bytes"]).column("image"), "bytes")
            rows.extend((start + np.flatnonzero(data.is_null().to_numpy())).tolist())
        start += group.num_rows
    return rows


def _check_outside_picture(directory: DataDirectory, shard: Shard, row: int) -> str:
    where = f"{directory.describe(shard.relative)}, row {row} (from 0)"
    path = shard.paths[row]
    if not path:
        raise DomainError(f"{where}: the picture has neither bytes nor a path; store its bytes or drop the row")
    try:
        directory.check(path)
    except DomainError as error:
        raise DomainError(f"{where}: {error}") from error
    return path
