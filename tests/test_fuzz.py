"""Damaged files of every kind that is read: some hundred seeded mutations each, and only the documented errors come out.

A failure names its seed. What a mutation leaves valid may be read. Known and not covered: of some 20,000 damaged Parquet footers one makes
pyarrow 25 itself abort the process (its ColumnChunkMetaData lets a C++ exception through), which no Python code can catch.
"""

from __future__ import annotations

import contextlib
import io
import json
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_artifact import KEY, PLACE, put

from core.data.domains import DomainError, PictureError, decode_picture, read_domain, write_parquet_split
from core.model import BaseModelError, load_base
from sweep.store.artifacts import Store, StoreError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)


def mutated(content: bytes, rng: np.random.Generator, where: slice = slice(None)) -> bytes:
    """The content with bytes changed (within `where`), its end cut off, or a piece of it copied elsewhere."""
    data = bytearray(content)
    start, stop, _ = where.indices(len(data))
    match rng.integers(4):
        case 0:
            del data[rng.integers(len(data)) :]
        case 1:
            source, target, length = rng.integers(len(data)), rng.integers(start, stop), rng.integers(1, 64)
            data[target : target + length] = data[source : source + length]
        case _:
            for place in rng.integers(start, stop, rng.integers(1, 6)):
                data[place] = rng.integers(256)
    return bytes(data)


def survive(seeds: range, attempt: Callable[[int], None], *allowed: type[Exception]) -> int:
    """Make the attempts; how many raised one of the allowed errors. Any other fails the test with its seed."""
    num_refused = 0
    for seed in seeds:
        try:
            attempt(seed)
        except allowed as error:
            num_refused += 1
            assert str(error), f"seed {seed}: an error without a message"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    return num_refused


# ---------------------------------------------------------------- Parquet


@pytest.fixture
def parquet(tmp_path: Path) -> tuple[Path, list[bytes]]:
    """A data set, and its train split in several ways of writing it."""
    root = tmp_path / "shapes"
    root.mkdir()
    for split in ("train", "test"):
        write_parquet_split(root / f"{split}.parquet", PIXELS, np.arange(12) % 3, ["circle", "square", "star"])
    ways: list[bytes] = [(root / "train.parquet").read_bytes()]
    table = pq.read_table(root / "train.parquet")
    for options in (
        {"compression": "snappy"},
        {"compression": "zstd", "use_dictionary": False, "data_page_version": "2.0"},
        {"row_group_size": 3, "write_statistics": False},
    ):
        buffer = io.BytesIO()
        pq.write_table(table, buffer, **options)
        ways.append(buffer.getvalue())
    return root, ways


def read_all(root: Path) -> None:
    domain = read_domain(root)
    for text in (*domain.class_names, *domain.splits["train"].ids):
        text.encode()  # names go into prompts, ids into hashes
    for index in range(len(domain.splits["train"])):
        with contextlib.suppress(PictureError, DomainError):  # one picture among good ones
            domain.splits["train"].read_bytes(index)


@pytest.mark.parametrize("where", [slice(None), slice(-1500, None)], ids=["anywhere", "footer"])
def test_damaged_parquet_is_refused_as_a_data_set_or_a_picture_at_a_time(parquet, where, caplog):
    root, ways = parquet

    def attempt(seed: int) -> None:
        content = mutated(ways[seed % len(ways)], np.random.default_rng(seed), where)
        (root / "train.parquet").write_bytes(content)
        read_all(root)

    assert 100 < survive(range(400), attempt, DomainError) < 400


@pytest.mark.parametrize("text", [b"000007.png", b"image", b"bytes", b"path", b"label"])
def test_texts_that_are_no_utf8_are_refused_by_file_and_fix(parquet, text):
    """Paths and names of columns, each wherever it stands."""
    root, ways = parquet
    num_refused = 0
    for content in ways:
        place = content.find(text)
        while place >= 0:
            (root / "train.parquet").write_bytes(content[:place] + b"\xff" + content[place + 1 :])
            try:
                read_all(root)
            except DomainError as error:
                num_refused += 1
                assert "train.parquet" in str(error) and any(fix in str(error) for fix in ("write", "rename"))
            place = content.find(text, place + 1)
    assert num_refused > 0


@pytest.mark.parametrize("name", [b"\xff", b"\\ud800"], ids=["no UTF-8", "half a character"])
def test_class_names_that_are_no_text_are_refused_by_place_and_fix(parquet, name):
    root, _ = parquet
    for split in ("train", "test"):
        table = pq.read_table(root / f"{split}.parquet")
        metadata = table.schema.metadata[b"huggingface"].replace(b"circle", name)
        pq.write_table(table.replace_schema_metadata({"huggingface": metadata}), root / f"{split}.parquet")
    with pytest.raises(DomainError, match="shapes.* (names no classes .*; write|name of a class is no valid Unicode text; write)"):
        read_all(root)


