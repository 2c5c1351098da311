"""Labels of the label command as a sweep's train labels: joined by picture id, file by file, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from in_process import compute, graph_of

from core import miniature
from core.data.domains import write_parquet_split
from sweep import run as command_line
from sweep.commands import label, labelling
from sweep.experiment.config import ConfigError
from sweep.stages.base import BaseModel
from sweep.stages.graph import SweepGraph, alone
from sweep.store.artifacts import Store

NUM_TRAIN = 40
SMALL = ["--alphas", "0.5", "--num-steps", "2", "--budget", "104", "--test-budget", "104", "--precision", "float32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Signs as a data set, and digits so that there is another domain."""
    root = tmp_path_factory.mktemp("data")
    for name, drawing in (("signs", "traffic_signs"), ("digits", "clean_digits")):
        (root / name).mkdir()
        names = miniature.domain_spec(drawing).class_names
        for split in ("train", "test"):
            pixels, class_ids = miniature.draw_split(drawing, split, NUM_TRAIN, 0)
            write_parquet_split(root / name / f"{split}.parquet", pixels, class_ids, names)
    return root


@pytest.fixture(scope="module")
def labelled(data, tmp_path_factory) -> Path:
    """What the label command writes for the signs' train split, in files of 16, made in this process."""
    out = tmp_path_factory.mktemp("labels") / "out"
    arguments = ["label", "--data", str(data / "signs"), "--split", "train", "--model", "miniature", "--out", str(out)]
    arguments += ["--budget", "104", "--shard-size", "16", "--batch-size", "64", "--precision", "float32"]
    checked = labelling.check(label.request_of(command_line.make_parser().parse_args(arguments)))
    store, base = Store(checked.out.store_url), BaseModel(checked.base)
    base.publish(store)
    graph = checked.graph(base.load(store))
    checked.out.begin(labelling._settings(checked, graph, "as asked"))
    compute(store, *graph.shards)
    for index, shard in enumerate(graph.shards):
        checked.out.write_shard(shard, index, len(graph.shards), store)
    return out


def sweep_of(store: Store, data: Path, labelled: Path, *more: str) -> SweepGraph:
    domains = ["--domains", str(data / "signs"), str(data / "digits"), "--labels", f"signs={labelled}"]
    return graph_of(store, *domains, *SMALL, *more)


@pytest.mark.parametrize(("more", "number"), [((), 36), (("--max-train-labels", "18"), 18)])
def test_a_training_gets_each_pictures_own_label(data, labelled, tmp_path, more, number):
    store = Store(str(tmp_path / "store"))
    graph = sweep_of(store, data, labelled, *more)
    model, labels = graph.self_explaining(alone("signs"), 0.5), graph.labels("signs", "train")
    computed = compute(store, model)
    assert "label" not in {work.kind for work in computed}

    made = pd.concat([pd.read_parquet(path) for path in sorted((labelled / "data").glob("*.parquet"))]).set_index("id")
    split = graph.pictures("signs").load(store, "train")
    rows = labels.rows(store)
    of_pictures = np.stack(made.loc[[split.ids[row] for row in rows]]["attributions"].to_list())
    assert len(split) == 36 and len(rows) == number
    np.testing.assert_array_equal(labels.attributions(store), of_pictures)
    np.testing.assert_array_equal(labels.load(store).attributions, of_pictures)
    # float64 sums in another order than pandas': some units in the last place of 16 digits
    np.testing.assert_allclose(labels.mean_map(store), of_pictures.astype(np.float64).mean(axis=0), rtol=1e-12, atol=1e-15)

    training = model.training_data(store)
    index = training.class_ids.new_tensor(range(number))
    np.testing.assert_array_equal(training.attribution_labels.numpy(), of_pictures)
    np.testing.assert_array_equal(training.pictures.gather(index).numpy(), split.pixels.gather(index.new_tensor(rows)).numpy())
    np.testing.assert_array_equal(training.class_ids.numpy(), made.loc[[split.ids[row] for row in rows]]["class_id"])


def test_labels_of_a_version_before_the_present_one_are_refused(data, labelled, tmp_path):
    """Version 0.1 named no role: its train and test labels may share coalitions."""
    old = tmp_path / "old"
    old.mkdir()
    settings = json.loads((labelled / "labels.json").read_text())
    del settings["role"], settings["model"]["base"]
    (old / "labels.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="before 0.2.*label again"):
        sweep_of(Store(str(tmp_path / "store")), data, old)


def test_labels_of_the_test_split_are_refused(data, labelled, tmp_path):
    other = tmp_path / "other"
    (other / "data").mkdir(parents=True)
    settings = json.loads((labelled / "labels.json").read_text())
    (other / "labels.json").write_text(json.dumps({**settings, "role": "test", "shards": 0}))
    with pytest.raises(ConfigError, match="share coalitions.*train split"):
        sweep_of(Store(str(tmp_path / "store")), data, other)
