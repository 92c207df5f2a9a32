"""The methods that can be trained, by name, and the options that are theirs alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.train.cyclegan import train_cyclegan
from flows.train.diffusion import train_diffusion
from flows.train.dip import train_dip
from flows.train.plan import Plan, Say


@dataclass(frozen=True)
class Method:
    """`train` fills a folder and returns the card; `options` of the plan are of no use to some other method."""

    train: Callable[[Path, Plan, Say], dict[str, Any]]
    options: tuple[str, ...]


METHODS = {
    "dip": Method(train_dip, ("scans", "first")),
    "diffusion": Method(train_diffusion, ("config", "maps", "workers")),
    "cyclegan": Method(train_cyclegan, ("scans", "first", "maps", "workers", "fields", "preset", "adversary")),
}
