"""Echoes -> the mask of the brain: phase quality times magnitude, holes filled, largest component."""

from __future__ import annotations

from dataclasses import dataclass

from models.params import param


@dataclass(frozen=True)
class Mask:
    """How the brain is told from the rest."""

    file: str = param("", "own mask, a NIfTI file on the scan's grid; taken as it is")
