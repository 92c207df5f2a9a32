"""Exports of every vendor are found whole; real ones too, and what is not usable is declined with its own reason."""

from __future__ import annotations

import copy
import json
import shutil
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import pydicom
import pytest
from make_bids import bids
from make_dicom import KEY, SENTINEL, TIMES, edit, search, signal, write

from pipeline.errors import ChironError
from pipeline.find import Export, Scan, find

VENDORS = ("siemens", "philips", "philips-enhanced", "ge")


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_export_of_each_vendor_is_one_scan(vendor: str, tmp_path: Path) -> None:
    paths = write(tmp_path / SENTINEL, vendor, shuffle=True, slice_order="interleaved")
    found = search(tmp_path)
    (scan,) = found.scans
    assert set(scan.files) == set(paths) and not found.set_aside and not found.ignored
    assert scan.echo_times_s == pytest.approx(TIMES) and scan.b0_tesla == 3
    assert scan.parts == (("real", "imaginary") if vendor == "ge" else ("magnitude", "phase"))
    assert {(v.part, v.echo, len(v.files)) for v in scan.volumes} == {(p, e, 6) for p in scan.parts for e in range(3)}
    assert scan.series == ((1, 2) if vendor == "siemens" else (1,))


def test_a_scan_survives_json(tmp_path: Path) -> None:
    write(tmp_path)
    (scan,) = search(tmp_path).scans
    assert Scan.from_json(json.loads(json.dumps(scan.json()))) == scan


def test_the_digest_knows_content_not_names(tmp_path: Path) -> None:
    paths = write(tmp_path / "a")
    for number, path in enumerate(reversed(paths)):
        (tmp_path / "b" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "b" / str(number % 2) / f"{number}.ima")
    (one,), (other,) = search(tmp_path / "a").scans, search(tmp_path / "b").scans
    assert one.content_digest() == other.content_digest() and one.id == other.id and one.label == other.label
    edit(paths[:1], lambda d: d.__setattr__("PixelData", bytes(len(d.PixelData))))
    assert search(tmp_path / "a").scans[0].content_digest() != one.content_digest()


def test_labels_depend_on_the_key(tmp_path: Path) -> None:
    write(tmp_path)
    (one,), (other,) = search(tmp_path).scans, find(tmp_path, b"other" * 8).scans
    assert one.subject != other.subject and one.session != other.session and one.id != other.id


def test_a_given_label_stands_in_for_the_pseudonym(tmp_path: Path) -> None:
    write(tmp_path)
    assert search(tmp_path, subject="P01").scans[0].label.startswith("sub-P01_ses-")
    with pytest.raises(ChironError, match="X001"):
        find(tmp_path, KEY, "../x")


def test_two_patients_in_one_folder_are_two_scans(tmp_path: Path) -> None:
    write(tmp_path / "a", patient="one")
    write(tmp_path / "a" / "b", "philips", patient="two")
    found = search(tmp_path)
    assert len({scan.subject for scan in found.scans}) == 2 and not found.set_aside


def test_one_label_for_two_patients_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", patient="one")
    write(tmp_path / "b", patient="two")
    found = search(tmp_path, subject="P01")
    assert not found.scans and {a.code for a in found.set_aside} == {"G005"}


def test_two_days_are_two_sessions_and_repeats_are_runs(tmp_path: Path) -> None:
    write(tmp_path / "1", series_number=3)
    write(tmp_path / "2", series_number=5, acquired=datetime(2026, 1, 5, 9, 10))
    write(tmp_path / "3", series_number=3, seed=2, acquired=datetime(2026, 2, 7, 9, 0))
    found = search(tmp_path)
    assert [scan.run for scan in found.scans] == ["1", "2", ""]
    assert [scan.series for scan in found.scans] == [(3, 4), (5, 6), (3, 4)]
    assert len({scan.session for scan in found.scans}) == 2 and len({scan.subject for scan in found.scans}) == 1
    assert len({scan.id for scan in found.scans}) == 3


def test_series_of_two_runs_out_of_order_find_each_other_by_time(tmp_path: Path) -> None:
    """Magnitude, magnitude, phase, phase."""
    two_runs_out_of_order(tmp_path)
    assert [scan.series for scan in search(tmp_path).scans] == [(3, 5), (4, 6)]


def test_series_of_two_runs_out_of_order_without_times_are_not_guessed(tmp_path: Path) -> None:
    paths = two_runs_out_of_order(tmp_path)
    edit(paths, lambda d: d.__delattr__("AcquisitionTime"))
    found = search(tmp_path)
    assert not found.scans and {a.code for a in found.set_aside} == {"G002"}


