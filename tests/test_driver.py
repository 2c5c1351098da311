"""The guard of driver_without_models.py, which test_end_to_end.py runs its sweep under, lets no driver do a worker's work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from image_sets import write_noise

GUARD = Path(__file__).parent / "driver_without_models.py"
IN_THIS_PROCESS = """
import runpy, sys
guard = runpy.run_path(sys.argv[1])
guard["forbid_models_and_pixels"]()
import pytest
from in_process import compute, engines_here, graph_of
from sweep import run
from sweep.store.artifacts import Store

with pytest.MonkeyPatch.context() as patch:
    engines_here(patch)
    sys.exit(run.main(sys.argv[2:]))
"""


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(GUARD.parent.parent), str(GUARD.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture
def data(tmp_path) -> Path:
    return write_noise(tmp_path / "noise")


def test_a_driver_that_does_a_workers_work_is_caught(data, tmp_path):
    """Stages that run in the driver's own process, as they never should: the first is the base."""
    done = run("-c", IN_THIS_PROCESS, str(GUARD), "label", "--data", str(data), "--model", "miniature", "--out", "out", cwd=tmp_path)
    assert done.returncode == 1 and "DriverAtWork: the driver called core.model.load_base" in done.stderr


def test_checks_and_dry_runs_of_a_sweep_pass_the_guard(tmp_path):
    done = run(str(GUARD), "all_pairs", "--suite", "miniature", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0 and "8 domains" in done.stdout, done.stderr
