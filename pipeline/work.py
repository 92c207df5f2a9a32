"""A private work folder: what each stage of a scan made, with hashes that prove it -> reused, or made again.

One folder a stage: arrays as `.npy`, other files as they are, and `stage.json` with the key (hash of inputs, settings
and version), the hash of every file, facts, seconds and peak memory. A stage's folder appears by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from pipeline.disk import disk_error as disk_error  # others take it from here
from pipeline.errors import Decision, Notice


@dataclass
class Made:
    """What a stage hands over: arrays, other files, facts (plain JSON), decisions taken and notices."""

    arrays: dict[str, Tensor] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """A finished stage as it stands on disk."""

    folder: Path
    record: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.record["facts"]
        return facts

    @property
    def digest(self) -> str:
        """Hash of everything the stage made; the key of a later stage contains it."""
        return digest({"files": self.record["files"], "facts": self.facts})

    def has(self, name: str) -> bool:
        return f"{name}.npy" in self.record["files"]

    def array(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """The named array as a tensor on `device`."""
        return torch.from_numpy(np.load(self.folder / f"{name}.npy")).to(device)

    def file(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


@dataclass(frozen=True)
class _Bytes:
    """A stream that NumPy takes for none of the system's: it loses the reason why one of these cannot be written."""

    stream: BinaryIO

    def write(self, data: bytes) -> int:
        return self.stream.write(data)


@dataclass(frozen=True)
class Work:
    """The work folder of one scan."""

    folder: Path

    def find(self, stage: str) -> Result | None:
        """The stage's result as recorded, unproven; None where there is none."""
        try:
            record = json.loads((self.folder / stage / "stage.json").read_text())
        except (OSError, ValueError):
            return None
        return Result(self.folder / stage, record) if isinstance(record, dict) else None

    def proven(self, stage: str, key: str) -> Result | None:
        """The stage's result, if it was made under `key` and every file still has its recorded hash."""
        result = self.find(stage)
        if result is None or result.record.get("key") != key or result.record.get("seal") != seal(result.record):
            return None
        for name, recorded in result.record["files"].items():
            path = result.folder / name
            if not path.is_file() or file_digest(path) != recorded:
                return None
        return result

    def write(self, stage: str, key: str, made: Made, measured: Mapping[str, Any]) -> Result:
        """Store what a stage made: written aside, flushed, then renamed into place, replacing what stood there."""
        aside = self.folder / f".{stage}.{os.getpid()}"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True, mode=0o700)
            for name, tensor in made.arrays.items():
                with (aside / f"{name}.npy").open("wb") as stream:
                    np.save(_Bytes(stream), tensor.detach().cpu().contiguous().numpy())
            for name, content in made.files.items():
                (aside / name).write_bytes(content)
            record = {
                "key": key,
                "files": {path.name: file_digest(path) for path in sorted(aside.iterdir())},
                "facts": made.facts,
                "decisions": [d.json() for d in made.decisions],
                "notices": [n.json() for n in made.notices],
                **measured,
            }
            record["seal"] = seal(record)
            (aside / "stage.json").write_text(json.dumps(record, indent=1))
            for path in aside.iterdir():
                flush(path)
            final = self.folder / stage
            shutil.rmtree(final, ignore_errors=True)
            aside.rename(final)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            raise disk_error(error) from error
        return Result(final, record)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def seal(record: dict[str, Any]) -> str:
    """Hash of a stage's record, itself left out."""
    return digest({name: value for name, value in record.items() if name != "seal"})


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Force a file's or folder's content to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
