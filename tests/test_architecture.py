"""Who may import what: the architecture as a table."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from groups import GROUPS

ROOT = Path(__file__).parent.parent
MODULES = sorted(p.relative_to(ROOT).as_posix() for package in ("core", "sweep") for p in (ROOT / package).rglob("*.py"))

# Rooms, the highest first: each imports only itself and rooms below it.
ROOMS = {
    "sweep": ("run", "commands", "record", "explain", "export", "stages", "engines", "report", "experiment", "store"),
    "core": ("explainers", "games", "shapley", "merging", "METHOD", "miniature", "data", "statistics"),
}
# `core`'s own files are the method's: a model is built of the miniature's weights, and games are played on models.
METHOD = "METHOD"
# `core.shapley` knows only v(S).
KNOWS_ONLY_ITSELF = ("core/shapley/",)

# A heavy library -> the only modules that may import it.
HOMES = {
    "open_clip": {"core/clip_library.py", "core/miniature/pretrain.py"},
    "ray": {f"sweep/engines/{name}.py" for name in ("cluster", "tasks", "training", "shards")},
    "ray.data": {"sweep/engines/shards.py"},
    "ray.train": {"sweep/engines/training.py"},
    "ray.tune": {"sweep/engines/trials.py"},
    "optuna": {"sweep/stages/study.py"},
    "mlflow": {m for m in MODULES if m.startswith("sweep/record/")},
    "matplotlib": {m for m in MODULES if m.startswith(("sweep/report/figures/", "sweep/explain/"))},
    "jinja2": {"sweep/report/page.py", "sweep/report/model_card.py"},
    "fsspec": {"core/data/directory.py", "sweep/store/files.py", "sweep/store/leases.py"},
    "huggingface_hub": {"core/data/directory.py"},
    "pyarrow": {
        "core/data/parquet_layout.py", "core/data/parquet_split.py", "sweep/stages/label_files.py", "sweep/stages/brought_labels.py"
    },
    "sklearn": {"core/shapley/feature_selection.py", "core/shapley/calibration.py"},
    "scipy": {"core/metrics.py", *(m for m in MODULES if m.startswith("core/statistics/"))},
    "onnx": {"sweep/export/onnx_file.py"},
    "onnxruntime": set(),
    "transformers": {m for m in MODULES if m.startswith("sweep/export/shipped/")},
    "timm": set(),
    "shap": {"core/shapley/shap_library.py", "sweep/explain/explanation.py"},
}
# `core` is the method: it knows nothing of how it is run.
NOT_IN_CORE = {"sweep", "ray", "optuna", "mlflow", "matplotlib", "pandas", "psutil"}


@cache
def syntax_of(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text())


@cache
def imports_of(module: str) -> frozenset[str]:
    """Everything that is imported; `from a import b` as a.b."""
    found: set[str] = set()
    for node in ast.walk(syntax_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def uses(module: str, library: str) -> bool:
    """Whether a module imports a library, counted to its most particular entry in HOMES (ray.data is not ray)."""
    for name in imports_of(module):
        if name != library and not name.startswith(f"{library}."):
            continue
        closer = [other for other in HOMES if other.startswith(f"{library}.") and (name == other or name.startswith(f"{other}."))]
        if not closer:
            return True
    return False


def room_of(module_or_name: str) -> tuple[str, str] | None:
    """(package, room) of a module's path or an imported name; None outside of the project."""
    parts = module_or_name.removesuffix(".py").replace("/", ".").split(".")
    if parts[0] not in ROOMS:
        return None
    room = parts[1] if len(parts) > 1 else ""
    return parts[0], room if room in ROOMS[parts[0]] else METHOD


@pytest.mark.parametrize("module", [m for m in MODULES if not m.endswith("__init__.py")])
def test_rooms_import_only_rooms_below_them(module):
    package, room = room_of(module)
    order = ROOMS[package]
    assert room in order, f"{module} stands in no room"
    for name in imports_of(module):
        found = room_of(name)
        if found is not None and found[0] == package:
            assert order.index(found[1]) >= order.index(room), f"{module} imports {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith(KNOWS_ONLY_ITSELF)])
def test_estimators_know_only_the_values_of_coalitions(module):
    assert {room_of(name) for name in imports_of(module)} <= {None, ("core", "shapley")}


@pytest.mark.parametrize("library", HOMES)
def test_each_heavy_library_has_one_home(library):
    assert {module for module in MODULES if uses(module, library)} <= HOMES[library]


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("core/")])
def test_core_knows_nothing_of_the_system(module):
    tops = {name.split(".")[0] for name in imports_of(module)}
    assert not tops & NOT_IN_CORE


def test_the_drawings_need_neither_torch_nor_open_clip():
    """They are drawn in many processes and should start at once."""
    for module in MODULES:
        if module.startswith("core/miniature/") and Path(module).name not in {"pretrain.py", "weights.py"}:
            assert not {name.split(".")[0] for name in imports_of(module)} & {"torch", "open_clip", "safetensors"}, module


def test_what_an_exported_model_carries_stands_alone():
    """Of the project it has only its own files."""
    allowed = {"__future__", "dataclasses", "typing", "torch", "transformers"}
    shipped = [m for m in MODULES if m.startswith("sweep/export/shipped/")]
    assert shipped
    for module in shipped:
        assert {name.split(".")[0] for name in imports_of(module)} <= allowed, module


def test_nothing_unpickles_files_of_others():
    """Weights are safetensors; the one torch.load reads a training's own checkpoint, weights only."""
    for module in MODULES:
        assert "pickle.load" not in (ROOT / module).read_text(), module
        for node in ast.walk(syntax_of(module)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), module


def test_files_stay_readable():
    files = [*MODULES, *(p.relative_to(ROOT).as_posix() for d in ("tests", "benchmarks") for p in (ROOT / d).rglob("*.py"))]
    assert {m: n for m in files if (n := len((ROOT / m).read_text().splitlines())) > 350} == {}


def test_make_runs_every_group_of_tests():
    """And each file with a group is there: one that is named wrongly would run with the quick ones."""
    makefile = (ROOT / "Makefile").read_text()
    asked = dict(re.findall(r"^(\w+_tests): MARK = (.+)$", makefile, flags=re.MULTILINE))
    (run,) = re.findall(r"-j (.+)$", makefile, flags=re.MULTILINE)
    assert set(run.split()) == {"lint", "types", *asked}
    rest = asked.pop("quick_tests")
    assert set(asked.values()) == set(GROUPS) and set(rest.removeprefix("not ").split(" and not ")) == set(GROUPS)
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(set(grouped)) == len(grouped) and set(grouped) <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
