"""The directory a domain lies in: nothing outside it is read, and remote ones go the same way as local ones."""

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import fsspec
import numpy as np
import pytest
from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile
from patience import PATIENCE_S

from core.data import parquet_layout
from core.data.directory import DataDirectory, open_data_directory
from core.data.domains import DomainError, decode_picture, read_domain, write_parquet_split

PICTURES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
CLASS_IDS = np.array([0, 1, 0, 1, 0, 1])
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def local_domain(tmp_path: Path) -> Path:
    root = tmp_path / "shapes"
    root.mkdir()
    for split in ("train", "test"):
        write_parquet_split(root / f"{split}.parquet", PICTURES, CLASS_IDS, ["round", "square"])
    return root


@pytest.fixture
def memory_url(local_domain: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(str(local_domain), "/remote/", recursive=True)
    yield "memory://remote/shapes"
    memory.rm("/remote", recursive=True)


def test_a_remote_directory_reads_as_the_local_one_does(local_domain: Path, memory_url: str) -> None:
    local, remote = read_domain(local_domain), read_domain(memory_url)
    assert (remote.name, remote.class_names) == (local.name, local.class_names)
    split = pickle.loads(pickle.dumps(remote.splits["test"]))
    assert split.ids == local.splits["test"].ids
    assert [split.read_bytes(i) for i in range(6)] == [local.splits["test"].read_bytes(i) for i in range(6)]


class _Counting(AbstractFileSystem):
    """Local files as a bucket has them: read by ranges, each a request."""

    protocol = "counting"
    cachable = False
    requests: list[int] = []

    def _open(self, path, mode="rb", block_size=None, autocommit=True, cache_options=None, **kwargs):
        return _CountingFile(self, path, mode, **kwargs)

    def info(self, path, **kwargs):
        return {"name": path, "type": "file", "size": os.path.getsize(path), "lfs": {"sha256": "0"}}

    def find(self, path, **kwargs):
        return [str(file) for file in Path(path).rglob("*") if file.is_file()]


class _CountingFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        _Counting.requests.append(end - start)
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), end - start, start)


