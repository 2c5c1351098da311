"""A process that outlives this one and acts if this one dies without a word, as under kill -9."""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

MAX_ATTEMPTS = 10
MAX_WAIT_S = 60.0


class Watchdog:
    """Calls `function` ("module:name") with `order` in a detached process once this one has died, unless dismissed before.

    It learns of the death by the end of its standard input. Popen's end of the pipe is not inheritable, so only forks without exec
    can keep it open; against those the watchdog also looks whether its parent is still this process. Its own session keeps
    it from the terminal's Ctrl-C and from signals to our process group. The order goes through the pipe, because a command line is visible
    to every user of the machine.
    """

    def __init__(self, function: str, order: Mapping[str, str]) -> None:
        import_path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from sweep.record.watchdog import watch; watch()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": import_path},
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        message = {"function": function, "order": dict(order), "driver_pid": os.getpid()}
        self._pipe.write(json.dumps(message).encode() + b"\n")
        self._pipe.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    def dismiss(self) -> None:
        """End the watchdog; it does nothing more."""
        try:
            self._pipe.write(b"done\n")
            self._pipe.close()
            self._process.wait(timeout=10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def watch() -> None:
    """The life of the watchdog process: wait for "done" or for the driver's death, then act. Silent, and light until it acts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    received, message = b"", None
    while message is None or os.getppid() == message["driver_pid"]:
        if not select.select([0], [], [], 1.0)[0]:
            continue
        chunk = os.read(0, 65536)
        received += chunk
        first_line, newline, rest = received.partition(b"\n")
        if newline:
            message = json.loads(first_line)
        if rest.startswith(b"done"):
            return
        if not chunk:
            break
    if message is None:
        return
    module, _, name = message["function"].partition(":")
    _persist(getattr(importlib.import_module(module), name), message["order"])


def _persist(function: Callable[[Mapping[str, str]], None], order: Mapping[str, str]) -> None:
    for attempt in range(MAX_ATTEMPTS):
        try:
            function(order)
            return
        except Exception:  # whatever it is, it may be over in a while, and nobody is left to tell
            time.sleep(min(2.0**attempt, MAX_WAIT_S))
