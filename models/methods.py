"""The names of all methods: the one list that help, settings and checks go by. It imports nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

Classical = Literal["tkd", "tikhonov", "rts", "tv", "nltv", "medi", "tfi"]
Learned = Literal["dip", "diffusion", "cyclegan"]
Choice = Literal["auto", "classical", Classical, Learned]

CLASSICAL: tuple[str, ...] = get_args(Classical)
LEARNED: tuple[str, ...] = get_args(Learned)
METHODS = (*CLASSICAL, *LEARNED)
CHOICES: tuple[str, ...] = get_args(Choice)  # what may be asked for: a method, or one that is chosen for it
