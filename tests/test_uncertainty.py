"""The uncertainty of a map, or a fit that failed, the whole way: from the fit to what is published of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from flows.demo import Simulated
from models.dip import Found
from pipeline.find import find
from pipeline.publish import publish, read_manifests, verify
from pipeline.recipe import Job, reconstruct
from pipeline.settings import load


@pytest.fixture(scope="module")
def classical(demo: Simulated, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A small head, all of its stages done without a network."""
    folder = tmp_path_factory.mktemp("classical")
    scan = find(demo.export, b"k" * 32).scans[0]
    job = Job(scan, load(method="tv", device="cpu"), folder / "work")
    reconstruct(job)
    return job


@pytest.fixture
def fitted(classical: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Do all stages of that head with a network that is a function: of the field, to the uncertainty or None."""

    def run(fit: Callable[[torch.Tensor], torch.Tensor | None], *words: str) -> Job:
        def reconstruct_by(field: torch.Tensor, *rest: Any) -> Found:
            spread = fit(field)
            chi = field if spread is not None else torch.full_like(field, float("nan"))
            return Found(chi, {"loss": [3.0, 2.0], "stopped_at": 2}, spread)

        monkeypatch.setattr("models.dip.reconstruct", reconstruct_by)
        work = shutil.copytree(classical.folder, tmp_path / "work")
        job = Job(classical.scan, load(words=words, method="dip", device="cpu"), work)
        reconstruct(job)
        return job

    return run


@pytest.mark.parametrize("words", [(), ("reference.region=csf",)], ids=["mean", "csf"])
def test_an_uncertainty_goes_the_whole_way_and_survives_a_resumed_run(
    words: tuple[str, ...], fitted: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = fitted(lambda field: torch.full_like(field, 0.02), *words)
    first = publish(job, tmp_path / "out").folder
    monkeypatch.setattr("models.dip.reconstruct", None)  # what is proven is not made again
    reconstruct(job)
    done = publish(job, tmp_path / "again")
    name = f"anat/{job.scan.label}_Chiuncertainty.nii.gz"
    assert (first / name).read_bytes() == (done.folder / name).read_bytes()
    values = nib.load(first / name).get_fdata()
    mask = job.work.find("background")
    assert mask is not None
    np.testing.assert_allclose(values, 0.02 * mask.array("mask").numpy(), rtol=1e-6)
    quality = json.loads(next(done.folder.glob("anat/*_qc.json")).read_text())
    assert quality["methods"]["dip"]["uncertainty_ppm"] == pytest.approx(0.02)
    assert "uncertainty_ppm" not in quality["methods"]["tv"]
    assert "Uncertainty of χ, Deep Image Prior" in done.report.read_text()


def test_an_uncertainty_without_numbers_is_left_out_and_said_so(fitted: Callable[..., Job], tmp_path: Path) -> None:
    job = fitted(lambda field: field / 0)
    folder = publish(job, tmp_path / "out").folder
    assert not list(folder.glob("anat/*ncertainty*")) and list(folder.glob("anat/*_desc-tv_Chimap.nii.gz"))
    assert ("M002", "invert-dip") in [(w["code"], w["stage"]) for w in read_manifests(tmp_path / "out")[0]["warnings"]]


def test_a_fit_that_diverges_ends_in_the_classical_map_and_a_red_report(
    fitted: Callable[..., Job], tmp_path: Path
) -> None:
    job = fitted(lambda field: None)
    done = publish(job, tmp_path / "out")
    classical = job.work.find("invert-tv")
    assert done.verdict == "do not use" and classical is not None
    stem = f"anat/{job.scan.label}"
    published = nib.load(done.folder / f"{stem}_Chimap.nii.gz").get_fdata()
    np.testing.assert_allclose(published, classical.array("chi_ppm").numpy(), atol=1e-7)
    assert json.loads((done.folder / f"{stem}_Chimap.json").read_text())["Method"] == "tv"
    assert not list(done.folder.glob("anat/*dip*")) and not list(done.folder.glob("anat/*ncertainty*"))
    page = done.report.read_text()
    assert "<h2>Do not use</h2>" in page and '<section class="verdict bad"' in page
    assert "that of tv was published in its place" in page and "<code>M001</code>" in page
    assert "χ, total variation (published)" in page and "<h3>χ, Deep Image Prior" not in page
    assert "Susceptibility was mapped by total variation, solved by ADMM. " in page
    (record,) = read_manifests(tmp_path / "out")
    assert "M001" in [warning["code"] for warning in record["warnings"]] and verify(tmp_path / "out") == []
