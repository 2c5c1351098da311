"""The wheel: every package and every file that is read ships, and the command line runs from it alone."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE_S

ROOT = Path(__file__).parent.parent
PACKAGES = ("core", "sweep")

if importlib.util.find_spec("setuptools") is None:
    pytest.skip("the build backend, setuptools, is not installed here", allow_module_level=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built in a copy of what a checkout holds, with the setuptools that is installed: nothing is fetched."""
    source, out = tmp_path_factory.mktemp("source") / "project", tmp_path_factory.mktemp("wheel")
    source.mkdir()
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-q", "-w", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A directory with the wheel's content and nothing else."""
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:  # all that installing a wheel of Python files without scripts is
        archive.extractall(target)
    return target


PROGRAM = """
import contextlib, io, json, os, runpy, sys
from pathlib import Path
import core, sweep

def command(*arguments):
    sys.argv[1:] = arguments
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_module("sweep.run", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, end.code
    return out.getvalue()

found = {"files": [core.__file__, sweep.__file__], "help": command("--help"), "dry run": command("all_pairs", "--dry-run")}
found["written"] = os.listdir(".")
from core.model import load_base
from sweep.report.page import write_report
sys.path.append(TESTS)
from synthetic_result import DOMAINS, synthetic_result

found["patches"] = load_base("miniature").num_patches
write_report(synthetic_result(DOMAINS[:3], alphas=[0.5], lambdas=[0.0, 0.8], num_examples=1), Path("."))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def ran(installed, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """Where a process that finds the project in the wheel's directory only, its dependencies where they are here, did all; what it said."""
    directory = tmp_path_factory.mktemp("ran")
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM.replace("TESTS", repr(str(ROOT / "tests")))]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return directory, json.loads(done.stdout)


def tracked() -> set[str]:
    """Files of the packages, as version control knows them; without it, all there are."""
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *PACKAGES], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout:
        return {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


def test_every_file_of_the_packages_ships_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
    assert shipped == tracked()
    assert licences
    assert any(name.endswith(".html") for name in shipped) and any(name.startswith("core/miniature/base/") for name in shipped)


def test_the_command_line_runs_from_the_wheel_alone(installed, ran):
    _, found = ran
    assert found["files"] == [str(installed / package / "__init__.py") for package in PACKAGES]
    assert "first steps:" in found["help"]
    assert "9 domains" in found["dry run"]
    assert not found["written"]


def test_what_is_read_from_the_packages_is_found_in_the_wheel(ran):
    """The miniature's weights and the report's templates."""
    directory, found = ran
    assert found["patches"] == 49
    assert (directory / "report.html").stat().st_size > 10_000
