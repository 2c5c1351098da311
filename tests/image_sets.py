"""Image sets that several test files write: traffic signs as Parquet, one picture of them damaged, and noise of any classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core import miniature
from core.data.domains import write_parquet_split

NOISE = np.random.default_rng(0).integers(0, 255, (12, 20, 16, 3), dtype=np.uint8)
CLASS_IDS = np.arange(12) % 3


def write_noise(directory: Path, num_classes: int = 3) -> Path:
    """12 pictures a split of what is no class."""
    directory.mkdir(parents=True)
    names = [f"class {i}" for i in range(num_classes)]
    for split in ("train", "test"):
        write_parquet_split(directory / f"{split}.parquet", NOISE, CLASS_IDS % num_classes, names)
    return directory


def write_drawn(directory: Path, domain: str, **numbers: int) -> Path:
    """Splits of a drawn domain as Parquet: `train=40, test=20`."""
    directory.mkdir(parents=True)
    for split, number in numbers.items():
        pixels, class_ids = miniature.draw_split(domain, split, number, 0)
        write_parquet_split(directory / f"{split}.parquet", pixels, class_ids, miniature.domain_spec(domain).class_names)
    return directory


def damage(path: Path, index: int) -> None:
    """Cut the bytes of one picture of a Parquet file short."""
    table = pq.read_table(path)
    column = table.column_names.index("image")
    images = table["image"].to_pylist()
    images[index]["bytes"] = images[index]["bytes"][:80]
    field = table.schema.field("image")
    pq.write_table(table.set_column(column, field, pa.array(images, field.type)), path, row_group_size=32)
