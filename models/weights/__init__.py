"""The name of a network -> its weights and its card, from the package; a file that is not the card's is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as parse
from safetensors.torch import save as pack
from torch import Tensor

FOLDER = Path(__file__).parent


def card(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """What is known of the weights: hash, size, data they were learned from, licence."""
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def load(name: str, folder: Path = FOLDER) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors (float32) of `name`.safetensors and its card; ValueError where either is missing or the hash differs.

    Nothing of a foreign file is executed: safetensors holds numbers only, and its hash is compared before it is parsed.
    """
    try:
        known = card(name, folder)
        content = (folder / f"{name}.safetensors").read_bytes()
    except OSError:
        raise ValueError(f"no weights {name}, or no card") from None
    found, said = hashlib.sha256(content).hexdigest(), str(known.get("sha256"))
    if found != said:
        raise ValueError(f"{name}.safetensors has the hash {found[:12]}, its card says {said[:12]}")
    try:
        return {key: value.float() for key, value in parse(content).items()}, known
    except SafetensorError:
        raise ValueError(f"{name}.safetensors holds no tensors") from None


def store(name: str, tensors: dict[str, Tensor], about: dict[str, Any], folder: Path) -> None:
    """Write weights in half precision and their card; numbers that halves cannot hold raise ValueError."""
    halves = {key: value.detach().cpu().half().contiguous() for key, value in tensors.items()}
    if not all(bool(value.isfinite().all()) for value in halves.values()):
        raise ValueError("weights that are not finite in half precision")
    content = pack(halves)
    (folder / f"{name}.safetensors").write_bytes(content)
    about = {**about, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / f"{name}.json").write_text(json.dumps(about, indent=2) + "\n")
