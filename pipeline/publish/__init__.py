"""A scan's work folder -> its results in the output dataset, all or nothing; or, where it failed, a record of why.

At any instant a published session is absent, the previous version, or complete with every hash of its manifest right.
A failure never touches what is published. What another result takes the place of is kept in the private folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.disk import coded_disk
from pipeline.errors import ChironError, Decision, Notice
from pipeline.find import Scan, SetAside
from pipeline.find.scan import UNKNOWN
from pipeline.invert import chosen_methods
from pipeline.ledger import (
    NAME,
    Record,
    read,
    read_manifests,
    records_of,
    session_of,
    signs,
    version_folder,
    versions,
)
from pipeline.lock import if_free, locked
from pipeline.publish import manifest as ledger
from pipeline.publish.dataset import cite, prepare, private
from pipeline.publish.images import images
from pipeline.publish.key import recorded
from pipeline.publish.links import link_input
from pipeline.publish.manifest import Damage, verify
from pipeline.publish.sidecars import as_json
from pipeline.publish.standing import already_published, stays
from pipeline.publish.swap import keep, put, recover
from pipeline.recipe import Job, recipe
from pipeline.report import citations, write_report
from pipeline.work import Result

__all__ = [
    "Damage",
    "Published",
    "already_published",
    "prepare",
    "publish",
    "read_manifests",
    "record_set_aside",
    "records_of",
    "recover_all",
    "stays",
    "verify",
    "versions",
]


KEPT_ASIDE = 1000  # records under one label, or of files that could not be told to be anyone's


@dataclass(frozen=True)
class Published:
    """What stands in the output dataset now for one scan."""

    label: str
    folder: Path
    report: Path
    state: Literal["published", "failed"]
    verdict: str  # usable, check or do not use


def publish(job: Job, output: Path, failure: ChironError | None = None) -> Published:
    """Publish the results in the job's work folder; with `failure`, record instead why there are none.

    Raises S001 where the disk is full, S002 where the output cannot be written, R005 where a stage is missing or not
    what it was, R006 where another run publishes this subject for minutes. The output is then as it was before.
    """
    prepare(output)
    with coded_disk(), locked(private(output) / "locks" / f"sub-{job.scan.subject}.lock"):
        return _publish_failure(job, output, failure) if failure else _publish_results(job, output)


def record_set_aside(output: Path, found: Iterable[SetAside]) -> None:
    """Record what could not be taken for a scan, in `set-aside/<label>/`. Call it after the other scans are published.

    A scan of the same label that is published later outdates the record. Raises S001, S002 and R006 as `publish` does.
    """
    by_label: dict[str, list[SetAside]] = {}
    for one in found:
        by_label.setdefault(one.label, []).append(one)
    prepare(output)
    for label, ones in by_label.items():
        aside, final = private(output) / "publish" / f"set-aside_{label}", output / "set-aside" / label
        records = [ledger.aside_record(one) for one in ones]
        with coded_disk(), locked(private(output) / "locks" / f"set-aside_{label}.lock"):
            recover(aside, final)
            earlier = [r for r in read(final) if not any(_is_same_aside(r, record) for record in records)]
            records = [*earlier, *records][-KEPT_ASIDE:]
            put(aside, final, {NAME: as_json(ledger.manifest(records))})


def _is_same_aside(earlier: Record, now: Record) -> bool:
    """Whether a record takes the place of an earlier one: of the same scan or, of unnamed files, of the same fault."""
    if earlier["label"] == UNKNOWN:
        return bool(earlier["failure"]["sentence"] == now["failure"]["sentence"])
    return not signs(earlier) or not signs(now) or bool(signs(earlier) & signs(now))


def recover_all(output: Path) -> list[str]:
    """Put right what interrupted publications left, but for those that go on; returns the labels. S002 as `publish`."""
    found = []
    for aside in sorted((private(output) / "publish").glob("*")):
        label, final, lock = _place(output, aside.name)
        with coded_disk(), if_free(locked(private(output) / "locks" / lock, 0)) as free:
            if free:
                recover(aside, final)
                found.append(label)
    return found


def _place(output: Path, name: str) -> tuple[str, Path, str]:
    """Of a publication under way, by the name of its scratch folder: label, final place, lock."""
    for kind in ("failed", "set-aside"):
        label = name.removeprefix(f"{kind}_")
        if label != name:
            return label, output / kind / label, f"{name if kind == 'set-aside' else label.split('_')[0]}.lock"
    return name, output / session_of(name), f"{name.split('_')[0]}.lock"


def _publish_results(job: Job, output: Path) -> Published:
    """Compose every file in memory, the manifest last, and put them in place at once."""
    scan, folder = job.scan, ledger.session_folder(job.scan)
    aside = private(output) / "publish" / folder.replace("/", "_")
    recover(aside, output / folder)
    stages = _proven_stages(job)
    quality = stages["quality"].facts
    before = read(output / folder)
    report = f"{scan.label}_qsm.html"
    methods, lost = _sound_methods(stages, quality["primary"])
    files = images(scan.label, folder, job.settings, methods, stages, link_input(output, scan))
    files[f"anat/{scan.label}_qc.json"] = as_json(quality)
    files[report] = write_report(job.work, scan.label, job.settings).encode()
    own = _record(job, output, stages, None, quality["verdict"]["level"], files)
    own["warnings"] += lost
    others = [r for r in before if r["label"] != scan.label]
    replaced = [r for r in before if r["label"] == scan.label]
    _refuse_another_person(replaced, scan)
    own["decisions"] += [_superseding(r) for r in replaced if r["input_digest"] != own["input_digest"]]
    files[NAME] = as_json(ledger.manifest([*others, own]))
    cite(output, own["citations"])
    for record in replaced:
        if record["files"] != own["files"]:
            content = as_json(ledger.manifest([record]))
            keep(aside, output / folder, record["files"], {NAME: content}, output / version_folder(record, content))
    put(aside, output / folder, files, frozenset(name for r in replaced for name in r["files"]))
    shutil.rmtree(output / "failed" / scan.label, ignore_errors=True)
    return Published(scan.label, output / folder, output / folder / report, "published", own["verdict"])


def _refuse_another_person(replaced: list[Record], scan: Scan) -> None:
    """G009 where the label stands for someone else: no result ever takes the place of another person's."""
    if any(r.get("owner") and scan.owner and r["owner"] != scan.owner for r in replaced):
        raise ChironError(
            "G009", f"the label {scan.label}, under which another person's scan is published", "a free one"
        )


