"""Rows 1 to 16 of the faults: files that are no images, broken off, packed, or not to be read."""

from __future__ import annotations

import io
import os
import shutil
import socket
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from exports import GOOD, bad_of, beside, good_of, only_good, put
from make_dicom import (
    KEY,
    SENTINEL,
    TIMES,
    edit,
    search,
    store,
    write,
)
from pydicom.data import get_testdata_file
from pydicom.uid import UID, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from pipeline.convert import Acquisition, convert
from pipeline.convert.stored import Stored
from pipeline.errors import ChironError
from pipeline.find import files, find
from pipeline.phase import Phase, to_radians


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


@pytest.mark.parametrize("part", ["preamble", "preamble and meta"])
def test_7_without_a_preamble_a_file_is_read_by_force(part: str, tmp_path: Path) -> None:
    paths = beside(tmp_path)
    (whole,) = bad_of(search(tmp_path), tmp_path)
    wanted = store(whole, tmp_path / "scratch")
    for path in paths:
        content = path.read_bytes()
        length = int.from_bytes(content[140:144], "little")
        path.write_bytes(content[132 if part == "preamble" else 144 + length :])
    (scan,) = bad_of(search(tmp_path), tmp_path)
    found = store(scan, tmp_path / "scratch")
    assert torch.equal(found.first, wanted.first) and torch.equal(found.second, wanted.second)


def test_7_a_forced_read_is_bounded_and_must_give_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(tmp_path)
    (tmp_path / "long").write_bytes(b"\x08\x00\x16\x00UI\x1a\x00" + bytes(3 << 20))
    asked: list[int] = []
    forced = files._attempt
    monkeypatch.setattr(files, "_attempt", lambda c, tags: asked.append(len(c.getvalue())) or forced(c, tags))  # type: ignore
    found = search(tmp_path)
    assert asked == [2**20] and [ignored.code for ignored in found.ignored] == ["F002"]


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


@pytest.mark.parametrize(
    "syntax", [ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless, JPEG2000Lossless], ids=lambda uid: uid.keyword
)
def test_10_however_it_is_stored_the_echoes_are_the_same(syntax: UID, tmp_path: Path) -> None:
    """And so is whatever is computed of them: no other file of the export is read."""
    beside(tmp_path / "in", shape=(32, 32, 4), transfer_syntax=syntax)
    (scan,) = bad_of(search(tmp_path / "in"), tmp_path / "in")
    write(tmp_path / "plain", shape=(32, 32, 4))
    (plain,) = search(tmp_path / "plain").scans
    assert same(store(scan, tmp_path / "scratch"), store(plain, tmp_path / "scratch"))


def test_10_jpeg_ls_is_read(tmp_path: Path) -> None:
    """No encoder of it is here, so every slice holds the one image that pydicom brings both ways."""
    both = {}
    for name in ("MR_small", "MR_small_jpeg_ls_lossless"):
        sample = pydicom.dcmread(str(get_testdata_file(f"{name}.dcm")))
        edit(write(tmp_path / name, shape=(64, 64, 3)), partial(_image_of, sample))
        (scan,) = search(tmp_path / name).scans
        both[name] = store(scan, tmp_path / "scratch")
    plain, compressed = both.values()
    assert same(plain, compressed) and plain.first.std() > 0


def _image_of(sample: pydicom.Dataset, dataset: pydicom.Dataset) -> None:
    for keyword in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(dataset, keyword, sample[keyword].value)
    dataset["PixelData"] = sample["PixelData"]
    dataset.file_meta.TransferSyntaxUID = sample.file_meta.TransferSyntaxUID


def same(one: Stored, other: Stored) -> bool:
    """The same numbers at the same places, read by the same rules."""
    assert np.allclose(one.grid.affine, other.grid.affine, atol=1e-4) and one.stored_phase == other.stored_phase
    return torch.equal(one.first, other.first) and torch.equal(one.second, other.second)


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


def test_14_pipes_sockets_and_devices_do_not_block(tmp_path: Path) -> None:
    folder = beside(tmp_path)[0].parent
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        found = search(tmp_path)
    assert [ignored.code for ignored in found.ignored] == ["F015", "F015"] and len(bad_of(found, tmp_path)) == 1


@pytest.mark.parametrize(("failure", "code"), [(PermissionError(13, "no"), "F015"), (OSError(5, "damaged"), "F015")])
def test_15_what_cannot_be_read_is_counted(
    failure: OSError, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder and an image of the scan: the folder is ignored, the scan lacks a slice."""
    paths = beside(tmp_path)
    (tmp_path / "closed").mkdir()
    scan, opened = os.scandir, Path.open

    def scandir(path: str) -> Any:
        if Path(path).name == "closed":
            raise failure
        return scan(path)

    def open_(path: Path, *args: Any, **options: Any) -> Any:
        if path == paths[4]:
            raise failure
        return opened(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        patch.setattr(Path, "open", open_)
        found = find(tmp_path, KEY)
    assert [ignored.code for ignored in found.ignored] == [code, code]
    assert [(aside.code, aside.files) for aside in found.set_aside] == [("E002", len(paths) - 1)]
    assert found.files_seen == len(good_of(found, tmp_path).files) + len(paths) + 1
    assert SENTINEL not in repr((found.ignored, found.set_aside))


def test_16_a_folder_that_vanishes_takes_nothing_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(tmp_path)
    (tmp_path / "gone").mkdir()
    scan = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "gone":
            raise FileNotFoundError(2, "gone")
        return scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        found = find(tmp_path, KEY)
    assert [(aside.code, aside.files) for aside in found.set_aside] == [("F016", 1)] and len(found.scans) == 2


def test_16_a_scan_whose_files_vanish_after_they_were_found_says_so(tmp_path: Path) -> None:
    paths = beside(tmp_path)
    found = search(tmp_path)
    shutil.rmtree(paths[0].parent)
    (scan,) = [scan for scan in found.scans if scan.subject != GOOD]
    for act in (scan.content_digest, lambda: store(scan, tmp_path / "scratch")):
        with pytest.raises(ChironError, match="F016") as caught:
            act()
        assert SENTINEL not in str(caught.value)


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
