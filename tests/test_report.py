"""The report: self-contained, escaped, honest about what is missing, the same page for the same work folder."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.dipole import Dipole
from pipeline.background import METHODS as BACKGROUNDS
from pipeline.errors import ChironError, Decision, Notice
from pipeline.invert import PARAMS as INVERSIONS
from pipeline.quality import evaluate
from pipeline.report import citations, methods_text, write_report
from pipeline.report.checklist import checklist
from pipeline.report.curves import Curve, curves
from pipeline.report.found import look
from pipeline.report.numbers import ACCURACY, comparisons, numbers
from pipeline.report.pictures import misfit, view_of
from pipeline.report.plots import Scale
from pipeline.report.sources import PAPERS
from pipeline.report.view import Window
from pipeline.settings import parse
from pipeline.volumes import Grid
from pipeline.work import Made, Work

SHAPE = (40, 48, 36)
MEASURED = {"version": 1, "device": "cpu", "seconds": 1.25, "peak_memory_bytes": 3 << 28, "software": "0.1.0"}
TIMES = [0.004, 0.012, 0.020, 0.028]
RTS = parse({"method": "rts", "also": ["tkd"]})


def oblique(shape: tuple[int, int, int] = SHAPE, size: tuple[float, float, float] = (1.5, 1.5, 2.0)) -> Grid:
    """A grid in LPS-like storage order, tilted by 15 degrees about x."""
    c, s = np.cos(np.radians(15)), np.sin(np.radians(15))
    axes = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ np.diag([-1, -1, 1]) @ np.diag(size)
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = -axes @ (np.array(shape) - 1) / 2
    return Grid.from_affine(shape, affine)


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radii: tuple[float, ...]) -> torch.Tensor:
    """Ellipsoid; centre and radii as shares of the shape."""
    axes = torch.meshgrid(*(torch.arange(n) / (n - 1) for n in shape), indexing="ij")
    return sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) < 1  # type: ignore[return-value]


def write(work: Work, stage: str, arrays: dict[str, torch.Tensor] | None = None, **facts: object) -> None:
    work.write(stage, "key", Made(arrays or {}, facts=facts), {"stage": stage, **MEASURED})


def convert(work: Work, grid: Grid, mask: torch.Tensor, field: torch.Tensor, **said: object) -> None:
    head = ball(grid.shape, (0.5, 0.5, 0.5), (0.48, 0.49, 0.49))
    decay = torch.tensor(TIMES)[:, None, None, None]
    noise = torch.randn((len(TIMES), *grid.shape), generator=torch.Generator().manual_seed(1))
    magnitude = (200 * head + 300 * mask) * torch.exp(-decay / 0.04) + 6 * noise.abs()
    phase = torch.remainder(field * 2 * np.pi * 127.7 * decay + 0.02 * noise + np.pi, 2 * np.pi) - np.pi
    facts = {"grid": grid.json(), "echo_times_s": TIMES, "b0_tesla": 3.0, "vendor": "siemens", "acquisition": said}
    decisions = [Decision("phase range", "0 to 4095", "minimum 0 and maximum 4095", "--phase-range")]
    notices = [Notice("E013", "echoes alternate in direction")] if said.get("bipolar") else []
    made = Made({"magnitude": magnitude, "phase_rad": phase}, facts=facts, decisions=decisions, notices=notices)
    work.write("convert", "key", made, {"stage": "convert", **MEASURED})


def scan(folder: Path, made: tuple[str, ...] = ("rts", "tkd"), grid: Grid | None = None, **quality: object) -> Work:
    """A work folder as a finished run of a small phantom leaves it."""
    work, grid = Work(folder), grid or oblique()
    mask = ball(grid.shape, (0.5, 0.5, 0.55), (0.38, 0.4, 0.36))
    final = ball(grid.shape, (0.5, 0.5, 0.55), (0.33, 0.36, 0.31))
    chi = 0.1 * ball(grid.shape, (0.36, 0.45, 0.5), (0.08, 0.1, 0.09)).float() - 0.03 * mask.float()
    chi = chi * mask
    local = Dipole(grid.shape, grid.voxel_size_mm, grid.b0_dir).forward(chi)
    slope = torch.linspace(-0.4, 0.4, grid.shape[2])
    convert(work, grid, mask, local + slope, dimensions="3D")
    write(work, "mask", {"mask": mask.to(torch.uint8)}, voxels=int(mask.sum()), volume_ml=1234.5, components=1)
    write(work, "unwrap", method="romeo", wraps_left=0)
    write(work, "field", {"total_ppm": (local + slope) * mask}, median_sd_ppm=0.003)
    arrays = {"local_ppm": local * final, "mask": final.to(torch.uint8)}
    write(work, "background", arrays, method="vsharp", eroded_share=0.31)
    write(work, "r2star", {"r2star": 20.0 * mask}, method="loglinear", median_r2star=21.5, clipped_negative=7)
    write(work, "swi", {"swi": 1.0 - 0.5 * (chi > 0.05), "minip": 0.8 * mask}, slab_mm=12.0)
    for i, method in enumerate(made):
        found = (chi * (1 - 0.1 * i) - (chi[final].mean())) * final
        fit = (
            {"loss": [1 / (n + 1) for n in range(300)], "stopped_at": 240, "stop_reason": "discrepancy"}
            if method == "dip"
            else {}
        )
        write(work, f"invert-{method}", {"chi_ppm": found}, method=method, reference="mean in the final mask", **fit)
    facts = {"primary": made[0], "verdict": {"level": "usable", "reasons": []}, **quality}
    write(work, "quality", {"truth_ppm": chi} if "methods" in quality else {}, **facts)
    return work


class Links(HTMLParser):
    """Everything that a browser would fetch, and whether every element was closed."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.scripts = 0
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster", "xlink:href") or (name == "href" and tag != "a"):
                self.fetched.append(value or "")
            assert not name.startswith("on"), f"{tag} has {name}"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def links(page: str) -> Links:
    parser = Links()
    parser.feed(page)
    parser.close()
    return parser


