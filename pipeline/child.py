"""A module, or a program, and its words -> how it is started as a process that takes nothing from the working folder.

A person works where the data lie. Python, Prefect, Numba and others look there for modules and settings: `json.py`,
`.env`, `prefect.toml`, `pyproject.toml`, `.numba_config.yaml`. So no process of ours works in that folder or searches
it: the children start in `NOWHERE`, and the first process moves there once its arguments are absolute.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import BaseContext

NOWHERE = "/"  # only the administrator of the machine writes here
ROOT = Path(__file__).resolve().parent.parent  # the packages of ours lie here

SEARCHED = ("PYTHONPATH", "PATH", "LD_LIBRARY_PATH")  # lists of folders: an empty entry is the working folder
NAMED = (
    *("CHIRON_INPUT", "CHIRON_OUTPUT", "CHIRON_KEY_FILE", "CHIRON_LOCKS", "HOME", "TMPDIR", "XDG_CONFIG_HOME"),
    *("PREFECT_HOME", "PREFECT_PROFILES_PATH", "NUMBA_CACHE_DIR", "MPLCONFIGDIR", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)  # each a path that its user chose: a relative one means the same file in every process

_working_folder: list[Path] = []  # the person's, while this process works elsewhere


class Start(TypedDict):
    """The arguments of `subprocess.Popen` and `subprocess.run` that say what is started, and in what surroundings."""

    args: list[str]
    env: dict[str, str]
    cwd: str


def python(module: str, *words: str, environment: Mapping[str, str] | None = None) -> Start:
    """Start `module` of ours with `words`, in `environment` or, without one, in that of this process."""
    return program(sys.executable, "-P", "-m", module, *words, environment=environment)


def program(file: str, *words: str, environment: Mapping[str, str] | None = None) -> Start:
    """Start the program at the absolute path `file`."""
    return {"args": [file, *words], "env": closed(os.environ if environment is None else environment), "cwd": NOWHERE}


def context(method: Literal["spawn", "forkserver"]) -> BaseContext:
    """The processes of `multiprocessing`, which makes their command lines itself from the environment of this one."""
    import multiprocessing

    os.environ.update(closed(os.environ))
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # or its tracker of resources warns of an interrupt, at the end
    return multiprocessing.get_context(method)


def tie(leash: Connection) -> None:
    """Let this process end with the other end of `leash`, and leave interrupts to the process that has it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(leash,), daemon=True).start()


def _end_with(leash: Connection) -> None:
    leash.poll(None)  # until the other end is closed
    os._exit(1)


def closed(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without the working folder: lists of folders lose it, and paths no longer depend on it."""
    result = dict(environment)
    for name in SEARCHED:
        entries = [entry for entry in result.pop(name, "").split(os.pathsep) if Path(entry).is_absolute()]
        if name == "PYTHONPATH" and _is_uninstalled_checkout():
            entries.append(str(ROOT))
        if entries:
            result[name] = os.pathsep.join(entries)
    for name in NAMED:
        if (path := result.get(name, "")) and not path.startswith("~"):
            result[name] = str(working_folder() / path)
    return result | {"PYTHONSAFEPATH": "1"}


def working_folder() -> Path:
    """The folder that a relative path of the person is relative to."""
    try:
        return _working_folder[-1] if _working_folder else Path.cwd()
    except FileNotFoundError:  # it was removed
        return Path(NOWHERE)


def close() -> None:
    """Let this process, and all that it starts by whatever means, search the working folder for nothing."""
    entries = set(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    relative = {working_folder() / entry for entry in entries | {""} if not Path(entry).is_absolute()}
    unwanted = relative - {ROOT} - {Path(entry) for entry in entries}
    sys.path[:] = [entry for entry in sys.path if working_folder() / entry not in unwanted]
    environment = closed(os.environ)
    os.environ.clear()
    os.environ.update(environment)


@contextmanager
def elsewhere() -> Iterator[None]:
    """Work in `NOWHERE`; the working folder is the same again afterwards."""
    _working_folder.append(working_folder())
    os.chdir(NOWHERE)
    try:
        yield
    finally:
        with suppress(OSError):  # it was removed meanwhile
            os.chdir(_working_folder.pop())


def absolute(value: Any) -> Any:
    """A path, or paths in a list, as the person means them; other values as they are."""
    if isinstance(value, list | tuple):
        return type(value)(map(absolute, value))
    return working_folder() / value if isinstance(value, Path) else value


def kill_companions(parent: int | None = None) -> None:
    """Kill the processes that this one started in its own session, which would complain on its terminal of its end."""
    for process in _children(parent or os.getpid()):
        with suppress(OSError):
            if os.getsid(process) == os.getsid(0):
                os.kill(process, signal.SIGSTOP)  # so that it starts no other meanwhile
                kill_companions(process)
                os.kill(process, signal.SIGKILL)


def _children(parent: int) -> list[int]:
    children = []
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):
            children += [int(process) for process in task.read_text().split()]
    return children


def _is_uninstalled_checkout() -> bool:
    """Whether the packages are those of a checkout that is not installed, on the search path for this process only."""
    return str(ROOT) in sys.path and not {"site-packages", "dist-packages"} & set(ROOT.parts)
