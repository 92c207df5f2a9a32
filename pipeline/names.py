"""A word that is none of the known names -> the name that was probably meant, in a sentence for an error."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pipeline.errors import CATALOGUE, ChironError


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name most like the word, whatever its case; None where none is like it."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.strip().lower(), names, 1)
    return names[near[0]] if near else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """`Did you mean tv?`, and what to do in any case; empty where there is nothing to say."""
    near = nearest(word, known)
    return " ".join(part for part in (f"Did you mean {near}?" if near else "", otherwise) if part)


def meant(word: str, known: Iterable[str], what: str, code: str = "X002", todo: str = "") -> str:
    """The known name that the word is, whatever its case; else the fault of that code, which names the nearest."""
    names = list(known)
    name = match(word, names)
    if name is None:
        advice = did_you_mean(word, names, todo or CATALOGUE[code].todo)
        raise ChironError(code, f"the {what} {word!r}, which is none", f"one of {', '.join(names)}", advice)
    return name


def match(word: str, known: Iterable[str]) -> str | None:
    """The known name that the word is, whatever its case and the blanks around it; None where it is none."""
    names = {name.lower(): name for name in known}
    return names.get(word.strip().lower())
