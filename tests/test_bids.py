"""What is published, as the BIDS validator and tools that go by BIDS names see it; and how it leads to the input."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bids_validator_deno
import nibabel as nib
import numpy as np
import pytest
import torch
from deno import find_deno_bin
from test_find import bids
from test_publish import FAILED, OBLIQUE, SHAPE, _do_all_stages, make_job, sidecar_of, with_uncertainty

import pipeline.publish as publishing
from flows.demo import Simulated
from pipeline.entities import image_name
from pipeline.find import SetAside, find
from pipeline.find.scan import UNKNOWN
from pipeline.publish import already_published, prepare, publish, read_manifests, record_set_aside, verify, versions
from pipeline.publish.dataset import BIDS_VERSION
from pipeline.publish.nifti import image_bytes
from pipeline.recipe import Job
from pipeline.settings import load
from pipeline.volumes import Grid
from pipeline.work import Made

VALIDATOR = Path(bids_validator_deno.__file__).with_name("bids-validator.js")
KEY = b"k" * 32


@pytest.fixture(autouse=True)
def _plain_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "write_report", lambda work, label, settings, failure=None: f"<html>{label}</html>")


@pytest.fixture(scope="session")
def validate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, list[str]]]:
    """A function of a dataset: its errors and warnings, each with where. Deno refuses it the network and writing."""
    home = {"DENO_DIR": str(tmp_path_factory.mktemp("deno")), "DENO_NO_UPDATE_CHECK": "1"}
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith(("BIDS_", "DENO_"))}, **home}
    rights = ("--no-prompt", "--no-remote", "--no-config", "--deny-net", "--deny-write", "--allow-read", "--allow-env")
    command = [find_deno_bin(), "run", *rights, str(VALIDATOR), "--format", "json"]

    def issues(dataset: Path) -> dict[str, list[str]]:
        done = subprocess.run([*command, str(dataset)], capture_output=True, text=True, env=environment, check=False)
        answer = json.loads(done.stdout)
        assert answer["summary"]["totalFiles"] > 0, done.stderr
        by_severity: dict[str, list[str]] = {"error": [], "warning": []}
        for issue in answer["issues"]["issues"]:
            by_severity[issue["severity"]].append(
                " ".join([issue["code"], issue.get("subCode", ""), issue["location"]])
            )
        return by_severity

    return issues


def description(output: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((output / "dataset_description.json").read_text())
    return read


def with_finer_map(job: Job) -> Job:
    """The job as it is with `--upsample 2`."""
    grid = Grid.from_affine(tuple(2 * n for n in SHAPE), np.array(OBLIQUE) @ np.diag([0.5, 0.5, 0.5, 1]))
    ones = torch.ones(grid.shape)
    arrays = {"chi_ppm": 0.1 * ones, "mask": ones.to(torch.uint8), "uncertainty_ppm": 0.01 * ones}
    facts = {"grid": grid.json(), "method": "diffusion", "reference": {"region": "mean of the final mask"}}
    job.work.write("upsample", "key of upsample", Made(arrays, facts=facts), {"stage": "upsample", "device": "cpu"})
    return replace(job, settings=load(method="tv", also=("tkd",), upsample=(2, 2, 2)))


# The validator


def test_a_batch_of_every_kind_is_valid_bids(tmp_path: Path, validate: Callable[[Path], dict[str, list[str]]]) -> None:
    """Sessions or none, runs, finer voxels, uncertainties, failed and set-aside scans, somebody else's README."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "README.txt").write_text("Our site's own words on this dataset. " * 5)
    for session in ("", "a", "b"):
        for run in ("", "1", "02"):
            publish(make_job(tmp_path / f"in{session}", run=run, session=session), output)
    job = make_job(tmp_path / "every", session="c")
    with_uncertainty(job, "tv", 0.01)
    with_uncertainty(job, "tkd", 0.02)
    publish(with_finer_map(job), output)
    publish(make_job(tmp_path / "bad", session="d"), output, FAILED)
    record_set_aside(output, [SetAside("sub-y", "E002", "no slice 7", 48), SetAside(UNKNOWN, "F003", "no header", 1)])
    (output / "summary.html").write_text("<html></html>")
    assert {p.name for p in (output / "failed").iterdir()} == {"sub-x_ses-d"}
    assert {p.name for p in (output / "set-aside").iterdir()} == {"sub-y", UNKNOWN}
    assert validate(output) == {"error": [], "warning": ["TOO_FEW_AUTHORS  /dataset_description.json"]}
    assert not (output / "README.md").exists()