def test_the_page_fetches_nothing_and_is_well_formed(tmp_path: Path) -> None:
    page = write_report(scan(tmp_path), "sub-ab12", RTS)
    found = links(page)
    assert found.open == [] and found.scripts == 0
    assert len(found.fetched) > 20 and all(link.startswith("data:image/webp;base64,") for link in found.fetched)
    assert "@import" not in page and not re.search(r"url\(", page)
    assert "Research use only - not for diagnostic use" in page and "sub-ab12" in page


def test_every_picture_states_its_window(tmp_path: Path) -> None:
    methods = {"rts": {"nrmse": 31.5, "xsim": 0.8}, "tkd": {"nrmse": 41.5, "xsim": 0.7}}
    page = write_report(scan(tmp_path, methods=methods), "sub-1", RTS)
    rows = dict(re.findall(r"<h3>(.*?)</h3>\s*<p>.*?</p>\s*<p class=\"window\">(.*?)</p>", page))
    assert rows["Wrapped phase, echo 4 (28 ms)"] == "±π rad"
    assert rows["Total field"] == "±0.50 ppm"
    assert rows["Local field"] == "±0.05 ppm"
    assert rows["χ, TKD"] == "±0.10 ppm"
    assert rows["RTS − TKD"] == rows["Error: χ − truth"] == "±0.05 ppm"
    assert rows["D∗χ − local field"] == "±0.02 ppm"
    assert re.search(r"Magnitude, echo 1 \(4 ms\)", page) and re.search(r"Magnitude, echo 4 \(28 ms\)", page)
    published = re.findall(r"<h3>χ, RTS \(published\)</h3>.*?window\">(.*?)</p>", page, re.DOTALL)
    assert published == ["±0.10 ppm", "±0.15 ppm"]