# ---------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in open_clip's layout, with a model that is built in milliseconds."""
    directory = tmp_path_factory.mktemp("model")
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}
    settings = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (directory / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    state = open_clip.CLIP(**settings).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, directory / "open_clip_model.safetensors")
    return directory


@pytest.mark.filterwarnings("ignore")  # torch warns of types that a mutation gave a tensor
def test_damaged_weights_are_refused_as_a_base_model(model):
    path = model / "open_clip_model.safetensors"
    good = path.read_bytes()
    header = 8 + int.from_bytes(good[:8], "little")
    load_base(str(model))

    def attempt(seed: int) -> None:
        rng = np.random.default_rng(seed)
        if seed % 3 == 0:  # another type of the same or another size for one tensor
            types = [b'"F16"', b'"I32"', b'"U32"', b'"F64"', b'"C64"', b'"BOOL"', b'"F8_E4M3"', b'"NONE"']
            places = [i for i in range(header) if good.startswith(b'"F32"', i)]
            place, new = places[rng.integers(len(places))], types[rng.integers(len(types))]
            changed = good[8:place] + new + good[place + 5 : header]
            path.write_bytes(len(changed).to_bytes(8, "little") + changed + good[header:])
        else:
            path.write_bytes(mutated(good, rng, slice(0, header) if seed % 3 == 1 else slice(None)))
        load_base(str(model))

    try:
        assert 100 < survive(range(240), attempt, BaseModelError) < 240
    finally:
        path.write_bytes(good)


# ---------------------------------------------------------------- manifests


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_damaged_manifests_are_refused_as_an_artifact(kind, tmp_path):
    url = str(tmp_path / "store") if kind == "local" else f"memory://{uuid.uuid4().hex}/store"
    store = Store(url, str(tmp_path / "cache"))
    put(store)
    filesystem, root = fsspec.core.url_to_fs(store.url)
    place = f"{root}/{PLACE}/manifest.json"
    good = filesystem.cat_file(place)
    tokens = [b"-1", b"1e999", b"null", b"true", b"[]", b"{}", b'"../x"', b'"\\ud800"', b"NaN", b"9" * 5000, b"[" * 3000, b'"\\u0000"']

    def attempt(seed: int) -> None:
        rng = np.random.default_rng(seed)
        if seed % 2:
            content = mutated(good, rng)
        else:  # a value, or what is between two separators, becomes another
            separators = [i for i, byte in enumerate(good) if byte in b":,[]{}"]
            first = rng.integers(len(separators) - 1)
            content = good[: separators[first] + 1] + tokens[rng.integers(len(tokens))] + good[separators[first + 1] :]
        filesystem.pipe_file(place, content)
        artifact = store.open(KEY)
        for name in artifact.manifest["files"]:
            artifact.path(name).read_bytes()
        store.keys("stage")
        store.verify(KEY)

    assert 200 < survive(range(400), attempt, StoreError) < 400
    assert {path.name for path in tmp_path.iterdir()} <= {"store", "cache"}


# ---------------------------------------------------------------- pictures


def _pictures() -> Iterator[bytes]:
    rows, columns = np.mgrid[0:24, 0:32]
    pixels = np.stack([rows * 10, columns * 7, 255 - rows * 5], axis=2).astype(np.uint8)
    image = Image.fromarray(pixels)
    ways: list[tuple[Image.Image, str, dict]] = [(image, format, {}) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]
    ways += [(image, "TIFF", {"compression": f"tiff_{kind}"}) for kind in ("deflate", "lzw")]
    ways += [(image, "JPEG", {"progressive": True}), (image, "WEBP", {"lossless": True})]
    ways += [(image, "GIF", {"save_all": True, "append_images": [image]})]
    ways += [(image.convert("P"), "PNG", {"transparency": bytes([0, 128, 255])})]
    ways += [(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG", {})]
    for picture, format, options in ways:
        buffer = io.BytesIO()
        picture.save(buffer, format=format, **options)
        yield buffer.getvalue()


def test_damaged_pictures_are_refused_and_take_no_more_memory_than_their_pixel_limit():
    pictures = list(_pictures())
    max_pixels = 1_000_000

    def attempt(seed: int) -> None:
        content = pictures[seed % len(pictures)]
        where = slice(0, 120) if seed % 2 else slice(None)  # the header, which announces sizes, or anywhere
        decode_picture(mutated(content, np.random.default_rng(seed), where), max_pixels=max_pixels)

    before = _peak_memory(reset=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata
        assert 300 < survive(range(1000), attempt, PictureError) < 1000
    # A decoded picture, its conversion, and the int64 copies of 16-bit greyscale: under 40 bytes a pixel, and room for the allocator.
    assert _peak_memory() - before < 40 * max_pixels + 30e6


def _peak_memory(reset: bool = False) -> float:
    """Bytes that this process had resident at most since the last reset, where the kernel tells; else 0."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 0.0