def test_of_a_remote_file_only_what_is_asked_for_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12 MB in 13 row groups: the labels without the pictures, then a row group in few requests."""
    monkeypatch.setattr(parquet_layout, "READ_AHEAD_BYTES", 2**19)  # a row group is larger
    fsspec.register_implementation("counting", _Counting, clobber=True)
    pictures = np.random.default_rng(0).integers(0, 256, (3328, 35, 35, 3), dtype=np.uint8)
    write_parquet_split(tmp_path / "train.parquet", pictures, np.arange(3328) % 2, ["round", "square"])
    write_parquet_split(tmp_path / "test.parquet", PICTURES, CLASS_IDS, ["round", "square"])
    size = (tmp_path / "train.parquet").stat().st_size
    _Counting.requests.clear()
    split = read_domain(f"counting://{tmp_path}").splits["train"]
    assert sum(_Counting.requests) < 0.1 * size and len(_Counting.requests) < 25
    _Counting.requests.clear()
    assert decode_picture(split.read_bytes(300)).size == (35, 35)
    assert sum(_Counting.requests) < 0.1 * size and len(_Counting.requests) <= 5
    assert max(_Counting.requests) > 0.07 * size  # a column at once
    monkeypatch.undo()
    _Counting.requests.clear()
    read_domain(f"counting://{tmp_path}")  # with row groups smaller than what is read ahead
    assert len(_Counting.requests) < 13


def test_a_remote_fingerprint_follows_the_content(memory_url: str, tmp_path: Path) -> None:
    before = read_domain(memory_url).fingerprint
    assert read_domain(memory_url).fingerprint == before
    write_parquet_split(tmp_path / "other.parquet", 255 - PICTURES, CLASS_IDS, ["round", "square"])
    fsspec.filesystem("memory").put(str(tmp_path / "other.parquet"), "/remote/shapes/train.parquet")
    assert read_domain(memory_url).fingerprint != before


def test_a_remote_image_folder_is_read(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    try:
        for split in ("train", "test"):
            for name in ("cat", "big_dog"):
                memory.pipe(f"/folder/{split}/{name}/1.png", f"{split} {name}".encode())
        domain = read_domain("memory://folder")
    finally:
        memory.rm("/folder", recursive=True)
    assert domain.class_names == ("big dog", "cat")
    assert domain.splits["test"].ids == ["test/big_dog/1.png", "test/cat/1.png"]


def test_a_file_url_is_held_to_the_rules_of_a_local_path(local_domain: Path, tmp_path: Path) -> None:
    assert read_domain(f"file://{local_domain}").fingerprint == read_domain(local_domain).fingerprint
    (local_domain / "test.parquet").rename(tmp_path / "elsewhere.parquet")
    (local_domain / "test.parquet").symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(DomainError, match="test.parquet is a link that leaves the data directory"):
        read_domain(f"file://{local_domain}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_read_permission_is_an_error(local_domain: Path) -> None:
    (local_domain / "test.parquet").chmod(0)
    with pytest.raises(DomainError, match="test.parquet: Permission denied; check"):
        read_domain(local_domain)


@pytest.mark.parametrize("relative", ["../secret", "a/../../secret", "/etc/passwd", "nul\0", "", "link"])
def test_nothing_outside_the_directory_is_opened(tmp_path: Path, relative: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "data" / "link").symlink_to("../secret")
    directory = open_data_directory(tmp_path / "data")
    with pytest.raises(DomainError, match="inside the data directory|leaves the data directory"):
        directory.open(relative)


def test_a_link_swapped_in_after_the_check_is_not_followed(tmp_path: Path) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_bytes(b"picture")
    split = read_domain(tmp_path / "data").splits["train"]
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "data/train/a/1.png").unlink()
    (tmp_path / "data/train/a/1.png").symlink_to(tmp_path / "secret")
    with pytest.raises(DomainError, match="leaves the data directory"):
        split.read_bytes(0)


def test_messages_carry_no_credentials() -> None:
    directory = DataDirectory("s3://key:secret@bucket/shapes", is_local=False)
    assert str(directory) == repr(directory) == "s3://bucket/shapes"
    assert directory.describe("train.parquet") == "s3://bucket/shapes/train.parquet"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://datasets/mnist", "owner/name"),
        ("hf://owner/model", "owner/name"),
        ("nosuchstore://bucket/shapes", "nosuchstore"),
        ("memory://nothing-here", "holds no files"),
    ],
)
def test_a_url_that_leads_nowhere_is_an_error_with_a_fix(url: str, message: str) -> None:
    with pytest.raises(DomainError, match=message):
        read_domain(url)


class _Hub(BaseHTTPRequestHandler):
    """The three requests of the Hub's interface that reading takes, served from a directory at one commit."""

    root: Path
    requests: list[str]
    is_gated = False
    """Then, as on the Hub, who has no access is told what there is, and refused the files."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(path)
        status, headers, body = 200, {"Content-Type": "application/json"}, b""
        resolve = f"/datasets/owner/shapes/resolve/{COMMIT}/"
        if path in ("/api/datasets/owner/shapes", f"/api/datasets/owner/shapes/revision/{COMMIT}"):
            body = json.dumps({"id": "owner/shapes", "sha": COMMIT, "siblings": [], "tags": []}).encode()
        elif path.startswith(f"/api/datasets/owner/shapes/tree/{COMMIT}"):
            files = sorted(self.root.rglob("*.parquet"))
            body = json.dumps([self._describe(file) for file in files]).encode()
        elif path.startswith(resolve) and self.is_gated:
            status, headers["X-Error-Code"] = 403, "GatedRepo"
        elif path.startswith(resolve):
            body = (self.root / path.removeprefix(resolve)).read_bytes()
            headers = {"ETag": '"0"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if "Range" in self.headers:
                first, last = self.headers["Range"].removeprefix("bytes=").split("-")
                headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
                status, body = 206, body[int(first) : int(last) + 1]
        else:
            status, headers["X-Error-Code"] = 404, "RepoNotFound"
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _describe(self, file: Path) -> dict[str, object]:
        name, size = file.relative_to(self.root).as_posix(), file.stat().st_size
        return {"type": "file", "path": name, "size": size, "oid": f"{size:040x}"}

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(local_domain: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the paths that were asked for; gated where the test says so by a parameter."""
    (local_domain / "data").mkdir()
    for split in ("train", "test"):
        (local_domain / f"{split}.parquet").rename(local_domain / f"data/{split}-00000-of-00001.parquet")

    class Hub(_Hub):
        root = local_domain
        requests: list[str] = []
        is_gated = getattr(request, "param", False)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Hub.requests
    server.shutdown()
    server.server_close()
    thread.join()


