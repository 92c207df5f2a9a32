"""The work folder: what a stage made is read back, and believed only while it is what was written; all or nothing."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import torch

from pipeline.errors import ChironError, Decision, Notice
from pipeline.work import Made, Work, digest, disk_error, file_digest

MADE = Made(
    arrays={"a": torch.arange(24, dtype=torch.float32).reshape(2, 3, 4), "b": torch.ones(3, dtype=torch.uint8)},
    files={"page.html": b"<p>", "empty": b""},
    facts={"sd": 0.25, "times": [1, 2]},
    decisions=[Decision("readout", "monopolar", "0.01 rad", "unwrap.bipolar")],
    notices=[Notice("E007", "a single echo")],
)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    found = Work(tmp_path / "work")
    found.write("mask", "key", MADE, {"seconds": 1.5})
    return found


def test_what_was_written_is_read_back(work: Work) -> None:
    result = work.proven("mask", "key")
    assert result is not None and result.facts == MADE.facts and result.record["seconds"] == 1.5
    for name, tensor in MADE.arrays.items():
        assert result.has(name) and torch.equal(result.array(name), tensor)
        assert result.array(name).dtype == tensor.dtype
    assert result.file("page.html") == b"<p>" and result.file("empty") == b"" and not result.has("page")
    assert result.record["decisions"] == [d.json() for d in MADE.decisions]
    assert result.record["notices"] == [{"code": "E007", "text": "a single echo"}]


def test_a_transposed_tensor_is_read_back_too(tmp_path: Path) -> None:
    volume = torch.randn(3, 4, 5).permute(2, 0, 1).requires_grad_()
    result = Work(tmp_path).write("x", "k", Made({"v": volume}), {})
    assert torch.equal(result.array("v"), volume.detach())


def test_another_key_or_stage_is_not_proven(work: Work) -> None:
    assert work.proven("mask", "other") is None
    assert work.proven("field", "key") is None and work.find("field") is None


@pytest.mark.parametrize("name", ["a.npy", "b.npy", "page.html"])
@pytest.mark.parametrize("harm", ["flip", "cut", "grow", "remove"])
def test_a_file_that_was_touched_is_not_believed(work: Work, name: str, harm: str) -> None:
    path = work.folder / "mask" / name
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[-1] ^= 1
    path.write_bytes(bytes({"flip": content, "cut": content[:-1], "grow": content + b"x", "remove": b""}[harm]))
    if harm == "remove":
        path.unlink()
    assert work.proven("mask", "key") is None


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff"])
def test_a_spoilt_record_is_no_result(work: Work, content: bytes) -> None:
    (work.folder / "mask" / "stage.json").write_bytes(content)
    assert work.proven("mask", "key") is None


def test_a_new_result_takes_the_place_of_the_old_one_whole(work: Work) -> None:
    work.write("mask", "new", Made({"c": torch.zeros(2)}), {})
    assert work.proven("mask", "key") is None and work.proven("mask", "new") is not None
    assert {p.name for p in (work.folder / "mask").iterdir()} == {"c.npy", "stage.json"}
    assert [p.name for p in work.folder.iterdir()] == ["mask"]


def test_a_write_that_fails_leaves_the_old_result_and_no_litter(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/home/someone/secret")

    monkeypatch.setattr("pipeline.work.np.save", full)
    with pytest.raises(ChironError, match="S001") as caught:
        work.write("mask", "new", MADE, {})
    assert "secret" not in str(caught.value)
    assert work.proven("mask", "key") is not None
    assert [p.name for p in work.folder.iterdir()] == ["mask"]


def test_what_a_killed_run_left_aside_is_no_result_and_in_nobodys_way(work: Work) -> None:
    aside = work.folder / f".field.{os.getpid()}"
    aside.mkdir()
    (aside / "half.npy").write_bytes(b"x")
    assert work.find("field") is None
    work.write("field", "key", MADE, {})
    assert work.proven("field", "key") is not None and not aside.exists()
    assert not (work.folder / "field" / "half.npy").exists()


def test_the_digest_is_of_what_was_made_not_of_how_long_it_took(work: Work, tmp_path: Path) -> None:
    first = work.find("mask")
    assert first is not None
    assert Work(tmp_path / "b").write("mask", "another key", MADE, {"seconds": 9}).digest == first.digest
    for other in (
        Made(MADE.arrays, MADE.files, {"sd": 0.26}),
        Made({"a": MADE.arrays["a"] + 1}, MADE.files, MADE.facts),
    ):
        assert Work(tmp_path / "c").write("mask", "key", other, {}).digest != first.digest


def test_the_stages_are_private_and_go_when_told(work: Work) -> None:
    assert stat.S_IMODE((work.folder / "mask").stat().st_mode) == 0o700
    work.remove()
    work.remove()
    assert not work.folder.exists()


def test_digests_do_not_depend_on_the_order_of_names(tmp_path: Path) -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x").startswith("ba7816bf8f01cfea")


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "S001"), (errno.EDQUOT, "S001"), (errno.EACCES, "S002")])
def test_a_failed_write_has_its_code(number: int, code: str) -> None:
    assert disk_error(OSError(number, "x", "/a/path")).code == code


@pytest.mark.parametrize("record", ["[]", '{"key": "key"}', "3"])
def test_a_record_of_another_kind_is_no_result(work: Work, record: str) -> None:
    work.write("mask", "key", MADE, {})
    (work.folder / "mask" / "stage.json").write_text(record)
    assert work.proven("mask", "key") is None


def test_a_changed_record_is_not_proven(work: Work) -> None:
    result = work.write("mask", "key", MADE, {"device": "cpu"})
    file = result.folder / "stage.json"
    file.write_text(file.read_text().replace('"cpu"', '"gpu"'))
    assert work.proven("mask", "key") is None