def _publish_failure(job: Job, output: Path, failure: ChironError) -> Published:
    """Write `failed/<label>/`: the manifest, and the report as far as it can be made."""
    label, final = job.scan.label, output / "failed" / job.scan.label
    aside = private(output) / "publish" / f"failed_{label}"
    recover(aside, final)
    stages = {name: result for name in _stage_names(job) if (result := job.work.find(name))}
    files, lost = {}, []
    try:
        files[f"{label}_qsm.html"] = write_report(job.work, label, job.settings, failure).encode()
    except Exception as error:  # the record of the first failure must not be lost to a second one
        lost = [_warning("report", "R005", f"the report could not be made ({type(error).__name__})")]
    own = _record(job, output, stages, failure, "do not use", files)
    own["warnings"] += lost
    files[NAME] = as_json(ledger.manifest([own]))
    put(aside, final, files)
    return Published(label, final, final / f"{label}_qsm.html", "failed", "do not use")


def _sound_methods(stages: dict[str, Result], primary: str) -> tuple[list[str], list[dict[str, str]]]:
    """The methods to publish, the primary first, and a warning for each map left out because it holds no numbers."""
    beside = [m for name in stages if (m := name.removeprefix("invert-")) not in (name, primary)]
    lost = [m for m in beside if not _holds_numbers(stages[f"invert-{m}"])]
    text = "its map holds no numbers and was left out"
    return [primary, *(m for m in beside if m not in lost)], [_warning(f"invert-{m}", "M001", text) for m in lost]


def _holds_numbers(inversion: Result) -> bool:
    return "diverged" not in inversion.facts and bool(inversion.array("chi_ppm").isfinite().all())


def _record(
    job: Job,
    output: Path,
    stages: dict[str, Result],
    failure: ChironError | None,
    verdict: str,
    files: dict[str, bytes],
) -> Record:
    return {
        **ledger.record(job.scan, job.settings, chosen_methods(job.settings), stages, failure, job.override),
        "key_fingerprint": recorded(output),
        "verdict": verdict,
        "citations": [paper.text for paper in citations({name: result.facts for name, result in stages.items()})],
        "files": ledger.files_entry(files),
    }


def _superseding(before: Record) -> dict[str, str]:
    why = f"not the files of the result of {before['finished']}, which is kept as an old version"
    return {"stage": "publish", **Decision("input", "another", why).json()}


def _warning(stage: str, code: str, text: str) -> dict[str, str]:
    return {"stage": stage, **Notice(code, text).json()}


def _proven_stages(job: Job) -> dict[str, Result]:
    """The results of all stages of the recipe, each file checked against its recorded hash."""
    stages = {}
    for name in _stage_names(job):
        found = job.work.find(name)
        if found is None or job.work.proven(name, found.record["key"]) is None:
            raise ChironError("R005", f"the stage {name} is missing or damaged", "every stage done")
        stages[name] = found
    return stages


def _stage_names(job: Job) -> list[str]:
    return [stage.name for stage in recipe(job.settings)]
