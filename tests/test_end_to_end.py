"""`python -m sweep.run all_pairs` on the real engines: one small sweep, interrupted, killed, shared, finished, run again, extended.

The sweeps are tiny (two domains, 20 steps): what is tested is the machinery. That explanation is really learnt is in test_quality.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import psutil
import pytest
from in_process import compute, engines_here, graph_of
from patience import PATIENCE_S

from core.metrics import SCORES
from sweep import run as command_line
from sweep.store.artifacts import Store

TINY = [
    *("--validation-share", "0.25"),
    *("--num-steps", "20", "--max-train-pictures", "40", "--max-test-pictures", "12", "--max-test-labels", "4"),
    *("--budget", "104", "--test-budget", "104", "--precision", "float32", "--threads-per-worker", "1"),
    *("--search", "grid", "--lambdas", "0,0.4,0.8,1.2"),
]
GUARD = Path(__file__).parent / "driver_without_models.py"
DIGITS = ["--suite", "miniature", "--domains", "clean_digits", "street_digits"]


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(GUARD), "all_pairs", *arguments],  # the command line, in a process that can build no model
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Without --address Ray is started here, whatever cluster the environment names.
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(GUARD.parent.parent), "RAY_ADDRESS": "127.0.0.1:1"},
    )


def sweep(directory: Path, *arguments: str) -> tuple[str, float]:
    """Run a sweep to its end; its output and seconds."""
    began = time.monotonic()
    process = start(directory, *arguments)
    output, _ = process.communicate(timeout=2 * PATIENCE_S)
    assert process.returncode == 0, output
    return output, time.monotonic() - began


def client(directory: Path):
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{directory}/mlflow.db")


def runs(directory: Path, stage: str | None = None) -> list:
    mlflow_client = client(directory)
    experiments = [e.experiment_id for e in mlflow_client.search_experiments()]
    found = mlflow_client.search_runs(experiments, max_results=1000)
    return [run for run in found if stage is None or run.data.tags.get("stage") == stage]


def cells(directory: Path) -> pd.DataFrame:
    """The cells table of the one parent run."""
    parent = max(runs(directory, "sweep"), key=lambda run: run.info.start_time)
    return pd.read_parquet(client(directory).download_artifacts(parent.info.run_id, "cells.parquet"))


def manifests(directory: Path) -> dict[str, dict]:
    """Manifest of every artifact in the store, by key."""
    files = (directory / "sweep_store" / "artifacts").glob("*/*/manifest.json")
    return {path.parent.name: json.loads(path.read_text()) for path in files}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None, seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the sweep ended before it could be stopped: {process.communicate()[0]}")
        time.sleep(0.1)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def training_workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The workers of a sweep's Ray Train fits, once they train: a model's lease is held."""
    if not [path for path in (store_of(process) / "leases").glob("*") if path.is_file()]:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        return [p for p in psutil.Process(process.pid).children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
    return []


def store_of(process: subprocess.Popen[str]) -> Path:
    return Path(psutil.Process(process.pid).cwd()) / "sweep_store"


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A sweep over two domains that had no peace: its directory, and what the interrupted and the last run said.

    Two drivers on one store: Ctrl-C for the one in a training, kill -9 for the other in a training; the next loses the workers of its
    trainings and is killed in the search; then once more to the end. No artifact is made twice. Kills while labelling: test_label_kills.py.
    """
    directory = tmp_path_factory.mktemp("sweep")
    count = lambda stage: sum(m["stage"] == stage for m in manifests(directory).values())  # noqa: E731
    nothing_runs = lambda: all(run.info.status != "RUNNING" for run in runs(directory))  # noqa: E731
    seen: dict[str, dict] = {}

    def started(num_workers: int) -> subprocess.Popen[str]:
        return start(directory, *DIGITS, *TINY, "--alphas", "0.5", "--workers", str(num_workers))

    def finished_artifacts_are_not_touched() -> None:
        now = manifests(directory)
        assert {k: now[k] for k in seen} == seen
        seen.update(now)

    interrupted = started(1)
    wait_for(lambda: manifests(directory), interrupted)
    killed = started(1)
    wait_for(lambda: training_workers(interrupted), interrupted)
    interrupted.send_signal(signal.SIGINT)
    output, _ = interrupted.communicate(timeout=PATIENCE_S)
    assert interrupted.returncode == 130, output  # whatever engine was at work: Ray Train and Ray Tune have handlers of their own
    assert "the same command continues" in output and "Traceback" not in output
    wait_for(lambda: training_workers(killed) or count("finetune") == 2, killed)
    kill(killed)
    wait_for(nothing_runs, None)
    assert {run.info.status for run in runs(directory, "sweep")} == {"KILLED"}
    finished_artifacts_are_not_touched()

    robbed = started(2)
    wait_for(lambda: count("label_set") == 8 and training_workers(robbed), robbed)
    for worker in training_workers(robbed):
        worker.kill()
    wait_for(lambda: count("pair") >= 1, robbed)
    kill(robbed)
    wait_for(nothing_runs, None)
    finished_artifacts_are_not_touched()

    last_output, _ = sweep(directory, *DIGITS, *TINY, "--alphas", "0.5", "--workers", "1")
    finished_artifacts_are_not_touched()
    stages = [m["stage"] for m in seen.values()]
    assert (stages.count("finetune"), stages.count("pair"), stages.count("result")) == (4, 2, 1)
    store = Store(str(directory / "sweep_store"))
    for key in seen:
        store.verify(key)
    assert len(runs(directory, "finetune")) == 4
    assert {run.info.status for run in runs(directory)} == {"FINISHED"}
    for left in ("in_progress", "leases", "checkpoints"):
        assert not list((directory / "sweep_store").glob(f"{left}/*")), left
    return directory, output + last_output


def test_interrupted_killed_and_shared_a_sweep_comes_to_the_undisturbed_result(finished, tmp_path):
    store = Store(str(tmp_path / "store"))
    undisturbed = graph_of(store, *DIGITS, *TINY, "--alphas", "0.5")
    compute(store, undisturbed.result)
    pd.testing.assert_frame_equal(finished_cells(finished[0]), undisturbed.result.load(store).cells)


@pytest.fixture(scope="module")
def again(finished) -> tuple[str, float, dict, dict]:
    """The same command once more."""
    directory, _ = finished
    before = manifests(directory)
    output, seconds = sweep(directory, *DIGITS, *TINY, "--alphas", "0.5")
    return output, seconds, before, manifests(directory)


def test_a_sweep_ends_with_best_pairs_reference_rows_report_and_review_line(finished):
    _, output = finished
    for text in ("clean_digits -> street_digits", "zero predictor", "mean map", "label ceiling", "chance", "Report:", "mlflow ui"):
        assert text in output, output
    assert "left" in output or "estimating" in output  # progress with an estimate
    assert "DeprecationWarning" not in output, output  # a newcomer's first screen


def test_trainings_are_distinct_models_counted_from_mlflow(finished):
    directory, _ = finished
    finetune = runs(directory, "finetune")
    assert len(finetune) == 2 + 2 and len(runs(directory, "reference")) == 2
    assert {(r.data.params["source_domain"], r.data.params["alpha"]) for r in finetune} == {
        (d, a) for d in ("clean_digits", "street_digits") for a in ("1.0", "0.5")
    }
    stored = [m for m in manifests(directory).values() if m["stage"] == "finetune"]
    assert len(stored) == 4


def test_mlflow_holds_params_metrics_vectors_and_tables_under_the_agreed_names(finished):
    directory, _ = finished
    parent = runs(directory, "sweep")[0]
    pairs = runs(directory, "pair")
    assert len(pairs) == 2 and len(runs(directory, "label")) == 2 * 4
    for run in pairs:
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert {"source_domain", "target_domain", "alpha", "lambda1", "lambda2"} <= set(run.data.params)
        assert {
            *(score.name for score in SCORES), "similarity_prediction_only", "similarity_explainability",
        } <= set(run.data.metrics)  # fmt: skip
    names = {a.path for a in client(directory).list_artifacts(parent.info.run_id)}
    assert {"cells.parquet", "references.parquet", "similarities.parquet", "report.html", "figures"} <= names
    for run in runs(directory, "finetune"):
        (vector,) = client(directory).list_artifacts(run.info.run_id, "vectors")
        assert vector.path.endswith("vector.safetensors")
    assert {run.info.status for run in runs(directory)} == {"FINISHED"}


def test_experiment_is_called_after_the_suite(finished):
    directory, _ = finished
    assert client(directory).get_experiment_by_name("all_pairs/miniature") is not None


def test_selection_is_on_validation_and_test_is_scored_once(finished):
    table = finished_cells(finished[0])
    for _, pair in table.groupby(["source_domain", "target_domain"]):
        validation, test = pair[pair["split"] == "validation"], pair[pair["split"] == "test"]
        assert len(validation) == 4 and len(test) == 1
        chosen = validation[validation["is_chosen"]]
        assert len(chosen) == 1
        assert (chosen[["alpha", "lambda2"]].to_numpy() == test[["alpha", "lambda2"]].to_numpy()).all()
        by_lambda2 = validation.sort_values("lambda2")
        keeps = (by_lambda2["normalized_accuracy_lower"] >= 0.95).cummin()
        assert chosen["lambda2"].item() == by_lambda2.loc[keeps, "lambda2"].max()


def test_lambda2_zero_is_the_prediction_only_target_model(finished):
    table = finished_cells(finished[0])
    zero = table[(table["lambda2"] == 0) & (table["split"] == "validation")]
    assert len(zero) >= 2
    assert zero["normalized_accuracy"].tolist() == [1.0] * len(zero)
    store = Store(str(finished[0] / "sweep_store"))
    rows = [row for key in store.keys("reference") for row in json.loads(store.open(key).path("references.json").read_text())]
    own = {row["domain"]: row for row in rows if row["reference"] == "prediction_only" and row["split"] == "validation"}
    for cell in zero.to_dict("records"):  # of two heads: what does not depend on size and offset of the maps
        assert cell["correlation"] == pytest.approx(own[cell["target_domain"]]["correlation"], abs=1e-4)


def test_every_number_can_be_traced(finished):
    directory, _ = finished
    store = Store(str(directory / "sweep_store"))
    (key,) = store.keys("result")
    provenance = json.loads(store.open(key).path("result.json").read_text())["provenance"]
    for name in ("base_fingerprint", "labels.train.budget", "labels.train.seed", "search.alphas", "recipe.seed", "select", "version.torch"):
        assert name in provenance, sorted(provenance)
    found = manifests(directory)
    for manifest in found.values():
        assert set(manifest["inputs"]) <= found.keys(), manifest


def test_the_same_command_again_computes_nothing_says_so_and_is_quick(finished, again):
    output, seconds, before, after = again
    assert "nothing to train, label or evaluate" in output
    assert before == after
    assert seconds < 60
    assert len(runs(finished[0], "sweep")) == 1 and len(runs(finished[0], "finetune")) == 4


def test_one_more_domain_and_alpha_compute_only_what_is_new(finished, again, monkeypatch):
    """Without Ray: what is missing does not depend on who makes it."""
    directory, _ = finished
    before = manifests(directory)
    monkeypatch.chdir(directory)
    engines_here(monkeypatch)
    assert command_line.main(["all_pairs", *DIGITS, "land_cover", *TINY, "--alphas", "0.5,0.8"]) == 0
    after = manifests(directory)
    assert {k: after[k] for k in before} == before  # finished artifacts are not touched
    new = [m for k, m in after.items() if k not in before]
    count = lambda stage: sum(m["stage"] == stage for m in new)  # noqa: E731
    assert count("pictures") == 1 and count("head") == 1
    assert count("finetune") == 1 + 1 + 3  # the new domain twice, and the new alpha once a source, not once a pair or trial
    assert count("label") == count_labels(before) // 2
    assert count("cells") == 6 * 2 - 2  # the old pairs' cells at the old alpha stand
    assert len(runs(directory, "finetune")) == 4 + 5


def count_labels(found: dict[str, dict]) -> int:
    return sum(m["stage"] == "label" for m in found.values())


def finished_cells(directory: Path) -> pd.DataFrame:
    """The cells of the first sweep in a directory."""
    parent = min(runs(directory, "sweep"), key=lambda run: run.info.start_time)
    return pd.read_parquet(client(directory).download_artifacts(parent.info.run_id, "cells.parquet"))
