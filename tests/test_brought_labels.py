"""Attributions that the user brings as a sweep's train labels: averaged over patches, joined by picture id, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from in_process import compute, graph_of

from core import miniature
from core.data.domains import read_domain, write_parquet_split
from core.patch_grid import patch_means
from sweep.experiment.config import ConfigError
from sweep.stages.graph import SweepGraph, alone
from sweep.stages.imported_labels import look_at_labels
from sweep.stages.label_files import read_labels, read_provenance
from sweep.store.artifacts import Store

NUM_TRAIN, NUM_PATCHES = 40, 49
SMALL = ["--alphas", "0.5", "--num-steps", "2", "--budget", "104", "--test-budget", "104", "--precision", "float32"]


def plain_means(values: np.ndarray, grid: int) -> np.ndarray:
    """Every pixel cut into grid x grid equal ones, and the mean of those in each patch."""
    fine = np.kron(values, np.ones((grid, grid)))
    return fine.reshape(grid, len(values), grid, values.shape[1]).mean(axis=(1, 3)).ravel()


@pytest.mark.parametrize("shape", [(7, 7), (56, 56), (50, 50), (3, 3), (1, 1)])
def test_a_patch_gets_the_mean_of_what_it_covers(shape):
    values = np.random.default_rng(0).normal(size=shape)
    np.testing.assert_allclose(patch_means(values, 7), plain_means(values, 7), atol=1e-6)  # it is float32


def test_a_map_goes_its_pictures_way_to_the_tower():
    values = np.random.default_rng(1).normal(size=(20, 35))
    np.testing.assert_allclose(patch_means(values, 7), plain_means(np.repeat(np.repeat(values, 2, 0), 2, 1)[:, 15:55], 7), atol=1e-6)
    np.testing.assert_allclose(patch_means(values.T, 7), patch_means(values, 7).reshape(7, 7).T.ravel(), atol=1e-6)
    np.testing.assert_allclose(patch_means(values, 7, "squash"), plain_means(values, 7), atol=1e-6)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name, drawing in (("signs", "traffic_signs"), ("digits", "clean_digits")):
        (root / name).mkdir()
        names = miniature.domain_spec(drawing).class_names
        for split in ("train", "test"):
            pixels, class_ids = miniature.draw_split(drawing, split, NUM_TRAIN, 0)
            write_parquet_split(root / name / f"{split}.parquet", pixels, class_ids, names)
    return root


def maps(number: int = NUM_TRAIN) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(number, NUM_PATCHES)).astype(np.float32)


def frame(data: Path, **columns) -> pd.DataFrame:
    ids = read_domain(data / "signs").splits["train"].ids
    return pd.DataFrame({"id": ids, "attributions": list(maps()), **columns})


def sweep_of(store: Store, data: Path, labels: Path, *more: str) -> SweepGraph:
    return graph_of(store, "--domains", str(data / "signs"), str(data / "digits"), "--labels", f"signs={labels}", *SMALL, *more)


def test_a_training_gets_the_users_maps_of_its_own_pictures(data, tmp_path):
    """In whatever order of rows and files, pictures without a map left out."""
    shuffled = frame(data).sample(frac=1.0, random_state=0)
    without = set(shuffled["id"].iloc[:3])
    shuffled["attributions"] = [None if i in without else m for i, m in zip(shuffled["id"], shuffled["attributions"], strict=True)]
    (tmp_path / "labels").mkdir()
    shuffled.iloc[:25].to_parquet(tmp_path / "labels" / "a.parquet", index=False)
    shuffled.iloc[25:].to_parquet(tmp_path / "labels" / "b.parquet", index=False)
    store = Store(str(tmp_path / "store"))
    graph = sweep_of(store, data, tmp_path / "labels")
    model, labels = graph.self_explaining(alone("signs"), 0.5), graph.labels("signs", "train")
    assert "label" not in {work.kind for work in compute(store, model)}

    by_id = dict(zip(frame(data)["id"], maps(), strict=True))
    split = graph.pictures("signs").load(store, "train")
    kept = [picture_id for picture_id in split.ids if picture_id not in without]
    expected = np.stack([by_id[picture_id] for picture_id in kept])
    assert [split.ids[row] for row in labels.rows(store)] == kept
    np.testing.assert_array_equal(labels.attributions(store), expected)
    np.testing.assert_array_equal(model.training_data(store).attribution_labels.numpy(), expected)
    found = labels.load(store)
    assert np.isnan(found.standard_error).all() and np.isnan(found.value_full).all() and not found.budget.any()

    (path,) = labels._files(store)
    assert read_provenance(path)["imported_from"] == "brought by the user" and len(read_labels(path)[0]) == len(kept)
    run = labels.child_run(store)
    assert run.params["labels"] == "brought by the user" and run.metrics["label_standard_error"] is None
    assert not any(name.startswith("label.") for name in run.params)


@pytest.mark.parametrize("column", ["path", "image.path"])
def test_maps_of_whole_pictures_are_averaged_and_joined_by_the_pictures_path(column, data, tmp_path):
    """As a column of the domain's own Parquet, say."""
    table, path = pq.read_table(data / "signs" / "train.parquet"), tmp_path / "own.parquet"
    annotations = np.random.default_rng(3).integers(0, 2, (NUM_TRAIN, 30, 30)).astype(np.uint8)
    table = table.append_column("attributions", pa.array(annotations.tolist(), pa.list_(pa.list_(pa.uint8()))))
    if column == "path":
        table = table.append_column("path", pa.array([f"{n:06d}.png" for n in range(NUM_TRAIN)])).drop_columns(["image"])
    pq.write_table(table, path)
    store = Store(str(tmp_path / "store"))
    graph = sweep_of(store, data, path, "--max-train-labels", "18")
    labels, ids = graph.labels("signs", "train"), graph.pictures("signs")
    compute(store, labels)
    rows = labels.rows(store)
    numbers = [int(Path(ids.load(store, "train").ids[row]).stem) for row in rows]
    assert len(rows) == 18
    expected = np.stack([plain_means(annotations[n], 7) for n in numbers])
    np.testing.assert_allclose(labels.attributions(store), expected, atol=1e-6)


