"""Rows 20, 68 to 73 and 79 of the faults: memory, no GPU, a hung job, a map that diverges, false or foreign weights."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import stand_in
import torch
from exports import GOOD, beside
from make_dicom import search
from owed import assert_complete, go, results, states, told, untouched
from safetensors.torch import save as pack
from stand_in import KEY, SENTINEL, SETTINGS, export

from flows.batch import Batch, plan, run
from flows.crew import Crew, Terms
from flows.demo import Simulated
from models import diffusion, dip, weights
from models.found import Found
from pipeline import invert as inversion
from pipeline import memory
from pipeline.device import pick_device
from pipeline.errors import CATALOGUE, ChironError
from pipeline.find import find
from pipeline.invert import chosen_methods
from pipeline.publish import prepare, publish, read_manifests
from pipeline.recipe import Job, reconstruct
from pipeline.recipe import stages as module
from pipeline.settings import load


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    stand_in.install(monkeypatch.setattr)
    monkeypatch.setenv("CHIRON_OUTPUT", "")
    (tmp_path / SENTINEL).mkdir()
    return tmp_path / SENTINEL


def test_20_a_volume_too_large_is_set_aside_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(tmp_path / "in")
    found = search(tmp_path / "in")
    assert {scan.shape for scan in found.scans} == {(6, 6, 3), (10, 12, 6)}
    huge = tuple(scan if scan.subject == GOOD else replace(scan, shape=(900, 900, 900)) for scan in found.scans)
    monkeypatch.setattr(memory, "free_memory_bytes", lambda device: 8 << 30)
    batch = Batch(tmp_path / "out")
    prepare(batch.output)
    todo = plan(batch, replace(found, scans=huge), SETTINGS)
    assert [job.scan.subject for job in todo] == [GOOD]
    (outcome,) = batch.outcomes
    assert (outcome.code, CATALOGUE["R004"].owed) == ("R004", "set aside") and "900 x 900 x 900" in outcome.text


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def test_68_an_absent_gpu_refuses_the_run(source: Path, tmp_path: Path, no_gpu: None) -> None:
    with untouched(export(source, a="")), pytest.raises(ChironError) as caught:
        run(Batch(tmp_path / "out"), source, load(method="tkd", device="cuda:0"), KEY)
    assert (caught.value.code, caught.value.fault.exit, caught.value.fault.owed) == ("R001", 16, "refuse")
    assert not (tmp_path / "out").exists()


def test_68_auto_takes_the_cpu_and_the_manifest_says_so(source: Path, tmp_path: Path, no_gpu: None) -> None:
    settings = load(method="auto", device="auto")
    assert pick_device(settings.device).type == "cpu" and chosen_methods(settings) == ("tv",)
    assert go(export(source, a=""), tmp_path / "out") == {"sub-a": ""}
    (record,) = read_manifests(tmp_path / "out")
    assert record["device"] == "cpu"


class TooLittleMemory:
    """A network's fit that has memory for tiles of a size and no more; notes what was tried."""

    def __init__(self, error: Exception, largest_tile: int) -> None:
        self.error, self.largest, self.tried = error, largest_tile, list[int]()

    def reconstruct(self, field: Any, weight: Any, dipole: Any, params: Any, progress: Any) -> dip.Found:
        self.tried.append(params.tile)
        if params.tile == 0 or params.tile > self.largest:
            raise self.error
        return dip.Found(torch.where(weight > 0, field, 0), {"tile": params.tile})