def test_the_validator_would_tell(tmp_path: Path, validate: Callable[[Path], dict[str, list[str]]]) -> None:
    """Of a name that BIDS does not know, and of folders that an earlier `.bidsignore` named with a slash at the end."""
    output = tmp_path / "out"
    folder = publish(make_job(tmp_path / "in"), output).folder
    assert validate(output)["error"] == []
    record_set_aside(output, [SetAside("sub-y", "E002", "no slice 7", 48)])
    ignored = output / ".bidsignore"
    ignored.write_text(ignored.read_text().replace("/set-aside\n", "set-aside/\n"))
    (folder / "anat/sub-x_ses-a_desc-tkd_nonsense.nii.gz").write_bytes(b"0")
    errors = validate(output)["error"]
    assert [error.split()[-1] for error in errors if error.startswith("NOT_INCLUDED")] == [
        "/set-aside/",
        "/sub-x/ses-a/anat/sub-x_ses-a_desc-tkd_nonsense.nii.gz",
    ]


def test_a_dicom_scan_in_sourcedata_is_valid_and_linked(
    demo: Simulated, tmp_path: Path, validate: Callable[[Path], dict[str, list[str]]]
) -> None:
    """As the demo has it, whose own run takes longer."""
    output = tmp_path / "out"
    simulated = Simulated(shutil.copytree(demo.folder, output / "sourcedata" / demo.folder.name))
    job = Job(find(simulated.export, KEY, "demo").scans[0], load(method="tv", also=("tkd",)), tmp_path / "work")
    _do_all_stages(job, 0.1)
    publish(job, output)
    assert validate(output)["error"] == []
    assert description(output)["SourceDatasets"] == [{"URL": "sourcedata"}]
    assert description(output)["DatasetLinks"] == {"sourcedata": "sourcedata"}
    truth = nib.load(simulated.truth).header
    assert (truth["cal_min"], truth["cal_max"]) == pytest.approx((-0.1, 0.1))
    assert (
        "bids:sourcedata"
        not in (output / f"sub-demo/ses-{job.scan.session}/anat").joinpath(f"{job.scan.label}_Chimap.json").read_text()
    )


@pytest.mark.slow
def test_the_demo_is_valid_bids(tmp_path: Path, validate: Callable[[Path], dict[str, list[str]]]) -> None:
    output = tmp_path / "demo"
    words = ("demo", str(output), "--method", "tkd", "--voxel-size", "6", "--device", "cpu")
    quick = ("--set", "dip.iterations=1", "--set", "tv.iterations=2", "--set", "rts.iterations=2")
    command = [sys.executable, "-c", "from flows.cli import main; main()", *words, *quick]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert validate(output) == {"error": [], "warning": ["TOO_FEW_AUTHORS  /dataset_description.json"]}


def test_the_bids_version_is_that_of_the_validator() -> None:
    assert re.findall(r'bids_version: "([\d.]+)"', VALIDATOR.read_text()) == [BIDS_VERSION]


@pytest.mark.parametrize(
    ("label", "suffix", "name"),
    [
        ("sub-x_ses-a_run-1", "desc-tkd_Chimap", "sub-x_ses-a_run-1_desc-tkd_Chimap"),
        ("sub-x_acq-hi_run-1_chunk-2", "part-mag_T2starw", "sub-x_acq-hi_run-1_part-mag_chunk-2_T2starw"),
        ("sub-x_task-rest_acq-hi_ce-gd_rec-b_chunk-2", "res-fine_desc-brain_mask", None),
    ],
)
def test_the_entities_of_a_name_stand_in_the_order_of_bids(label: str, suffix: str, name: str | None) -> None:
    assert image_name(label, suffix) == (name or f"{label}_{suffix}")


@pytest.mark.parametrize("label", ["task-t_acq-a_ce-c_rec-r_run-1_chunk-1", "acq-a_dir-AP_run-1_flip-1_mt-on"])
def test_names_with_every_entity_of_an_input_are_valid(
    label: str, tmp_path: Path, validate: Callable[[Path], dict[str, list[str]]]
) -> None:
    """Those that BIDS has for the echoes of a scan, but for echo and part; and those that it has for other images."""
    output, before = tmp_path / "out", "sub-x_ses-a"
    anat = publish(with_finer_map(make_job(tmp_path / "in")), output).folder / "anat"
    for path in sorted(anat.iterdir()):
        suffix = path.name.removeprefix(f"{before}_")
        path.rename(anat / image_name(f"sub-x_ses-a_{label}", suffix))
    assert validate(output)["error"] == []


# Tools that go by the suffix


