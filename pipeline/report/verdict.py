"""What was found of a scan, or its failure -> usable, check or do not use, with the reasons in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ChironError
from pipeline.report.checklist import Item
from pipeline.report.found import NETWORKS, Found, meaning, name_of, number

Word = Literal["usable", "check", "do not use"]


@dataclass(frozen=True)
class Verdict:
    """The word, its headline, why, and remarks that do not change it."""

    word: Word
    headline: str
    reasons: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    todo: str = ""


def judge(found: Found, items: list[Item], failure: ChironError | None) -> Verdict:
    """The verdict that the quality stage measured; a scan that failed, or has no map, is not to be used."""
    if failure is not None:
        return _failed(found, failure)
    if found.chi(found.primary) is None:
        return Verdict("do not use", "Do not use", ("No susceptibility map was made.",), _unmade(found))
    measured = found.facts("quality").get("verdict") or {}
    word, reasons = measured.get("level"), tuple(measured.get("reasons", ()))
    remarks = (*_remarks(found), *_unmade(found), *_consensus(items))
    if word == "usable":
        return Verdict("usable", "Usable", reasons or ("Every quality check was passed.",), remarks)
    if word == "do not use":
        return Verdict("do not use", "Do not use", reasons, remarks)
    if word == "check":
        return Verdict("check", "Check before use", reasons, remarks)
    return Verdict("check", "Check before use", ("The quality of the map was not measured.",), remarks)


def _failed(found: Found, failure: ChironError) -> Verdict:
    reasons = [_sentence(f"{failure.code}: {meaning(failure.code)}"), _sentence(f"Found: {failure.found}")]
    if failure.expected:
        reasons.append(_sentence(f"Expected: {failure.expected}"))
    return Verdict("do not use", "Failed – do not use", tuple(reasons), _unmade(found), failure.todo)


def _unmade(found: Found) -> tuple[str, ...]:
    if not found.missing:
        return ()
    *others, last = found.missing.values()
    titles = f"{', '.join(others)} and {last}" if others else last
    done = "Nothing was computed." if not found.results else "What was finished before is shown below."
    return (f"Not done: {titles}. {done}",)


KINDS = {
    "educated": "a network that learned on simulated heads and is fitted only to a scan that it does not explain",
    "untrained": "an untrained network fitted to this scan alone",
    "diffusion": "a generative network that learned on simulated heads, sampled as the measured field guides it",
    "cyclegan": "a network that learned on simulated fields and maps that do not belong together",
}


def _remarks(found: Found) -> tuple[str, ...]:
    if found.primary not in NETWORKS:
        return ()
    facts = found.facts(f"invert-{found.primary}")
    kind = KINDS.get(facts.get("network") or found.primary, "a trained network")
    beside = f" The {name_of(found.classical)} map is shown beside it." if found.classical else ""
    ending = facts.get("stop_reason")
    how = f" Here: {ending}." if facts.get("network") == "educated" and ending else _sampled(facts) + _passed(facts)
    name = ("the " if found.primary == "diffusion" else "") + name_of(found.primary)
    made = f"The published map was made by {name}, {kind}.{how}"
    return (f"{made} Such methods are outside the consensus of 2024.{beside}",)


def _sampled(facts: Mapping[str, Any]) -> str:
    """How much sampling there was, if there was any."""
    if not facts.get("sampler"):
        return ""
    samples, ended = facts.get("samples"), " Time was over before all were done." if facts.get("out_of_time") else ""
    of = f"the mean of {samples} samples" if samples != 1 else "one sample"
    return f" Here: {of} by {facts['sampler']}, {facts.get('network_evaluations')} evaluations of the network.{ended}"


def _passed(facts: Mapping[str, Any]) -> str:
    """What CycleQSM's network left of the field, and what the fit and the data consistency after it."""
    asked, left = facts.get("parameters") or {}, [facts.get(f"{name}_misfit") for name in ("first", "refined", "last")]
    if "views" not in asked or left[0] is None:
        return ""
    plain = " in its plain form" if asked["preset"] == "seed" else ""
    between = "" if left[1] is None else f", {number(left[1])} after {asked['refine']} steps of fitting to the scan"
    return f" Here: a misfit of {number(left[0])} σ² from the network{plain}{between}, {number(left[2])} in the end."


def _consensus(items: list[Item]) -> tuple[str, ...]:
    short = [item.what.lower() for item in items if item.level in ("warn", "fail")]
    if not short:
        return ()
    return (f"The acquisition departs from the consensus in: {', '.join(short)}.",)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."
