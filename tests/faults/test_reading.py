"""Each fault of an export has the owed answer, and the scan beside it is found as if it were alone.

`search` holds two invariants in every test: files seen are used, ignored or set aside, and no input changes.
`good_of` holds the third: a bad scan does not change another's.
"""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
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
from pydicom.uid import JPEG2000Lossless, RLELossless, generate_uid
from test_find import bids

from pipeline.convert import Acquisition, convert
from pipeline.errors import ChironError
from pipeline.find import Export, Scan, find
from pipeline.identity import pseudonym
from pipeline.phase import Phase, to_radians

Damage = Callable[[list[Path]], object]
GOOD = pseudonym(KEY, "patient", f"{SENTINEL}-good")


def beside(folder: Path, vendor: str = "siemens", **options: Any) -> list[Path]:
    """A good scan of one patient, and the files of another's that is about to become bad."""
    write(folder / "good", "philips", patient="good", shape=(6, 6, 4))
    return write(folder / f"{SENTINEL} bad", vendor, **options)


def good_of(found: Export, folder: Path) -> Scan:
    """The good scan, the same as where it is alone."""
    (good,) = [scan for scan in found.scans if scan.subject == GOOD]
    (alone,) = find(folder / "good", KEY).scans
    assert good == alone and good.content_digest() == alone.content_digest()
    return good


def bad_of(found: Export, folder: Path) -> list[Scan]:
    good_of(found, folder)
    return [scan for scan in found.scans if scan.subject != GOOD]


def only_good(folder: Path, code: str, *texts: str, files: int | None = None, **options: Any) -> Export:
    """Everything of the bad scan is set aside under `code`, with a reason that says `texts`."""
    found = search(folder, **options)
    assert not bad_of(found, folder)
    assert {aside.code for aside in found.set_aside} == {code}, found.set_aside
    for text in texts:
        assert any(text in aside.text for aside in found.set_aside), found.set_aside
    if files is not None:
        assert sum(aside.files for aside in found.set_aside) == files
    return found


def put(**values: Any) -> Callable[[pydicom.Dataset], None]:
    """A change that sets elements, or deletes those that are given as None."""

    def change(dataset: pydicom.Dataset) -> None:
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return change


def is_phase(dataset: pydicom.Dataset) -> bool:
    return "P" in dataset.ImageType


def drop(paths: list[Path], where: Callable[[pydicom.Dataset], bool]) -> int:
    chosen = [path for path in paths if where(pydicom.dcmread(path))]
    for path in chosen:
        path.unlink()
    return len(chosen)


# Files: 1 to 16


