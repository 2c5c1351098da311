"""What several test files share: the miniature base, a handful of drawn pictures with a classifier for them, a bucket."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a network
os.environ.setdefault("RAY_worker_niceness", "0")  # or the groups that run beside take all the time (`make test`)

import atexit
import copy
import gc
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from groups import GROUPS

from core import miniature
from core.games.attribution_labels import AttributionLabels, Labeller, LabelSettings
from core.model import Base, SelfExplainingClassifier, load_base
from sweep.record.tracker import Tracker

if TYPE_CHECKING:
    from stage_outputs import WatchedPipeline


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Whoever asks for groups (`-m engines`, `-m "engines or sweeps"`) need not import the other files, which takes seconds."""
    asked = config.option.markexpr.split(" or ")
    names = [name for group in asked for name in GROUPS.get(group, ())] if set(asked) <= set(GROUPS) else []
    return True if names and collection_path.suffix == ".py" and collection_path.name not in names else None


def pytest_collection_finish() -> None:
    """What the test files import stays, and is not looked through for garbage again and again."""
    gc.freeze()
    gc.set_threshold(10_000, 50, 1000)
    atexit.register(gc.unfreeze)  # or libraries complain, when Python ends, of what was never given back


def pytest_sessionfinish() -> None:
    """pytest looks for garbage some times more when it ends: not among all that the tests have imported."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for group, names in GROUPS.items():
            if item.path.name in names:
                item.add_marker(getattr(pytest.mark, group))


@dataclass(frozen=True)
class Pictures:
    pixels: torch.Tensor
    inputs: torch.Tensor
    class_ids: torch.Tensor
    ids: list[str]


@pytest.fixture(scope="session")
def base() -> Base:
    torch.set_num_threads(1)
    return load_base("miniature")


@pytest.fixture(scope="session")
def signs(base: Base) -> Pictures:
    """24 traffic signs."""
    pixels, class_ids = miniature.draw_split("traffic_signs", "train", 24)
    tensor = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return Pictures(tensor, base.preprocessing.normalise(tensor), torch.from_numpy(class_ids), [f"train/{i}" for i in range(24)])


@pytest.fixture(scope="session")
def sign_classifier(base: Base) -> SelfExplainingClassifier:
    """The zero-shot classifier of traffic signs. Tests that train take a copy."""
    spec = miniature.domain_spec("traffic_signs")
    return base.classifier(base.head(spec.class_names, spec.templates)).eval()


@pytest.fixture(scope="session")
def references(signs: Pictures, sign_classifier: SelfExplainingClassifier) -> AttributionLabels:
    """Labels of the first 16 signs by permutations at a high budget, of a role of their own."""
    settings = LabelSettings(budget=960, estimator="permutation", pool_size=8)
    return Labeller(sign_classifier, settings, "reference").label(signs.inputs[:16], signs.class_ids[:16], signs.ids[:16])


@pytest.fixture(scope="session")
def shallow_vit() -> Iterator[str]:
    """open_clip's ViT-S/32 with four blocks in each of its towers, of random weights, under a name of its own: a third of the work."""
    from core.clip_library import open_clip

    config = copy.deepcopy(open_clip().get_model_config("ViT-S-32-alt"))
    config["vision_cfg"]["layers"] = config["text_cfg"]["layers"] = 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(open_clip().factory._MODEL_CONFIGS, "ViT-S-32-shallow", config)
        yield "ViT-S-32-shallow:random"


@pytest.fixture(scope="session")
def vit(shallow_vit: str) -> Base:
    """Of another width, depth, patch and picture size than the miniature, and built in a second."""
    torch.set_num_threads(1)
    return load_base(shallow_vit)


@pytest.fixture(scope="session")
def vit_classifier(vit: Base) -> SelfExplainingClassifier:
    return vit.classifier(vit.head(["cat", "dog"], ["a photo of a {}."])).eval()


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow database for all tests to copy: creating one takes seconds."""
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    Tracker(f"sqlite:///{path}", "unused").check()
    return path


@pytest.fixture(scope="session")
def two_seeds(tmp_path_factory: pytest.TempPathFactory, new_database: Path) -> Path:
    """A directory in which `universal --seeds 2` was run, without Ray: store and MLflow's database. Tests only read it."""
    from in_process import TINY_UNIVERSAL, engines_here

    from sweep import run

    directory = tmp_path_factory.mktemp("universal")
    shutil.copyfile(new_database, directory / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        engines_here(patch)
        assert run.main(["universal", "--suite", "miniature", *TINY_UNIVERSAL, "--seeds", "2"]) == 0
    return directory


@pytest.fixture(scope="session")
def watched_pipeline(tmp_path_factory: pytest.TempPathFactory) -> WatchedPipeline:
    from stage_outputs import watched_pipeline

    return watched_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on a local stand-in for S3."""
    moto_server = pytest.importorskip("moto.server", reason="moto is a test dependency")
    boto3 = pytest.importorskip("boto3", reason="boto3 is a test dependency")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"sweeps-{uuid.uuid4().hex}"  # moto's buckets outlive its server
    boto3.client("s3").create_bucket(Bucket=name)
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()  # an instance remembers the server of an earlier test
    yield f"s3://{name}/prefix"
    server.stop()


@pytest.fixture(scope="session")
def two_sweeps(tmp_path_factory: pytest.TempPathFactory, new_database: Path) -> Path:
    """A directory with store and MLflow of two sweeps that differ in the number of trials, as they were left. Tests change copies."""
    from in_process import SMALL_SWEEP, engines_here

    from sweep import run

    directory = tmp_path_factory.mktemp("two_sweeps")
    shutil.copyfile(new_database, directory / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        engines_here(patch)
        for num_trials in (5, 6):
            assert run.main(["all_pairs", *SMALL_SWEEP, "--num-trials", str(num_trials)]) == 0
    return directory