def test_the_suffix_of_a_susceptibility_map_names_nothing_else(tmp_path: Path) -> None:
    """What `layout.get(suffix="Chimap")` and `*_Chimap.nii.gz` find; neither does `*Chimap*` find an uncertainty."""
    job, output = make_job(tmp_path / "in"), tmp_path / "out"
    with_uncertainty(job, "tv", 0.01)
    with_uncertainty(job, "tkd", 0.02)
    anat = publish(with_finer_map(job), output).folder / "anat"
    maps = sorted(path.name.removeprefix("sub-x_ses-a_") for path in anat.glob("*Chimap*.json"))
    assert maps == ["Chimap.json", "desc-tkd_Chimap.json", "res-fine_desc-diffusion_Chimap.json"]
    for name in maps:
        assert sidecar_of(output, name.removesuffix(".json"))["Description"].startswith("Magnetic susceptibility")
    spreads = sorted(path.name.removeprefix("sub-x_ses-a_") for path in anat.glob("*_Chiuncertainty.json"))
    assert spreads == [name.replace("Chimap", "Chiuncertainty") for name in maps]
    for name in spreads:
        assert sidecar_of(output, name.removesuffix(".json"))["Description"].startswith("Standard deviation")


WINDOWS = {
    "Chimap": (-0.1, 0.1),
    "desc-tkd_Chimap": (-0.1, 0.1),
    "res-fine_desc-diffusion_Chimap": (-0.1, 0.1),
    "Chiuncertainty": (0, 0.05),
    "desc-total_fieldmap": (-0.5, 0.5),
    "desc-local_fieldmap": (-0.05, 0.05),
    "desc-brain_mask": (0, 1),
    "res-fine_desc-brain_mask": (0, 1),
    "R2starmap": (0, 60),
    "T2starmap": (0, 0.1),
    "swi": (0, 1.3),
    "minIP": (0, 1.3),
    "part-mag_T2starw": (0, 5.5),
}


def test_viewers_open_each_image_at_a_sensible_window(tmp_path: Path) -> None:
    job, output = make_job(tmp_path / "in"), tmp_path / "out"
    with_uncertainty(job, "tv", 0.01)
    anat = publish(with_finer_map(job), output).folder / "anat"
    for suffix, window in WINDOWS.items():
        header = nib.load(anat / f"sub-x_ses-a_{suffix}.nii.gz").header
        assert (header["cal_min"], header["cal_max"]) == pytest.approx(window), suffix
    named = {path.name.removeprefix("sub-x_ses-a_").split(".")[0] for path in anat.glob("*.nii.gz")}
    assert named == WINDOWS.keys() | {"res-fine_desc-diffusion_Chiuncertainty"}


def test_a_window_changes_no_value_and_nothing_else_of_the_header() -> None:
    volume, grid = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)), Grid.from_affine(SHAPE, OBLIQUE)
    plain, windowed = (gzip.decompress(image_bytes(volume, grid, w)) for w in ((0, 0), (-0.1, 0.1)))
    assert image_bytes(volume, grid, (-0.1, 0.1)) == image_bytes(volume, grid, (-0.1, 0.1))
    assert [n for n in range(len(plain)) if plain[n] != windowed[n]] == list(range(124, 132))  # cal_max, cal_min
    np.testing.assert_array_equal(nib.Nifti1Image.from_bytes(windowed).get_fdata(dtype=np.float32), volume.numpy())


# The way to the input


def bids_job(folder: Path, names: str = "sub-01", work: str = "work", subject: str | None = None) -> Job:
    """A job for the scan of that name of a BIDS dataset in `folder`, with every stage done."""
    folder.mkdir(parents=True, exist_ok=True)
    bids(folder, names)
    scan = next(s for s in find(folder, KEY, subject).scans if s.subject == subject or s.label == names)
    job = Job(scan, load(method="tv", also=("tkd",)), folder.parent / work)
    _do_all_stages(job, 0.1)
    return job


def sources(output: Path, names: str, suffix: str) -> list[str]:
    folder = "/".join(part for part in names.split("_") if part.startswith(("sub-", "ses-")))
    uris: list[str] = json.loads((output / folder / f"anat/{names}_{suffix}.json").read_text())["Sources"]
    return uris


def resolved(output: Path, uri: str) -> Path:
    """Where a BIDS URI leads, as the standard has it."""
    _, name, path = uri.split(":", 2)
    return (output / description(output)["DatasetLinks"][name] if name else output) / path


