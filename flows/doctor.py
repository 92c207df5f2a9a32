"""This machine -> what of Chiron's needs it meets, each with what to do where it does not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pipeline.child import program
from pipeline.disk import try_write
from pipeline.errors import ChironError

Level = Literal["ok", "warn", "fail"]

PACKAGES = ("torch", "numpy", "scipy", "numba", "pydicom", "nibabel", "SimpleITK", "prefect", "fastapi", "sqlalchemy")
WITH_PREFECT = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}  # from these on, Prefect does not start or schedules nothing
ROOM_GB = 5.0


@dataclass(frozen=True)
class Check:
    """One finding: what was looked at, how it is, what to do, and the exit code where it fails."""

    what: str
    level: Level
    found: str
    todo: str = ""
    exit: int = 15


def examine(output: Path | None = None, device: str = "auto", deep: bool = False) -> Iterator[Check]:
    """Look at everything a run needs, and at the folder of its results where one is given.

    `deep` also asks the Prefect server at PREFECT_API_URL or, where none is named, starts one for some seconds.
    """
    yield _python()
    yield from _packages()
    yield _device(device)
    yield _dcm2niix()
    yield _weights()
    yield _key(output)
    if output:
        yield _output(output)
        yield _room(output)
    if deep:
        yield _prefect()


def _python() -> Check:
    fine = sys.version_info >= (3, 11)
    return Check("Python", "ok" if fine else "fail", platform.python_version(), "" if fine else "Use 3.11 or later.")


def _packages() -> Iterator[Check]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            yield Check(name, "fail", "not installed", "Install Chiron again.")
    for name, limit in WITH_PREFECT.items():
        if name in found and tuple(int(n) for n in found[name].split(".")[:2]) >= limit:
            below = ".".join(map(str, limit))
            yield Check(name, "fail", found[name], f"Prefect needs {name} below {below}.")
    yield Check("packages", "ok", ", ".join(f"{name} {number}" for name, number in found.items()))


def _device(name: str) -> Check:
    """A small FFT on the device: a GPU that is listed may still not work."""
    import torch

    from pipeline.device import pick_device

    try:
        device = pick_device(name)
        torch.fft.rfftn(torch.ones(8, 8, 8, device=device)).sum().item()
    except (ChironError, RuntimeError) as error:
        found = error.sentence() if isinstance(error, ChironError) else "a device that cannot compute"
        return Check("device", "fail", found, "Use --device cpu, or look at the driver.", 16)
    if device.type == "cpu":
        return Check("device", "warn" if name == "auto" else "ok", "CPU", "No GPU: `auto` takes the classical method.")
    memory = torch.cuda.get_device_properties(device).total_memory / 1e9
    return Check("device", "ok", f"{torch.cuda.get_device_name(device)}, {memory:.0f} GB")


def _dcm2niix() -> Check:
    import dcm2niix

    try:
        words = program(str(dcm2niix.bin), "--version")
        done = subprocess.run(**words, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return Check("dcm2niix", "fail", "does not run", "Install Chiron again, or look at the machine's type.")
    output = done.stdout.split()
    return Check("dcm2niix", "ok" if output else "fail", output[-1] if output else "says nothing")


def _weights() -> Check:
    from models import cyclegan, diffusion, dip

    try:
        known = [dip.learned(), diffusion.learned(), cyclegan.learned(), cyclegan.learned("seed")]
    except ValueError as error:
        return Check("network weights", "fail", str(error), "Install Chiron again.")
    return Check("network weights", "ok", "; ".join(f"{card['name']}, {card['sha256'][:12]}" for _, card in known))


def _key(output: Path | None) -> Check:
    from pipeline.identity import existing_key, key_file
    from pipeline.publish.key import check_key

    try:
        key, place = existing_key(), key_file()
        if output:
            check_key(output, key)
    except ChironError as error:
        return Check("key of the pseudonyms", "fail", error.found, error.todo)
    if key is None:
        return _no_key(place)
    return Check("key of the pseudonyms", "ok", "only you can read it; keep a copy, labels depend on it")


def _no_key(place: Path) -> Check:
    """The first run makes it, where it can be made."""
    try:
        _try(place.parent)
    except ChironError as error:
        found = f"none yet, and none can be made: {error.found}"
        return Check("key of the pseudonyms", "fail", found, "Set CHIRON_KEY_FILE to a file in a private folder.")
    return Check("key of the pseudonyms", "ok", "none yet; the first run makes one")


def _output(output: Path) -> Check:
    """Whether results can be written: by writing, for rights and free blocks promise less."""
    from pipeline.publish.dataset import private, refuse_foreign

    name = "output folder"
    try:
        refuse_foreign(output)
        _try(output)
        if private(output).exists():
            _try(private(output))
    except ChironError as error:
        return Check(name, "fail", f"{error.code}, {error.found}", error.todo, error.fault.exit)
    return Check(name, "ok", "can be written to" if output.is_dir() else "can be made")


def _try(folder: Path) -> None:
    """Write a nameless file where `folder` is, or the nearest folder above that it would be made in; S001 or S002."""
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        what = "a link that leads nowhere" if place.is_symlink() else "a file"
        raise ChironError("S002", f"{what} where a folder should be", "a folder")
    try_write(place)


def _room(output: Path) -> Check:
    there = next(folder for folder in (output.absolute(), *output.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free / 1e9
    return Check("room on the disk", "ok" if free > ROOM_GB else "warn", f"{free:.0f} GB", "A scan takes up to 5 GB.")


def _prefect() -> Check:
    from flows.engine import connect, is_reported, trial_server

    try:
        if is_reported():
            connect()
            return Check("Prefect", "ok", "answers at PREFECT_API_URL")
        with tempfile.TemporaryDirectory() as home, trial_server(Path(home)):
            return Check("Prefect", "ok", "starts and answers")
    except ChironError as error:
        return Check("Prefect", "fail", error.found, error.todo, error.fault.exit)
