"""The environment -> Prefect's API, where one is named, ready to be told of runs; and exits that nothing holds up.

Prefect reads its settings when it is imported, so nothing here imports it, and `connect` must be called before.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from pipeline import child
from pipeline.disk import disk_error, try_write
from pipeline.errors import ChironError

STARTUP_S = 120.0  # a server creates its database on the first start
REMOTE_S = 30.0
STOP_S = 5.0
DATABASE_BYTES = 8 * 2**20  # of a new server: its database and the journal of it
INTERRUPTED = 130  # exit code

_LAST_WORDS: list[str] = []
ECHO_OFF = "\r\x1b[K"  # wipes the echo of a key (^C) below the last line
ON_PAUSE: list[Callable[[bool], None]] = []  # what stops with this process at Ctrl-Z (True), and goes on with it
BEFORE_LEAVING: list[Callable[[], None]] = []  # what `leave` must still do: give a terminal back, say

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # what failed is said once, by the command, with its code
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_ROOT_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}


def is_reported() -> bool:
    """Whether there is a Prefect server that runs are reported to: the one at PREFECT_API_URL."""
    return bool(os.environ.get("PREFECT_API_URL"))


def connect() -> None:
    """Return once the Prefect server at PREFECT_API_URL, where one is named, answers; R007 where it does not."""
    quiet()
    if is_reported():
        reread()
        wait_for(os.environ["PREFECT_API_URL"], REMOTE_S)


def quiet() -> None:
    """Set for this process, and those it starts, what keeps Prefect silent and at home; what is set already stays."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def reread() -> None:
    """Let a Prefect that is imported already go by the environment as it is now."""
    if context := sys.modules.get("prefect.context"):
        context.refresh_global_settings_context()


def wait_for(url: str, seconds: float, alive: Callable[[], bool] = lambda: True) -> None:
    """Return once Prefect's API at `url` answers; R007 where it does not in time, or its process is not alive."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and alive():
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            return
        time.sleep(0.1)
    raise ChironError("R007", f"no answer from Prefect within {seconds:.0f} s", "a Prefect server that answers")


def check_room(home: Path) -> None:
    """Make `home`; S001 or S002 where Prefect's state cannot be written there: its server would die of it, or hang."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise disk_error(error) from error
    try_write(home, DATABASE_BYTES)


@contextmanager
def or_no_room(home: Path) -> Iterator[None]:
    """Where a server does not answer, first ask whether its disk is full: S001 or S002 then, in place of R007."""
    try:
        yield
    except ChironError:
        check_room(home)
        raise


class Watchdog:
    """Ends the process where Prefect holds it longer than it may: no result waits for a scheduler that is gone."""

    def __init__(self, bark: Callable[[], int]) -> None:
        self._bark = bark
        self._timer: threading.Timer | None = None

    def arm(self, seconds: float) -> None:
        """End the process with the code that `bark` returns, unless disarmed or armed anew within `seconds`."""
        self.disarm()
        self._timer = threading.Timer(seconds, self._fire)
        self._timer.daemon = True
        self._timer.start()

    def disarm(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _fire(self) -> None:
        code = 1
        try:
            code = self._bark()
        finally:
            leave(code)


def leave(code: int, word: str = "") -> None:
    """Exit now, without the threads and exit hooks that wait for a server."""
    for do in (*BEFORE_LEAVING, sys.stdout.flush, lambda: last_word(word, sys.__stderr__), sys.stderr.flush):
        with suppress(OSError, ValueError, RuntimeError):
            do()
    os._exit(code)


def abort(word: str) -> None:
    """Exit at once on a second interrupt, with `word` as the last line on standard error."""
    child.kill_companions()
    leave(INTERRUPTED, word)


def last_word(text: str, stream: IO[str] | None = None) -> None:
    """Print the line that a command ends with on standard error, unless another such line stands there."""
    stream = stream or sys.stderr
    with suppress(RuntimeError):  # in a signal's handler, which interrupted the printing of another line
        if text and not _LAST_WORDS:
            _LAST_WORDS.append(text)
            print_line(text, stream)
        elif text and stream.isatty():
            stream.write(ECHO_OFF)


def begin() -> None:
    """No last word has been said: a command begins."""
    _LAST_WORDS.clear()


def print_line(text: str, stream: IO[str]) -> None:
    """Print a line at once, by one call that no interrupt cuts; on a terminal over the echo of a key (^C)."""
    stream.write(f"\r{text}\n" if stream.isatty() else f"{text}\n")
    stream.flush()


@contextmanager
def trial_server(home: Path, start_within_s: float = STARTUP_S) -> Iterator[subprocess.Popen[bytes]]:
    """Prefect's server while the context lasts, with its state in `home`, on a free port of the loopback.

    It is for this process and those that it starts: it asks for a password made up for it. R007 where it does not
    answer in time, S001 or S002 where it cannot write.
    """
    quiet()
    check_room(home)
    os.environ.setdefault("PREFECT_HOME", str(home))
    password = f"chiron:{secrets.token_hex(16)}"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        mine = {
            "PREFECT_API_URL": url,
            "PREFECT_API_AUTH_STRING": password,
            "PREFECT_SERVER_API_AUTH_STRING": password,
        }
        os.environ.update(mine)
        reread()
        try:
            with ExitStack() as stack:
                server = _start(listener)
                stack.callback(_stop, server)
                with or_no_room(home):
                    wait_for(url, start_within_s, lambda: server.poll() is None)
                yield server
        finally:
            for name in mine:
                os.environ.pop(name, None)
            reread()


def _start(listener: socket.socket) -> subprocess.Popen[bytes]:
    """The server ends when its standard input does, that is, with this process, however that ends."""
    handle = listener.fileno()
    return subprocess.Popen(
        **child.python("flows.server", str(handle)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[handle],
        start_new_session=True,  # a Ctrl-C is for us; the server must still take the last state
    )


def _stop(server: subprocess.Popen[bytes]) -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
