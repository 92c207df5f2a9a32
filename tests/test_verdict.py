"""For every limit of the verdict two simulated scans, one on each side, through the steps and the quality stage."""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch import Tensor

from flows.cli.reconstruct import demo
from flows.demo import simulate
from models.gre import add_noise, gre_signal
from models.head import Head, fields, simulate_head
from pipeline.background import remove_background
from pipeline.field import total_field
from pipeline.filters import dilate, erode
from pipeline.find import find
from pipeline.invert import invert
from pipeline.mask.shapes import largest
from pipeline.quality import CHECKS, core, measure
from pipeline.quality.verdict import LEVELS, Check, judge
from pipeline.recipe import Job, reconstruct
from pipeline.settings import parse
from pipeline.unwrap import unwrap
from pipeline.volumes import Echoes, Grid
from pipeline.work import Made, Work

B0_TESLA = 3.0
FIELD_OF_VIEW_MM = (176.0, 216.0, 184.0)
SIZE = "longest_edge_mm"  # what speaks against every head that is small enough for a quick test


@dataclass(frozen=True)
class Scan:
    """A scan of the simulated head and how it is processed; each fault is a change of one of these."""

    echo_times_s: tuple[float, ...] = (0.004, 0.010, 0.016, 0.022)
    snr: float = 100.0
    voxel_mm: float = 4.0
    header_tesla: float = B0_TESLA
    inverted: bool = False
    spoilt_echoes: int = 0  # last ones, whose phase has the wrong sign
    cut_mm: float = 0.0  # of the volume, from below
    mask: tuple[str, float] = ("grown", 0.0)  # how it differs from the brain, and by how many mm
    method: str = "tv"
    strength: float | None = None  # of the method: its strength or threshold
    background: str = "vsharp"
    rim_mm: float = 2.0  # of the background removal
    lost_voxels: int = 0  # of the map, which are no numbers
    rim_ppm: float = 0.0  # added to the outermost 5 mm of the map


@cache
def head(voxel_mm: float) -> tuple[Head, Tensor]:
    """The head and its field; of the size of an adult's at any size of the voxels."""
    shape = [2 * round(length / voxel_mm / 2) for length in FIELD_OF_VIEW_MM]
    simulated = simulate_head(shape, (voxel_mm,) * 3, seed=1)
    return simulated, fields(simulated, (0, 0, 1))[0]


@cache
def signal(times: tuple[float, ...], voxel_mm: float) -> Tensor:
    simulated, total = head(voxel_mm)
    return gre_signal(simulated, total, times, B0_TESLA, snr=math.inf, seed=1)


