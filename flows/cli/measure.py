"""`step`, `evaluate`, `bench`, `grid`: one step's result and its scores; what all steps cost and how well they do."""

from __future__ import annotations

import json as json_format
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from flows import show
from flows.cli.options import Config, Device, Json, MaxSeconds, Method, Set, source, target, time_budget
from models.methods import METHODS
from pipeline.names import did_you_mean, match

Page = Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Write the page there, not to the screen.")]


def step(
    stage: Annotated[
        str,
        typer.Argument(
            help="field-mapping, bfr, dipole, bfr+dipole, end-to-end or super-resolution.", show_default=False
        ),
    ],
    input: Annotated[
        Path,
        typer.Argument(
            metavar="IN", help="Folder of the artefacts that the stage reads.", show_default=False, parser=source
        ),
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder for those it makes.", show_default=False, parser=target)
    ],
    method: Method = None,
    device: Device = None,
    set: Set = None,
    max_seconds: MaxSeconds = None,
) -> None:
    """Run one step alone on NIfTI files, by the public QSM-CI contract.

    Artefacts: phase.nii.gz (4D, radians), magnitude.nii.gz (4D), mask.nii.gz, totalfield.nii.gz, localfield.nii.gz,
    chimap.nii.gz (ppm) and params.json with TE (s), B0 (T), B0_dir and voxel_size (mm). field-mapping also writes the
    mask where none is given.

    super-resolution makes a finer map of chimap.nii.gz or, where there is none, of localfield.nii.gz, and its mask.

    Example: chiron step dipole in out --method tkd --set tkd.threshold=0.2

    Example: chiron step super-resolution in out --set upsample=2,2,1

    Example: chiron step dipole in out --method dip --max-seconds 60
    """
    from flows.step import overrides, run_step
    from flows.watch import watching
    from pipeline import settings as all_settings
    from pipeline.disk import check_folder

    check_folder(input)
    words = [*overrides(input, set or [], method), *time_budget(max_seconds)]
    settings = all_settings.load(None, words, method=method, device=device)
    with watching(show.console(stderr=True), stage, "running") as progress:
        made = run_step(stage, input, output, settings, progress)
    for name in made:
        print(output / name)


def evaluate(
    chi: Annotated[Path, typer.Argument(help="Susceptibility map, NIfTI, ppm.", show_default=False)],
    truth: Annotated[Path, typer.Argument(help="The true one, ppm.", show_default=False)],
    mask: Annotated[Path, typer.Argument(help="Where to compare.", show_default=False)],
    labels: Annotated[Path | None, typer.Option(help="Labels of the 2019 challenge, for scores of regions.")] = None,
    local_field: Annotated[
        Path | None, typer.Option(help="The local field that was inverted, ppm: how well the map explains it.")
    ] = None,
    field_sd: Annotated[
        Path | None, typer.Option(help="That field's standard deviation, ppm; else it is told from the field.")
    ] = None,
    b0_dir: Annotated[
        str | None, typer.Option(metavar="X,Y,Z", help="Direction of B0 in voxel axes; else the scanner's z axis.")
    ] = None,
    json: Json = False,
) -> None:
    """Score a susceptibility map against the truth, inside a mask, all in ppm.

    Errors in per cent: nrmse and dnrmse (after a linear fit), hfen (edges). xsim and xsim_uniform5 (structure, by two
    windows), psnr (dB, with its range R) and r are high where the map is good. streak_index needs no truth.

    With --labels also dnrmse in tissue (thalamus, white and grey matter: 7 to 9), dgm (deep grey nuclei: 1 to 6) and
    blood (veins: 11), the deviation of the nuclei's slope from 1, and where there is a calcification (16) the deviation
    of its moment (ppm x voxels) and the streaks around it. With --local-field also the misfit in units of the noise.

    For repeatability over seeds or agreement over head orientations, give the other map in place of the truth.

    Example: chiron evaluate chimap.nii.gz truth.nii.gz mask.nii.gz --labels labels.nii.gz

    Example: chiron evaluate chimap.nii.gz truth.nii.gz mask.nii.gz --local-field localfield.nii.gz --json
    """
    from flows.score import MEANINGS, score

    direction = _triple(b0_dir) if b0_dir else None
    found = score(chi, truth, mask, labels, local_field, field_sd, direction)
    if json:
        show.as_json(found)
        return
    for name, value in found.items():
        print(f"{name:24}{'none' if value is None else f'{value:.4f}':>12}  {MEANINGS[name]}")


