"""A folder -> a site set up in it, and Prefect's whole server for it, as `chiron serve` starts both."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.engine import reread, wait_for
from flows.serve import _listening, _server, served
from flows.serve.child import Child
from flows.site import Site
from pipeline.publish import prepare
from pipeline.settings import load

HOOK = '''
import sys


class InPlace:
    """The stages of tests/stand_in.py for whatever a worker of Prefect's is about to run."""

    def find_spec(self, name, path=None, target=None):
        if name == "flows.deployed":
            sys.meta_path.remove(self)
            sys.path.append({tests!r})
            import stand_in

            stand_in.install(setattr)
            stand_in.flows.crew.Worker = stand_in.flows.crew.process.Worker
        return None


sys.meta_path.insert(0, InPlace())
'''


def make_site(folder: Path) -> Site:
    (folder / "in").mkdir()
    site = Site(folder / "in", folder / "out", load(method="tkd", device="cpu").model_dump(mode="json"))
    prepare(site.output)
    site.save()
    return site


@contextmanager
def serving(site: Site) -> Iterator[Child]:
    """The server, with this process set to speak to it."""
    before = dict(os.environ)
    with _listening(free_port()) as listener:
        os.environ.update(served(site, listener.getsockname()[1]))
        os.environ["CHIRON_KEY_FILE"] = str(site.output.parent / "key")
        reread()
        child = _server(dict(os.environ), listener)
        child.start()
        try:
            wait_for(os.environ["PREFECT_API_URL"], 120, lambda: child.alive)
            yield child
        finally:
            child.end(5)
            os.environ.clear()
            os.environ.update(before)
            reread()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_until(true: Callable[[], bool], within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def processes_of(output: Path) -> dict[int, str]:
    """Process ids and command lines of all that runs for `output`."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
        if f"CHIRON_OUTPUT={output}".encode() in environment and int(folder.name) != os.getpid():
            found[int(folder.name)] = words
    return found


def with_stand_ins(folder: Path) -> dict[str, str]:
    """What a worker's environment needs for its runs to have the stages of tests/stand_in.py."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOOK.format(tests=str(Path(__file__).parent)))
    return {"PYTHONPATH": str(folder)}
