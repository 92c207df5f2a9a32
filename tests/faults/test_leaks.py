"""An export full of sentinels, run with a server -> no hit in anything outside the private jobs, and nobody asked."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from exports import drop, is_phase, put
from make_dicom import digests, edit
from owed import assert_complete, disguises, states, told

from flows.demo import Simulated
from flows.engine import trial_server

NAME = "Zebedee^Quixotic"
PATHS = "Zebedeedir"
BIRTH, DAY, ROOT = "19031127", "20250314", "1.2.826.0.1.3680043.77777"
WORDS = (NAME, "Zebedee", "Quixotic", PATHS, BIRTH, DAY, ROOT)
NAMES = """
    PatientName PatientID OtherPatientNames PatientBirthName PatientMotherBirthName ResponsiblePerson
    ReferringPhysicianName OperatorsName PerformingPhysicianName NameOfPhysiciansReadingStudy RequestingPhysician
    PhysiciansOfRecord
"""
TEXTS = """
    IssuerOfPatientID PatientComments PatientAddress PatientTelephoneNumbers AccessionNumber StudyID InstitutionName
    InstitutionAddress InstitutionalDepartmentName StationName DeviceSerialNumber StudyDescription SeriesDescription
    ProtocolName RequestedProcedureDescription PerformedProcedureStepDescription ImageComments AdditionalPatientHistory
    Occupation MedicalRecordLocator EthnicGroup CurrentPatientLocation RequestedProcedureID
"""
DATES = "PatientBirthDate StudyDate SeriesDate AcquisitionDate ContentDate PerformedProcedureStepStartDate"
UIDS = "StudyInstanceUID SeriesInstanceUID SOPInstanceUID FrameOfReferenceUID"

# Put before everything else that a process of ours does: notes whom it asks for, and lets it ask itself only.
LISTENER = """
import os, socket
def _asked(real):
    def ask(*args, **options):
        with open(os.environ["CHIRON_TEST_ASKED"], "a") as stream:
            stream.write(f"{args[-1] if real.__name__ == 'connect' else args[0]}\\n")
        return real(*args, **options)
    return ask
socket.socket.connect = _asked(socket.socket.connect)
socket.getaddrinfo = _asked(socket.getaddrinfo)
"""


def identify(which: str) -> Callable[[pydicom.Dataset], None]:
    """Put a sentinel in every element that may identify."""

    def change(dataset: pydicom.Dataset) -> None:
        for keyword in NAMES.split():
            setattr(dataset, keyword, f"{NAME}{which}")
        for keyword in TEXTS.split():
            setattr(dataset, keyword, f"Zebedee{which}"[:16])
        for keyword in DATES.split():
            setattr(dataset, keyword, BIRTH if "Birth" in keyword else DAY)
        for keyword in UIDS.split():
            setattr(dataset, keyword, f"{ROOT}.{which}." + dataset[keyword].value.rsplit(".", 1)[1][:20])
        dataset.private_block(0x0009, "ZEBEDEE", create=True).add_new(1, "LO", f"{NAME}{which}")

    return change


@pytest.fixture
def export(demo: Simulated, tmp_path: Path) -> Path:
    """One good scan, one that fails while it is worked on, and one that is set aside."""
    folder = tmp_path / "in"
    for number, name in enumerate(("good", "fails", "aside"), 1):
        shutil.copytree(demo.export, folder / f"{PATHS} {name}")
        paths = []
        for path in sorted((folder / f"{PATHS} {name}").iterdir()):
            paths.append(path.rename(path.with_name(f"{PATHS}{path.name}")))
        edit(paths, identify(str(number)))
        if name == "fails":
            edit(paths, lambda d: put(PixelData=bytes(len(d.PixelData)))(d), is_phase)
        if name == "aside":
            drop(paths, is_phase)
    return folder


def chiron(*words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", "from flows.cli import main; main()", *map(str, words)]
    mine = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.run(command, capture_output=True, env={**mine, **environment}, timeout=500, check=False)


@pytest.mark.slow
def test_nothing_that_identifies_is_found_anywhere_and_nobody_outside_is_asked(export: Path, tmp_path: Path) -> None:
    (tmp_path / "listener").mkdir()
    (tmp_path / "listener" / "sitecustomize.py").write_text(LISTENER)
    output, asked, before = tmp_path / "out", tmp_path / "asked", digests(export)
    given: dict[str, Any] = {
        "PYTHONPATH": str(tmp_path / "listener"),
        "CHIRON_TEST_ASKED": str(asked),
        "CHIRON_KEY_FILE": str(tmp_path / "key"),
    }
    with trial_server(tmp_path / "prefect"):
        reported = {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
        said = [chiron("run", export, output, "--method", "tkd", "--device", "cpu", **given, **reported)]
    said += [
        chiron(*words, **given) for words in (("inspect", export), ("status", output), ("status", output, "--json"))
    ]
    assert said[0].returncode == 10, said[0].stderr[-2000:]
    assert sorted(states(output).values()) == ["failed", "published", "set aside"]
    assert_complete(output)
    assert digests(export) == before

    assert (tmp_path / "prefect" / "prefect.db").is_file()
    assert told(tmp_path / "prefect", *WORDS) == []
    assert told(output, *WORDS, without=("job.json", "next.json")) == []
    (tmp_path / "dump").mkdir()
    for number, database in enumerate((tmp_path / "prefect").rglob("*.db")):
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as rows:
            (tmp_path / "dump" / str(number)).write_text("\n".join(rows.iterdump()))
    assert "sub-" in (tmp_path / "dump" / "0").read_text() and told(tmp_path / "dump", *WORDS) == []
    words = [word for told_word in WORDS for word in disguises(told_word)]
    for process in said:
        assert not [word for word in words if word in process.stdout + process.stderr]

    jobs = list(output.rglob("job.json"))
    assert jobs and all(PATHS in job.read_text() for job in jobs)  # so it was there to leak
    assert all(folder.stat().st_mode & 0o77 == 0 for folder in (output / ".chiron", *(job.parent for job in jobs)))
    assert (tmp_path / "key").stat().st_mode & 0o77 == 0

    hosts = asked.read_text().splitlines()
    assert hosts and all(is_local(host) for host in hosts), set(hosts)


def is_local(host: str) -> bool:
    """Whether an address is this machine's own: loopback, or a file."""
    return any(word in host for word in ("127.0.0.1", "localhost", "::1")) or host.startswith(("/", "b'/", "None"))


def test_the_search_finds_what_is_hidden(tmp_path: Path) -> None:
    """In UTF-16, base64 and gzip, in a name, and in what is packed twice."""
    import base64
    import gzip

    texts = {
        "plain": NAME.encode(),
        "lower": NAME.lower().encode(),
        "utf-16": NAME.encode("utf-16"),
        "base64": b"<img src='" + base64.b64encode(b"..." + NAME.encode()) + b"'>",
        "gzip": gzip.compress(NAME.encode()),
        "both": base64.b64encode(gzip.compress(b"a" + NAME.encode())),
        NAME: b"",
    }
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "innocent").write_bytes(gzip.compress(b"Zebed" + bytes(100)))
    assert set(told(tmp_path, NAME)) == set(texts)
