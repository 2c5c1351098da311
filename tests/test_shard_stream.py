"""Training shard by shard: every picture once an epoch, resumable at any step, two windows at a time, the labels that belong to them."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import pytest
import torch
from patience import wait_for
from test_finetune import RECIPE, Killed, kill_at_5, same_weights, trained

from core.checkpoints import FileCheckpoint
from core.data.picture_shards import write_pixels
from core.shard_stream import ShardPart, ShardStream, windows
from core.training_data import Share

SIZES = (5, 9, 7, 0, 4, 8)
TOTAL = sum(SIZES)


@dataclass(frozen=True, eq=False)
class Shard:
    """Some rows of a file. log: numbers of the shards that are open, as they come and go."""

    number: int
    part: ShardPart
    log: list

    def __len__(self):
        return len(self.part.rows)

    @contextmanager
    def opened(self):
        self.log.append(("opened", self.number))
        try:
            yield self.part
        finally:
            self.log.append(("closed", self.number))


def stream_of(base, directory, sizes, window, pictures=None, class_ids=None, labels=None):
    """Shards of these sizes, every other row of their files used; by default picture, class and label say the picture's number."""
    log, shards, start = [], [], 0
    for number, size in enumerate(sizes):
        index = np.arange(start, start + size)
        own = np.stack([np.full((3, 4, 4), i, np.uint8) for i in index] or [np.zeros((0,))]) if pictures is None else pictures[index]
        others = [own[0]] * size if size else []
        path = directory / f"{number}.npy"
        write_pixels(path, (picture for pair in zip(others, own, strict=False) for picture in pair))
        part = ShardPart(
            path,
            torch.arange(size) * 2 + 1,
            torch.from_numpy(index) if class_ids is None else class_ids[index],
            torch.from_numpy(index)[:, None].float() if labels is None else labels[index],
        )
        shards.append(Shard(number, part, log))
        start += size
    return ShardStream(shards, window, base.preprocessing, True), log


@pytest.fixture
def stream(base, tmp_path):
    return stream_of(base, tmp_path, SIZES, window=2)[0]


def numbers(batch):
    """Of a batch's pictures; class and label must say the same."""
    found = batch.pixels[:, 0, 0, 0].tolist()
    assert found == batch.class_ids.tolist() == batch.attribution_labels[:, 0].tolist()
    assert (batch.pixels == batch.pixels[:, :1, :1, :1]).all()
    return found


def shard_of(number):
    return int(np.searchsorted(np.cumsum(SIZES), number, side="right"))


def test_an_epoch_takes_every_picture_once_window_by_window(stream):
    """Oracle: pictures' numbers. Batches of 3: 33 pictures are 11 steps; a window is two shards, whose pictures come before any other's."""
    epochs = [[numbers(batch) for batch in stream.batches(3, 22, seed=1)][i : i + 11] for i in (0, 11)]
    for epoch in epochs:
        order = [number for batch in epoch for number in batch]
        assert sorted(order) == list(range(TOTAL))
        shards = [shard_of(number) for number in order]
        visited = [set(window.shards) for window in windows(SIZES, 2, 1, epochs.index(epoch))]
        for window in visited:
            here = [i for i, shard in enumerate(shards) if shard in window]
            assert here == list(range(here[0], here[-1] + 1)) if here else window == {3}
    assert epochs[0] != epochs[1]


def test_windows_are_shuffled_anew_each_epoch_and_by_seed():
    first = list(windows(SIZES, 2, 0, 0))
    assert [w.shards for w in first] == [w.shards for w in windows(SIZES, 2, 0, 0)]
    assert sorted(s for w in first for s in w.shards) == list(range(len(SIZES))) and all(len(w.shards) == 2 for w in first)
    orders = {tuple(s for w in windows(SIZES, 2, seed, epoch) for s in w.shards) for seed in range(4) for epoch in range(4)}
    assert len(orders) > 12
    mixed = [w for w in first if len(w.rows) > 4]
    assert all(sorted(w.rows.tolist()) == list(range(sum(SIZES[s] for s in w.shards))) for w in first)
    assert mixed and all(w.rows.tolist() != sorted(w.rows.tolist()) for w in mixed)


