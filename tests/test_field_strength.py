"""B0 is what the imaging frequency says, in the headers of every vendor; what contradicts it is noticed or refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_dicom import KEY, TIMES, edit, read, search, write
from nibabel.orientations import apply_orientation, io_orientation
from test_find import bids

from models.gre import Simulation, simulate_scan
from pipeline.acquisition import Acquisition
from pipeline.background import VSHARP, remove_background
from pipeline.convert.b0 import B0, with_field_strength
from pipeline.errors import ChironError
from pipeline.field import total_field
from pipeline.find import Scan, find
from pipeline.find.field_strength import FieldHeader, field_strength, tesla_of
from pipeline.find.scan import _file_digest
from pipeline.invert import invert
from pipeline.publish.manifest import plain_settings, same_field
from pipeline.publish.sidecars import sidecar
from pipeline.scanner import VENDORS, magnet_tesla, write_export
from pipeline.settings import load, parse
from pipeline.unwrap import unwrap
from pipeline.volumes import Echoes, Grid

SIEMENS_3T = tesla_of(123.25)


def of(nominal: Any = None, frequency: Any = None, nucleus: Any = "1H", **more: Any) -> Any:
    """The field of a scan whose headers all state the same."""
    return field_strength([FieldHeader.of(nominal, frequency, nucleus)] * 3, **{"vendor": "other", **more})


KNOWN = [  # nominal strength and frequency as headers of these scanners have them
    (3, 123.25483), (3, 123.222533), (2.89362001419067, 123.2), (1.5, 63.6), (1.5, 63.682), (7, 297.197),
    (6.98, 297.204826),
    (0.55, 23.6), (0.35, 14.7), (3, 127.763573), (3, 127.73761), (3, 127.696749), (1.5, 63.86), (7, 298.04), (5, 210.8),
    (9.4, 399.7), (10.5, 447.06), (0.064, 2.72),
]  # fmt: skip


@pytest.mark.parametrize(("nominal", "frequency"), KNOWN)
def test_the_frequency_of_known_scanners_is_their_field(nominal: float, frequency: float) -> None:
    field = of(nominal, frequency)
    assert field.tesla == pytest.approx(frequency / 42.577478518, rel=1e-6)
    assert field.source == "imaging frequency" and field.nominal_tesla == nominal and not field.notices


@pytest.mark.parametrize(("stored", "unit"), [(123_250_000, "Hz"), (123_250, "kHz")])
def test_a_frequency_in_another_unit_is_noticed(stored: float, unit: str) -> None:
    field = of(3, stored)
    assert field.tesla == pytest.approx(SIEMENS_3T)
    assert [notice.code for notice in field.notices] == ["E020"] and f"read as {unit}" in field.notices[0].text


@pytest.mark.parametrize("stored", [0, -123.25, 1.2e12, 0.3])
def test_a_number_that_is_no_frequency_is_noticed(stored: float) -> None:
    field = of(3, stored)
    assert field.tesla == 3 and field.source == "nominal field strength"
    assert {notice.code for notice in field.notices} == {"E020"} and "cannot be" in field.notices[0].text


@pytest.mark.parametrize("stored", [None, "", "abc", "nan"])
def test_without_a_frequency_the_nominal_strength_is_noticed(stored: Any) -> None:
    field = of(3, stored)
    assert field.tesla == 3 and [notice.code for notice in field.notices] == ["E020"]
    assert "nominal 3 T" in field.notices[0].text


@pytest.mark.parametrize(("nominal", "tesla"), [(3, 2.8947), (1.5, 1.495), (7, 6.980)])
def test_without_a_frequency_a_siemens_is_taken_at_its_usual_one(nominal: float, tesla: float) -> None:
    field = of(nominal, vendor="Siemens")
    assert field.tesla == pytest.approx(tesla, rel=1e-3) and field.source == "usual frequency of the vendor"
    assert f"taken as {field.tesla:.4g} T" in field.notices[0].text


def test_a_nominal_strength_that_is_not_rounded_is_believed() -> None:
    assert of(2.89362, vendor="Siemens").tesla == 2.89362


@pytest.mark.parametrize(("nominal", "frequency"), [(3, 115), (0.3, 14.7), (0.4, 14.7), (1.2, 51.09 * 1.08)])
def test_an_unusual_deviation_is_noticed_and_the_frequency_used(nominal: float, frequency: float) -> None:
    field = of(nominal, frequency)
    assert field.tesla == pytest.approx(tesla_of(frequency))
    assert [notice.code for notice in field.notices] == ["E020"] and f"{nominal:g} T" in field.notices[0].text


@pytest.mark.parametrize(
    ("nominal", "frequency"), [(3, 63.6), (1.5, 127.7), (7, 123.25), (3, 51.7), (3, 3), (30000, 127.7)]
)
def test_what_cannot_belong_together_is_refused_until_b0_is_given(nominal: float, frequency: float) -> None:
    with pytest.raises(ChironError, match="--b0") as caught:
        of(nominal, frequency)
    assert caught.value.code == "E012"
    assert of(nominal, frequency, user_tesla=3.0).tesla == 3


def test_a_frequency_alone_is_enough_and_noticed() -> None:
    field = of(None, 123.25)
    assert field.tesla == pytest.approx(SIEMENS_3T) and field.nominal_tesla == 0
    assert "no field strength" in field.notices[0].text


@pytest.mark.parametrize(("nominal", "frequency"), [(None, None), (None, 0), ("abc", "")])
def test_neither_is_refused(nominal: Any, frequency: Any) -> None:
    with pytest.raises(ChironError, match="E012: no field strength and no imaging frequency"):
        of(nominal, frequency)


def test_of_several_frequencies_the_one_of_hydrogen_is_taken() -> None:
    assert of(3, [51.7, 127.74], ["31P", "1H"]).tesla == pytest.approx(tesla_of(127.74))


@pytest.mark.parametrize("nucleus", ["31P", "23Na", "NA23", "13C", "2H", "<19F>", ["31P", "13C"]])
def test_another_nucleus_is_refused_whatever_is_given(nucleus: Any) -> None:
    for user in (0.0, 3.0):
        with pytest.raises(ChironError, match="E021"):
            of(3, 51.7, nucleus, user_tesla=user)


@pytest.mark.parametrize("nucleus", ["1H", "1h ", "H1", "H", "", None, "PROTON", ["1H", "31P"], "<1H>"])
def test_words_for_hydrogen_are_read(nucleus: Any) -> None:
    assert of(3, 127.74, nucleus).tesla == pytest.approx(tesla_of(127.74))


def test_images_of_one_scan_must_agree() -> None:
    near = [FieldHeader(3, (f,)) for f in (127.766722, 127.766815)]
    assert field_strength(near, "Philips").tesla == pytest.approx(tesla_of(127.76677), rel=1e-6)
    for odd in ([FieldHeader(3, (123.25,)), FieldHeader(3, (127.74,))], [FieldHeader(3), FieldHeader(7)]):
        with pytest.raises(ChironError, match="in one scan"):
            field_strength(odd, "Siemens")
        assert field_strength(odd, "Siemens", 2.9).tesla == 2.9
    assert field_strength([FieldHeader(), FieldHeader(3, (123.25,))], "Siemens").tesla == pytest.approx(SIEMENS_3T)


@pytest.mark.parametrize(("user", "noticed"), [(3.0, True), (2.8947, False), (2.8936, False), (1.5, True)])
def test_b0_of_the_user_counts_and_another_one_is_noticed(user: float, noticed: bool) -> None:
    field = of(3, 123.25, user_tesla=user)
    assert field.tesla == user and field.source == "user"
    assert bool(field.notices) == noticed
    assert all(notice.code == "E020" and "123.25 MHz" in notice.text for notice in field.notices)


def test_reading_headers_loads_no_tensors() -> None:
    """Each of the processes that read the headers of a large export would hold them."""
    code = "import sys, pipeline.find.reading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


# Exports


@pytest.mark.parametrize("nominal", [1.5, 3.0, 7.0])
@pytest.mark.parametrize("vendor", VENDORS)
def test_an_export_of_each_vendor_has_the_field_of_its_magnet(vendor: Any, nominal: float, tmp_path: Path) -> None:
    b0 = magnet_tesla(vendor, nominal)
    write(tmp_path / "in", vendor, b0=b0)
    (scan,) = search(tmp_path).scans
    assert scan.b0_tesla == pytest.approx(b0, rel=1e-6) and scan.b0_nominal_tesla == nominal
    assert scan.b0_source == "imaging frequency" and not [n for n in scan.notices if n.code == "E020"]
    assert read(scan, tmp_path / "scratch").b0_tesla == scan.b0_tesla


def test_a_siemens_3t_is_3_5_percent_below_its_name(tmp_path: Path) -> None:
    write(tmp_path, b0=magnet_tesla("siemens", 3.0))
    assert search(tmp_path).scans[0].b0_tesla == pytest.approx(2.8947, abs=2e-4)


def test_headers_that_differ_within_a_scan_are_refused_until_b0_is_given(tmp_path: Path) -> None:
    paths = write(tmp_path, b0=SIEMENS_3T)
    edit(paths[:1], lambda d: setattr(d, "ImagingFrequency", "127.74"))
    assert [aside.code for aside in search(tmp_path).set_aside] == ["E012"]
    (scan,) = search(tmp_path, acquisition=Acquisition(b0_tesla=2.8947)).scans
    assert scan.b0_tesla == 2.8947


def test_an_enhanced_file_may_have_several_transmitter_frequencies(tmp_path: Path) -> None:
    def change(dataset: Any) -> None:
        modifier = dataset.SharedFunctionalGroupsSequence[0].MRImagingModifierSequence[0]
        modifier.TransmitterFrequency = [51.7, modifier.TransmitterFrequency]
        dataset.ResonantNucleus = ["31P", "1H"]

    paths = write(tmp_path, "philips-enhanced", b0=3.0)
    edit(paths, change)
    (scan,) = search(tmp_path).scans
    assert scan.b0_tesla == pytest.approx(3.0, rel=1e-6)
    edit(paths, lambda d: setattr(d, "ResonantNucleus", "31P"))
    assert [aside.code for aside in search(tmp_path).set_aside] == ["E021"]


def test_philips_repeats_the_frequency_in_its_private_header(tmp_path: Path) -> None:
    """As an enhanced file has it whose public copy was removed."""

    def change(dataset: Any) -> None:
        del dataset.SharedFunctionalGroupsSequence[0].MRImagingModifierSequence

    edit(write(tmp_path, "philips-enhanced", b0=3.01), change)
    (scan,) = search(tmp_path).scans
    assert scan.b0_tesla == pytest.approx(3.01, rel=1e-6) and scan.b0_source == "imaging frequency"


@pytest.mark.real_data
@pytest.mark.parametrize("form", ["classic", "enhanced"])
def test_a_real_philips_scan_has_the_field_of_its_frequency(form: str, shared_data: Path) -> None:
    (scan,) = find(shared_data / "philips_3t_brain" / form, KEY).scans
    assert scan.b0_tesla == pytest.approx(127.748512 / 42.577478518, rel=1e-7) and scan.b0_nominal_tesla == 3
    assert not [notice for notice in scan.notices if notice.code == "E020"]


# Maps


@cache
def simulated(b0: float) -> tuple[Simulation, Grid]:
    shape, size = (44, 52, 44), (4.0, 4.0, 4.0)
    return simulate_scan(shape, size, echo_times_s=TIMES, b0_tesla=b0, oversample=2, seed=3), Grid.simple(shape, size)


def chi_of(echoes: Echoes, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Total field, map and its mask, by the classical steps."""
    unwrapped = unwrap(echoes, mask)
    total = total_field(unwrapped.echoes, unwrapped.mask).field
    local, _ = remove_background(total, "vsharp", VSHARP())
    return total.ppm, invert(local, "tkd", parse({}).tkd).ppm, local.mask


