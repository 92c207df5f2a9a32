"""A result is kept until a person has it made anew, and what a person decided for a scan holds for it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from ledgers import SETTINGS, put_record, run_through, states
from make_bids import bids
from make_dicom import KEY, SHAPE, write

from flows.batch import Batch, plan
from flows.keep import overrides_for
from flows.reprocess import Wanted, choose, ready, select
from pipeline.errors import ChironError
from pipeline.find import Scan, find
from pipeline.ledger import NAME, read_manifests
from pipeline.override import Override
from pipeline.publish.key import fingerprint, key_of
from pipeline.recipe import Job
from pipeline.settings import Settings, load
from pipeline.work import disk_error

OTHER = load(method="tv", device="cpu", tv={"strength": 3.0})


def record_of(output: Path, label: str = "sub-01") -> dict[str, Any]:
    (record,) = [r for r in read_manifests(output) if r["label"] == label and r["state"] == "published"]
    return record


def again(output: Path, **wanted: Any) -> list[Job]:
    """Reprocess, and record it as done."""
    jobs = select(output, **wanted)
    for job in jobs:
        job.save()
        Job.take(job.folder)
        put_record(output, job)
    return jobs


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    bids(tmp_path / "in", "sub-01")
    run_through(tmp_path / "out", tmp_path / "in")
    return tmp_path


def test_other_settings_leave_a_result_and_say_how_to_make_it_anew(dataset: Path) -> None:
    output, before = dataset / "out", record_of(dataset / "out")
    outcome = run_through(output, dataset / "in", OTHER)["sub-01"]
    assert outcome.state == "already published" and record_of(output) == before
    command = outcome.text.partition("To make it anew: ")[2]
    assert command == f"chiron reprocess {output} sub-01 --method tv --set tv.strength=3.0"
    assert "made by tkd" in outcome.text and before["finished"][:10] in outcome.text
    assert run_through(output, dataset / "in")["sub-01"].text == ""


def test_what_is_said_of_the_acquisition_now_is_a_setting_that_differs(dataset: Path) -> None:
    """Not a changed input, though echo times are part of what is known of it."""
    override = Override.now({"acquisition.echo_times_s": [0.005, 0.011, 0.02]})
    outcome = run_through(dataset / "out", dataset / "in", override.apply(SETTINGS), override=override)["sub-01"]
    assert outcome.state == "already published" and "acquisition.echo_times_s=[0.005" in outcome.text
    (job,) = select(dataset / "out", "01", force=True)
    assert job.override is not None and not job.settings.acquisition.echo_times_s


def test_the_command_that_is_named_makes_what_was_asked_for(dataset: Path) -> None:
    """Its words, given to the command line, choose this scan with these settings."""
    import shlex

    from typer.testing import CliRunner

    from flows.cli import app

    text = run_through(dataset / "out", dataset / "in", OTHER)["sub-01"].text
    words = shlex.split(text.partition("To make it anew: ")[2])[1:]
    done = CliRunner().invoke(app, [*words, "--dry-run"])
    assert done.exit_code == 0 and done.stdout.strip() == "sub-01"


def test_an_update_of_the_product_recomputes_nothing(dataset: Path) -> None:
    path = dataset / "out" / "sub-01" / NAME
    manifest = json.loads(path.read_text())
    manifest["scans"][0]["software"]["chiron"] = "0.0.1"
    del manifest["scans"][0]["settings"]["swi"]  # which that version did not have
    path.write_text(json.dumps(manifest))
    outcome = run_through(dataset / "out", dataset / "in")["sub-01"]
    assert (outcome.state, outcome.text) == ("already published", "")


def test_a_reprocessed_scan_stays_as_a_person_wanted_it(dataset: Path) -> None:
    """The next batch has the site's method, and so has the one after a file came late."""
    output = dataset / "out"
    again(output, subject="01", method="rts", reason="streaks")
    record = record_of(output)
    assert record["methods"][0] == "rts" and record["override"]["settings"] == {"method": "rts"}
    assert record["override"]["reason"] == "streaks" and record["override"]["by"] and record["override"]["at"]
    text = run_through(output, dataset / "in")["sub-01"].text
    assert "as was decided for this scan, and stays" in text and text.endswith("sub-01 --method tkd")
    assert record_of(output) == record
    (dataset / "in/sub-01/anat/sub-01_echo-1_part-mag_MEGRE.json").write_text("{}")
    bids(dataset / "in", "sub-01")
    extra = dataset / "in/sub-01/anat"
    for part in ("mag", "phase"):
        for end in (".nii.gz", ".json"):
            source = extra / f"sub-01_echo-3_part-{part}_MEGRE{end}"
            target = extra / f"sub-01_echo-4_part-{part}_MEGRE{end}"
            target.write_bytes(source.read_bytes().replace(b"0.02", b"0.03"))
    for path in extra.glob("*echo-4*.json"):
        facts = json.loads(path.read_text())
        path.write_text(json.dumps(facts | {"EchoTime": 0.05}))
    assert states(run_through(output, dataset / "in")) == {"sub-01": "published"}
    assert record_of(output)["methods"][0] == "rts" and record_of(output)["override"]["reason"] == "streaks"


