"""Shards of pictures: what comes out is what went in, from many files, threads and processes, in flat memory."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from core.data.picture_shards import PictureShardError, PictureShards, write_pixels

SIZE = 8
COUNTS = (5, 0, 7, 1)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (sum(COUNTS), 3, SIZE, SIZE), dtype=np.uint8)


@pytest.fixture
def shards(pixels, tmp_path):
    paths, start = [], 0
    for i, count in enumerate(COUNTS):
        paths.append(tmp_path / f"{i}.npy")
        assert write_pixels(paths[-1], iter(pixels[start : start + count])) == count
        start += count
    return PictureShards(paths)


def test_numpy_reads_a_shard(pixels, shards):
    assert np.array_equal(np.load(shards.paths[2]), pixels[5:12])


def test_pictures_come_in_the_order_asked_for_and_as_often(pixels, shards):
    assert len(shards) == len(pixels) == 13
    for index in ([12, 0, 5, 4, 5, 5, 11], list(range(13)), list(range(12, -1, -1)), [7], []):
        out = shards.gather(torch.tensor(index, dtype=torch.long))
        assert out.dtype == torch.uint8 and out.shape == (len(index), 3, SIZE, SIZE)
        assert np.array_equal(out.numpy(), pixels[index])
    assert np.array_equal(shards.range(3, 13).numpy(), pixels[3:13])


def test_runs_longer_than_one_read_are_whole(tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (2500, 3, 2, 2), dtype=np.uint8)
    write_pixels(tmp_path / "0.npy", pixels)
    assert np.array_equal(PictureShards([tmp_path / "0.npy"]).range(7, 2500).numpy(), pixels[7:])


@pytest.mark.parametrize("index", [[13], [-1], [0, 99]])
def test_pictures_that_are_not_there_are_refused(shards, index):
    with pytest.raises(IndexError, match="of 13"):
        shards.gather(torch.tensor(index))


def test_few_files_are_open_at_once_and_threads_do_not_lose_theirs(pixels, shards):
    shards = PictureShards(shards.paths, max_open_files=1)
    before = len(os.listdir("/proc/self/fd"))

    def read(seed):
        index = np.random.default_rng(seed).integers(0, 13, 40)
        return np.array_equal(shards.gather(torch.from_numpy(index)).numpy(), pixels[index])

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, range(200)))
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_pickled_copy_reads_the_same(pixels, shards):
    shards.range(0, 2)
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.paths == shards.paths and np.array_equal(copy.range(0, 13).numpy(), pixels)


def test_files_that_are_no_whole_shard_are_refused(shards, pixels, tmp_path):
    path = shards.paths[0]
    raw = path.read_bytes()
    cases = {
        "not what its header says": raw[:-1],
        "no .npy file": b"PK" + raw[2:],
        "pictures are uint8": np.lib.format.magic(1, 0) + raw[8:].replace(b"|u1", b"|i1"),
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(PictureShardError, match=message):
            len(PictureShards([path]))
    write_pixels(path, pixels[:2, :, :4, :4])
    with pytest.raises(PictureShardError, match="several sizes"):
        len(PictureShards(shards.paths))
    with pytest.raises(PictureShardError, match="the first was"):
        write_pixels(tmp_path / "mixed.npy", [pixels[0], pixels[0, :, :4]])


def test_a_writer_that_was_killed_leaves_no_readable_shard(pixels, tmp_path):
    def pictures():
        yield from pixels[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pixels(tmp_path / "0.npy", pictures())
    with pytest.raises(PictureShardError, match="not what its header says"):
        len(PictureShards([tmp_path / "0.npy"]))


MEASURE = """
import sys, numpy as np, torch
from pathlib import Path
from core.data.picture_shards import PictureShards
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
shards = PictureShards([Path(p) for p in sys.argv[1:]])
order = torch.randperm(len(shards), generator=torch.Generator().manual_seed(0))
for index in order[:640].split(32): shards.gather(index)
before, most = resident(), 0
for index in order.split(32):
    shards.gather(index); most = max(most, resident())
print(most - before)
"""


def test_resident_memory_does_not_grow_with_what_is_read(tmp_path):
    """40 MB of pictures, all read once: a memory map would have grown by them; batches of 100 kB come and go."""
    picture = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    paths = [tmp_path / f"{i}.npy" for i in range(7)]
    for path in paths:
        write_pixels(path, (picture for _ in range(2000)))
    grown = int(subprocess.run([sys.executable, "-c", MEASURE, *map(str, paths)], check=True, capture_output=True, text=True).stdout)
    assert grown < 4e6