@pytest.mark.parametrize(
    ("place", "link"), [("study/out", "../raw data"), ("study/derivatives/chiron", "../../raw data")]
)
def test_a_map_leads_to_the_echoes_of_a_bids_input(
    tmp_path: Path, place: str, link: str, validate: Callable[[Path], dict[str, list[str]]]
) -> None:
    job, output = bids_job(tmp_path / "study" / "raw data"), tmp_path / place
    output.parent.mkdir(exist_ok=True)
    publish(job, output)
    assert description(output)["DatasetLinks"] == {"raw": link.replace(" ", "%20")}
    assert description(output)["SourceDatasets"] == [{"URL": link.replace(" ", "%20")}]
    raw = [uri for uri in sources(output, "sub-01", "Chimap") if uri.startswith("bids:raw:")]
    assert len(raw) == 6 and raw[0] == "bids:raw:sub-01/anat/sub-01_echo-1_part-mag_MEGRE.nii.gz"
    assert all((output / link / uri.removeprefix("bids:raw:")).is_file() for uri in raw)
    assert [uri for uri in sources(output, "sub-01", "R2starmap") if "part-phase" in uri] == []
    for path in (output / "sub-01/anat").glob("*.nii.gz"):
        named = json.loads(Path(str(path).replace(".nii.gz", ".json")).read_text())["Sources"]
        assert any(uri.startswith("bids:raw:") for uri in named), path.name
    assert validate(output)["error"] == []


def test_a_dataset_above_the_output_is_linked(tmp_path: Path) -> None:
    job, output = bids_job(tmp_path / "raw", work="work"), tmp_path / "raw/derivatives/chiron"
    publish(job, Path(shutil.copytree(tmp_path / "raw", tmp_path / "raw/derivatives", dirs_exist_ok=False)) / "chiron")
    assert description(output)["DatasetLinks"] == {"raw": "../.."}


