"""A site -> all of it on one machine: Prefect's server, its deployments and its workers, until it is told to stop."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType

from flows.deploy import Times, deploy
from flows.engine import QUIET, STARTUP_S, abort, check_room, or_no_room, wait_for
from flows.pools import CPU, GPU
from flows.serve.child import Child
from flows.site import OUTPUT_VARIABLE, Site
from pipeline.errors import ChironError
from pipeline.lock import try_lock
from pipeline.publish.dataset import prepare, private

HOST = "127.0.0.1"
WORKERS_STOP_S = 18.0
SERVER_STOP_S = 5.0
PASSWORD = "password"

NOWHERE = "http://127.0.0.1:9"  # the server asks a public registry for its lists; it has its own copy of them
SERVED = {
    "PREFECT_SERVER_UI_ENABLED": "true",
    "PREFECT_SERVER_API_HOST": HOST,
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "true",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_WORKER_QUERY_SECONDS": "4",
}
REGISTRY = {"HTTPS_PROXY": NOWHERE, "HTTP_PROXY": NOWHERE, "ALL_PROXY": NOWHERE, "NO_PROXY": f"{HOST},localhost"}


def serve(site: Site, times: Times, port: int, say: Callable[[str], None]) -> None:
    """Run the site until SIGINT or SIGTERM, and then end all that was started within half a minute.

    R006 where the output is served already, R007 where the port is taken or Prefect's server does not start.
    """
    prepare(site.output)
    with _alone(site.output), _listening(port) as listener:
        site.save()
        environment = {**os.environ, **served(site, port)}
        os.environ.update(environment)  # of `deploy`, whose Prefect reads it when it is imported
        server = _server(environment, listener)
        workers = _workers(environment)
        with _until_told(server, workers) as told:
            _begin(server, times, len(workers) - 1, told)
            for worker in () if told.is_set() else workers:
                worker.start()
            say(f"Prefect shows what runs at http://{HOST}:{port}")
            say(f"Its password is the line in {private(site.output) / 'prefect' / PASSWORD}")
            while not told.wait(1.0):
                for child in (server, *workers):
                    child.mind(lambda text: say(f"{datetime.now():%H:%M:%S} {text}"))
            say("stopping")


def served(site: Site, port: int) -> dict[str, str]:
    """The settings of Prefect for a site on this machine: only this machine is answered, and only with the password."""
    home = private(site.output) / "prefect"
    check_room(home)
    password = _password(home)
    return {
        **QUIET,
        **SERVED,
        OUTPUT_VARIABLE: str(site.output),
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port}",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(home / "ui"),
        "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(int(max(site.keep_days, 1) * 86400)),
    }


def cards() -> int:
    """How many there are, counted without taking hold of one."""
    import torch

    return torch.cuda.device_count()


def _begin(server: Child, times: Times, at_once: int, told: threading.Event) -> None:
    """Have the server answer, with all deployments; where it is told to stop before, nothing is owed."""
    server.start()
    try:
        with or_no_room(Path(server.environment["PREFECT_HOME"])):
            wait_for(server.environment["PREFECT_API_URL"], STARTUP_S, lambda: server.alive and not told.is_set())
        deploy(times, at_once)
    except ChironError:
        if not told.is_set():
            raise


def _server(environment: dict[str, str], listener: socket.socket) -> Child:
    """It listens on a socket of ours: while it starts again, its callers wait rather than fail."""
    handle = listener.fileno()
    return Child("server", ["flows.server", str(handle), "everything"], {**environment, **REGISTRY}, [handle])


def _workers(environment: dict[str, str]) -> list[Child]:
    """One for the cpu pool, and one a card for the gpu pool, or one of it without a card."""
    each: list[list[str]] = [[GPU, str(card)] for card in range(cards())] or [[GPU]]
    return [Child("worker " + " ".join(words), ["flows.serve.worker", *words], environment) for words in [[CPU], *each]]


@contextmanager
def _until_told(server: Child, workers: list[Child]) -> Iterator[threading.Event]:
    """Set at the first SIGINT or SIGTERM; all ends with the context, and at once at a second one."""
    told = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        if told.is_set():
            for child in (*workers, server):
                child.end(0.0)
            abort("interrupted")
        told.set()

    heeded = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield told
    finally:
        told.set()
        _end(server, workers)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(server: Child, workers: list[Child]) -> None:
    """The workers first, for their runs still have to say how they ended."""
    until = time.monotonic() + WORKERS_STOP_S
    for worker in workers:
        worker.ask()
    while any(worker.alive for worker in workers) and time.monotonic() < until:
        time.sleep(0.1)
    for worker in workers:
        worker.end(0.0)
    server.end(SERVER_STOP_S)


def _password(home: Path) -> str:
    """Of the server: made once, for its owner's eyes only."""
    path = home / PASSWORD
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(f"chiron:{secrets.token_urlsafe(24)}\n")
    return path.read_text().strip()


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """R006 where another process serves `output`."""
    with (private(output) / "serve.lock").open("a") as stream:
        if not try_lock(stream.fileno()):
            raise ChironError("R006", "this output folder is served already", "one `chiron serve`")
        yield


@contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    try:
        listener = socket.create_server((HOST, port), backlog=512)
    except OSError:
        raise ChironError(
            "R007", f"port {port} is taken by another program", "a free one", "Choose another with --port."
        ) from None
    with listener:
        yield listener