@pytest.mark.parametrize("batch_size", [3, 10, 32, 64])
def test_it_goes_on_at_any_step(stream, batch_size):
    """Batches smaller than a shard, larger than a window, and larger than the data."""
    steps = 2 * (TOTAL // min(batch_size, TOTAL)) + 1
    whole = [numbers(batch) for batch in stream.batches(batch_size, steps, seed=3)]
    assert {len(batch) for batch in whole} == {min(batch_size, TOTAL)} and len(whole) == steps
    for start in range(steps + 1):
        assert [numbers(batch) for batch in stream.batches(batch_size, steps, 3, start)] == whole[start:]


@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_share_every_batch(stream, num_workers):
    whole = [numbers(batch) for batch in stream.batches(6, 9, seed=0)]
    shares = [[numbers(b) for b in stream.batches(6, 9, 0, share=Share(rank, num_workers))] for rank in range(num_workers)]
    for batch, *parts in zip(whole, *shares, strict=True):
        for rank, part in enumerate(parts):
            assert part == batch[rank::num_workers]


def test_two_windows_are_open_and_none_at_the_end_however_it_ends(base, tmp_path):
    stream, log = stream_of(base, tmp_path, SIZES, window=2)
    batches = stream.batches(3, 22, seed=0)
    next(batches)
    wait_for(lambda: len(log) == 4)  # the window of the step, and the next, which comes while the step is computed
    assert [what for what, _ in log] == ["opened"] * 4
    assert len(list(batches)) == 21
    num_open = list(accumulate({"opened": 1, "closed": -1}[what] for what, _ in log))
    assert max(num_open) == 4
    assert len([what for what, _ in log if what == "opened"]) == 2 * len(SIZES) == len(log) / 2
    log.clear()
    batches = stream.batches(3, 22, seed=0)
    next(batches)
    batches.close()
    assert sorted(n for what, n in log if what == "opened") == sorted(n for what, n in log if what == "closed") != []


def test_a_shard_that_cannot_be_brought_ends_the_training_with_its_error(base, tmp_path):
    stream, log = stream_of(base, tmp_path, (6, 6, 6), window=1)
    stream.shards[1].part.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.npy"):
        list(stream.batches(3, 6, seed=0))
    assert sorted(n for what, n in log if what == "opened") == sorted(n for what, n in log if what == "closed")


def test_the_shards_of_a_window_come_at_the_same_time_and_close_where_one_fails(base, tmp_path):
    """Each waits for the other one of its window: brought in turn neither would come."""
    stream, log = stream_of(base, tmp_path, (5, 9, 7, 4), window=2)
    together = threading.Barrier(2, timeout=30)

    class Waiting(Shard):
        @contextmanager
        def opened(self):
            together.wait()
            if self.number == failing:
                raise OSError(f"no shard {self.number}")
            with super().opened() as part:
                yield part

    failing = None
    waiting = replace(stream, shards=[Waiting(shard.number, shard.part, log) for shard in stream.shards])
    assert sorted(number for batch in waiting.batches(5, 5, seed=0) for number in numbers(batch)) == list(range(25))
    failing = 2
    with pytest.raises(OSError, match="no shard 2"):
        list(waiting.batches(5, 5, seed=0))
    assert sorted(number for what, number in log if what == "opened") == sorted(number for what, number in log if what == "closed")


def test_a_killed_training_on_a_stream_continues_to_the_same_weights(base, signs, sign_classifier, tmp_path):
    labels = torch.randn(24, 49, generator=torch.Generator().manual_seed(0)) * 0.1
    stream, _ = stream_of(base, tmp_path, (10, 6, 8), 2, signs.pixels.numpy(), signs.class_ids, labels)
    undisturbed, history = trained(sign_classifier, stream, alpha=0.5)
    checkpoint = FileCheckpoint(tmp_path / "checkpoint")
    with pytest.raises(Killed):
        trained(sign_classifier, stream, alpha=0.5, checkpoint=checkpoint, checkpoint_every_s=-1.0, on_progress=kill_at_5)
    continued, resumed_history = trained(sign_classifier, stream, alpha=0.5, checkpoint=checkpoint)
    assert same_weights(undisturbed, continued) and resumed_history == history
    prediction_only, _ = trained(sign_classifier, stream, replace(RECIPE, num_steps=2))
    without, _ = trained(sign_classifier, replace(stream, is_labelled=False), replace(RECIPE, num_steps=2))
    assert same_weights(prediction_only, without)