def test_pictures_lie_as_radiologists_see_them(tmp_path: Path) -> None:
    grid = oblique()
    found = look(scan(tmp_path, grid=grid), RTS)
    view = view_of(found)
    assert view is not None
    mm = np.einsum("ij,jxyz->ixyz", np.asarray(grid.affine)[:3, :3], np.indices(grid.shape))
    right, front, up = (view.cut(mm[i].astype(np.float32), axis) for i, axis in ((0, 2), (1, 2), (2, 1)))
    assert right[0, 0] > right[0, -1], "the patient's right at the viewer's left"
    assert front[0, 0] > front[-1, 0], "the front at the top of an axial plane"
    assert up[0, 0] > up[-1, 0], "the head up in a coronal plane"
    facing = view.cut(mm[1].astype(np.float32), 0)
    assert facing[0, 0] > facing[0, -1], "the face to the left in a sagittal plane"


def test_voxels_that_are_no_cubes_keep_their_aspect(tmp_path: Path) -> None:
    found = look(scan(tmp_path, grid=oblique(size=(1.0, 1.0, 3.0))), RTS)
    view = view_of(found)
    assert view is not None
    coronal = view.plane(np.ones(SHAPE, np.float32), 1, Window(0, 1, "ppm"))
    width, height = view.extent_mm(1)
    assert coronal.pixels[0] / coronal.pixels[1] == pytest.approx(width / height, rel=0.02)
    stored = Image.open(io.BytesIO(base64.b64decode(coronal.uri.split(",")[1])))
    assert stored.size == coronal.pixels


def test_windows_map_their_ends_to_black_and_white(tmp_path: Path) -> None:
    view = view_of(look(scan(tmp_path), RTS))
    assert view is not None

    def grey(value: float) -> int:
        plane = view.plane(np.full(SHAPE, value, np.float32), 2, Window(-0.1, 0.1, "ppm"))
        stored = Image.open(io.BytesIO(base64.b64decode(plane.uri.split(",")[1])))
        return int(np.asarray(stored.convert("L")).mean())

    assert grey(-0.2) <= 1 and abs(grey(0) - 128) <= 2 and grey(0.2) >= 254 and grey(float("nan")) <= 1


def test_misfit_is_the_field_that_the_map_does_not_explain(tmp_path: Path) -> None:
    work = scan(tmp_path)
    found = look(work, RTS)
    assert found.grid is not None and found.final is not None
    inside = torch.from_numpy(found.final)
    chi = torch.from_numpy(np.array(found.chi("rts")))
    field = Dipole(SHAPE, found.grid.voxel_size_mm, found.grid.b0_dir).forward(chi + 0.2 * inside) + 0.03
    bump = 0.01 * ball(SHAPE, (0.5, 0.5, 0.5), (0.1, 0.1, 0.1))
    write(work, "background", {"local_ppm": (field - bump) * inside, "mask": inside.to(torch.uint8)})
    residual = misfit(look(work, RTS))
    assert residual is not None and not residual[~found.final].any()
    error = (residual - bump.numpy())[found.final]
    assert np.abs(error - error.mean()).max() < 2e-3, "neither the reference of chi nor the field's constant counts"


