"""Rows 21 to 37 of the faults: who was scanned, which images belong together, which are the originals."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pydicom
import pytest
from exports import bad_of, beside, drop, is_phase, only_good, put
from ledgers import run_through, states
from make_bids import bids
from make_dicom import (
    KEY,
    SENTINEL,
    SHAPE,
    TIMES,
    edit,
    oblique,
    phase_error,
    read,
    search,
    signal,
    store,
    write,
)
from pydicom.uid import generate_uid

from flows.demo import Simulated
from pipeline.errors import ChironError
from pipeline.find import find
from pipeline.identity import LABEL
from pipeline.publish import prepare, publish
from pipeline.publish.key import key_of, record_key
from pipeline.recipe import Job, reconstruct
from pipeline.settings import load


def test_21_the_same_image_twice_is_used_once(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    (alone,) = bad_of(search(tmp_path), tmp_path)
    shutil.copy(paths[7], paths[7].with_name("copy.dcm"))
    found = search(tmp_path)
    (scan,) = bad_of(found, tmp_path)
    assert [ignored.code for ignored in found.ignored] == ["G001"] and [n.code for n in scan.notices] == ["G001"]
    assert scan.content_digest() == alone.content_digest()


def test_21_an_enhanced_file_twice_is_used_once(tmp_path: Path) -> None:
    paths = beside(tmp_path, "philips-enhanced")
    shutil.copy(paths[0], paths[0].with_name("copy.dcm"))
    found = search(tmp_path)
    assert len(bad_of(found, tmp_path)) == 1 and [ignored.code for ignored in found.ignored] == ["G001"]


def test_22_two_different_images_under_one_identifier(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    other = paths[7].with_name("other.dcm")
    shutil.copy(paths[7], other)
    edit([other], lambda d: put(PixelData=bytes(len(d.PixelData)))(d))
    only_good(tmp_path, "G002", files=len(paths) + 1)


def test_23_a_series_of_two_scans_is_split(tmp_path: Path) -> None:
    """Another matrix in the same series, complete in itself."""
    paths = beside(tmp_path, "philips")
    more = write(tmp_path / "more", "philips", shape=(8, 8, 5), seed=3)
    first = pydicom.dcmread(paths[0])
    same = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    edit(more, put(**{keyword: str(getattr(first, keyword)) for keyword in same}))
    scans = bad_of(search(tmp_path), tmp_path)
    assert [set(scan.files) for scan in scans] == [set(paths), set(more)] and [s.run for s in scans] == ["1", "2"]


def test_23_a_localiser_in_the_series_is_set_aside_by_itself(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    first = pydicom.dcmread(paths[0])
    localiser = write(tmp_path / "localiser", shape=(16, 16, 3), times=TIMES[:1], seed=9)
    drop(localiser, is_phase)
    localiser = [path for path in localiser if path.exists()]
    edit(localiser, put(**{k: str(getattr(first, k)) for k in ("StudyInstanceUID", "SeriesInstanceUID")}))
    found = search(tmp_path)
    assert len(bad_of(found, tmp_path)) == 1
    assert [(aside.code, aside.files) for aside in found.set_aside] == [("P001", 3)]


def test_24_two_patients_in_one_series(tmp_path: Path) -> None:
    paths = beside(tmp_path, "philips")
    edit(paths[:5], put(PatientID=f"{SENTINEL}-other"))
    only_good(tmp_path, "G003", "2 patients in one series", files=len(paths))


def test_25_26_sessions_and_runs(tmp_path: Path) -> None:
    beside(tmp_path, series_number=1)
    write(tmp_path / "again", series_number=3, acquired=datetime(2026, 1, 5, 9, 20))
    write(tmp_path / "later", series_number=1, acquired=datetime(2026, 3, 5, 9, 20), seed=4)
    scans = bad_of(search(tmp_path), tmp_path)
    assert [scan.run for scan in scans] == ["1", "2", ""]
    assert len({scan.session for scan in scans}) == 2 and len({scan.label for scan in scans}) == 3


@pytest.mark.parametrize("name", ["../../x", "a\nb", "x" * 64, "<script>", "=cmd()", "\x1b[31m", "日本"])
def test_27_28_an_identity_never_becomes_a_label(name: str, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(PatientID=name, PatientName=name))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert scan.subject.isalnum() and scan.subject.isascii() and name not in repr(scan.json())


def test_28_no_identity_needs_a_label(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(PatientID=""))
    only_good(tmp_path, "G004", "--subject", files=len(paths))
    assert find(paths[0].parent, KEY, "P7").scans[0].subject == "P7"


def test_29_two_patients_with_one_pseudonym(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one", patient="one")
    write(tmp_path / "two", patient="two")
    monkeypatch.setattr("pipeline.find.dicom.pseudonym", lambda *parts, **options: "same")
    found = search(tmp_path)
    assert not found.scans and [aside.code for aside in found.set_aside] == ["G005", "G005"]


@pytest.mark.parametrize("charset", ["ISO_IR 192", "ISO_IR 100", "ISO 2022 IR 87", "nonsense", ""])
def test_30_an_identity_in_a_wrong_charset_still_gives_one_label(charset: str, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(PatientID="#" * 10, PatientName="#" * 10, SpecificCharacterSet=charset))
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"#" * 10, b"M\xfcller\xff\x1b$B"))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert LABEL.fullmatch(scan.subject) and set(scan.files) == set(paths)
    assert read(scan, tmp_path / "scratch").grid.shape == SHAPE


HOSTILE = "<script>alert(1)</script>&\"'={7*7}\x1b[31m[red]"


def test_31_what_is_shown_of_a_header_is_escaped_everywhere(demo: Simulated, tmp_path: Path) -> None:
    """Model and software are the free words of a header that a result may hold."""
    made = shutil.copytree(demo.export, tmp_path / "in")
    edit(list(made.iterdir()), put(ManufacturerModelName=HOSTILE, SoftwareVersions=HOSTILE, PatientID="x" * 5000))
    (scan,) = search(made).scans
    job = Job(scan, load(method="tkd", device="cpu"), tmp_path / "work")
    reconstruct(job)
    done = publish(job, tmp_path / "out")
    for page in (tmp_path / "out").rglob("*.html"):
        text = page.read_text()
        assert "<script>alert" not in text
        assert "\x1b" not in text
        assert "&lt;script&gt;alert" in text
    for file in (tmp_path / "out").rglob("*.json"):
        json.loads(file.read_text())
        assert "\x1b" not in file.read_text()
    assert LABEL.fullmatch(scan.subject) and done.label == f"sub-{scan.subject}_ses-{scan.session}"
    failed = publish(job, tmp_path / "out", ChironError("P007", f"a mask {HOSTILE}", "a brain"))
    assert "<script>alert" not in failed.report.read_text()


def test_32_an_invalid_identifier_is_replaced(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(StudyInstanceUID="x y z", SeriesInstanceUID="1." + "2" * 70))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert [notice.code for notice in scan.notices] == ["G006"] and re.fullmatch("[0-9a-f]{12}", scan.id)
    assert read(scan, tmp_path / "scratch").grid.shape == SHAPE


def test_37_dates_of_the_future_are_lived_with_beside_invalid_identifiers(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(StudyInstanceUID="x y z", AcquisitionDate="21260105", SeriesInstanceUID="1." + "2" * 70))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert {notice.code for notice in scan.notices} == {"G006", "G008"}
    assert read(scan, tmp_path / "scratch").grid.shape == SHAPE


def test_33_magnitude_and_phase_under_one_series(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    (apart,) = bad_of(search(tmp_path), tmp_path)
    edit(paths, put(SeriesInstanceUID="1.2.3", SeriesNumber=9))
    (together,) = bad_of(search(tmp_path), tmp_path)
    one, other = (store(scan, tmp_path / "scratch") for scan in (apart, together))
    assert (one.second == other.second).all() and (one.first == other.first).all()


def test_34_real_and_imaginary_parts_are_computed(tmp_path: Path) -> None:
    truth = signal()
    beside(tmp_path, "ge", values=truth)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert phase_error(read(scan, tmp_path / "scratch"), truth, oblique()).max() < 2e-3


def test_35_single_coils_beside_the_combined_image_are_ignored(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    coils = coil_copies(paths, tmp_path)
    found = search(tmp_path)
    (scan,) = bad_of(found, tmp_path)
    assert set(scan.files) == set(paths) and scan.echo_times_s == pytest.approx(TIMES)
    assert [ignored.code for ignored in found.ignored] == ["G007"] * len(coils)
    assert all("single coil" in ignored.text for ignored in found.ignored)


def test_35_single_coils_alone_are_set_aside(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    coils = coil_copies(paths, tmp_path)
    for path in paths:
        path.unlink()
    only_good(tmp_path, "G007", "single coils", files=len(coils))


def coil_copies(paths: list[Path], folder: Path) -> list[Path]:
    """The same scan from two coil elements, in two more series of the same moment."""
    copies = []
    edit(paths, partial(_coil, "HEA;HEP", 0))
    for number, coil in enumerate(("H1", "H2"), 1):
        for path in paths:
            target = folder / coil / path.name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
            copies.append(target)
            edit([target], partial(_coil, coil, number))
    return copies


def _coil(name: str, number: int, dataset: pydicom.Dataset) -> None:
    dataset.private_block(0x0051, "SIEMENS MR HEADER", create=True).add_new(0x0F, "LO", name)
    if number:
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[name, dataset.SeriesInstanceUID])
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=[name, dataset.SOPInstanceUID])
        dataset.SeriesNumber = 10 * number + int(dataset.SeriesNumber)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"ImageType": ["DERIVED", "SECONDARY", "M", "MPR"]}, "reformat"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "SWI", "ND"]}, "susceptibility-weighted"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "MNIP", "ND"]}, "projection"),
        ({"SeriesDescription": "Pha_filtered"}, "filtered"),
        ({"ImageType": ["DERIVED", "SECONDARY", "P"]}, "derived"),
    ],
)
def test_36_derived_and_filtered_images_are_ignored(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    made = write(tmp_path / "made", series_number=20)
    edit(made, put(**change))
    found = search(tmp_path)
    (scan,) = bad_of(found, tmp_path)
    assert set(scan.files) == set(paths)
    assert [ignored.code for ignored in found.ignored] == ["G007"] * len(made) and word in found.ignored[0].text


def test_36_a_normalised_copy_of_the_magnitude_is_ignored(tmp_path: Path) -> None:
    """Plain magnitude in series 1, phase in 2, normalised magnitude in 3: the plain one is used."""
    paths = beside(tmp_path)
    edit(paths, put(ImageType=["ORIGINAL", "PRIMARY", "M", "ND"]), lambda d: not is_phase(d))
    normalised = write(tmp_path / "norm", series_number=3)
    drop(normalised, is_phase)
    found = search(tmp_path)
    (scan,) = bad_of(found, tmp_path)
    assert set(scan.files) == set(paths) and {ignored.code for ignored in found.ignored} == {"G007"}


def test_84_another_persons_label_is_never_taken(tmp_path: Path) -> None:
    """A subject of another dataset, and a patient who is given a label that is another's."""
    output = tmp_path / "out"
    bids(tmp_path / "a", "sub-01")
    bids(tmp_path / "b", "sub-01", scale=2)
    write(tmp_path / "c")
    assert states(run_through(output, tmp_path / "a")) == {"sub-01": "published"}
    before = (output / "sub-01" / "manifest.json").read_bytes()
    assert states(run_through(output, tmp_path / "b")) == {"sub-01": "G009"}
    assert set(states(run_through(output, tmp_path / "c", subject="01")).values()) == {"G009"}
    assert (output / "sub-01" / "manifest.json").read_bytes() == before
    assert states(run_through(output, tmp_path / "b", dataset_label="b")) == {"sub-b01": "published"}


def test_85_another_key_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path / "out")
    record_key(tmp_path / "out", KEY)
    record_key(tmp_path / "out", KEY)
    with pytest.raises(ChironError, match="X004"):
        record_key(tmp_path / "out", b"x" * 32)
    with pytest.raises(ChironError, match="X004"):
        key_of(tmp_path / "out", tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
