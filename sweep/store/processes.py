"""Names of processes by which another one can tell later whether they still live, and what the dead left behind."""

import os
import socket
import time
import uuid
from pathlib import Path

import psutil

LEFT_BEHIND_S = 24 * 3600.0
"""What nobody has touched for so long was left behind, wherever its maker ran."""


def this_process() -> str:
    """This process, named so that its life can be checked later: host:pid:start time."""
    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def is_of_this_host(name: str) -> bool:
    """Whether a name of `this_process` is of a process of this host, living or not."""
    return name.rsplit(":", 2)[0] == socket.gethostname()


def is_alive_here(name: str) -> bool:
    """Whether `this_process` of another is a living process of this host; the start time tells a reused process id apart."""
    try:
        _, pid, started = name.rsplit(":", 2)
        if not is_of_this_host(name):
            return False
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(started)) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ValueError):
        return False


def started_at(name: str) -> float | None:
    """When a process of `this_process` began, s since the epoch; None of what is no such name."""
    try:
        return float(name.rsplit(":", 2)[2])
    except (IndexError, ValueError):
        return None


def unfinished_name(subject: str) -> str:
    """A new name for a file or directory that this process is filling. subject: what it will be, without a dot."""
    return f"{subject}.{this_process()}.{uuid.uuid4().hex}"


def is_left_behind(path: Path) -> bool:
    """Whether the maker of a path with an `unfinished_name` is dead: seen at once on this host, after a day of others."""
    process = path.name.partition(".")[2].rpartition(".")[0]
    if is_of_this_host(process):
        return not is_alive_here(process)
    try:
        return time.time() - path.stat().st_mtime > LEFT_BEHIND_S
    except OSError:
        return False  # gone meanwhile
