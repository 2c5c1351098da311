"""The wheel: every package and every file that is read ships, and the command line runs from it alone."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

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


def run(installed: Path, directory: Path, *arguments: str) -> str:
    """Output of a Python command that finds the project in the wheel's directory only, its dependencies where they are here."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=directory, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


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


def test_the_command_line_runs_from_the_wheel_alone(installed, tmp_path):
    where = run(installed, tmp_path, "-c", "import core, sweep; print(core.__file__, sweep.__file__)")
    assert where.split() == [str(installed / package / "__init__.py") for package in PACKAGES]
    assert "first steps:" in run(installed, tmp_path, "-m", "sweep.run", "--help")
    assert "9 domains" in run(installed, tmp_path, "-m", "sweep.run", "all_pairs", "--dry-run")
    assert not list(tmp_path.iterdir())


PROGRAM = """
import sys
from pathlib import Path
from core.model import load_base
from synthetic_result import DOMAINS, synthetic_result
from sweep.report.page import write_report

assert load_base("miniature").num_patches == 49
result = synthetic_result(DOMAINS[:3], num_examples=1)
write_report(result, Path("."))
"""


def test_what_is_read_from_the_packages_is_found_in_the_wheel(installed, tmp_path):
    """The miniature's weights and the report's templates."""
    program = f"import sys; sys.path.append({str(ROOT / 'tests')!r})\n{PROGRAM}"
    run(installed, tmp_path, "-c", program)
    assert (tmp_path / "report.html").stat().st_size > 10_000