def test_a_decision_that_waits_is_not_lost_to_the_next_look(dataset: Path) -> None:
    output = dataset / "out"
    (job,) = select(output, "01", method="rts")
    job.save()
    (dataset / "in").rename(dataset / "elsewhere")
    run_through(output, dataset / "elsewhere")
    waiting = Job.load(job.folder, next=True)
    assert waiting.again and waiting.settings.method == "rts"


def test_a_decision_that_waits_is_done_though_the_result_is_damaged(dataset: Path) -> None:
    output = dataset / "out"
    (job,) = select(output, "01", method="rts")
    job.save()
    damage(output)
    (waiting,) = plan(Batch(output), find(dataset / "in", KEY), SETTINGS)
    assert waiting.again and waiting.settings.method == "rts" and waiting.override


def test_a_decision_made_while_a_run_plans_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a run's look at what stands and its saving of the job, a person has the scan made anew."""
    import threading

    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01")
    run_through(output, source, failure=disk_error(OSError(28, "")))
    decision = threading.Thread(target=lambda: [ready(job) for job in select(output, "01", method="rts")])

    def meanwhile(scan: Scan, **more: Any) -> None:
        decision.start()
        decision.join(0.5)  # it waits for the run, or its job is overwritten

    monkeypatch.setattr("flows.batch.check_room", meanwhile)
    (job,) = plan(Batch(output), find(source, KEY), SETTINGS)
    decision.join()
    waiting = Job.load(job.folder, next=True)
    assert waiting.again and waiting.settings.method == "rts"


def test_a_decision_that_confirms_what_stands_is_one(dataset: Path) -> None:
    output = dataset / "out"
    again(output, subject="01", method="tkd", force=True)
    assert record_of(output)["override"]["settings"] == {"method": "tkd"}
    (job,) = select(output, older=True, settings=OTHER)
    assert job.settings.method == "tkd"
    chosen = choose(
        output, Wanted("01"), lambda old: load(None, ["tv.strength=1"], old), named=["tv.strength"], force=True
    )
    assert chosen.jobs[0].override and chosen.jobs[0].override.settings == {"method": "tkd", "tv.strength": 1.0}


def test_a_decision_can_be_taken_back(dataset: Path) -> None:
    """To the default as well: what a person names counts, whatever was decided before."""
    output = dataset / "out"
    wrong = Override.now({"phase.sign": "-", "acquisition.b0_tesla": 2.0})
    bids(dataset / "two", "sub-02")
    run_through(output, dataset / "two", wrong.apply(SETTINGS), override=wrong)
    (job,) = choose(
        output, Wanted("02"), lambda old: load(None, ["phase.sign=auto"], old), named=["phase.sign"], force=True
    ).jobs
    assert job.settings.phase.sign == "auto" and job.settings.acquisition.b0_tesla == 2.0
    assert job.override and job.override.settings["phase.sign"] == "auto"


def test_where_it_is_computed_is_no_decision(dataset: Path) -> None:
    change = lambda old: load(base=old, device="cuda:1", keep_work=True)  # noqa: E731
    (job,) = choose(dataset / "out", Wanted("01"), change, named=["device"], force=True).jobs
    assert job.settings.device == "cuda:1" and job.override and job.override.settings == {}


def test_masks_of_a_folder_are_found_whatever_a_renewal_changes(tmp_path: Path) -> None:
    source, output, masks = tmp_path / "in", tmp_path / "out", tmp_path / "masks"
    bids(source, "sub-01")
    masks.mkdir()
    mask = own_mask(masks / "sub-01.nii.gz")
    asked = Override.now({"mask.file": str(masks)})
    run_through(output, source, asked.apply(SETTINGS), override=asked)
    for reason in ("", None):
        (job,) = choose(output, Wanted("01"), lambda old: OTHER, reason=reason).jobs
        assert job.settings.mask.file == str(mask)