def test_the_key_is_of_the_files_content_and_a_change_underway_is_refused(data, tmp_path):
    path, store = tmp_path / "own.parquet", Store(str(tmp_path / "store"))
    frame(data).to_parquet(path, index=False)
    first = sweep_of(store, data, path).labels("signs", "train")
    assert sweep_of(store, data, path).labels("signs", "train").key == first.key
    changed = frame(data)
    changed["attributions"] = list(2 * maps())
    changed.to_parquet(path, index=False)
    assert sweep_of(store, data, path).labels("signs", "train").key != first.key
    with pytest.raises(ConfigError, match="changed while they were in use"):
        compute(store, first)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", "b"]}, "no column 'attributions' .it has: id.: rename"),
        ({"attributions": list(maps(2))}, "no column 'id' .it has: attributions.: add one"),
        ({"id": ["a", "a"], "attributions": list(maps(2))}, "row 1 .from 0.: 'a' is in own.parquet too: give one row a picture"),
        ({"id": ["a", None], "attributions": list(maps(2))}, "row 1 .from 0.: the picture's id is missing"),
        ({"id": ["a", "b"], "attributions": list(maps(2)[:, :48])}, "48 attributions for the base's 7 x 7 patches: give 49"),
        ({"id": ["a", "b"], "attributions": [maps(1)[0], np.full(49, np.nan)]}, "row 1 .from 0.: an attribution is no finite number"),
        ({"id": ["a"], "attributions": [[[1.0, 2.0], [1.0]]]}, "rows of a map must be of one length, not .1, 2."),
        ({"id": ["a"], "attributions": [[[1.0, None], [1.0, 2.0]]]}, "an attribution is no finite number"),
        ({"id": ["a"], "attributions": [["x"]]}, "attributions is list<.*string>: give a list of numbers"),
        ({"id": ["a"], "attributions": [1.0]}, "attributions is double: give a list of numbers"),
        ({"id": ["a"], "attributions": [None]}, "attributions is null"),
    ],
)
def test_what_is_no_map_of_a_named_picture_is_refused_with_the_fix(columns, message, data, tmp_path):
    path = tmp_path / "own.parquet"
    pd.DataFrame(columns).to_parquet(path, index=False)
    with pytest.raises(ConfigError, match=message):
        look_at_labels(str(path), "signs", None, NUM_PATCHES)


def test_other_files_are_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="there is no file .*nothing.parquet: check the path given to --labels"):
        look_at_labels(str(tmp_path / "nothing.parquet"), "signs", None, NUM_PATCHES)
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(ConfigError, match="is not a Parquet file, or is damaged"):
        look_at_labels(str(tmp_path / "text.parquet"), "signs", None, NUM_PATCHES)
    table = pa.table({"id": ["a"], "attributions": [[0.0] * NUM_PATCHES]}, metadata={"attribution_labels": "{}"})
    pq.write_table(table, tmp_path / "labels.parquet")
    with pytest.raises(ConfigError, match="was written by .* label.: give the directory that holds its labels.json"):
        look_at_labels(str(tmp_path / "labels.parquet"), "signs", None, NUM_PATCHES)
    store, strangers = Store(str(tmp_path / "store")), tmp_path / "strangers.parquet"
    frame(data).assign(id=[f"other/{n}" for n in range(NUM_TRAIN)]).to_parquet(strangers, index=False)
    labels = sweep_of(store, data, strangers).labels("signs", "train")
    with pytest.raises(ConfigError, match="it labels other pictures .its pictures are named 'train/0000"):
        compute(store, labels)