def slope(values: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> float:
    x, y = truth[mask] - truth[mask].mean(), values[mask] - values[mask].mean()
    return float((x * y).sum() / (x * x).sum())


@pytest.mark.parametrize("vendor", [v if v == "siemens" else pytest.param(v, marks=pytest.mark.slow) for v in VENDORS])
def test_field_and_map_of_each_vendor_are_in_true_ppm(vendor: Any, tmp_path: Path) -> None:
    """Against the simulated field, and against the map of the simulated echoes with the B0 they were simulated at."""
    b0 = magnet_tesla(vendor, 3.0)
    simulation, grid = simulated(b0)
    write_export(simulation.signal, grid, TIMES, b0, tmp_path / "in", vendor=vendor)
    (scan,) = find(tmp_path / "in", KEY).scans
    echoes = read(scan, tmp_path / "scratch")
    turn = io_orientation(np.linalg.inv(np.asarray(grid.affine)) @ np.asarray(echoes.grid.affine))

    def turned(volume: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(apply_orientation(volume.numpy(), turn)))

    magnitude, phase = (torch.stack([turned(v) for v in part]) for part in (echoes.magnitude, echoes.phase_rad))
    exported = Echoes(magnitude, phase, echoes.echo_times_s, echoes.b0_tesla, grid)
    signal = simulation.signal.to(torch.complex64)
    exact = Echoes(signal.abs(), signal.angle(), TIMES, b0, grid)
    brain = simulation.head.brain.bool()
    total, chi, mask = chi_of(exported, brain)
    _, exact_chi, exact_mask = chi_of(exact, brain)
    both = mask & exact_mask
    assert slope(total, simulation.total_ppm, both) == pytest.approx(1, abs=0.005)
    assert slope(chi, exact_chi, both) == pytest.approx(1, abs=0.005)


# BIDS, records and sidecars


def sidecars(root: Path, **facts: Any) -> None:
    for path in root.rglob("sub-*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


def test_a_sidecar_with_a_frequency_decides(tmp_path: Path) -> None:
    bids(tmp_path, "sub-01")
    sidecars(tmp_path, ImagingFrequency=123.25, Manufacturer="Siemens")
    (scan,) = search(tmp_path).scans
    assert scan.b0_tesla == pytest.approx(SIEMENS_3T) and scan.b0_nominal_tesla == 3 and not scan.notices
    sidecars(tmp_path, ImagingFrequency=63.6)
    assert [aside.code for aside in search(tmp_path).set_aside] == ["E012"]
    sidecars(tmp_path, ImagingFrequency=123.25, ImagedNucleus="23NA")
    assert [aside.code for aside in search(tmp_path).set_aside] == ["E021"]


def test_a_published_bids_scan_has_not_changed_because_b0_is_computed_otherwise(tmp_path: Path) -> None:
    """Its digest is the one of versions that took the nominal strength."""
    bids(tmp_path, "sub-01")
    sidecars(tmp_path, ImagingFrequency=123.25, Manufacturer="Siemens")
    for user in (0.0, 2.9):
        (scan,) = search(tmp_path, acquisition=Acquisition(b0_tesla=user)).scans
        before = hashlib.sha256(json.dumps((scan.echo_times_s, user or 3.0, scan.b0_dir, scan.phase_unit)).encode())
        for digest in sorted(map(_file_digest, scan.files)):
            before.update(digest)
        assert scan.content_digest() == before.hexdigest()


def test_a_record_without_b0_stands_and_one_with_another_does_not(tmp_path: Path) -> None:
    write(tmp_path, b0=SIEMENS_3T)
    (scan,) = search(tmp_path).scans
    assert same_field({}, scan) and same_field({"b0_tesla": scan.b0_tesla}, scan)
    assert not same_field({"b0_tesla": 3.0}, scan)
    assert "orientation" not in plain_settings(parse({}))["acquisition"]
    assert plain_settings(load(None, ["acquisition.orientation=LAS"]))["acquisition"]["orientation"] == "LAS"


@pytest.mark.parametrize("kind", ["dicom", "bids"])
def test_a_job_of_an_earlier_version_is_done_again_with_the_true_field(kind: str, tmp_path: Path) -> None:
    if kind == "dicom":
        write(tmp_path, b0=SIEMENS_3T)
    else:
        bids(tmp_path, "sub-01")
        sidecars(tmp_path, ImagingFrequency=123.25)
    (scan,) = search(tmp_path).scans
    new = ("b0_source", "b0_nominal_tesla", "imaging_frequency_mhz")
    saved = {name: value for name, value in scan.json().items() if name not in new} | {"b0_tesla": 3.0}
    earlier = Scan.from_json(saved)
    assert earlier.content_digest() == scan.content_digest()
    assert with_field_strength(earlier, Acquisition()).b0_tesla == pytest.approx(SIEMENS_3T, rel=1e-6)
    assert with_field_strength(scan, Acquisition()) is scan


def test_the_record_says_which_b0_and_from_what(tmp_path: Path) -> None:
    write(tmp_path, b0=SIEMENS_3T)
    (scan,) = search(tmp_path).scans
    decision = B0.of(scan, Acquisition()).decision()
    assert decision.what == "field strength" and decision.decided == "2.8947 T" and decision.override == "--b0"
    assert "imaging frequency is 123.25 MHz" in decision.because and "nominal field strength is 3 T" in decision.because
    user = B0.of(scan, Acquisition(b0_tesla=2.9)).decision()
    assert user.decided == "2.9000 T" and "source: user" in user.because
    old = B0.of(replace(scan, imaging_frequency_mhz=0.0), Acquisition())
    assert old.header() == {"field_strength_tesla": 3.0}


def test_sidecars_state_the_nominal_strength_and_the_frequency_of_b0() -> None:
    facts = {"grid": Grid.simple((4, 4, 4), (1, 1, 1)).json(), "echo_times_s": [0.01], "b0_tesla": SIEMENS_3T}
    written = json.loads(sidecar({**facts, "b0_nominal_tesla": 3.0}))
    assert written["MagneticFieldStrength"] == 3 and written["ImagingFrequency"] == pytest.approx(123.25, rel=1e-6)
    assert json.loads(sidecar(facts))["MagneticFieldStrength"] == SIEMENS_3T