def test_late_files_free_a_waiting_decision_from_the_files_of_before(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01", echoes=(1, 2))
    run_through(output, source)
    (job,) = select(output, "01", method="rts")
    ready(job)
    assert job.expects
    bids(source, "sub-01")
    (waiting,) = plan(Batch(output), find(source, KEY), SETTINGS)
    assert waiting.again and waiting.settings.method == "rts" and not waiting.expects


def test_times_that_were_decided_make_no_other_input(dataset: Path) -> None:
    """The headers state some, too: the input is what these say."""
    output = dataset / "out"
    bids(dataset / "two", "sub-02")
    override = Override.now({"acquisition.echo_times_s": [0.005, 0.0091, 0.0133]})
    run_through(output, dataset / "two", override.apply(SETTINGS), override=override)
    assert run_through(output, dataset / "two")["sub-02"].text == ""


def test_the_sites_own_renewal_keeps_what_a_person_decided(dataset: Path) -> None:
    output = dataset / "out"
    again(output, subject="01", method="rts")
    (job,) = select(output, older=True, settings=OTHER)
    assert job.settings.method == "rts" and job.settings.tv.strength == 3.0
    assert job.override and job.override.settings == {"method": "rts"}


def test_a_later_decision_is_added_to_an_earlier_one(dataset: Path) -> None:
    output = dataset / "out"
    again(output, subject="01", method="rts")
    (chosen,) = choose(output, Wanted("01"), lambda old: load(None, ["rts.delta=0.2"], old), reason="b").jobs
    assert chosen.override and chosen.override.settings == {"method": "rts", "rts.delta": 0.2}


def test_overrides_are_kept_for_the_study(tmp_path: Path) -> None:
    """A scan mended by hand is not set aside again at night, and `status` knows it once."""
    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01", strength=None)
    bids(source, "sub-02", strength=None)
    assert states(run_through(output, source)) == {"sub-01": "E012", "sub-02": "E012"}
    mended = Override.now({"acquisition.b0_tesla": 3.0})
    settings = mended.apply(SETTINGS)
    aside = output / "set-aside/sub-01" / NAME
    aside.write_text(re.sub(r'"finished": "[^"]*"', '"finished": "2026-01-01T00:00:00+00:00"', aside.read_text()))
    away = tmp_path / "away"
    (source / "sub-02").rename(away)
    assert states(run_through(output, source, settings, override=mended)) == {"sub-01": "published"}
    away.rename(source / "sub-02")
    assert states(run_through(output, source)) == {"sub-01": "already published", "sub-02": "E012"}
    assert [r["label"] for r in read_manifests(output)] == ["sub-01", "sub-02"]
    bids(source, "sub-01_acq-b", strength=None, scale=2)  # of the same study
    assert states(run_through(output, source))["sub-01_acq-b"] == "published"


def test_overrides_of_a_scan_that_failed_are_kept_too(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01", strength=None)
    mended = Override.now({"acquisition.b0_tesla": 3.0, "phase.sign": "-"})
    failure = disk_error(OSError(28, ""))
    assert states(run_through(output, source, mended.apply(SETTINGS), override=mended, failure=failure)) == {
        "sub-01": "failed"
    }
    (job,) = plan(Batch(output), find(source, KEY, acquisition=overrides_for(output, SETTINGS)), SETTINGS)
    assert job.settings.phase.sign == "-" and job.settings.acquisition.b0_tesla == 3.0


def test_a_mask_of_a_decision_is_told_by_its_hash_alone(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01")
    mask = own_mask(tmp_path / "Zebedee_mask.nii.gz")
    override = Override.now({"mask.file": str(mask)})
    run_through(output, source, override.apply(SETTINGS), override=override)
    assert record_of(output)["override"]["settings"]["mask.file"].startswith("sha256:")
    assert "Zebedee" not in (output / "sub-01" / NAME).read_text()


def test_a_changed_input_leaves_a_result_until_it_is_asked_for(dataset: Path) -> None:
    output, before = dataset / "out", record_of(dataset / "out")
    bids(dataset / "in", "sub-01", scale=2, echoes=(1, 2))
    outcome = run_through(output, dataset / "in")["sub-01"]
    assert outcome.state == "already published" and "input has changed" in outcome.text and record_of(output) == before
    (job,) = select(output, "01", force=True)
    assert job.expects == find(dataset / "in", KEY).scans[0].content_digest() != before["input_digest"]
    assert job.settings == SETTINGS


def damage(output: Path) -> None:
    path = output / "sub-01" / NAME
    manifest = json.loads(path.read_text())
    manifest["scans"][0]["files"] = {"anat/x.nii.gz": {"sha256": "0" * 64, "bytes": 1}}
    path.write_text(json.dumps(manifest))


def own_mask(path: Path) -> Path:
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), np.diag([1, 1.1, 2, 1])), path)
    return path


