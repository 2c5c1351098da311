"""Names of processes by which another one can tell later whether they still live."""

import os
import socket

import psutil


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
