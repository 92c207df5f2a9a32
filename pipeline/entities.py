"""The entities of a scan <-> its label, in the order that BIDS gives them. It imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_NAMES = """
    sub ses sample task tracksys acq nuc voi ce trc stain rec dir run mod echo flip inv mt part proc hemi space split
    recording chunk seg res den label desc
"""
ORDER = tuple(_NAMES.split())

OF_SCANS = ("sub", "ses", "sample", "acq", "ce", "rec", "dir", "run", "mod", "flip", "inv", "mt", "chunk")

Entities = tuple[tuple[str, str], ...]  # name and value, without those of subject, session and run


def label_of(subject: str, session: str = "", run: str = "", others: Iterable[Iterable[str]] = ()) -> str:
    """`sub-x_ses-y_acq-z_run-1`, without the parts that are empty."""
    pairs = [("sub", subject), ("ses", session), ("run", run), *((name, value) for name, value in others)]
    return "_".join(f"{name}-{value}" for name, value in in_order(pair for pair in pairs if pair[1]))


def in_order(pairs: Iterable[tuple[str, str]]) -> Entities:
    """Names and values in the order of BIDS."""
    return tuple(sorted(pairs, key=_place))


def of_scan(pairs: Iterable[tuple[str, str]]) -> Entities:
    """The entities that a scan's label may have; those of processed images, and unknown ones, become part of `acq-`.

    `desc-x` and `space-y` are needed for what is made of the scan: a label that has them would be two files' name.
    """
    kept = {name: value for name, value in pairs if name in OF_SCANS}
    others = "".join(f"{name}{value}" for name, value in pairs if name not in (*OF_SCANS, "echo", "part"))
    return in_order((kept | ({"acq": kept.get("acq", "") + others} if others else {})).items())


def split(label: str) -> tuple[str, str, str, Entities]:
    """Subject, session, run and the other entities of a label."""
    pairs = [(name, value) for name, _, value in (part.partition("-") for part in label.split("_"))]
    named = dict(pairs)
    others = tuple(pair for pair in pairs if pair[0] not in ("sub", "ses", "run"))
    return named.get("sub", ""), named.get("ses", ""), named.get("run", ""), others


def image_name(label: str, suffix: str) -> str:
    """`label` and `suffix` joined, their entities in BIDS' order: `part-mag` stands before a label's `chunk-1`."""
    *entities, kind = f"{label}_{suffix}".split("_")
    return "_".join([*sorted(entities, key=lambda entity: _place(entity.split("-"))), kind])


def _place(pair: Sequence[str]) -> int:
    """What BIDS does not know stands beside the run."""
    return ORDER.index(pair[0]) if pair[0] in ORDER else ORDER.index("run")