def test_a_damaged_result_with_a_mask_that_nobody_knows_any_more_waits_for_it(tmp_path: Path) -> None:
    source, output, mask = tmp_path / "in", tmp_path / "out", own_mask(tmp_path / "mask.nii.gz")
    bids(source, "sub-01")
    masked = load(base=SETTINGS, mask={"file": str(mask)})
    run_through(output, source, masked)
    damage(output)
    shutil.rmtree(output / ".chiron")
    outcome = run_through(output, source)["sub-01"]
    assert outcome.code == "X002" and "--mask" in outcome.text
    assert states(run_through(output, source, masked)) == {"sub-01": "published"}
    assert record_of(output)["settings"]["mask"]["file"].startswith("sha256:")


@pytest.mark.parametrize("loss", ["damaged", "grown"])
def test_a_decided_mask_that_nobody_knows_any_more_is_asked_for(loss: str, tmp_path: Path) -> None:
    source, output, mask = tmp_path / "in", tmp_path / "out", own_mask(tmp_path / "mask.nii.gz")
    bids(source, "sub-01", echoes=(1, 2))
    asked = Override.now({"mask.file": str(mask)})
    run_through(output, source, asked.apply(SETTINGS), override=asked)
    shutil.rmtree(output / ".chiron")
    if loss == "damaged":
        damage(output)
    else:
        bids(source, "sub-01")
    assert states(run_through(output, source)) == {"sub-01": "X002"}
    assert states(run_through(output, source, asked.apply(SETTINGS), override=asked)) == {"sub-01": "published"}


def test_a_damaged_result_of_another_input_waits_for_a_person(dataset: Path) -> None:
    damage(dataset / "out")
    bids(dataset / "in", "sub-01", echoes=(1, 2), scale=2)
    outcome = run_through(dataset / "out", dataset / "in")["sub-01"]
    assert outcome.state == "already published" and "input has changed" in outcome.text


def test_a_damaged_result_is_made_again_as_it_was(dataset: Path) -> None:
    output = dataset / "out"
    damage(output)
    (job,) = plan(Batch(output), find(dataset / "in", KEY), OTHER)
    assert job.settings == SETTINGS


def test_files_that_moved_are_known_where_they_are_now(dataset: Path) -> None:
    (dataset / "in").rename(dataset / "elsewhere")
    run_through(dataset / "out", dataset / "elsewhere", OTHER)
    (job,) = select(dataset / "out", "01", force=True)
    assert all(path.is_file() for path in job.scan.files) and job.settings == SETTINGS


@pytest.mark.parametrize("subject", ["sub-01_acq-a_run-1", "01_acq-a_run-1"])
def test_one_scan_of_several_is_named_by_its_whole_label(subject: str, tmp_path: Path) -> None:
    for number, name in enumerate(("sub-01_acq-a_run-1", "sub-01_acq-a_run-2"), 1):
        bids(tmp_path / "in", name, scale=number)
    run_through(tmp_path / "out", tmp_path / "in")
    assert [job.scan.label for job in select(tmp_path / "out", subject, force=True)] == ["sub-01_acq-a_run-1"]


def test_the_key_of_an_output_is_known_by_its_fingerprint(tmp_path: Path) -> None:
    output, file = tmp_path / "out", tmp_path / "key"
    write(tmp_path / "in")
    key = key_of(output, file)
    batch_run(output, tmp_path / "in", key)
    assert key_of(output, file) == key and fingerprint(key) not in (key.hex(), "")
    file.unlink()
    with pytest.raises(ChironError, match="X004: no pseudonym key"):
        key_of(output, file)
    assert not file.exists()
    key_of(tmp_path / "other", file)  # an output of its own may have a new one
    with pytest.raises(ChironError, match="X004: a key with the fingerprint"):
        key_of(output, file)
    with pytest.raises(ChironError, match="X004"):
        batch_run(output, tmp_path / "in", b"x" * 32)