def two_runs_out_of_order(folder: Path) -> list[Path]:
    paths = []
    for run, numbers in ((0, (3, 5)), (1, (4, 6))):
        acquired = datetime(2026, 1, 5, 9, 10 * run)
        run_paths = write(folder / str(run), series_number=10 * (run + 1), acquired=acquired, values=signal(seed=run))
        edit(run_paths, partial(_renumber, numbers))
        paths += run_paths
    return paths


def _renumber(numbers: tuple[int, int], dataset: Any) -> None:
    dataset.SeriesNumber = numbers["P" in dataset.ImageType]


def test_each_echo_in_a_series_of_its_own(tmp_path: Path) -> None:
    paths = write(tmp_path)
    edit(paths, _series_by_echo)
    (scan,) = search(tmp_path).scans
    assert len(scan.series) == 6 and len(scan.files) == len(paths)


def _series_by_echo(dataset: Any) -> None:
    dataset.SeriesNumber = 2 * int(dataset.EchoNumbers) + ("P" in dataset.ImageType)
    dataset.SeriesInstanceUID = f"{dataset.SeriesInstanceUID[:50]}.{dataset.SeriesNumber}"


def test_ge_with_all_four_parts_uses_magnitude_and_phase_or_the_pair_it_has(tmp_path: Path) -> None:
    """Magnitude beside real and imaginary parts is spare, and said to be."""
    paths = write(tmp_path, "ge")
    extra = [path for path in paths if _copy_as_magnitude(path) == "magnitude"]
    found = search(tmp_path)
    assert found.scans[0].parts == ("real", "imaginary") and len(found.scans[0].files) == len(paths)
    assert [i.code for i in found.ignored] == ["G007"] * len(extra) and "not needed" in found.ignored[0].text


def _copy_as_magnitude(path: Path) -> str:
    dataset = pydicom.dcmread(path)
    if dataset[0x0043, 0x102F].value != 2:
        return ""
    dataset[0x0043, 0x102F].value = 0
    dataset.SOPInstanceUID = dataset.SOPInstanceUID[:-4] + ".0"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(path.with_suffix(".mag"))
    return "magnitude"


def test_a_missing_folder_is_an_error_and_an_empty_one_is_not(tmp_path: Path) -> None:
    with pytest.raises(ChironError, match="S003") as error:
        find(tmp_path / "absent", KEY)
    assert str(tmp_path) not in str(error.value)
    assert find(tmp_path, KEY) == Export((), (), (), 0)


