"""`python -m sweep.run compare`: two sweeps that MLflow has, and made-up results whose differences are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from mlflow import MlflowClient
from scipy import stats
from synthetic_result import synthetic_result

from sweep import run
from sweep.report.differences import ComparedSweep, differences
from sweep.report.tables import chosen_pairs


@pytest.fixture(autouse=True)
def _here(two_sweeps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two_sweeps)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def recorded() -> list:
    """The parent runs, the first sweep first."""
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    experiment = client.get_experiment_by_name("all_pairs/miniature").experiment_id
    return sorted(client.search_runs([experiment], "tags.stage = 'sweep'"), key=lambda found: found.info.start_time)


def compared(seed: int = 0, **changes) -> ComparedSweep:
    result = synthetic_result(seed=0, **changes)
    chosen = chosen_pairs(result)
    if seed:
        chosen = chosen.assign(correlation=chosen["correlation"] + 0.01 * (1 + chosen.index % 7) * (1 - 2 * (chosen.index % 5 == 0)))
    return ComparedSweep(f"sweep {seed}", {"search.seed": seed}, {"torch": "2.0", "stage pair": 1 + seed}, chosen)


def test_what_differs_is_one_setting_and_the_rest_is_said_to_be_the_same(capsys):
    first, second = recorded()
    assert run.main(["compare", first.info.run_id[:10], second.data.tags["sweep_key"][:10]]) == 0
    told = capsys.readouterr().out
    assert "search.num_trials  5 -> 6" in told and "Configuration: 1 of" in told
    assert "Versions and code: nothing differs (2" in told  # libraries and kinds of stages
    assert "Results: " in told and "2 pairs" in told and "Only in" not in told


def test_a_sweep_does_not_differ_from_itself(capsys):
    run_id = recorded()[0].info.run_id
    assert run.main(["compare", run_id, run_id]) == 0
    assert "Nothing differs: configuration, versions, chosen points and scores are the same." in capsys.readouterr().out


def test_a_sweep_that_is_not_there_is_refused_with_those_that_are(capsys, tmp_path):
    first, second = recorded()
    assert run.main(["compare", first.info.run_id, "no such run"]) == 2
    told = capsys.readouterr().err
    assert "no sweep whose run or key begins with no such run" in told and second.info.run_id[:8] in told
    assert run.main(["compare", "a", "b", "--tracking-uri", f"sqlite:///{tmp_path}/none.db"]) == 2
    assert "there is no MLflow database" in capsys.readouterr().err and not list(tmp_path.iterdir())
    (tmp_path / "other.db").write_bytes(b"")
    assert run.main(["compare", "a", "b", "--tracking-uri", f"sqlite:///{tmp_path}/other.db"]) == 2
    assert (tmp_path / "other.db").read_bytes() == b""


def test_scores_are_tested_over_the_targets_and_counted_over_the_pairs():
    left, right = compared(0), compared(1)
    told = differences(left, right).splitlines()
    assert "  search.seed  0 -> 1" in told and "  stage pair  1 -> 2" in told
    row = next(line for line in told if line.startswith("correlation"))
    change = right.chosen["correlation"] - left.chosen["correlation"]
    assert f"{(change > 0).sum()} better, {(change < 0).sum()} worse" in row
    means = [side.chosen.groupby("target_domain")["correlation"].mean() for side in (left, right)]
    expected = stats.ttest_rel(means[1], means[0])  # the independent oracle: SciPy itself, on means over targets
    low, high = expected.confidence_interval(0.95)
    assert f"[{low:+.3f}, {high:+.3f}]" in row and f"{expected.pvalue:.3f}" in row and f"{change.mean():+.3f}" in row
    unchanged = next(line for line in told if line.startswith("IoU@10"))
    assert "+0.000" in unchanged and "0 better, 0 worse" in unchanged and not math.isnan(expected.pvalue)


def test_less_error_is_better():
    left = compared()
    right = ComparedSweep("other", left.settings, left.versions, left.chosen.assign(e_rmse=left.chosen["e_rmse"] - 0.1))
    row = next(line for line in differences(left, right).splitlines() if line.startswith("E-RMSE"))
    assert f"{len(left.chosen)} better, 0 worse" in row


def test_pairs_of_one_sweep_alone_are_named_and_sweeps_without_a_result_told():
    left, right = compared(domains=("cars", "scenes", "textures")), compared(domains=("cars", "scenes"))
    told = differences(left, right)
    assert "Only in the left sweep: cars -> textures" in told and "Only in the right" not in told and "2 pairs in both" in told
    none = ComparedSweep("stopped", {}, {}, None)
    assert "Results: none recorded of the right sweep" in differences(left, none)
    assert "Versions and code: not recorded of both" in differences(left, none)
    assert "no pair is in both" in differences(left, compared(domains=("land_cover", "traffic_signs")))


def test_a_sweep_says_at_its_start_what_it_will_compute(two_sweeps):
    """And at its end all of that is there."""
    client = MlflowClient(f"sqlite:///{Path('mlflow.db').absolute()}")
    for parent in recorded():
        plan = json.loads(Path(client.download_artifacts(parent.info.run_id, "plan.json")).read_text())
        assert plan["store"] == str(two_sweeps / "sweep_store")
        assert parent.data.tags["sweep_key"] in plan["stages"]["result"] and "base" in plan["stages"]
        for key in (key for of_kind in plan["stages"].values() for key in of_kind):
            assert Path(f"sweep_store/artifacts/{key[:2]}/{key}/manifest.json").exists()
        assert set(plan["versions"]) == set(plan["stages"])
