"""A transferred model in MLflow: logged, registered, loaded where this project is not, and served over HTTP."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import venv
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from patience import wait_for
from transfers import CLASS_NAMES, write_explaining_model, write_pictures

import sweep
from core.attribution_head import AttributionHead
from sweep import run as command_line

NAME = "signs"


@pytest.fixture(scope="module")
def directory(tmp_path_factory, base, new_database) -> Path:
    """An MLflow store with a registered model of traffic signs, the model, and some pictures."""
    directory = tmp_path_factory.mktemp("served")
    (directory / "mlflow.db").write_bytes(new_database.read_bytes())
    write_explaining_model(directory / "explaining", base, AttributionHead("efficiency", scale=0.7))
    write_pictures(directory / "pictures", 4, by_class=False)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as raised:
        patch.chdir(directory)
        command = ["publish", "--model", "explaining", "--register", NAME, "--tracking-uri", uri(directory)]
        assert command_line.main(command) == 0
    assert not [warning for warning in raised if "type hints" in str(warning.message)]  # MLflow's, who is not asked to write code
    return directory


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Path:
    """A Python with this project's dependencies but without the project."""
    environment = tmp_path_factory.mktemp("elsewhere")
    venv.create(environment, with_pip=False, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    here = next(path for path in sys.path if (Path(path) / "mlflow").is_dir())
    (packages / "dependencies.pth").write_text(f"{here}\n")  # the .pth files in there, an editable install's, are not read
    python, server = environment / "bin" / "python", environment / "bin" / "uvicorn"
    server.write_text(f"#!{python}\nfrom uvicorn.main import main\nmain()\n")
    server.chmod(0o755)
    return python


@pytest.fixture(scope="module")
def address(directory, elsewhere) -> Iterator[str]:
    """Of a server of the registered model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(elsewhere), "-m", "mlflow", "models", "serve", "-m", f"models:/{NAME}/1", "--env-manager", "local"]
    path = os.pathsep.join([str(elsewhere.parent), os.environ["PATH"]])
    environment = {**outside(), "PATH": path, "MLFLOW_TRACKING_URI": uri(directory)}
    log = directory / "server.log"
    command += ["-p", str(port), "-h", "127.0.0.1"]
    with log.open("w") as output:
        server = subprocess.Popen(command, cwd=directory, env=environment, stdout=output, stderr=output, start_new_session=True)
    try:
        wait_for(lambda: server.poll() is not None or answers(f"http://127.0.0.1:{port}/ping"))
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def uri(directory: Path) -> str:
    return f"sqlite:///{directory / 'mlflow.db'}"


def outside() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}


def answers(url: str) -> bool:
    try:
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)
    except OSError:
        return False


def posted(address: str, records: list[dict]) -> tuple[int, dict]:
    body = json.dumps({"dataframe_records": records}).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def in_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def test_served_over_http_the_maps_are_the_models_own(directory, address):
    paths = sorted((directory / "pictures").glob("*.png"))
    status, answer = posted(address, [{"image": in_base64(path)} for path in paths])
    assert status == 200, answer
    model = sweep.load(directory / "explaining")
    explanation = model.explain([str(path) for path in paths])
    predicted = model.predict([str(path) for path in paths])
    assert [row["class"] for row in answer["predictions"]] == list(predicted.class_names)
    found = np.array([row["attributions"] for row in answer["predictions"]])
    assert found.shape == (len(paths), 7, 7)
    np.testing.assert_allclose(found, explanation.maps[:, 0], atol=1e-5)
    np.testing.assert_allclose([row["probability"] for row in answer["predictions"]], predicted.probabilities.max(axis=1), atol=1e-5)


def test_a_class_may_be_asked_for(directory, address):
    path = next((directory / "pictures").glob("*.png"))
    wanted = CLASS_NAMES[3]
    status, answer = posted(address, [{"image": in_base64(path), "class": wanted}])
    assert status == 200 and answer["predictions"][0]["class"] == wanted
    expected = sweep.load(directory / "explaining").explain(str(path), wanted)
    np.testing.assert_allclose(answer["predictions"][0]["attributions"], expected.maps[0, 0], atol=1e-5)


def test_what_cannot_be_answered_is_refused_by_its_row(directory, address):
    good = in_base64(next((directory / "pictures").glob("*.png")))
    status, answer = posted(address, [{"image": good}, {"image": base64.b64encode(b"no picture").decode()}])
    assert status == 400 and "row 1 is no picture" in answer["message"]
    status, answer = posted(address, [{"image": good, "class": "stop sgn"}])
    assert status == 400 and "no class 'stop sgn'" in answer["message"] and "did you mean" in answer["message"]


def test_the_registry_has_a_version_and_the_experiment_the_model(directory, monkeypatch):
    monkeypatch.chdir(directory)
    client = mlflow.MlflowClient(uri(directory))
    assert [str(v.version) for v in client.search_model_versions(f"name='{NAME}'")] == ["1"]
    experiment = client.get_experiment_by_name("transferred")
    (logged,) = client.search_logged_models([experiment.experiment_id])
    assert logged.status == "READY"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--model", "nowhere"], "make one with `transfer`"), (["--model", "explaining", "--register", "a/b"], "leave / and : out")],
)
def test_bad_input_is_refused(directory, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(directory)
    assert command_line.main(["publish", *arguments, "--tracking-uri", uri(directory)]) == 2
    assert message in capsys.readouterr().err