READ_IN_A_PROCESS = """
import json, pickle, sys
from core.data.domains import DomainError, read_domain
try:
    domain = read_domain(sys.argv[1])
    split = pickle.loads(pickle.dumps(domain.splits["test"]))
    pictures = [split.read_bytes(index).hex() for index in range(len(split))]
    print(json.dumps([domain.name, domain.class_names, domain.source, domain.fingerprint, split.ids, pictures]))
except DomainError as error:
    print(json.dumps(str(error)))
"""


def _read_in_a_process(url: str, **environment: str) -> object:
    """The Hub's client takes its settings from the environment when it is imported, so it gets a process."""
    settings = {
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **environment,
    }
    command = [sys.executable, "-c", READ_IN_A_PROCESS, url]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_hub_data_set_is_read_at_the_commit_it_was_checked_at(
    hub: tuple[str, list[str]], local_domain: Path, tmp_path: Path
) -> None:
    endpoint, requests = hub
    answer = _read_in_a_process("hf://datasets/owner/shapes", HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "hf"))
    assert isinstance(answer, list), answer
    name, class_names, source, _, ids, pictures = answer
    assert (name, class_names, source) == ("shapes", ["round", "square"], f"hf://datasets/owner/shapes@{COMMIT}")
    assert ids == [f"test/{row:06d}.png" for row in range(6)]
    decoded = [np.asarray(decode_picture(bytes.fromhex(picture))) for picture in pictures]
    assert np.array_equal(decoded, PICTURES)
    assert any("/tree/" in path for path in requests) and any("/resolve/" in path for path in requests)


def test_a_hub_data_set_that_does_not_exist_is_an_error_that_speaks_of_access(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    answer = _read_in_a_process("hf://datasets/owner/nothing", HF_ENDPOINT=hub[0], HF_HOME=str(tmp_path / "hf"))
    assert "does not exist or you have no access" in str(answer) and "HF_TOKEN" in str(answer)


@pytest.mark.parametrize("hub", [True], indirect=True)
def test_a_gated_hub_data_set_says_how_to_get_access(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    answer = _read_in_a_process("hf://datasets/owner/shapes", HF_ENDPOINT=hub[0], HF_HOME=str(tmp_path / "hf"))
    assert any("/resolve/" in path for path in hub[1])
    assert "cannot read hf://datasets/owner/shapes" in str(answer) and "is gated: accept the conditions on its page" in str(answer)
    assert "HF_TOKEN" in str(answer)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        # Port 9 (discard) of this machine: nothing listens, the connection is refused at once.
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach the Hugging Face Hub"),
    ],
)
def test_without_the_hub_there_is_an_error_instead_of_a_wait(
    environment: dict[str, str], message: str, tmp_path: Path
) -> None:
    answer = _read_in_a_process("hf://datasets/tanganke/dtd", HF_HOME=str(tmp_path / "hf"), **environment)
    assert message in str(answer) and "directory" in str(answer)
