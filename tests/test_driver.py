"""The guard of driver_without_models.py, which the sweeps on Ray run under, lets no driver do a worker's work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from image_sets import write_noise
from patience import PATIENCE_S

GUARD = Path(__file__).parent / "driver_without_models.py"
PROGRAM = """
import runpy, sys
guard = runpy.run_path(sys.argv[1])
guard["forbid_models_and_pixels"]()
import pytest
from in_process import engines_here
from sweep import run

with pytest.MonkeyPatch.context() as patch:
    engines_here(patch)
    for command in ("all_pairs", "universal"):
        print("the dry run of", command, "ended with", run.main([command, "--suite", "miniature", "--dry-run"]), flush=True)
    run.main(["label", "--data", "noise", "--model", "miniature", "--out", "out"])
"""


def test_a_dry_run_passes_the_guard_and_a_driver_that_does_a_workers_work_is_caught(tmp_path):
    """Stages that run in the driver's own process, as they never should: the first is the base."""
    write_noise(tmp_path / "noise")
    path = os.pathsep.join([str(GUARD.parent.parent), str(GUARD.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", PROGRAM, str(GUARD)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert "9 domains" in done.stdout, done.stderr
    assert all(f"the dry run of {command} ended with 0" in done.stdout for command in ("all_pairs", "universal")), done.stdout
    assert done.returncode == 1 and "DriverAtWork: the driver called core.model.load_base" in done.stderr