def test_a_bids_dataset_keeps_its_labels(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01_ses-2_run-3")
    bids(tmp_path, "sub-02")
    found = search(tmp_path)
    assert sorted(scan.label for scan in found.scans) == ["sub-01_ses-2_run-3", "sub-02"]
    assert all(scan.source == "bids" and len(scan.files) == 12 for scan in found.scans)
    assert [i.code for i in found.ignored] == ["F002"]
    assert found.scans[0].echo_times_s == TIMES


def test_a_bids_scan_without_phase_does_not_stop_the_others(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01")
    bids(tmp_path, "sub-02")
    for path in (tmp_path / "sub-02").rglob("*part-phase*"):
        path.unlink()
    found = search(tmp_path)
    assert [scan.label for scan in found.scans] == ["sub-01"]
    assert [(a.label, a.code, a.files) for a in found.set_aside] == [("sub-02", "P001", 6)]


def test_bids_scans_keep_their_entities(tmp_path: Path) -> None:
    names = ("sub-01_acq-a_run-1", "sub-01_acq-b_run-1", "sub-01_run-11", "sub-01_acq-a_rec-norm_dir-AP_run-01")
    for each in names:
        bids(tmp_path, each)
    scans = search(tmp_path).scans
    assert sorted(scan.label for scan in scans) == sorted(names)
    assert all(Scan.from_json(json.loads(json.dumps(scan.json()))) == scan for scan in scans)


def test_entities_in_a_wrong_order_are_put_right(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01_run-1_acq-a")
    assert [scan.label for scan in search(tmp_path).scans] == ["sub-01_acq-a_run-1"]


@pytest.mark.parametrize("described", [True, False])
def test_images_of_two_datasets_are_two_scans(described: bool, tmp_path: Path) -> None:
    """Each dataset has a `sub-01`; one of them lacks echoes that the other has."""
    bids(tmp_path / "a", "sub-01", described=described)
    bids(tmp_path / "b", "sub-01", described=described, scale=2, echoes=(1, 2))
    scans = search(tmp_path).scans
    assert [len(scan.echo_times_s) for scan in scans] == [3, 2] and len({scan.owner for scan in scans}) == 2
    assert [{path.parents[2].name for path in scan.files} for scan in scans] == [{"a"}, {"b"}]


def test_a_dataset_below_another_is_one_of_its_own(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01")
    bids(tmp_path / "other", "sub-01", scale=2)
    assert len({scan.owner for scan in search(tmp_path).scans}) == 2


def test_equal_copies_of_an_image_are_used_once(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01")
    bids(tmp_path, "sub-01", extension=".nii")
    found = search(tmp_path)
    (scan,) = found.scans
    assert "G001" in [n.code for n in scan.notices] and len(scan.volumes) == 6 and not found.set_aside
    assert [i.code for i in found.ignored].count("G001") == 6
    assert len(scan.files) + len(found.ignored) == found.files_seen


def test_different_copies_of_an_image_are_set_aside_with_both_ordinals(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01")
    bids(tmp_path, "sub-01", extension=".nii", scale=2)
    bids(tmp_path, "sub-02")
    found = search(tmp_path)
    (aside,) = found.set_aside
    assert [scan.label for scan in found.scans] == ["sub-02"]
    assert (aside.label, aside.code, aside.files) == ("sub-01", "G002", 18) and "files 3 and 4 are" in aside.text


@pytest.mark.parametrize(("scale", "scans", "codes"), [(1.0, 1, []), (2.0, 0, ["G002", "G002"])])
def test_a_name_in_two_folders(scale: float, scans: int, codes: list[str], tmp_path: Path) -> None:
    """Without a folder for each subject: a copy is used once where it is the same, and never where it is not."""
    bids(tmp_path, "sub-01", folder="a")
    bids(tmp_path, "sub-01", scale=scale, folder="b")
    found = search(tmp_path)
    assert len(found.scans) == scans and [aside.code for aside in found.set_aside] == codes
    assert len(found.ignored) == 1 + 12 * scans


@pytest.mark.parametrize(("scale", "owners"), [(1.0, 1), (2.0, 2)])
def test_a_copy_of_a_dataset_is_no_second_scan_another_dataset_is(scale: float, owners: int, tmp_path: Path) -> None:
    """Even where the folder above both says that it is a dataset."""
    for name, each in (("a", 1.0), ("b", scale)):
        bids(tmp_path / name, "sub-01", scale=each)
    (tmp_path / "dataset_description.json").write_text('{"Name": "both", "BIDSVersion": "1.10.0"}')
    found = search(tmp_path)
    assert len({scan.owner for scan in found.scans}) == len(found.scans) == owners and not found.set_aside


def test_two_repeats_in_one_enhanced_file_are_two_scans(tmp_path: Path) -> None:
    """They share every identifier of a file, so that their own must tell them apart."""
    (path,) = write(tmp_path, "philips-enhanced")
    dataset = pydicom.dcmread(path)
    frames = list(dataset.PerFrameFunctionalGroupsSequence)
    again = [copy.deepcopy(frame) for frame in frames]
    for repeat, group in ((1, frames), (2, again)):
        for frame in group:
            frame.TemporalPositionIdentifier = repeat
    dataset.PerFrameFunctionalGroupsSequence = [*frames, *again]
    dataset.NumberOfFrames = len(frames) * 2
    dataset.PixelData = dataset.PixelData * 2
    dataset.save_as(path)
    scans = search(tmp_path).scans
    assert len(scans) == len({scan.id for scan in scans}) == 2 and not set(scans[0].identity) & set(scans[1].identity)


def test_magnitude_and_phase_in_folders_of_their_own_are_one_scan(tmp_path: Path) -> None:
    for part in ("mag", "phase"):
        bids(tmp_path, "sub-01", parts=(part,), folder=f"sub-01/anat/{part}")
    assert len(search(tmp_path).scans) == 1


def test_another_suffix_is_another_scan(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01")
    bids(tmp_path, "sub-01", scale=2, suffix="T2starw")
    assert sorted(scan.suffix for scan in search(tmp_path).scans) == ["MEGRE", "T2starw"]


def test_a_bids_name_hides_no_dicom_export(tmp_path: Path) -> None:
    paths = write(tmp_path / "scans/11/DICOM")
    bids(tmp_path, "sub-01", echoes=(1,), parts=("mag",), described=False, folder="scans/11/NIFTI")
    found = search(tmp_path)
    assert [set(scan.files) for scan in found.scans] == [set(paths)]
    assert [(aside.label, aside.code, aside.files) for aside in found.set_aside] == [("sub-01", "P001", 2)]


def test_a_dataset_and_an_export_lie_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "export")
    bids(tmp_path / "dataset", "sub-01")
    found = search(tmp_path)
    assert [scan.source for scan in found.scans] == ["bids", "dicom"] and not found.set_aside


def test_the_sources_of_a_dataset_are_no_second_scan(tmp_path: Path) -> None:
    paths = write(tmp_path / "sourcedata/sub-01")
    bids(tmp_path, "sub-01")
    found = search(tmp_path)
    assert [scan.source for scan in found.scans] == ["bids"]
    assert [i.code for i in found.ignored].count("G007") == len(paths)
    for path in (tmp_path / "sub-01").rglob("*.nii.gz"):
        path.unlink()
    assert [scan.source for scan in search(tmp_path).scans] == ["dicom"]


def test_a_dataset_label_goes_in_front_of_its_subjects(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01")
    assert [scan.label for scan in search(tmp_path, dataset_label="siteB").scans] == ["sub-siteB01"]
    with pytest.raises(ChironError, match="X001"):
        search(tmp_path, dataset_label="site B")


def test_bids_facts_are_inherited_and_count(tmp_path: Path) -> None:
    """Field strength from a sidecar at the root; its change is a change of the input."""
    bids(tmp_path, "sub-01", strength=None)
    assert [a.code for a in search(tmp_path).set_aside] == ["E012"]
    for part in ("mag", "phase"):
        (tmp_path / f"part-{part}_MEGRE.json").write_text(json.dumps({"MagneticFieldStrength": 3}))
    (tmp_path / "MEGRE.json").write_text(json.dumps({"MagneticFieldStrength": 7}))
    first = search(tmp_path).scans[0]
    assert first.b0_tesla == 3
    (tmp_path / "part-mag_MEGRE.json").unlink()
    assert [a.code for a in search(tmp_path).set_aside] == ["E012"]
    (tmp_path / "part-phase_MEGRE.json").unlink()
    second = search(tmp_path).scans[0]
    assert second.b0_tesla == 7 and second.content_digest() != first.content_digest()


@pytest.mark.real_data
def test_philips_classic_is_one_scan(shared_data: Path) -> None:
    found = find(shared_data / "philips_3t_brain" / "classic", KEY)
    (scan,) = found.scans
    assert len(scan.files) == found.files_seen == 212 and not found.ignored and not found.set_aside
    assert scan.echo_times_s == (0.0023, 0.0046) and scan.parts == ("magnitude", "phase") and scan.vendor == "Philips"


@pytest.mark.real_data
def test_philips_enhanced_is_one_scan_beside_raw_data(shared_data: Path) -> None:
    found = find(shared_data / "philips_3t_brain" / "enhanced", KEY)
    (scan,) = found.scans
    assert len(scan.files) == 1 and scan.echo_times_s == (0.0023, 0.0046) and not scan.notices and not found.set_aside
    assert [(i.code, "Raw Data" in i.text) for i in found.ignored] == [("F002", True)]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("siemens_phase_difference", "only the phase difference of two echoes"),
        ("ge_fieldmap_hz", "only a field map in Hz"),
        ("philips_fieldmap_hz", "only a field map in Hz"),
    ],
)
def test_what_is_not_qsm_is_declined_with_its_reason(folder: str, reason: str, shared_data: Path) -> None:
    found = find(shared_data / "not_qsm" / folder, KEY)
    (aside,) = found.set_aside
    assert not found.scans and aside.code == "P001" and reason in aside.text
    assert aside.files == found.files_seen


def test_a_file_that_cannot_be_read_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two datasets have a scan of one name, whose images are compared."""
    for site in "ab":
        bids(tmp_path / site, "sub-01")
    bids(tmp_path / "a", "sub-02", scale=2)
    locked = tmp_path / "b/sub-01/anat/sub-01_echo-2_part-phase_MEGRE.nii.gz"
    true = Path.read_bytes
    monkeypatch.setattr(nib, "load", refuse_at(locked, nib.load))
    monkeypatch.setattr(Path, "read_bytes", lambda path: refuse_at(locked, true)(path))
    assert [scan.label for scan in find(tmp_path, KEY).scans].count("sub-02") == 1


def refuse_at(locked: Path, true: Any) -> Any:
    def opened(path: Path, *more: Any) -> Any:
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied")
        return true(path, *more)

    return opened


def test_a_direction_of_zeros_states_none(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01")
    for path in tmp_path.rglob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"B0_dir": [0, 0, 0]}))
    assert search(tmp_path).scans[0].b0_dir == ()