def brain_mask(brain: Tensor, kind: str, by_mm: float, voxel_mm: float) -> Tensor:
    """A mask that errs: grown or shrunk everywhere, grown at the base alone, a speck, or with a piece apart."""
    size = (voxel_mm,) * 3
    if by_mm <= 0:
        return brain
    if kind == "shrunk":
        return erode(brain, size, by_mm)
    if kind == "speck":
        n, speck = round(by_mm / voxel_mm), torch.zeros_like(brain)
        speck[tuple(slice(length // 2, length // 2 + n) for length in brain.shape)] = True
        return speck
    if kind == "piece":
        apart = brain.clone()
        apart[:2, :2, :2] = True
        return apart
    grown = dilate(brain, size, by_mm)
    if kind == "low":
        lowest = int(brain.nonzero()[:, 2].min())
        grown[:, :, lowest + round(40 / voxel_mm) :] = False
    return brain | grown


@cache
def measured(scan: Scan) -> dict[str, Any]:
    """The facts of the quality stage, after the steps before it."""
    simulated, _ = head(scan.voxel_mm)
    noisy = add_noise(signal(scan.echo_times_s, scan.voxel_mm), simulated.brain, scan.snr, 1)
    right = len(noisy) - scan.spoilt_echoes
    noisy = torch.cat([noisy[:right], noisy[right:].conj().resolve_conj()])
    noisy = noisy.conj() if scan.inverted else noisy
    first = round(scan.cut_mm / scan.voxel_mm)
    noisy, brain = noisy[..., first:].resolve_conj(), largest(simulated.brain)
    mask = brain_mask(brain, *scan.mask, scan.voxel_mm)[..., first:]
    grid = Grid.simple(mask.shape, (scan.voxel_mm,) * 3)
    recorded = Echoes(noisy.abs(), noisy.angle(), scan.echo_times_s, scan.header_tesla, grid)
    with TemporaryDirectory() as folder:
        return _measured(scan, recorded, mask, Work(Path(folder)))


def _measured(scan: Scan, recorded: Echoes, mask: Tensor, work: Work) -> dict[str, Any]:
    settings = parse(
        {
            "method": scan.method,
            "device": "cpu",
            **(
                {}
                if scan.strength is None
                else {scan.method: {"threshold" if scan.method == "tkd" else "strength": scan.strength}}
            ),
            **(
                {"vsharp": {"smallest_mm": scan.rim_mm}}
                if scan.background == "vsharp"
                else {"pdf": {"erode_mm": scan.rim_mm}}
            ),
        }
    )
    unwrapped = unwrap(recorded, mask, settings.unwrap)
    fitted = total_field(unwrapped.echoes, unwrapped.mask, settings.fit)
    local, _ = remove_background(fitted.field, scan.background, getattr(settings, scan.background))
    stages = {
        "convert": Made(
            {"magnitude": recorded.magnitude},
            facts={
                "grid": recorded.grid.json(),
                "echo_times_s": list(recorded.echo_times_s),
                "b0_tesla": recorded.b0_tesla,
            },
        ),
        "mask": Made({"mask": mask.to(torch.uint8)}),
        "unwrap": Made({"unwrapped_rad": unwrapped.echoes.phase_rad}),
        "field": Made({"total_ppm": fitted.field.ppm, "sd_ppm": fitted.field.sd_ppm, "residual": fitted.residual}),
        "background": Made({"local_ppm": local.ppm, "mask": local.mask.to(torch.uint8)}),
    }
    for method in dict.fromkeys([scan.method, "tv"]):
        chi = invert(local, method, getattr(settings, method)).ppm
        chi += scan.rim_ppm * (local.mask & ~core(local.mask, local.grid.voxel_size_mm))
        chi[tuple(local.mask.nonzero()[: scan.lost_voxels].T)] = math.nan
        stages[f"invert-{method}"] = Made({"chi_ppm": chi})
    done = {name: work.write(name, "key", m, {}) for name, m in stages.items()}
    return measure(done, scan.method, "tv", None, torch.device("cpu")).facts


def scan(**changes: Any) -> Scan:
    return replace(Scan(), **changes)


NOISY = {"method": "tkd", "background": "tfi"}
# (number, limit): a scan just on the safe side, and one just beyond
PAIRS: dict[tuple[str, float], tuple[Scan, Scan]] = {
    ("finite_share", 1.0): (scan(), scan(lost_voxels=1)),
    ("core_spread_ppm", 0.005): (scan(strength=2500.0), scan(strength=4000.0)),
    ("core_spread_ppm", 0.0125): (scan(strength=1000.0), scan(strength=1500.0)),
    ("core_spread_ppm", 0.06): (scan(header_tesla=1.1), scan(header_tesla=1.0)),
    ("core_spread_ppm", 0.12): (scan(header_tesla=0.5), scan(header_tesla=0.45)),
    ("asymmetry", 0.0): (scan(method="tkd", snr=6.0), scan(method="tkd", snr=6.0, inverted=True)),
    ("asymmetry", -0.1): (scan(method="tkd", snr=6.0, inverted=True), scan(inverted=True)),
    ("beyond_share", 0.01): (scan(header_tesla=0.3), scan(header_tesla=0.27)),
    ("beyond_share", 0.1): (scan(header_tesla=0.16), scan(header_tesla=0.15)),
    ("unexplained_share", 0.5): (scan(strength=2500.0), scan(strength=4000.0)),
    ("unexplained_share", 0.8): (scan(strength=6000.0), scan(strength=8000.0)),
    ("data_consistency", 0.3): (scan(**NOISY, snr=30.0), scan(**NOISY, snr=10.0)),
    ("neighbour_correlation", 0.3): (scan(**NOISY, snr=10.0), scan(**NOISY, snr=6.0)),
    ("streak_index", 1.4): (scan(method="tkd", strength=0.1), scan(method="tkd", strength=0.05)),
    ("rim_energy", 1.7): (scan(mask=("low", 4.0)), scan(mask=("low", 8.0))),
    ("classical_correlation", 0.7): (
        scan(method="tkd", strength=0.05, snr=30.0),
        scan(method="tkd", strength=0.02, snr=30.0),
    ),
    ("echoes", 3): (scan(echo_times_s=(0.006, 0.015, 0.024)), scan(echo_times_s=(0.006, 0.024))),
    ("echoes", 2): (scan(echo_times_s=(0.006, 0.024)), scan(echo_times_s=(0.020,))),
    ("last_echo_ms", 11): (scan(echo_times_s=(0.003, 0.0065, 0.0115)), scan(echo_times_s=(0.003, 0.0065, 0.010))),
    ("first_echo_ms", 10): (scan(echo_times_s=(0.0095, 0.017, 0.025)), scan(echo_times_s=(0.0105, 0.018, 0.0255))),
    ("longest_edge_mm", 2.75): (scan(voxel_mm=2.7), scan(voxel_mm=2.8)),
    ("field_noise_ppm", 0.004): (scan(snr=16.0), scan(snr=12.0)),
    ("field_noise_ppm", 0.008): (scan(snr=8.0), scan(snr=6.0)),
    ("cut_share", 0.15): (scan(cut_mm=28.0), scan(cut_mm=32.0)),
    ("volume_ml", 1): (
        scan(mask=("speck", 10.8), background="tfi", voxel_mm=2.7),
        scan(mask=("speck", 8.1), background="tfi", voxel_mm=2.7),
    ),
    ("volume_ml", 700): (scan(mask=("shrunk", 10.0)), scan(mask=("shrunk", 12.0))),
    ("volume_ml", 2200): (scan(mask=("grown", 8.0)), scan(mask=("grown", 12.0))),
    ("components", 1): (scan(), scan(mask=("piece", 1.0))),
    ("base_dark_share", 0.10): (scan(), scan(mask=("low", 4.0))),
    ("base_beyond_share", 0.03): (scan(mask=("low", 4.0)), scan(mask=("low", 8.0))),
    ("eroded_share", 0.4): (scan(rim_mm=6.0), scan(rim_mm=8.0)),
    ("eroded_share", 0.95): (
        scan(mask=("shrunk", 22.0), background="pdf", rim_mm=20.0),
        scan(mask=("shrunk", 26.0), background="pdf", rim_mm=20.0),
    ),
    ("wraps_left", 0.001): (scan(mask=("low", 6.0), background="tfi"), scan(mask=("low", 8.0), background="tfi")),
    ("excluded_share", 0.05): (scan(), scan(spoilt_echoes=1)),
}


def numbers(scan: Scan) -> dict[str, Any]:
    facts = measured(scan)
    return {**facts["acquisition"], **facts["methods"][facts["primary"]]}


EVERYDAY = ("core_spread_ppm", "asymmetry", "echoes", "last_echo_ms", "longest_edge_mm", "base_dark_share")


def marked() -> list[Any]:
    """The limits of the map's contrast and sign, the acquisition and the base of the mask; the others as slow tests."""
    return [c if c.number in EVERYDAY else pytest.param(c, marks=pytest.mark.slow) for c in CHECKS]


@pytest.mark.parametrize("check", marked(), ids=lambda check: f"{check.number}-{check.side}-{check.limit}")
def test_each_limit_lies_between_two_scans(check: Check) -> None:
    safe, bad = PAIRS[check.number, check.limit]
    assert not check.fails(numbers(safe)[check.number])
    facts, value = measured(bad), numbers(bad)[check.number]
    assert check.fails(value)
    assert check.sentence(value) in facts["verdict"]["reasons"]
    assert LEVELS.index(facts["verdict"]["level"]) >= LEVELS.index(check.level)


def described(scan: Scan) -> str:
    """What sets the scan apart from the clean one."""
    usual, this = asdict(Scan()), asdict(scan)
    changed = [f"{name} {value}" for name, value in this.items() if value != usual[name]]
    return ", ".join(changed).replace("'", "") or "clean"


def row(check: Check) -> str:
    """The check's line in docs/verdict.md."""
    safe, bad = PAIRS[check.number, check.limit]
    limit = f"{check.side} {check.form.format(check.limit)}: {check.level}"
    return f"| {check.what.removesuffix(' is')} | {limit} | {check.why} | {described(safe)} / {described(bad)} |"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.number}-{check.side}-{check.limit}")
def test_each_limit_stands_in_the_documentation_with_its_reason(check: Check) -> None:
    assert row(check) in (Path(__file__).parents[1] / "docs" / "verdict.md").read_text().splitlines()


def test_no_pair_is_without_its_limit() -> None:
    assert set(PAIRS) == {(check.number, check.limit) for check in CHECKS}


def test_a_clean_scan_is_usable_and_a_coarse_one_is_so_but_for_its_voxels() -> None:
    assert measured(scan(voxel_mm=2.7))["verdict"] == {"level": "usable", "reasons": []}
    coarse = measured(scan())["verdict"]
    assert coarse["level"] == "check" and len(coarse["reasons"]) == 1 and "4.00 mm" in coarse["reasons"][0]


def test_a_flat_map_with_a_bright_rim_is_not_to_be_used() -> None:
    """Its standard deviation is that of a brain, yet there is nothing inside."""
    facts = measured(scan(strength=4000.0, rim_ppm=0.05))
    of_map = facts["methods"]["tv"]
    assert of_map["spread_ppm"] > 0.01 and of_map["core_spread_ppm"] < 0.005
    assert facts["verdict"]["level"] == "do not use" and "flat" in facts["verdict"]["reasons"][0]
    assert of_map["asymmetry"] is None and of_map["neighbour_correlation"] is None


def test_one_echo_is_not_to_be_used() -> None:
    """Its noise cannot be told from tissue, and the map is flat."""
    verdict = measured(scan(echo_times_s=(0.020,)))["verdict"]
    reasons = " ".join(verdict["reasons"])
    assert verdict["level"] == "do not use" and "flat" in reasons and "echoes is 1" in reasons


def test_a_field_map_is_no_scan_for_susceptibility() -> None:
    """Two echoes up to 4.6 ms, as a scan for the correction of echo-planar images has them."""
    verdict = measured(scan(echo_times_s=(0.0023, 0.0046), snr=200.0))["verdict"]
    reasons = " ".join(verdict["reasons"])
    assert verdict["level"] != "usable"
    assert all(text in reasons for text in ("echoes is 2", "4.6 ms (below 11.0 ms)", "4.00 mm (above 2.75 mm)"))


def test_the_clean_demo_is_usable(tmp_path: Path) -> None:
    """At the defaults of `chiron demo`, from its DICOM files on."""
    usual = {name: parameter.default for name, parameter in inspect.signature(demo).parameters.items()}
    simulated = simulate(tmp_path, usual["vendor"], usual["voxel_size"], usual["seed"])
    (export,) = find(simulated.export, b"a key of tests" * 3).scans
    work = reconstruct(Job(export, parse({"method": usual["method"], "device": "cpu"}), tmp_path / "work"))
    quality = work.find("quality")
    assert quality and quality.facts["primary"] == usual["method"] == "dip"
    assert quality.facts["verdict"] == {"level": "usable", "reasons": []}


def test_a_number_just_beyond_its_limit_reads_as_beyond_it() -> None:
    numbers = {"first_echo_ms": 10.04, "longest_edge_mm": 2.7500001}
    for reason in judge(numbers)["reasons"]:
        number, limit = re.search(r"is ([\d.]+) .*\(above ([\d.]+) ", reason).groups()  # type: ignore[union-attr]
        assert float(number) > float(limit), reason
