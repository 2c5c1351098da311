"""Where MLflow keeps runs: addresses, whether they can be reached, and the creation of a database. Knows no MLflow."""

import os
import shutil
import socket
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

TIMEOUT_S = 10
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def sqlite_path(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other."""
    location = unquote(uri.removeprefix("sqlite:///").partition("?")[0])
    return Path(location) if uri.startswith("sqlite:///") and location not in ("", ":memory:") else None


def absolute_uri(uri: str) -> str:
    """A tracking URI that means the same in every working directory.

    Only % and ? of a SQLite path are quoted: MLflow makes the parent directory of the quoted path, so that a quoted space would
    leave a stray directory.
    """
    path = sqlite_path(uri)
    if path is None:
        return uri
    _, mark, options = uri.partition("?")
    location = os.path.abspath(path)
    return f"sqlite:///{quote(location, safe=''.join(set(location) - set('%?')))}{mark}{options}"


def check_reachable(uri: str) -> None:
    """Fail in seconds where MLflow retries for an hour: a database that cannot be opened, written or connected to.

    Raises sqlite3.Error or OSError.
    """
    path = sqlite_path(uri)
    if path is not None and path.exists():
        connection = sqlite3.connect(path, timeout=TIMEOUT_S)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE check_that_it_can_be_written (number)")
            connection.rollback()
        finally:
            connection.close()
    _connect(uri)


def check_readable(uri: str) -> None:
    """As `check_reachable`, of a store that is only read: a SQLite file must be MLflow's already, and is not touched.

    Raises sqlite3.Error or OSError.
    """
    path = sqlite_path(uri)
    if path is not None:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", timeout=TIMEOUT_S, uri=True)
        try:
            connection.execute("SELECT 1 FROM experiments LIMIT 1")
        finally:
            connection.close()
    _connect(uri)


def _connect(uri: str) -> None:
    """Raise OSError where a database server does not answer."""
    address = urlsplit(uri)
    port = DATABASE_PORTS.get(address.scheme.partition("+")[0])
    if port is not None and address.hostname:
        socket.create_connection((address.hostname, address.port or port), timeout=TIMEOUT_S).close()


def create_sqlite_database(uri: str, create: Callable[[str], object]) -> None:
    """Create a SQLite store whole or not at all; `create` makes one at the URI it is given. Does nothing where there is one.

    MLflow's migrations take seconds, and a database in which they were killed, or done twice at once, is lost.
    """
    path = sqlite_path(uri)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"no permission to write in {path.parent}")
    with tempfile.TemporaryDirectory() as scratch:
        fresh = os.path.join(scratch, "mlflow.db")
        create(f"sqlite:///{fresh}")
        # A copy, because `create` may hold its connection to the first file open.
        beside = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            shutil.copyfile(fresh, beside)
            os.link(beside, path)
        except FileExistsError:
            pass  # another driver was faster
        finally:
            beside.unlink(missing_ok=True)


def artifact_location(uri: str, experiment: str) -> str | None:
    """Where an experiment keeps its files: MLflow's choice (None), but beside a SQLite file outside the working directory."""
    path = sqlite_path(uri)
    if path is None or path.parent == Path.cwd():
        return None
    return (path.parent / "mlruns" / experiment).as_uri()


def how_to_fix(uri: str) -> str:
    """What the user can do about a store that fails."""
    scheme = urlsplit(uri).scheme
    if scheme in ("http", "https"):
        return "Start the server, or give the right address in --tracking-uri"
    if path := sqlite_path(uri):
        return f"Make {path.parent} a writable directory with room, or give another sqlite:///FILE in --tracking-uri"
    if scheme.partition("+")[0] in DATABASE_PORTS:
        return "Start the database and install its driver, or give the right address in --tracking-uri"
    return "Give --tracking-uri as sqlite:///FILE.db or http://HOST:PORT"


def mlflow_command() -> str:
    """How to call the `mlflow` of this environment: by name where that is the one on the PATH, else by path."""
    beside = Path(sys.executable).parent / "mlflow"
    if not beside.exists() or shutil.which("mlflow") == str(beside):
        return "mlflow"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)
