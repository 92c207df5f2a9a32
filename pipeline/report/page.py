"""The parts of a report -> its one HTML page, with nothing to fetch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

import pipeline
from pipeline.errors import ChironError
from pipeline.report.checklist import checklist
from pipeline.report.curves import curves
from pipeline.report.finer import finer
from pipeline.report.found import Found, look, meaning, milliseconds, name_of
from pipeline.report.numbers import comparisons, numbers
from pipeline.report.pictures import glance, pictures, strip, view_of
from pipeline.report.provenance import headers, settings_table, steps, versions
from pipeline.report.sources import citations, methods_text
from pipeline.report.verdict import judge
from pipeline.report.view import paint_css
from pipeline.settings import Settings
from pipeline.work import Work

RESEARCH_USE = "Research use only - not for diagnostic use"


def write_report(
    work: Work,
    scan_label: str,
    settings: Settings,
    failure: ChironError | None = None,
    extra: Mapping[str, Any] = {},
) -> str:
    """The quality report of one scan as self-contained HTML; the same work folder gives the same page.

    `scan_label` is the pseudonym. `failure` says why there is no result: whatever stages exist are then shown. `extra`
    is shown with the versions. A missing or damaged stage is said to be missing and raises nothing.
    """
    found = look(work, settings)
    view = view_of(found)
    acquisition, processing = checklist(found)
    used = {stage: result.facts for stage, result in found.results.items()}
    return _template().render(
        label=scan_label,
        research_use=RESEARCH_USE,
        version=pipeline.__version__,
        summary=_summary(found),
        verdict=judge(found, acquisition, failure),
        glance=glance(found, view) if view else [],
        acquisition=acquisition,
        processing=processing,
        decisions=list(found.recorded("decisions")),
        notices=[(stage, notice, meaning(notice["code"])) for stage, notice in found.recorded("notices")],
        pictures=pictures(found, view) if view else [],
        strip=strip(found, view) if view else None,
        finer=finer(found),
        headers=headers(found),
        obliquity=found.grid.obliquity_deg if found.grid else 0.0,
        gradient=paint_css,
        curves=curves(found),
        numbers=numbers(found),
        comparisons=comparisons(found),
        steps=steps(found),
        settings=settings_table(settings),
        versions=versions(found, extra),
        methods_text=methods_text(used, pipeline.__version__),
        citations=citations(used),
    )


def _summary(found: Found) -> list[tuple[str, str]]:
    """The scan in a few words."""
    facts, rows = found.facts("convert"), []
    if b0 := facts.get("b0_tesla"):
        said = facts.get("acquisition") or {}
        scanner = " ".join(str(said[key]) for key in ("manufacturer", "model") if said.get(key)) or facts.get("vendor")
        rows.append(("Scanner", f"{scanner}, {facts.get('b0_nominal_tesla') or b0:.3g} T"))
        if source := facts.get("b0_source"):
            rows.append(("B0", f"{b0:.4f} T ({source})"))
    if times := facts.get("echo_times_s"):
        rows.append(("Echoes", f"{len(times)}, {milliseconds(times[0])} to {milliseconds(times[-1])} ms"))
    if found.grid:
        rows.append(("Voxel", " × ".join(f"{v:.2f}" for v in found.grid.voxel_size_mm) + " mm"))
        rows.append(("Matrix", " × ".join(str(n) for n in found.grid.shape)))
    if found.chi(found.primary) is not None:
        rows.append(("Published map", name_of(found.primary)))
    return rows


def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")
