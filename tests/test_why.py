"""`python -m sweep.run why`: the chain of an artifact as a tree and for machines, in a directory and in a bucket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from in_process import SMALL_SWEEP, compute, graph_of
from mlflow import MlflowClient

from sweep import run
from sweep.report.lineage import SHORT, lineage_text
from sweep.stages.stage import closure
from sweep.store.artifacts import Store
from sweep.store.lineage import lineage


@pytest.fixture(autouse=True)
def _here(two_sweeps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two_sweeps)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def whole_store() -> Store:
    return Store("sweep_store")


def test_a_result_is_followed_to_every_artifact_and_each_is_told_once(capsys):
    key = whole_store().keys("result")[0]
    assert run.main(["why", key]) == 0
    told = capsys.readouterr().out
    assert run.main(["why", key, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["key"] == key
    chain, asked = set(), [key]
    while asked:  # by the files themselves
        name = asked.pop()
        if name not in chain:
            chain.add(name)
            asked += json.loads(Path(f"sweep_store/artifacts/{name[:2]}/{name}/manifest.json").read_text())["inputs"]
    assert set(found["artifacts"]) == chain and len(chain) > 50
    lines = told.splitlines()
    for name in chain:
        own = [line for line in lines if line.strip().startswith(f"{found['artifacts'][name]['stage']} {name[:SHORT]}  ")]
        assert len(own) == 1, name
        assert f"{found['artifacts'][name]['seconds']:.1f} s on " in own[0]
    for settings in ("recipe.seed=0", "data.seed=0", "settings.estimator=size_adjusted", "fingerprint=drawn/1/street_digits"):
        assert settings in told
    assert max(map(len, lines)) <= 120 and f"{len(chain)} artifacts" in lines[-1]


def test_what_is_shared_is_referred_to_and_a_second_of_a_kind_says_what_differs(capsys):
    store = whole_store()
    key = store.keys("pair")[0]
    assert run.main(["why", key[:10]]) == 0
    told = capsys.readouterr().out
    first = next(line for line in told.splitlines() if "picture_shard" in line).split()[1]
    assert f"as {first}, but " in told and "above: " in told
    assert told.count("preprocessing.image_size=56") == 1


def test_an_input_that_is_gone_is_said_and_the_rest_told(tmp_path):
    store = Store(str(tmp_path))
    graph = graph_of(store, *SMALL_SWEEP)
    vector = graph.task_vector(graph.config.pairs[0].source)
    compute(store, vector)
    (shard, *_) = vector.model.pictures[0].shards
    store.remove(shard.key)
    found = lineage(store, vector.key)
    assert found[shard.key] is None and all(manifest for key, manifest in found.items() if key != shard.key)
    told = lineage_text(vector.key, found)
    assert f"{shard.key[:SHORT]} is missing" in told and "1 missing: collected by `gc`, or lost" in told


def test_many_inputs_alike_are_counted():
    def manifest(stage: str, inputs: list[str]) -> dict:
        return {"stage": stage, "params": {}, "inputs": inputs, "seconds": 2.0, "host": "h", "created": 0.0}

    shards = {f"{n:040x}": manifest("label", []) for n in range(1000)}
    told = lineage_text("f" * 40, {"f" * 40: manifest("label_set", list(shards)), **shards})
    assert len(told.splitlines()) < 15 and "997 more of the same inputs (33:14" in told


def test_a_run_of_mlflows_names_its_artifact(capsys):
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name("all_pairs/miniature").experiment_id
    for chosen, tag in (("tags.stage = 'sweep'", "sweep_key"), ("tags.stage = 'pair'", "artifact_key")):
        found = client.search_runs([experiment], chosen)[0]
        assert run.main(["why", found.info.run_id]) == 0
        assert found.data.tags[tag][:SHORT] in capsys.readouterr().out.splitlines()[0]


def test_a_beginning_that_is_none_or_of_several_is_refused_with_close_ones(capsys, tmp_path):
    keys = whole_store().keys()
    letter = next(a for a in "0123456789abcdef" if sum(key.startswith(a) for key in keys) > 1)
    assert run.main(["why", letter]) == 2
    told = capsys.readouterr().err
    several = [key[:12] for key in keys if key.startswith(letter)]
    assert f"{letter} begins {len(several)} keys" in told and several[0] in told and "Give more" in told
    wrong = keys[0][:9] + ("0" if keys[0][9] != "0" else "1")
    assert run.main(["why", wrong]) == 2
    told = capsys.readouterr().err
    assert "no key in" in told and f"close ones: {keys[0][:12]}" in told
    assert run.main(["why", keys[0], "--store", str(tmp_path / "none")]) == 2
    assert "there are no artifacts" in capsys.readouterr().err and not (tmp_path / "none").exists()
    assert run.main(["why", "../" + keys[0]]) == 2


def test_of_a_bucket_the_chain_is_the_same(bucket, tmp_path, capsys):
    store = Store(bucket, str(tmp_path / "cache"))
    graph = graph_of(store, *SMALL_SWEEP)
    model = graph.prediction_only(graph.config.pairs[0].source)
    compute(store, model)
    assert run.main(["why", model.key[:12], "--store", bucket, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["artifacts"]
    assert set(found) == {stage.key for stage in closure([model])} and all(found.values())
    assert found[model.key]["params"]["recipe"]["num_steps"] == 2