def test_1_empty_file_is_ignored_and_its_scan_is_short(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    paths[4].write_bytes(b"")
    found = only_good(tmp_path, "E002", files=len(paths) - 1)
    assert [ignored.code for ignored in found.ignored] == ["F001"]


def test_1_empty_file_beside_a_whole_scan_is_only_ignored(tmp_path: Path) -> None:
    beside(tmp_path)
    (tmp_path / SENTINEL).touch()
    found = search(tmp_path)
    assert len(bad_of(found, tmp_path)) == 1 and [ignored.code for ignored in found.ignored] == ["F001"]


def test_2_what_is_no_image_is_ignored(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    folder = paths[0].parent
    (folder / "notes.txt").write_text(f"{SENTINEL} was restless")
    (folder / "report.pdf").write_bytes(b"%PDF-1.7 " + bytes(500))
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(4096))
    (folder / "long.txt").write_bytes(b"\x08\x00" + os.urandom(3000))
    for name, kind in (("DICOMDIR", "1.2.840.10008.1.3.10"), ("raw.dcm", "1.2.840.10008.5.1.4.1.1.66")):
        shutil.copy(paths[0], folder / name)
        edit([folder / name], put(SOPClassUID=kind))
    found = search(tmp_path)
    assert [ignored.code for ignored in found.ignored] == ["F002"] * 6 and not found.set_aside
    assert len(bad_of(found, tmp_path)) == 1


@pytest.mark.parametrize("share", [0.995, 0.9, 0.6, 0.4, 0.25])
@pytest.mark.parametrize("which", [0, 20])
def test_3_4_truncated_anywhere_sets_the_scan_aside(share: float, which: int, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    content = paths[which].read_bytes()
    paths[which].write_bytes(content[: int(share * len(content))])
    found = search(tmp_path)
    assert not bad_of(found, tmp_path) and "F003" in {aside.code for aside in found.set_aside}
    assert sum(aside.files for aside in found.set_aside) == len(paths)


def test_3_4_truncated_at_any_byte_never_passes_for_whole(tmp_path: Path) -> None:
    (path, *_) = paths = write(tmp_path, "siemens", shape=(4, 4, 3), times=TIMES[:1])
    content = path.read_bytes()
    for length in [*range(1, 400, 7), *range(400, len(content), 41), len(content) - 1]:
        path.write_bytes(content[:length])
        found = search(tmp_path)
        assert not found.scans and {a.code for a in found.set_aside} <= {"F003", "F004", "E002"}, length
        assert found.files_seen == len(paths)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_3_truncated_compressed_pixels(syntax: str, tmp_path: Path) -> None:
    paths = beside(tmp_path, shape=(32, 32, 4), transfer_syntax=syntax)
    paths[3].write_bytes(paths[3].read_bytes()[:-60])
    only_good(tmp_path, "F003", "compressed pixels break off", files=len(paths))


def test_5_preamble_only(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    (tmp_path / "preamble").write_bytes(bytes(128) + b"DICM")
    found = search(tmp_path)
    assert len(bad_of(found, tmp_path)) == 1 and len(paths) == len(bad_of(found, tmp_path)[0].files)
    assert [(aside.code, aside.files) for aside in found.set_aside] == [("F004", 1)]


@pytest.mark.parametrize("keyword", ["Rows", "SOPClassUID", "BitsAllocated", "PixelSpacing"])
def test_5_without_a_required_element(keyword: str, tmp_path: Path) -> None:
    """Even in a single image."""
    paths = beside(tmp_path)
    edit(paths[:1], put(**{keyword: None}))
    only_good(tmp_path, "F004", "1 such image of 36", files=len(paths))


def test_6_flipped_header_bytes_are_never_an_exception(tmp_path: Path) -> None:
    paths = write(tmp_path, "philips", shape=(4, 4, 3), times=TIMES[:1])
    rng = np.random.default_rng(6)
    sound = [path.read_bytes() for path in paths]
    for _ in range(60):
        for path, content in zip(paths, sound, strict=True):
            flipped = bytearray(content)
            for at in rng.integers(132, len(content) - 40, size=3):
                flipped[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(flipped)
        for scan in search(tmp_path).scans:
            try:
                to_radians(convert(scan, Acquisition(), tmp_path.parent / "scratch"), Phase())
            except ChironError as error:
                assert SENTINEL not in str(error)


def test_8_unknown_compression_names_itself(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    for path in paths:
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"))
    only_good(tmp_path, "F010", files=len(paths))


@pytest.mark.parametrize("how", ["flag", "syntax"])
def test_9_lossy_compression(how: str, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    if how == "flag":
        edit(paths, put(LossyImageCompression="01"))
    else:
        for path in paths:
            _recode(path, "1.2.840.10008.1.2.4.50")
    only_good(tmp_path, "F011", files=len(paths))


def _recode(path: Path, syntax: str) -> None:
    dataset = pydicom.dcmread(path)
    dataset.PixelData = pydicom.encaps.encapsulate([dataset.PixelData])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)


def test_11_12_what_inflates_without_bound_and_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(tmp_path)
    bomb = write(tmp_path / "bomb", transfer_syntax="1.2.840.10008.1.2.1.99", shape=(64, 64, 2), times=TIMES[:1])
    monkeypatch.setattr("pipeline.find.files._INFLATED_LIMIT", 5000)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../x", b"x")
    (tmp_path / "a.zip").write_bytes(packed.getvalue())
    found = search(tmp_path)
    assert len(bad_of(found, tmp_path)) == 1 and not (tmp_path.parent / "x").exists()
    assert sorted(ignored.code for ignored in found.ignored) == ["F012"] * len(bomb) + ["F013"]


def test_13_16_links_pipes_and_what_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = beside(tmp_path)
    folder = paths[0].parent
    (folder / "loop").symlink_to(tmp_path)
    (folder / "outside").symlink_to("/etc/hostname")
    os.mkfifo(folder / "pipe")
    (folder / "secret").write_bytes(paths[0].read_bytes())
    (folder / "gone").write_bytes(paths[0].read_bytes())
    opened = Path.open

    def fails(path: Path, *args: Any, **options: Any) -> Any:
        if path.name in ("secret", "gone"):
            raise PermissionError(13, "Permission denied") if path.name == "secret" else FileNotFoundError(2, "gone")
        return opened(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fails)
        found = find(tmp_path, KEY)
    assert sorted(ignored.code for ignored in found.ignored) == ["F014", "F014", "F015", "F015"]
    assert [(aside.code, aside.files) for aside in found.set_aside] == [("F016", 1)]
    assert found.files_seen == sum(len(s.files) for s in found.scans) + 5 and len(found.scans) == 2


# Identity and grouping: 21 to 37


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
    assert len(found.scans) == 1 and [aside.code for aside in found.set_aside] == ["G005"]


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


# Echoes and geometry: 38 to 55


@pytest.mark.parametrize("vendor", ["siemens", "philips"])
@pytest.mark.parametrize("part", ["M", "P"])
def test_38_an_echo_is_missing_in_one_part(vendor: str, part: str, tmp_path: Path) -> None:
    paths = beside(tmp_path, vendor)
    lost = drop(paths, lambda d: part in d.ImageType and d.EchoNumbers == 2)
    found = only_good(tmp_path, "E001", "8 ms", files=len(paths) - lost)
    assert ("3 echoes" in found.set_aside[0].text and "2 of" in found.set_aside[0].text) or "2 echoes" in str(found)


@pytest.mark.parametrize("k", [0, 2, 5])
def test_39_a_slice_is_missing_in_one_volume(k: int, tmp_path: Path) -> None:
    paths = beside(tmp_path, grid=oblique(tilt_deg=0))
    z = sorted({float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in paths})[k]
    lost = drop(paths, lambda d: is_phase(d) and d.EchoNumbers == 3 and float(d.ImagePositionPatient[2]) == z)
    assert lost == 1
    only_good(tmp_path, "E002", f"no slice {k + 1} of 6 in the phase of echo 3", files=len(paths) - 1)


def test_39_the_last_slice_is_missing_in_all_volumes(tmp_path: Path) -> None:
    """Nothing but the header's count can tell."""
    paths = beside(tmp_path, "philips", grid=oblique(tilt_deg=0))
    z = max(float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in paths)
    lost = drop(paths, lambda d: float(d.ImagePositionPatient[2]) == z)
    only_good(tmp_path, "E002", "5 slices in every volume where the header tells of 6", files=len(paths) - lost)


def test_40_a_gap_in_all_volumes(tmp_path: Path) -> None:
    paths = beside(tmp_path, grid=oblique(tilt_deg=0))
    z = sorted({float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in paths})[3]
    lost = drop(paths, lambda d: float(d.ImagePositionPatient[2]) == z)
    only_good(tmp_path, "E003", "a gap of 1 slices after slice 3", files=len(paths) - lost)


def test_40_slices_thinner_than_their_distance(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(SliceThickness="1.6"))
    only_good(tmp_path, "E003", "slices of 1.6 mm every 2 mm", files=len(paths))


def test_41_uneven_spacing(tmp_path: Path) -> None:
    paths = beside(tmp_path, grid=oblique(tilt_deg=0))
    top = max(float(pydicom.dcmread(p).ImagePositionPatient[2]) for p in paths)

    def lift(dataset: pydicom.Dataset) -> None:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, float(z) + 0.5]

    edit(paths, lift, lambda d: float(d.ImagePositionPatient[2]) == top)
    only_good(tmp_path, "E004", "2.500 mm after slice 5", files=len(paths))


def test_42_unsorted_echoes_are_sorted(tmp_path: Path) -> None:
    truth = signal()
    paths = beside(tmp_path, values=truth[[2, 0, 1]])
    edit(paths, lambda d: put(EchoTime=f"{1000 * TIMES[(int(d.EchoNumbers) + 1) % 3]:g}")(d))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert scan.echo_times_s == pytest.approx(TIMES)
    assert phase_error(read(scan, tmp_path / "scratch"), truth, oblique()).max() < 2e-3


@pytest.mark.parametrize("vendor", ["siemens", "ge"])
def test_43_all_echo_times_equal_until_the_true_ones_are_given(vendor: str, tmp_path: Path) -> None:
    truth = signal()
    paths = beside(tmp_path, vendor, values=truth)
    edit(paths, put(EchoTime="4"))
    only_good(tmp_path, "E005", "3 echoes that all say 4 ms", "--echo-times", files=len(paths))
    given = Acquisition(echo_times_s=TIMES)
    (scan,) = [s for s in search(tmp_path, acquisition=given).scans if s.subject != GOOD]
    assert scan.echo_times_s == TIMES
    assert phase_error(read(scan, tmp_path / "scratch", given), truth, oblique()).max() < 2e-3


def test_43_all_echo_times_equal_without_echo_numbers(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(EchoTime="4", EchoNumbers=None))
    only_good(tmp_path, "E005", "3 images at each place", files=len(paths))


@pytest.mark.parametrize("times", [(0.004, 0.008), (0.004, 0.012, 0.008), (4, 8, 12)])
def test_43_senseless_given_times_are_refused(times: tuple[float, ...], tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(EchoTime="4"))
    found = search(tmp_path / paths[0].parent.name, acquisition=Acquisition(echo_times_s=times))
    assert not found.scans and {aside.code for aside in found.set_aside} <= {"E005", "E006"}


@pytest.mark.parametrize("value", [None, "", "0", "-3", "NaN", "short"])
def test_44_echo_times_that_are_missing_or_senseless(value: str | None, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    for path in paths:
        _raw_echo_time(path, value)
    only_good(tmp_path, "E006", "--echo-times", files=len(paths))
    given = Acquisition(echo_times_s=TIMES)
    (scan,) = [s for s in search(tmp_path, acquisition=given).scans if s.subject != GOOD]
    assert read(scan, tmp_path / "scratch", given).echo_times_s == TIMES


def _raw_echo_time(path: Path, value: str | None) -> None:
    """Write what pydicom would refuse to."""
    dataset = pydicom.dcmread(path)
    if value is None:
        del dataset.EchoTime
    else:
        dataset.EchoTime = "99999999"
    dataset.save_as(path)
    if value is not None:
        path.write_bytes(path.read_bytes().replace(b"99999999", value.ljust(8).encode()))


def test_44_echo_times_in_seconds_are_named(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, lambda d: put(EchoTime=f"{float(d.EchoTime) / 1000:g}")(d))
    only_good(tmp_path, "E006", "an echo time of 0.004 ms, which looks like 4 ms written in seconds", files=len(paths))


def test_45_a_single_echo_is_a_warning(tmp_path: Path) -> None:
    beside(tmp_path, times=TIMES[:1])
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert [notice.code for notice in scan.notices] == ["E007"]
    assert len(read(scan, tmp_path / "scratch").phase_rad) == 1


@pytest.mark.parametrize("change", [{"EchoNumbers": None}, {"EchoNumbers": 1}])
def test_46_without_echo_numbers_echoes_are_told_by_time(change: dict[str, Any], tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(**change))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert scan.echo_times_s == pytest.approx(TIMES) and set(scan.files) == set(paths)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("tilt_deg", [0, 30])
def test_47_48_any_orientation_has_the_right_b0(axes: tuple[int, int, int], tilt_deg: float, tmp_path: Path) -> None:
    grid, truth = oblique(axes=axes, tilt_deg=tilt_deg), signal()
    beside(tmp_path, grid=grid, values=truth)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    echoes = read(scan, tmp_path / "scratch")
    turned = np.asarray(echoes.grid.affine)[:3, :3] / echoes.grid.voxel_size_mm
    assert np.allclose(turned @ echoes.grid.b0_dir, (0, 0, 1), atol=1e-5)
    assert phase_error(echoes, truth, grid).max() < 2e-3


@pytest.mark.parametrize(
    "change",
    [
        {"ImageOrientationPatient": None},
        {"ImagePositionPatient": None},
        {"ImageOrientationPatient": ["1", "0", "0", "0.3", "0.954", "0"]},
        {"ImageOrientationPatient": ["2", "0", "0", "0", "2", "0"]},
        {"ImageOrientationPatient": ["0"] * 6},
    ],
)
@pytest.mark.parametrize("one", [True, False])
def test_49_an_orientation_that_is_absent_or_not_orthonormal(change: dict[str, Any], one: bool, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths[5:6] if one else paths, put(**change))
    only_good(tmp_path, "E008", files=len(paths))


def test_50_of_conflicting_positions_the_public_one_counts(tmp_path: Path) -> None:
    truth = signal()
    paths = beside(tmp_path, "philips-enhanced", values=truth)

    def displace(dataset: pydicom.Dataset) -> None:
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            frame[0x2005, 0x140F].value[0].ImagePositionPatient = ["1", "2", "3"]

    edit(paths, displace)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert [notice.code for notice in scan.notices] == ["E009"]
    assert phase_error(read(scan, tmp_path / "scratch"), truth, oblique()).max() < 2e-3


def test_51_enhanced_and_classic_give_the_same(tmp_path: Path) -> None:
    beside(tmp_path, "philips-enhanced")
    write(tmp_path / "classic", "philips", patient="classic")
    one, other = (store(scan, tmp_path / "scratch") for scan in bad_of(search(tmp_path), tmp_path))
    assert (one.first == other.first).all() and (one.second == other.second).all()


def test_52_a_mosaic(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, lambda d: put(ImageType=[*d.ImageType, "MOSAIC"])(d))
    only_good(tmp_path, "E010", files=len(paths))


def test_53_matrices_differ_between_magnitude_and_phase(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    small = write(tmp_path / "small", shape=(8, 8, 6))
    drop(paths, is_phase)
    drop(small, lambda d: not is_phase(d))
    only_good(tmp_path, "E011", "matrices of", files=len(paths) // 2 + len(small) // 2)


@pytest.mark.parametrize("value", [None, "30000", "0", "-3"])
def test_54_a_senseless_field_strength_until_it_is_given(value: str | None, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, put(MagneticFieldStrength=value))
    only_good(tmp_path, "E012", "--b0", files=len(paths))
    given = Acquisition(b0_tesla=3)
    (scan,) = [s for s in search(tmp_path, acquisition=given).scans if s.subject != GOOD]
    assert read(scan, tmp_path / "scratch", given).b0_tesla == 3


def test_55_a_bipolar_readout_is_a_warning(tmp_path: Path) -> None:
    beside(tmp_path, protocol="qsm_Bipolar_6echo")
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert [notice.code for notice in scan.notices] == ["E013"]


# Phase and values: 56 to 66


def test_56_magnitude_only(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    drop(paths, is_phase)
    only_good(tmp_path, "P001", "only magnitude images", files=len(paths) // 2)


@pytest.mark.parametrize("with_magnitude", [True, False])
def test_56_phase_difference_only(with_magnitude: bool, tmp_path: Path) -> None:
    paths = beside(tmp_path, times=TIMES[:2])
    drop(paths, lambda d: is_phase(d) and d.EchoNumbers == 1)
    if not with_magnitude:
        drop([path for path in paths if path.exists()], lambda d: not is_phase(d))
    only_good(tmp_path, "P001", "only the phase difference of two echoes")


def test_56_field_map_only(tmp_path: Path) -> None:
    paths = beside(tmp_path, "philips", times=TIMES[:1])
    edit(paths, put(ImageType=["ORIGINAL", "PRIMARY", "B0 MAP", "B0", "UNSPECIFIED"]), is_phase)
    only_good(tmp_path, "P001", "only a field map in Hz", files=len(paths))


def test_56_other_scans_of_the_study_are_not_called_faults(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    other = write(tmp_path / "t1", series_number=30, times=TIMES[:1], protocol="mprage")
    drop(other, is_phase)
    edit([path for path in other if path.exists()], put(ScanningSequence=["GR", "IR"]))
    found = search(tmp_path)
    assert set(bad_of(found, tmp_path)[0].files) == set(paths) and not found.set_aside
    assert {(i.code, "inversion recovery" in i.text) for i in found.ignored} == {("F002", True)}


def _phase_as(slope: float, intercept: float, stored: Callable[[Any], Any], unit: str = "US") -> Damage:
    """Store Siemens phase (0..4095) in another way."""

    def change(dataset: pydicom.Dataset) -> None:
        radians = (np.frombuffer(dataset.PixelData, "<u2").astype(float) - 2048) * np.pi / 2048
        dataset.PixelData = np.rint(stored(radians)).astype("<u2").tobytes()
        dataset.BitsStored, dataset.HighBit = 16, 15
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = str(slope), str(intercept), unit

    return lambda paths: edit(paths, change, is_phase)


WAYS = {
    "0..4095": _phase_as(1, 0, lambda p: (p / np.pi + 1) * 2047.5),
    "+-4096": _phase_as(2, -4096, lambda p: (p / np.pi + 1) * 2047),
    "radians": _phase_as(0.0001, -3.1416, lambda p: (p + 3.1416) / 0.0001, "rad"),
    "degrees": _phase_as(0.01, -180, lambda p: (p / np.pi + 1) * 18000),
    "half range": _phase_as(1, -2048, lambda p: (p / np.pi + 1) * 2048),
    "milliradians": _phase_as(1, -3142, lambda p: (p / np.pi + 1) * 3142, "mrad"),
}


@pytest.mark.parametrize("way", WAYS)
def test_57_60_every_way_of_storing_phase_gives_the_same(way: str, tmp_path: Path) -> None:
    truth = signal()
    WAYS[way](beside(tmp_path, values=truth))
    (scan,) = bad_of(search(tmp_path), tmp_path)
    assert phase_error(read(scan, tmp_path / "scratch"), truth, oblique()).max() < 4e-3


def test_58_a_range_that_contradicts_its_header(tmp_path: Path) -> None:
    """Milliradians stored, and a header that says +-4096."""
    _phase_as(2, -4096, lambda p: p / np.pi * 1571 + 2048)(paths := beside(tmp_path))
    edit(paths, put(BitsStored=12, HighBit=11), is_phase)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    with pytest.raises(ChironError, match=r"P002.*--phase-range"):
        read(scan, tmp_path / "scratch")
    read(good_of(search(tmp_path), tmp_path), tmp_path / "scratch")


@pytest.mark.parametrize("part", ["M", "P"])
def test_65_a_part_without_content(part: str, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    edit(paths, lambda d: put(PixelData=bytes(len(d.PixelData)))(d), lambda d: part in d.ImageType)
    (scan,) = bad_of(search(tmp_path), tmp_path)
    with pytest.raises(ChironError, match="P005"):
        read(scan, tmp_path / "scratch")
    read(good_of(search(tmp_path), tmp_path), tmp_path / "scratch")


def test_66_values_that_are_not_finite(tmp_path: Path) -> None:
    """DICOM integers cannot hold them, but a rescale can make them, and NIfTI can."""
    for name in ("sub-01", "sub-02"):
        bids(tmp_path, name)
    (file,) = (tmp_path / "sub-02").rglob("*echo-2_part-phase_MEGRE.nii.gz")
    values = nib.load(file).get_fdata(dtype=np.float32)
    values[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(values, np.diag([1, 1.1, 2, 1])), file)
    good, bad = search(tmp_path).scans
    with pytest.raises(ChironError, match="P006: 1 values of the phase"):
        read(bad, tmp_path / "scratch")
    assert np.isfinite(read(good, tmp_path / "scratch").phase_rad.numpy()).all()