def test_manifests_tell_the_key_where_the_private_folder_is_gone(tmp_path: Path) -> None:
    source, output, file = tmp_path / "in", tmp_path / "out", tmp_path / "key"
    bids(source, "sub-01")
    key = key_of(output, file)
    batch_run(output, source, key)
    run_through(output, source)
    shutil.rmtree(output / ".chiron")
    assert key_of(output, file) == key
    file.unlink()
    with pytest.raises(ChironError, match="X004: no pseudonym key"):
        key_of(output, file)
    key_of(tmp_path / "other", file)
    with pytest.raises(ChironError, match="X004: a key with the fingerprint"):
        key_of(output, file)
    with pytest.raises(ChironError, match="X004"):
        batch_run(output, source, b"x" * 32)


def test_the_fingerprint_needs_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that has none."""
    import errno
    import os

    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "in").mkdir()
    batch_run(tmp_path / "out", tmp_path / "in", KEY)
    batch_run(tmp_path / "out", tmp_path / "in", KEY)
    with pytest.raises(ChironError, match="X004"):
        batch_run(tmp_path / "out", tmp_path / "in", b"x" * 32)


def test_results_of_an_earlier_version_ask_for_their_key_too(dataset: Path) -> None:
    """Its manifests tell no fingerprint; that there is no key at all is seen all the same."""
    with pytest.raises(ChironError, match="X004: no pseudonym key"):
        key_of(dataset / "out", dataset / "key")


def batch_run(output: Path, source: Path, key: bytes) -> None:
    from flows.batch import look

    look(Batch(output), source, SETTINGS, key)


def test_settings_of_a_decision_are_checked() -> None:
    assert isinstance(Override.now({"tv.strength": 2.0}).apply(SETTINGS), Settings)
    with pytest.raises(ChironError, match="X001"):
        Override.now({"tv.strength": -1.0}).apply(SETTINGS)


def test_what_is_no_new_image_makes_no_new_result(dataset: Path) -> None:
    """A further sidecar, or changed images beside it: only a scan that has all its images and more has grown."""
    before = record_of(dataset / "out")
    anat = dataset / "in/sub-01/anat"
    for path in anat.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"Note": 1}))
    assert run_through(dataset / "out", dataset / "in")["sub-01"].state == "already published"
    assert record_of(dataset / "out") == before


def test_what_was_given_for_one_scan_serves_others_only_where_headers_do_not(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    bids(source, "sub-01_acq-a")
    override = Override.now({"acquisition.echo_times_s": [0.005, 0.0091, 0.0133]})
    run_through(output, source, override.apply(SETTINGS), override=override)
    bids(source, "sub-01_acq-b", scale=2)
    bids(source, "sub-01_acq-c", scale=3)
    for path in source.rglob("*acq-c*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "EchoTime": None}))
    scans = {s.label: s for s in find(source, KEY, acquisition=overrides_for(output, SETTINGS)).scans}
    assert scans["sub-01_acq-b"].echo_times_s != (0.005, 0.0091, 0.0133)
    assert scans["sub-01_acq-c"].echo_times_s == (0.005, 0.0091, 0.0133)
    assert "E006" in [notice.code for notice in scans["sub-01_acq-c"].notices]


def test_an_input_that_is_as_before_again_can_be_made_anew(dataset: Path) -> None:
    bids(dataset / "in", "sub-01", echoes=(1,), scale=2)
    run_through(dataset / "out", dataset / "in")
    bids(dataset / "in", "sub-01")
    run_through(dataset / "out", dataset / "in")
    (job,) = select(dataset / "out", "01", force=True)
    assert job.expects == job.scan.content_digest()


def test_a_damaged_fingerprint_lets_no_key_pass(tmp_path: Path) -> None:
    output = tmp_path / "out"
    (tmp_path / "in").mkdir()
    batch_run(output, tmp_path / "in", KEY)
    for content in (b"", b"\xff\xfe"):
        (output / ".chiron" / "key-fingerprint").write_bytes(content)
        with pytest.raises(ChironError, match="X004"):
            key_of(output, tmp_path / "key")


def test_a_decision_that_cannot_be_understood_stops_nothing(dataset: Path) -> None:
    path = next((dataset / "out").glob(".chiron/work/*/job.json"))
    for override in ([], {"settings": {"acquisition.b0_tesla": "x", "acquisition.echo_times_s": 5}, "later": 1}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"override": override}))
        assert states(run_through(dataset / "out", dataset / "in")) == {"sub-01": "already published"}