def invert_a_field() -> Any:
    from test_memory import field

    return inversion.invert(field(), "dip", dip.DIP(iterations=1))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_69_too_little_memory_is_met_with_smaller_work_twice(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = TooLittleMemory(error, 80)
    monkeypatch.setattr(dip, "reconstruct", fit.reconstruct)
    found = invert_a_field()
    assert fit.tried == [0, 160, 80]
    assert found.facts["tile"] == 80 and found.facts["too_large"] == ["the whole on cpu", "tiles of 160 on cpu"]


def test_69_where_nothing_fits_the_scan_alone_fails(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invert = module.invert

    def out_of_memory(method: str, inputs: Any) -> Any:
        if inputs.job.scan.label == "sub-a":
            raise torch.OutOfMemoryError(f"CUDA out of memory at {inputs.job.folder}")
        return invert(method, inputs)

    monkeypatch.setattr(module, "invert", out_of_memory)
    with untouched(export(source, a="", b="")):
        assert go(source, tmp_path / "out") == {"sub-a": "R002", "sub-b": ""}
    assert states(tmp_path / "out") == {"sub-a": "failed", "sub-b": "published"}
    assert_complete(tmp_path / "out")
    monkeypatch.setattr(module, "invert", invert)
    go(source, tmp_path / "alone")
    wanted = results(tmp_path / "alone")
    assert results(tmp_path / "out") == {name: wanted[name] for name in wanted if name.startswith("sub-b")}
    assert go(source, tmp_path / "out") == {"sub-a": "", "sub-b": ""} and results(tmp_path / "out") == wanted


def test_70_a_scan_that_hangs_is_killed_at_its_limit_and_stops_no_other(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepare(output)
    found = stand_in.find(export(source, a="", b="hang", c=""), KEY)
    todo = [Job(scan, SETTINGS, output / ".chiron" / "work" / scan.id) for scan in found.scans]
    for job in todo:
        job.save()
    with untouched(source), Crew(output, Terms(time_limit_s=10)) as crew:
        ends = {end.job.scan.label: (end.how, end.code) for end in crew.work(todo)}
    stand_in.dismiss_all()
    assert ends == {"sub-a": ("published", ""), "sub-b": ("failed", "R003"), "sub-c": ("published", "")}
    assert states(output) == {"sub-a": "published", "sub-b": "failed", "sub-c": "published"}
    assert_complete(output)
    assert told(output, SENTINEL, without=("job.json", "next.json")) == []


def test_71_where_dip_diverges_the_classical_map_takes_its_place_and_the_report_is_red(
    demo: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scan,) = find(demo.export, KEY).scans
    job = Job(scan, load(method="dip", device="cpu"), tmp_path / "work")
    for how in ("raises", "not finite", "flat"):
        monkeypatch.setattr(dip, "reconstruct", partial(_diverge, how))
        shutil.rmtree(job.folder / "invert-dip", ignore_errors=True)
        reconstruct(job)
        done = publish(job, tmp_path / "out")
        (record,) = read_manifests(tmp_path / "out")
        assert done.verdict == "do not use" and "M001" in {warning["code"] for warning in record["warnings"]}
        published = nib.load(done.folder / "anat" / f"{done.label}_Chimap.nii.gz").get_fdata(dtype=np.float32)
        assert np.allclose(published, job.work.find("invert-tv").array("chi_ppm").numpy(), atol=1e-6)  # type: ignore
        page = done.report.read_text()
        assert "do not use" in page.lower() and "was published in its place" in page
        assert_complete(tmp_path / "out")


def _diverge(how: str, field: Any, *_: Any) -> dip.Found:
    if how == "raises":
        raise ChironError("M001", "a loss that is not finite", "a fit")
    return dip.Found(torch.full_like(field, torch.nan if how == "not finite" else 0.0), {})


def test_79_what_a_network_has_not_learned_from_is_told_everywhere(
    demo: Simulated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scan,) = find(demo.export, KEY).scans
    job = Job(scan, load(method="diffusion", device="cpu"), tmp_path / "work")
    monkeypatch.setattr(diffusion, "reconstruct", lambda field, *_: Found(field, {"sampler": "dps"}))
    reasons, anat = {}, None
    for low in (6.0, 0.6):
        card = {"voxel_mm": [low - 0.01, low + 0.01], "limit_ppm": 9.0, "sha256": "0" * 64}
        monkeypatch.setattr(diffusion, "learned", lambda card=card: ({}, card))
        shutil.rmtree(job.folder / "invert-diffusion", ignore_errors=True)
        reconstruct(job)
        done = publish(job, tmp_path / "out")
        anat = done.folder / "anat" / done.label
        verdict = json.loads(anat.with_name(f"{done.label}_qc.json").read_text())["verdict"]
        told = [
            w for w in read_manifests(tmp_path / "out")[0]["warnings"] if w["code"] == "M004" and "voxels" in w["text"]
        ]
        reasons[low] = [reason for reason in verdict["reasons"] if "voxels of 6 x 6 x 6 mm" in reason]
        assert len(told) == len(reasons[low]) and ("<code>M004</code>" in done.report.read_text()) >= bool(told)
    assert len(reasons[0.6]) == 1 and not reasons[6.0] and verdict["level"] != "usable"
    assert (
        reasons[0.6][0] in done.report.read_text()
        and anat
        and anat.with_name(f"{done.label}_desc-tv_Chimap.json").exists()
    )


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def forge_card(folder: Path) -> None:
    """Another content, and a card that vouches for it."""
    import hashlib

    content = (folder / "dip.safetensors").read_bytes()
    card = json.loads((folder / "dip.json").read_text())
    (folder / "dip.json").write_text(json.dumps({**card, "sha256": hashlib.sha256(content).hexdigest()}))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no weights": lambda folder: (folder / "dip.safetensors").unlink(),
    "no card": lambda folder: (folder / "dip.json").unlink(),
    "an empty card": lambda folder: (folder / "dip.json").write_text("{}"),
    "half a card": lambda folder: (folder / "dip.json").write_bytes((folder / "dip.json").read_bytes()[:100]),
    "truncated": lambda folder: (folder / "dip.safetensors").write_bytes(b"x" * 5000),
    "one bit": lambda folder: flip(folder / "dip.safetensors"),
    "another network": lambda folder: (folder / "dip.safetensors").write_bytes(pack({"w": torch.ones(3)})),
}


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of weights like the package's own, and in its place."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("dip.json", "dip.safetensors"):
        (folder / name).write_bytes((weights.FOLDER / name).read_bytes())
    monkeypatch.setattr(weights, "load", partial(weights.load, folder=folder))
    dip.learned.cache_clear()
    yield folder
    dip.learned.cache_clear()


@pytest.mark.parametrize("damage", DAMAGE)
def test_72_weights_that_are_not_those_of_their_card_refuse_the_run(
    damage: str, shipped: Path, source: Path, tmp_path: Path
) -> None:
    DAMAGE[damage](shipped)
    with untouched(export(source, a="")), pytest.raises(ChironError) as caught:
        run(Batch(tmp_path / "out"), source, load(method="dip", device="cpu"), KEY)
    assert (caught.value.code, caught.value.fault.exit, caught.value.fault.owed) == ("M003", 15, "refuse")
    assert not (tmp_path / "out").exists() and str(tmp_path) not in str(caught.value)


class Payload:
    """What a pickle can do to whoever opens it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("vouched", [True, False])
@pytest.mark.parametrize("torch_s_own", [True, False])
def test_73_a_pickle_is_refused_and_nothing_of_it_is_executed(
    vouched: bool, torch_s_own: bool, shipped: Path, source: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "executed"
    if torch_s_own:
        torch.save({"w": Payload(mark)}, shipped / "dip.safetensors")
    else:
        (shipped / "dip.safetensors").write_bytes(pickle.dumps(Payload(mark)))
    if vouched:
        forge_card(shipped)
    with pytest.raises(ChironError, match="M003"):
        run(Batch(tmp_path / "out"), export(source, a=""), load(method="dip", device="cpu"), KEY)
    assert not mark.exists() and not (tmp_path / "out").exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()  # so it could have been
