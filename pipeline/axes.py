"""Axis codes such as LAS -> directions: towards which side of the body the three voxel axes run."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_AXES = {"L": (0, -1), "R": (0, 1), "P": (1, -1), "A": (1, 1), "I": (2, -1), "S": (2, 1)}  # RAS axis and sign
_WORDS = {"L": "left", "R": "right", "P": "back", "A": "front", "I": "feet", "S": "head"}


def directions(axes: str) -> NDArray[np.float64]:
    """Axis codes -> the direction of each voxel axis (columns) in RAS+."""
    matrix = np.zeros((3, 3))
    for column, letter in enumerate(axes.upper()):
        row, sign = _AXES[letter]
        matrix[row, column] = sign
    return matrix


def is_codes(axes: str) -> bool:
    """Whether these are three axis codes, one of left or right, of anterior or posterior, of superior or inferior."""
    rows = [_AXES[letter][0] for letter in axes.upper() if letter in _AXES]
    return len(axes) == 3 and sorted(rows) == [0, 1, 2]


def in_words(axes: str) -> str:
    """`the voxel axes run towards left, front, head`."""
    return f"the voxel axes run towards {', '.join(_WORDS[letter] for letter in axes.upper())}"
