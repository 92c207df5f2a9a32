"""Rows 21 to 37 of the faults: who was scanned, which images belong together, which are the originals."""

from __future__ import annotations

import shutil
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pydicom
import pytest
from exports import bad_of, beside, drop, is_phase, only_good, put
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

from pipeline.find import find


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


def test_32_37_invalid_identifiers_and_dates_are_lived_with(tmp_path: Path) -> None:
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