def test_data_are_escaped(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    work = scan(tmp_path, verdict={"level": "check", "reasons": [nasty]})
    made = Made(
        facts={"method": nasty}, decisions=[Decision(nasty, nasty, nasty, nasty)], notices=[Notice("E013", nasty)]
    )
    work.write("unwrap", "key", made, {"stage": "unwrap", **MEASURED, "device": nasty})
    write(work, "invert-dip", {"chi_ppm": torch.zeros(SHAPE)}, loss=[3, 2, 1], stopped_at=2, stop_reason=nasty)
    page = write_report(work, nasty, RTS, extra={nasty: nasty})
    assert "<script" not in page and page.count("&lt;script&gt;") >= 10
    assert links(page).open == []


def test_a_failed_scan_says_why_and_what_to_do(tmp_path: Path) -> None:
    work = Work(tmp_path)
    grid = oblique()
    convert(work, grid, ball(SHAPE, (0.5,) * 3, (0.4,) * 3), torch.zeros(SHAPE))
    failure = ChironError("P007", "a mask of 12 voxels", "a brain")
    page = write_report(work, "sub-1", RTS, failure)
    assert "Failed – do not use" in page and "P007" in page and "a mask of 12 voxels" in page
    assert "Give a mask with --mask" in page
    assert "Not done: finding the brain" in page and "inverting (rts)" in page
    assert "Magnitude, echo 1" in page and "Total field" not in page, "what there is is shown, and nothing else"
    assert links(page).open == []


def test_an_empty_work_folder_still_gives_a_page(tmp_path: Path) -> None:
    page = write_report(Work(tmp_path / "none"), "sub-1", RTS, ChironError("E002", "slice 17 of echo 2"))
    assert "E002" in page and "The images were not read" in page and "Nothing was computed" in page
    assert links(page).fetched == [] and links(page).open == []


@pytest.mark.parametrize(
    "gone", ["mask", "unwrap", "field", "background", "r2star", "swi", "invert-tkd", "invert-rts", "quality"]
)
def test_any_stage_may_be_missing(tmp_path: Path, gone: str) -> None:
    work = scan(tmp_path)
    (work.folder / gone / "stage.json").unlink()
    page = write_report(work, "sub-1", RTS)
    assert links(page).open == []
    if gone == "invert-rts":
        assert "No susceptibility map was made" in page
    elif gone == "quality":
        assert "Check before use" in page and "was not measured" in page


def test_a_damaged_array_is_left_out(tmp_path: Path) -> None:
    work = scan(tmp_path)
    (work.folder / "field" / "total_ppm.npy").write_bytes(b"broken")
    page = write_report(work, "sub-1", RTS)
    assert "Total field" not in page and "Local field" in page


def test_images_beside_the_map_are_shown_at_printed_windows(tmp_path: Path) -> None:
    work = scan(tmp_path)
    page = write_report(work, "sub-1", RTS)
    for title, window in (("R2*", "0 to 60.0 1/s"), ("SWI", "0 to 1.30"), ("Minimum-intensity projection", "12 mm")):
        assert re.search(rf"<h3>{re.escape(title)}.*?{re.escape(window)}", page, re.DOTALL), title
    assert "21.5" in page and "R2* below zero" in page
    assert "R2* was fitted to the logarithm" in page and "in the manner of CLEAR-SWI" in page
    assert "10.1016/j.neuroimage.2021.118175" in page and "10.1002/mrm.1910340618" in page
    write(work, "r2star", missing="a single echo")
    write(work, "swi", missing="an unexpected ValueError")
    page = write_report(work, "sub-1", RTS)
    assert "<h3>R2*</h3>" not in page and "<h3>SWI</h3>" not in page and "CLEAR-SWI" not in page


def test_the_reference_is_said_as_it_was_taken(tmp_path: Path) -> None:
    work = scan(tmp_path)
    assert "relative to the mean in the final mask" in write_report(work, "sub-1", RTS)
    found = work.find("invert-rts")
    assert found
    fluid = {"region": "cerebrospinal fluid of the ventricles", "mean_ppm": 0.012, "sd_ppm": 0.02, "voxels": 700}
    write(work, "invert-rts", {"chi_ppm": found.array("chi_ppm")}, method="rts", reference=fluid)
    page = write_report(work, "sub-1", RTS)
    assert "relative to the cerebrospinal fluid of the ventricles" in page and "10.1002/mrm.26946" in page
    assert "cerebrospinal fluid of the ventricles (0.0120" in page


def test_maps_without_numbers_and_empty_masks_still_give_a_page(tmp_path: Path) -> None:
    work = scan(tmp_path)
    write(work, "invert-rts", {"chi_ppm": torch.full(SHAPE, float("nan"))})
    assert "χ, RTS (published)" in write_report(work, "sub-1", RTS)
    for stage, name in (("mask", "mask"), ("background", "mask")):
        write(work, stage, {name: torch.zeros(SHAPE, dtype=torch.uint8)})
    assert links(write_report(work, "sub-1", RTS)).open == []


@pytest.mark.parametrize(
    ("verdict", "headline"), [("usable", "Usable"), ("check", "Check before use"), ("do not use", "Do not use")]
)
def test_the_verdict_is_the_measured_one(tmp_path: Path, verdict: str, headline: str) -> None:
    page = write_report(scan(tmp_path, verdict={"level": verdict, "reasons": ["The rim is wide."]}), "sub-1", RTS)
    assert f"<h2>{headline}</h2>" in page and "The rim is wide." in page


def test_a_network_is_said_to_be_outside_the_consensus(tmp_path: Path) -> None:
    settings = parse({"method": "dip", "also": ["rts"]})
    page = write_report(scan(tmp_path, made=("dip", "rts")), "sub-1", settings)
    assert "outside the consensus" in page and "RTS map is shown beside it" in page
    assert "stopped at 240" in page and "It stopped because: discrepancy." in page
    assert "Ulyanov" in page
    assert "outside the consensus" not in write_report(scan(tmp_path / "b"), "sub-1", RTS)


def test_an_uncertainty_is_shown_beside_the_map_it_is_of(tmp_path: Path) -> None:
    methods = {"dip": {"uncertainty_ppm": 0.0123}, "rts": {"spread_ppm": 0.05}}
    work, settings = scan(tmp_path, made=("dip", "rts"), methods=methods), parse({"method": "dip", "also": ["rts"]})
    assert "<h3>Uncertainty of χ" not in write_report(work, "sub-1", settings)
    made = work.find("invert-dip")
    assert made
    arrays = {"chi_ppm": made.array("chi_ppm"), "uncertainty_ppm": torch.full(SHAPE, 0.02)}
    write(work, "invert-dip", arrays, **made.facts)
    page = write_report(work, "sub-1", settings)
    titles = re.findall(r"<figcaption>\s*<h3>(.*?)</h3>", page)
    assert titles[titles.index("Uncertainty of χ, Deep Image Prior") - 1] == "χ, Deep Image Prior (published)"
    shown = re.search(r"<h3>Uncertainty of χ.*?</figure>", page, re.DOTALL)
    assert shown and "0 to 0.0500 ppm" in shown[0] and "is not in it" in shown[0] and shown[0].count("<img") == 3
    assert re.search(r"Uncertainty of χ <span[^>]*>\(ppm\).*?<td>0.0123</td>\s*<td>–</td>", page, re.DOTALL)


def course(seed: int, stop: int, steps: int = 300) -> dict[str, object]:
    """What an iterative fit says of itself."""
    falling = [1 / (n + 1) for n in range(steps)]
    why = {"stopped_at": stop, "stop_reason": f"reason {seed}", "seed": seed}
    return {"loss": falling, "misfit": [9 * v for v in falling], "variance": [None] * 20 + falling[20:], **why}


def courses(work: Work, **facts: object) -> list[Curve]:
    """The plots of a fit with these facts."""
    write(work, "invert-dip", {"chi_ppm": torch.zeros(SHAPE)}, method="dip", **facts)
    settings = parse({"method": "dip", "also": ["rts"]})
    return [c for c in curves(look(work, settings)) if c.title.startswith("Deep Image Prior: ")]


def test_loss_misfit_and_variance_are_drawn_with_the_stop_and_its_reason(tmp_path: Path) -> None:
    found = courses(scan(tmp_path, made=("dip", "rts")), **course(7, 240))
    assert [c.title.split(": ")[1].split()[0] for c in found] == ["loss", "misfit", "windowed"]
    for curve in found:
        assert str(curve.svg).count('class="line') == 1 and str(curve.svg).count('class="mark"') == 1
        assert "stopped at 240" in curve.svg
    assert [c.note for c in found] == ["It stopped because: reason 7.", "", ""]


@pytest.mark.parametrize(("low", "high"), [(0.06, 0.11), (0.97, 1.03), (1.01, 2.99), (0.9, 80), (2e-9, 9e-8), (1, 1e6)])
def test_a_logarithmic_axis_has_ticks_however_narrow_its_range(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 100, log=True).ticks
    assert 3 <= len(ticks) <= 12 and ticks == sorted(ticks) and low <= ticks[0] and ticks[-1] <= high * (1 + 1e-9)


def test_every_run_of_several_is_drawn_with_its_own_stop(tmp_path: Path) -> None:
    runs = [course(7, 240), course(8, 120, steps=150), course(9, 60, steps=200)]
    found = courses(scan(tmp_path, made=("dip", "rts")), **course(7, 240), runs=runs)
    assert len(found) == 3
    for curve in found:
        assert [name for _, name in curve.legend] == ["run 1", "run 2", "run 3"]
        dots = re.findall(r'<circle class="dot (\w+)" cx="([\d.]+)"', str(curve.svg))
        assert [style for style, _ in dots] == ["one", "two", "three"]
        places = [float(x) for _, x in dots]
        assert places == sorted(places, reverse=True), "240, 120, 60"
    note = found[0].note
    assert all(f"Run {n} (seed {s}) stopped at {a} because: reason {s}." in note for n, s, a in
               ((1, 7, 240), (2, 8, 120), (3, 9, 60)))  # fmt: skip
    page = write_report(Work(tmp_path), "sub-1", parse({"method": "dip", "also": ["rts"]}))
    assert "<td>Seeds of Deep Image Prior</td><td>7, 8, 9</td>" in page


def test_a_method_that_diverged_is_neither_shown_nor_said_to_have_made_a_map(tmp_path: Path) -> None:
    work = scan(tmp_path, made=("rts", "dip"), methods={"rts": {"spread_ppm": 0.05}, "dip": {"spread_ppm": 0.0}})
    write(work, "invert-dip", {"chi_ppm": torch.zeros(SHAPE)}, method="dip", diverged="no numbers")
    page = write_report(work, "sub-1", parse({"method": "dip", "also": ["rts"]}))
    assert "Deep Image Prior" not in page
    assert "for comparison" not in page.split("methods section of a paper")[1]


def test_the_checklist_follows_the_scan(tmp_path: Path) -> None:
    work = scan(tmp_path)
    mask = ball(SHAPE, (0.5,) * 3, (0.4,) * 3)
    page = write_report(work, "sub-1", RTS)
    row = re.search(r'<tr class="(\w+)">\s*<td>[^/]*/span>Voxel volume</td>\s*<td>(.*?)</td>', page)
    assert row and row.groups() == ("warn", "4.50 mm³")
    convert(work, oblique(size=(1, 1, 1)), mask, torch.zeros(SHAPE), dimensions="2D", bipolar=True)
    page = write_report(work, "sub-1", RTS)
    levels = dict(re.findall(r'<span class="dot"[^>]*>[^<]*</span>([^<]*)</td>\s*<td>([^<]*)</td>', page))
    assert levels["Encoding"] == "2D" and levels["Readout"] == "bipolar" and levels["Voxel volume"] == "1.00 mm³"
    assert "departs from the consensus in: encoding, readout" in page


def processing(work: Work, **settings: object) -> dict[str, tuple[str, str]]:
    """What was found of each item on the processing, and its level."""
    _, items = checklist(look(work, parse(settings)))
    return {item.what: (item.found, item.level) for item in items}


@pytest.mark.parametrize("method", BACKGROUNDS)
def test_only_families_of_sharp_and_pdf_pass_as_the_consensus_background(tmp_path: Path, method: str) -> None:
    work = scan(tmp_path)
    write(work, "background", method=method)
    text, level = processing(work, method="rts")["Background removal"]
    listed = method in ("vsharp", "resharp", "pdf")
    assert level == ("ok" if listed else "warn") and ("not on the consensus' list" in text) != listed


def test_a_map_of_the_total_field_rests_on_no_background_removal(tmp_path: Path) -> None:
    text, level = processing(scan(tmp_path, made=("tfi", "rts")), method="tfi")["Background removal"]
    assert level == "warn" and "together with the map" in text and "V-SHARP" not in text


def test_the_exclusion_of_voxels_is_held_against_the_consensus(tmp_path: Path) -> None:
    work = scan(tmp_path)
    assert "Relative residual of the echoes" not in processing(work)
    write(work, "field", excluded_share=0.012)
    text, level = processing(work)["Relative residual of the echoes"]
    assert level == "ok" and "0.300" in text and "1.20 %" in text
    assert processing(work, fit={"largest_residual": 0.5})["Relative residual of the echoes"][1] == "warn"


@pytest.mark.parametrize(
    ("mask", "level"),
    [
        ({}, "ok"),
        ({"method": "deepbet"}, "warn"),
        ({"method": "deepbet", "two_pass": True}, "ok"),
        ({"file": "m"}, "unknown"),
    ],
)
def test_the_mask_is_held_against_the_consensus(tmp_path: Path, mask: dict[str, object], level: str) -> None:
    text, found = processing(scan(tmp_path), mask=mask)["Mask"]
    assert found == level and ("joined" in text) == bool(mask.get("two_pass"))


def test_what_background_removal_leaves_is_among_the_numbers(tmp_path: Path) -> None:
    work = scan(tmp_path)
    names = {row.name for row in numbers(look(work, RTS))}
    left = {"harmonic_share": 0.055, "rim_excess": 1.25}
    write(work, "background", method="tfi", odd_voxels=17, background_left=left)
    rows = {row.name: row.value for row in numbers(look(work, RTS)) if row.name not in names}
    assert sorted(rows.values()) == ["1.25", "17", "5.50"]


def test_the_best_of_a_comparison_is_marked(tmp_path: Path) -> None:
    methods = {"rts": {"nrmse": 31.5, "xsim": 0.7}, "tkd": {"nrmse": 41.5, "xsim": 0.8}}
    page = write_report(scan(tmp_path, methods=methods), "sub-1", RTS)
    assert re.search(r'<td class="best">31.5</td>\s*<td>41.5</td>', page)
    assert re.search(r'<td>0.700</td>\s*<td class="best">0.800</td>', page)


def test_every_metric_against_a_truth_stands_with_the_accuracy(tmp_path: Path) -> None:
    truth = torch.randn((16, 15, 14), generator=torch.Generator().manual_seed(1))
    measured = evaluate(truth + 0.1, truth, torch.ones(truth.shape, dtype=torch.bool))
    assert measured.keys() <= ACCURACY.keys()
    titles = [table.title for table in comparisons(look(scan(tmp_path, methods={"rts": measured}), RTS))]
    assert titles == ["Accuracy against the truth"]


def test_a_sampled_map_is_shown_with_its_samples_evaluations_misfit_and_papers(tmp_path: Path) -> None:
    methods = {"diffusion": {"data_consistency": 1.04, "unlearned_share": 0.0123}, "tv": {"data_consistency": 0.9}}
    work = scan(tmp_path, made=("diffusion", "tv"), methods=methods)
    runs = [{"seed": seed, "misfit": [9.0, 2.0, 1.1]} for seed in (3, 4)]
    facts = {"sampler": "diffpir", "samples": 2, "network_evaluations": 6, "runs": runs}
    spread = torch.full(SHAPE, 0.01)
    write(work, "invert-diffusion", {"chi_ppm": 0.1 * spread, "uncertainty_ppm": spread}, method="diffusion", **facts)
    settings = parse({"method": "diffusion"})
    page = write_report(work, "sub-1", settings)
    assert "the mean of 2 samples by diffpir, 6 evaluations of the network." in page and "Time was over" not in page
    assert "outside the consensus" in page and "The total variation map is shown beside it." in page
    assert "Uncertainty of χ, diffusion prior" in page and "Beyond what was learned" in page and "1.23" in page
    assert "<td>Seeds of diffusion prior</td><td>3, 4</td>" in page and "<td>1.04</td>" in page
    (curve,) = [c for c in curves(look(work, settings)) if c.title.startswith("diffusion prior: ")]
    assert "misfit" in curve.title and [name for _, name in curve.legend] == ["run 1", "run 2"]
    for sampler, key in (("diffpir", "zhu2023"), ("dds", "chung2024"), ("dps", "chung2023")):
        of_it = {"xiong2024", "song2021", key}
        done = {"invert-diffusion": {"sampler": sampler}}
        planned = parse({"method": "diffusion", "diffusion": {"sampler": sampler}})
        for keys in ({c.key for c in citations(done)}, {c.key for c in citations(planned)}):
            assert keys & {"xiong2024", "song2021", "zhu2023", "chung2023", "chung2024"} == of_it
    assert not {"zhu2023", "xiong2024"} & {c.key for c in citations(parse({"method": "tv"}))}


def test_changed_settings_are_marked_and_no_path_is_shown(tmp_path: Path) -> None:
    settings = parse({"method": "rts", "tkd": {"threshold": 0.25}, "mask": {"file": "/data/Doe_Jane/mask.nii"}})
    page = write_report(scan(tmp_path), "sub-1", settings)
    assert '<code class="changed">tkd.threshold = 0.25</code>' in page
    assert "Doe_Jane" not in page and "mask.file = (a file)" in page


def test_only_the_papers_of_the_steps_used_are_cited() -> None:
    keys = {
        c.key for c in citations({"unwrap": {"method": "romeo"}, "background": {"method": "pdf"}, "invert-rts": {}})
    }
    assert keys == {"qsmconsensus2024", "eckstein2018", "dymerska2021", "liu2011", "kames2018"}
    keys = {c.key for c in citations(parse({"method": "dip"}))}
    assert {"ulyanov2018", "liu2017", "milovic2019", "liu2013"} <= keys and not {"wu2012", "liu2011"} & keys
    assert all(c.url.startswith(("https://doi.org/10.", "https://arxiv.org/abs/")) for c in citations(parse({})))


def test_every_method_has_its_words_and_its_papers() -> None:
    consensus = citations({})
    for method in BACKGROUNDS:
        used = {"background": {"method": method}}
        assert len(citations(used)) > len(consensus), method
        assert f"removed by {method}." not in methods_text(used, "1")
    for method in INVERSIONS:
        used = {f"invert-{method}": {}}
        assert len(citations(used)) > len(consensus), method
        assert f"mapped by {method}." not in methods_text(used, "1")
    assert len({paper.key for paper in PAPERS}) == len({paper.id for paper in PAPERS}) == len(PAPERS)


def test_what_is_planned_is_cited_as_what_was_done() -> None:
    planned = {"mask": {"two_pass": True}, "unwrap": {"method": "laplacian"}, "reference": {"region": "csf"}}
    done = {
        "mask": {"source": "tissue"},
        "unwrap": {"method": "laplacian"},
        "field": {"method": "nonlinear"},
        "background": {"method": "tfi"},
        "r2star": {"method": "loglinear"},
        "invert-rts": {"two_pass": {}, "reference": {"region": "fluid of the ventricles"}},
        "invert-tv": {},
        "swi": {},
    }
    assert citations(done) == citations(parse({**planned, "method": "rts"}))


@pytest.mark.parametrize("methods", [("tv",), ("tfi", "tv"), ("tv", "tfi")])
def test_the_methods_paragraph_says_what_was_done(methods: tuple[str, ...]) -> None:
    used = {"background": {"method": "tfi"}, "quality": {"primary": methods[0]}}
    text = methods_text({**used, **{f"invert-{m}": {} for m in methods}}, "1")
    assert "fitted together with the susceptibility" in text and "local field was inverted" not in text
    places = [text.index({"tv": "total variation", "tfi": "total field"}[m]) for m in methods]
    assert places == sorted(places)
    assert ("for comparison" in text) == (len(methods) > 1)


def test_the_same_work_folder_gives_the_same_page(tmp_path: Path) -> None:
    work = scan(tmp_path)
    assert write_report(work, "sub-1", RTS) == write_report(work, "sub-1", RTS)


def test_a_page_stays_small(tmp_path: Path) -> None:
    work = scan(tmp_path, made=("rts", "tkd", "tv"), grid=oblique((128, 144, 96), (1.2, 1.2, 1.2)))
    page = write_report(work, "sub-1", RTS)
    assert len(page.encode()) < 4_000_000


@pytest.mark.parametrize(("network", "said"), [("educated", True), ("untrained", False)])
def test_the_page_says_whether_a_learned_network_was_fitted_to_the_scan(
    network: str, said: bool, tmp_path: Path
) -> None:
    work = scan(tmp_path, made=("dip", "rts"))
    ending = "no fit: the misfit is 1.23 as it is"
    write(work, "invert-dip", {"chi_ppm": torch.zeros(SHAPE)}, method="dip", network=network, stop_reason=ending)
    page = write_report(work, "sub-1", parse({"method": "dip", "also": ["rts"]}))
    assert (f"Here: {ending}." in page) == said
    assert ("learned on simulated heads and is fitted only" in page) == said