def test_inputs_accumulate_and_each_keeps_its_name(tmp_path: Path) -> None:
    output = tmp_path / "out"
    jobs = [bids_job(tmp_path / f"site{n}", f"sub-0{n}", f"work{n}") for n in (1, 2, 3)]
    prepare(output)
    threads = [threading.Thread(target=publish, args=(job, output)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    links = description(output)["DatasetLinks"]
    assert links.keys() == {"raw", "raw2", "raw3"} and set(links.values()) == {"../site1", "../site2", "../site3"}
    assert {source["URL"] for source in description(output)["SourceDatasets"]} == set(links.values())
    publish(bids_job(tmp_path / "site2", "sub-05", "work5"), output)
    assert description(output)["DatasetLinks"] == links
    for n in (1, 2, 3):
        raw = [uri for uri in sources(output, f"sub-0{n}", "Chimap") if not uri.startswith("bids::")]
        assert raw and all(resolved(output, uri).is_file() for uri in raw)
        assert all(f"site{n}" in str(resolved(output, uri).resolve()) for uri in raw)


def test_what_somebody_added_at_the_top_stays(tmp_path: Path) -> None:
    """The authors, a link, a container, a line of `.bidsignore`; and a link of theirs is used."""
    job, output = bids_job(tmp_path / "site"), tmp_path / "apart" / "out"
    output.parent.mkdir()
    prepare(output)
    edited = description(output)
    edited |= {
        "Authors": ["A", "B"],
        "Name": "Ours",
        "DatasetLinks": {"site": (tmp_path / "site").as_uri(), "x": "http://[x"},
    }
    edited["GeneratedBy"][0]["Container"] = {"Type": "docker", "Tag": "chiron:0.1.0"}
    edited["GeneratedBy"].append({"Name": "Manual"})
    edited["GeneratedBy"][0]["Version"], edited["BIDSVersion"] = "0.0.1", "1.8.0"
    (output / "dataset_description.json").write_text(json.dumps(edited))
    with (output / ".bidsignore").open("a") as stream:
        stream.write("notes.txt\nset-aside/\n")
    publish(job, output)
    now = description(output)
    assert (now["Authors"], now["Name"], now["BIDSVersion"]) == (["A", "B"], "Ours", BIDS_VERSION)
    assert [maker["Name"] for maker in now["GeneratedBy"]] == ["Chiron", "Manual"]
    assert now["GeneratedBy"][0]["Container"]["Tag"] == "chiron:0.1.0" and now["GeneratedBy"][0]["Version"] != "0.0.1"
    assert now["DatasetLinks"] == edited["DatasetLinks"]
    assert [u for u in sources(output, "sub-01", "Chimap") if u.startswith("bids:site:sub-01/anat/")]
    lines = (output / ".bidsignore").read_text().splitlines()
    assert lines.count("notes.txt") == lines.count("/set-aside") == 1 and "set-aside/" not in lines


def test_a_dataset_with_a_doi_is_linked_by_it_from_afar(tmp_path: Path) -> None:
    job, output = bids_job(tmp_path / "private" / "site"), tmp_path / "public" / "out"
    output.parent.mkdir()
    edited = {"Name": "x", "BIDSVersion": "1.10.0", "DatasetDOI": "doi:10.18112/openneuro.ds000001.v1.0.0"}
    (tmp_path / "private/site/dataset_description.json").write_text(json.dumps(edited))
    publish(job, output)
    now, doi = description(output), "10.18112/openneuro.ds000001.v1.0.0"
    assert now["DatasetLinks"] == {"raw": f"doi:{doi}"}
    assert now["SourceDatasets"] == [{"URL": f"https://doi.org/{doi}", "DOI": f"doi:{doi}"}]
    assert [u for u in sources(output, "sub-01", "Chimap") if u.startswith("bids:raw:sub-01/anat/")]


def everything(output: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file())


def test_no_more_of_a_path_is_published_than_the_folder_of_a_bids_dataset(tmp_path: Path) -> None:
    """Not of a DICOM export, of a dataset elsewhere, or of one that does not say that it is one."""
    (tmp_path / "here").mkdir()
    publish(make_job(tmp_path / "here" / "Doe^John"), tmp_path / "here/dicom")
    publish(bids_job(tmp_path / "there" / "Doe" / "data"), tmp_path / "here/far")
    plain = bids_job(tmp_path / "here" / "Doe")
    (tmp_path / "here/Doe/dataset_description.json").unlink()
    publish(plain, tmp_path / "here/undeclared")
    for name in ("dicom", "far", "undeclared"):
        assert b"Doe" not in everything(tmp_path / "here" / name)
        assert not {"DatasetLinks", "SourceDatasets"} & description(tmp_path / "here" / name).keys()


def test_a_subject_that_was_given_another_label_is_not_led_back(tmp_path: Path) -> None:
    output = tmp_path / "out"
    publish(bids_job(tmp_path / "site", "sub-Doe", subject="7"), output)
    assert (output / "sub-7").is_dir() and b"Doe" not in everything(output)


# Outputs of an earlier version


@pytest.fixture
def earlier(tmp_path: Path) -> tuple[Job, Path]:
    """A job and an output as it was published before uncertainties had a suffix of their own, and a failed scan."""
    job, output = make_job(tmp_path / "in"), tmp_path / "out"
    with_uncertainty(job, "tv", 0.01)
    with_uncertainty(job, "tkd", 0.02)
    folder = publish(job, output).folder
    publish(make_job(tmp_path / "bad", session="b"), output, FAILED)
    text = (folder / "manifest.json").read_text()
    for new, old in (("_desc-tkd_Chiun", "_desc-tkdUn"), ("_Chiun", "_desc-un")):
        for kind in ("nii.gz", "json"):
            name = f"sub-x_ses-a{old}certainty_Chimap.{kind}"
            (folder / f"anat/sub-x_ses-a{new}certainty.{kind}").rename(folder / "anat" / name)
            text = text.replace(f"anat/sub-x_ses-a{new}certainty.{kind}", f"anat/{name}")
    (folder / "manifest.json").write_text(text)
    (output / ".bidsignore").write_text("failed/\nset-aside/\n*_qc.json\n*_fieldmap.*\n")
    (output / "README.md").unlink()
    return job, output


def test_an_earlier_output_stays_valid_and_is_not_done_again(
    earlier: tuple[Job, Path], validate: Callable[[Path], dict[str, list[str]]]
) -> None:
    job, output = earlier
    assert validate(output)["error"]
    prepare(output)
    assert validate(output)["error"] == [] and verify(output) == []
    assert already_published(output, job)
    assert [record["state"] for record in read_manifests(output)] == ["published", "failed"]


def test_an_earlier_output_gets_the_new_names_where_it_is_done_again(
    earlier: tuple[Job, Path], validate: Callable[[Path], dict[str, list[str]]]
) -> None:
    job, output = earlier
    anat = publish(job, output).folder / "anat"
    assert not list(anat.glob("*ncertainty_Chimap*")) and len(list(anat.glob("*_Chiuncertainty.nii.gz"))) == 2
    assert validate(output)["error"] == [] and verify(output) == []
    (before,) = versions(output, job.scan.label)
    assert "anat/sub-x_ses-a_desc-uncertainty_Chimap.nii.gz" in before["files"]