def bench(
    size: Annotated[
        list[str] | None, typer.Option(metavar="XxYxZ", help="Matrix, as 160x160x128; may be repeated.")
    ] = None,
    echoes: Annotated[list[int] | None, typer.Option(help="Number of echoes, 1 to 12; may be repeated.")] = None,
    device: Annotated[
        list[str] | None, typer.Option(help="cpu or cuda:N; may be repeated. Else all there are.")
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP,...",
            help="Steps, or how their names begin, as invert: of invert-METHOD there are all methods. An unknown one "
            "lists them all.",
        ),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Timed runs, of which the median counts.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Only 96x96x96, timed once.")] = False,
    output: Page = None,
) -> None:
    """Measure seconds and peak memory of every step, beside the cost that no implementation of it avoids.

    Each step runs in a process of its own on a simulated head; the page says what its columns mean. All of it takes
    about ten minutes on two cores. What is running is said on stderr.

    Example: chiron bench --size 160x160x128 --echoes 3 --step invert,default-path
    """
    from flows.bench import ECHOES, SIZES, Plan, devices
    from flows.bench import bench as measured
    from flows.bench.page import page
    from flows.bench.steps import steps
    from pipeline.device import pick_device

    if any(not 1 <= count <= 12 for count in echoes or []):
        raise typer.BadParameter("1 to 12 echoes")
    sizes = [_shape(text) for text in size or []] or (SIZES[:1] if quick else SIZES)
    asked = [str(pick_device(name)) for name in device or devices()]
    chosen = _named(step, steps(), "step", by_start=True) or list(steps())
    plan = Plan(sizes, echoes or ECHOES, asked, chosen, 1 if quick else repeat)
    _hand_over(page(list(measured(plan, show.say))), output)


def grid(
    cells: Annotated[
        list[str] | None, typer.Option(metavar="CELL,...", help="Only these; an unknown one lists them all.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="METHOD,...", help=f"Only these, of {', '.join(METHODS)}. Else all classical."),
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(metavar="PART,...", help="dipole, whole, super-resolution, prior, cycle; else the first two."),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="N,...", help="A head of each cell for each; others make others.")
    ] = "1",
    labels: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of label maps (NIfTI, FreeSurfer's codes), used as well.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only the cells of 2 mm.")] = False,
    device: Device = None,
    config: Config = None,
    set: Set = None,
    output: Page = None,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write every metric of every row there.")
    ] = None,
) -> None:
    """Score methods on a grid of simulated heads of known truth: one configuration for all of them.

    A cell is a voxel size, noise, field strength and direction, and lesion. Part `dipole` inverts the true local field,
    part `whole` goes the whole way from the echoes and also scores mask, unwrapping and fields. Rows are said on stderr
    as they are done; a cell takes one to three minutes on two cores. Part `super-resolution` compares the diffusion
    prior with interpolation on the finer voxels that cells of large ones are simulated of, part `prior` shows its
    seams, its cost, lesions and what it makes of noise (half an hour), part `cycle` CycleQSM without its parts, fitted,
    and under a tilted field; --method is not for these.

    Example: chiron grid --quick --method tv --set tv.strength=20

    Example: chiron grid --method tv,dip --labels maps --seeds 1,2 --json scores.json
    """
    from flows.grid import CELLS, PARTS, QUICK, USUAL
    from flows.grid import grid as scored
    from flows.grid.cells import label_maps
    from flows.grid.page import page
    from pipeline import settings as all_settings
    from pipeline.device import pick_device
    from pipeline.invert import CLASSICAL, PARAMS

    chosen = _named(cells, CELLS, "cell") or list(QUICK if quick else CELLS)
    methods = _named(method, PARAMS, "method") or list(CLASSICAL)
    parts = _named(part, PARTS, "part") or USUAL
    settings = all_settings.load(config, set or [], device=device)
    pick_device(settings.device)
    maps = label_maps(labels) if labels else []
    found = scored(chosen, methods, settings, parts=parts, seeds=_numbers(seeds), labels=maps, say=show.say)
    _hand_over(page(found, _configuration(config, set or [])), output)
    if json:
        _hand_over(json_format.dumps(found.json(), indent=1), json)


def _triple(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 3 or not any(found):
        raise typer.BadParameter(f"{text!r} is no direction such as 0,0.1,1")
    return found


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and 24 <= int(part) <= 1024 for part in parts):
        raise typer.BadParameter(f"{text!r} is no size such as 160x160x128, each from 24 to 1024")
    x, y, z = map(int, parts)
    return x, y, z


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of seeds such as 1,2")
    return [int(part) for part in parts]


def _named(given: Iterable[str] | None, known: Collection[str], what: str, by_start: bool = False) -> list[str]:
    """The known names that the words (each one or more, with commas between) ask for."""
    found: list[str] = []
    for word in (word for words in given or [] for word in words.split(",")):
        exact = match(word, known)
        matches = [exact] if exact else [n for n in known if by_start and n.startswith(f"{word.strip().lower()}-")]
        if not matches:
            near = did_you_mean(word, known)
            raise typer.BadParameter(f"no {what} {word!r}.{' ' + near if near else ''} There are {', '.join(known)}")
        found += matches
    return list(dict.fromkeys(found))


def _configuration(config: Path | None, words: Sequence[str]) -> str:
    """What differs from the defaults; of a file only that there was one."""
    changed = [*(["a settings file"] if config else []), *words]
    return "the defaults, with " + ", ".join(changed) if changed else "the defaults"


def _hand_over(text: str, output: Path | None) -> None:
    from pipeline.work import disk_error

    if output is None:
        print(text)
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise disk_error(error) from error
