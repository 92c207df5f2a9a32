"""`step` and `evaluate`: NIfTI files in, one step's result or its scores out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows import show
from flows.cli.options import Device, Json, Method, Set


def step(
    stage: Annotated[
        str, typer.Argument(help="field-mapping, bfr, dipole, bfr+dipole or end-to-end.", show_default=False)
    ],
    input: Annotated[
        Path, typer.Argument(metavar="IN", help="Folder of the artefacts that the stage reads.", show_default=False)
    ],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for those it makes.", show_default=False)],
    method: Method = None,
    device: Device = None,
    set: Set = None,
) -> None:
    """Run one step alone on NIfTI files, by the public QSM-CI contract.

    Artefacts: phase.nii.gz (4D, radians), magnitude.nii.gz (4D), mask.nii.gz, totalfield.nii.gz, localfield.nii.gz,
    chimap.nii.gz (ppm) and params.json with TE (s), B0 (T), B0_dir and voxel_size (mm). field-mapping also writes the
    mask where none is given.

    Example: chiron step dipole in out --method tkd --set tkd.threshold=0.2
    """
    from flows.step import overrides, run_step
    from pipeline import settings as all_settings

    words = overrides(input, set or [], method)
    for name in run_step(stage, input, output, all_settings.load(None, words, method=method, device=device)):
        print(output / name)


def evaluate(
    chi: Annotated[Path, typer.Argument(help="Susceptibility map, NIfTI, ppm.", show_default=False)],
    truth: Annotated[Path, typer.Argument(help="The true one, ppm.", show_default=False)],
    mask: Annotated[Path, typer.Argument(help="Where to compare.", show_default=False)],
    labels: Annotated[Path | None, typer.Option(help="Labels of the 2019 challenge, for scores of regions.")] = None,
    json: Json = False,
) -> None:
    """Score a susceptibility map against the truth: NRMSE, dNRMSE, HFEN, XSIM, PSNR, r, and of regions with --labels.

    Example: chiron evaluate chimap.nii.gz truth.nii.gz mask.nii.gz --json
    """
    from flows.score import score

    found = score(chi, truth, mask, labels)
    if json:
        show.as_json(found)
    else:
        for name, value in found.items():
            print(f"{name:24}{value:10.4f}")
