"""The paper suite's way over real pictures with a ViT, and label files in other readers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from in_process import compute

from core.games.attribution_labels import AttributionLabels
from sweep import run as command_line
from sweep.commands import all_pairs
from sweep.commands.sweep import check, describe_sweep
from sweep.experiment.sources import Source
from sweep.stages.base import BaseModel
from sweep.stages.graph import SweepGraph
from sweep.stages.label_files import read_labels, write_labels
from sweep.store.artifacts import Store

DATA = Path(__file__).parent.parent.parent / "shared" / "data"

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real picture samples (shared/data beside the checkout) are not here")


@needs_data
def test_the_paper_suites_way_with_a_random_vit(tmp_path, shallow_vit):
    """The paper suite's configuration, read from local copies, on the CPU, a few pictures and steps: a smaller ViT in every stage.

    In this process: the engines are the same for any model, and starting them with a model of this size takes minutes on two cores.
    """
    options = command_line.make_parser().parse_args(
        [
            *("all_pairs", "--suite", "paper", "--domains", f"mnist={DATA / 'mnist'}", f"dtd={DATA / 'dtd'}", "--seed", "0"),
            *("--base", shallow_vit, "--device", "cpu", "--num-steps", "2", "--batch-size", "1", "--alphas", "0.5"),
            *("--max-train-pictures", "2", "--max-test-pictures", "2", "--max-test-labels", "1", "--budget", "96"),
            *("--test-budget", "96", "--lambdas", "0,0.4,0.8", "--templates", "a photo of a {}."),
        ]
    )
    config = all_pairs.config_from(options)
    few = {split: replace(getattr(config.labels, split), num_perturbations=8) for split in ("validation", "test")}
    config = replace(config, labels=replace(config.labels, **few))
    assert "a grid of 1 alphas x 3 lambdas" in describe_sweep("all_pairs", config)
    store, checked = Store(str(tmp_path / "store")), check(config)
    base = BaseModel(checked.base)
    compute(store, base)
    graph = SweepGraph("all_pairs", config, base.load(store), checked.domains)
    kinds = Counter(work.kind for work in compute(store, graph.result))
    assert (kinds["finetune"], kinds["label"], kinds["pair"], kinds["head"]) == (4, 8, 2, 2)
    assert all(work.artifact(store).manifest["meta"]["evaluations"] > 0 for work in graph.stages if work.kind == "label")
    result = graph.result.load(store)
    assert len(result.cells[result.cells["split"] == "validation"]) == 2 * 3
    assert result.cells["e_rmse"].notna().all()
    vector = graph.explainability_vector(Source("mnist", ("mnist",)), 0.5).load(store)
    assert vector.norm() > 0


def test_label_files_open_in_other_readers(tmp_path):
    """Fixed-size lists of float32, with the provenance in the file's metadata."""
    polars = pytest.importorskip("polars", reason="polars is a test dependency")
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=s).astype(np.float32) for s in ((5, 49), (5, 49), (5,), (5,), (5, 64))]
    labels = AttributionLabels(*arrays, np.full(5, 512, np.int32))
    path = tmp_path / "labels.parquet"
    write_labels(path, [f"id{i}" for i in range(5)], np.arange(5), labels, {"settings": "x"})
    ids, read = read_labels(path)
    assert ids == [f"id{i}" for i in range(5)]
    np.testing.assert_array_equal(read.attributions, labels.attributions)
    assert len(pd.read_parquet(path)["attributions"][0]) == 49
    frame = polars.read_parquet(path)
    assert frame["attributions"].dtype == polars.Array(polars.Float32, 49)
    assert b"settings" in pq.read_schema(path).metadata[b"attribution_labels"]
