"""A score is added by one row in one file: everything else follows from the table."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent
END_OF_TABLE = ")\n\nSCORES:"
ROW = """    Score(
        "peak",
        "peak height",
        "mean over pictures of the largest attribution.",
        lambda scored: float(scored.attributions.max(axis=1).mean()),
        bounds=(0.0, 2.0),
        terminal_title="peak",
        reading="The darker, the higher the peak.",
    ),
"""
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from core.metrics import Scored, attribution_scores
from synthetic_result import DOMAINS, synthetic_result
from sweep.report.page import write_report
from sweep.report.terminal import terminal_summary

out = Path(sys.argv[1])
maps = np.array([[0.0, 3.0], [5.0, 1.0]])
print("peak of two maps:", attribution_scores(Scored(maps, maps, np.ones((1, 2), bool), np.ones(2), np.ones((2, 1))))["peak"])
result = synthetic_result(DOMAINS[:3], num_examples=0)
result.to_directory(out)
write_report(result, out)
print(terminal_summary(result))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code in which `core/metrics.py` has one row more."""
    directory = tmp_path_factory.mktemp("tree")
    for package in ("core", "sweep"):
        shutil.copytree(ROOT / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    path = directory / "core" / "metrics.py"
    source = path.read_text()
    assert source.count(END_OF_TABLE) == 1
    path.write_text(source.replace(END_OF_TABLE, ROW + END_OF_TABLE))
    return directory


def test_a_row_in_the_table_reaches_cells_references_report_figures_and_terminal(tree, tmp_path):
    path = os.pathsep.join([str(tree), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=tree, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "peak of two maps: 4.0"
    header = next(index for index, line in enumerate(lines) if line.startswith("source -> target"))
    assert lines[header].endswith("  IoU@10   peak") and lines[header + 1].endswith("  0.250")
    for name in ("cells", "references"):
        assert list(pd.read_parquet(tmp_path / f"{name}.parquet").columns)[-1] == "peak"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count('<th scope="col">peak height</th>') == 3 and "mean over pictures of the largest attribution." in page
    assert "The darker, the higher the peak." in page
    assert (tmp_path / "figures" / "matrix_peak.png").stat().st_size > 1000
