"""A TOML file and `section.name=value` words -> all settings of a run, checked, in one model."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.classical import MEDI, NLTV, RTS, TFI, TKD, TV, Tikhonov
from models.cyclegan import CycleGAN
from models.diffusion import Diffusion
from models.dip import DIP
from models.params import check_ranges
from pipeline.background import LBV, PDF, RESHARP, VSHARP, Background
from pipeline.child import working_folder
from pipeline.convert import Acquisition
from pipeline.errors import ChironError
from pipeline.field import Fit
from pipeline.mask import Mask
from pipeline.phase import Phase
from pipeline.r2star import R2Star
from pipeline.swi import SWI
from pipeline.unwrap import Unwrap
from pipeline.water import Reference

Method = Literal[
    "auto", "classical", "tkd", "tikhonov", "rts", "tv", "nltv", "medi", "tfi", "dip", "diffusion", "cyclegan"
]


FINEST = 4.0  # times: beyond that, next to all of a map would be guessed


class Settings(BaseModel):
    """Everything that changes what a run computes or writes. Sections are the parameters of one step each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Method = Field("auto", description="reconstruction to publish: auto is dip on a GPU, else classical")
    also: tuple[Method, ...] = Field((), description="further methods to run and publish beside it")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu or cuda:N")
    keep_work: bool = Field(False, description="keep the stages' files after publication")
    upsample: tuple[float, float, float] = Field(
        (1.0, 1.0, 1.0),
        description="a further map by the diffusion prior on voxels so many times finer along each axis, 1 to 4; one "
        "number counts for all axes, 1 makes none",
    )

    acquisition: Acquisition = Acquisition()
    phase: Phase = Phase()
    mask: Mask = Mask()
    unwrap: Unwrap = Unwrap()
    fit: Fit = Fit()
    background: Background = Background()
    vsharp: VSHARP = VSHARP()
    pdf: PDF = PDF()
    resharp: RESHARP = RESHARP()
    lbv: LBV = LBV()
    reference: Reference = Reference()
    r2star: R2Star = R2Star()
    swi: SWI = SWI()
    tkd: TKD = TKD()
    tikhonov: Tikhonov = Tikhonov()
    rts: RTS = RTS()
    tv: TV = TV()
    nltv: NLTV = NLTV()
    medi: MEDI = MEDI()
    tfi: TFI = TFI()
    dip: DIP = DIP()
    diffusion: Diffusion = Diffusion()
    cyclegan: CycleGAN = CycleGAN()

    @field_validator("upsample", mode="before")
    @classmethod
    def _of_all_axes(cls, value: Any) -> Any:
        """One number counts for all axes; words as `2,2,1` are read too."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
            value = value[0] if len(value) == 1 else value
        return value if isinstance(value, list | tuple) else (value,) * 3

    @field_validator("upsample")
    @classmethod
    def _neither_coarser_nor_too_fine(cls, value: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(1 <= factor <= FINEST for factor in value):
            raise ValueError(f"each factor from 1 to {FINEST:g}")
        return value

    @model_validator(mode="after")
    def _ranges(self) -> Settings:
        for section in sections():
            try:
                check_ranges(getattr(self, section))
            except ValueError as error:
                raise ValueError(f"{section}.{error}") from None
        return self


def finer(settings: Settings) -> bool:
    """Whether a map on finer voxels is asked for."""
    return max(settings.upsample) > 1


def sections() -> dict[str, type]:
    """Section name -> parameter class."""
    hints = get_type_hints(Settings)
    return {name: hints[name] for name in Settings.model_fields if dataclasses.is_dataclass(hints[name])}


def load(file: Path | None = None, words: Iterable[str] = (), base: Settings | None = None, **given: Any) -> Settings:
    """Settings from a TOML file, or `base`, then `section.name=value` words, then keywords that are not None.

    X001 if invalid.
    """
    values: dict[str, Any] = _read(file) if file else base.model_dump(mode="json") if base else {}
    for word in words:
        path, equals, text = word.partition("=")
        if not equals:
            raise ChironError("X001", f"the setting {word!r}", "section.name=value")
        *section, name = path.strip().split(".")
        target = values
        for part in section:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ChironError("X001", f"the setting {path.strip()}", f"{part} to be a section, or a plain value")
        target[name] = _value(text.strip())
    values.update({name: value for name, value in given.items() if value is not None})
    return parse(_with_whole_paths(values))


def _with_whole_paths(values: dict[str, Any]) -> dict[str, Any]:
    """A relative `mask.file` is relative to the person's working folder, where no process of a run works."""
    mask = values.get("mask")
    if not (isinstance(mask, dict) and isinstance(mask.get("file"), str) and mask["file"]):
        return values
    return values | {"mask": mask | {"file": str(working_folder() / mask["file"])}}


def parse(values: dict[str, Any]) -> Settings:
    """Settings of a plain nested dict; X001, naming the setting, where one is unknown or out of range."""
    for name, params in sections().items():
        known = [field.name for field in dataclasses.fields(params)]
        for key in values.get(name, {}) if isinstance(values.get(name), dict) else ():
            if key not in known:
                raise _unknown(f"{name}.{key}", [f"{name}.{k}" for k in known])
    for key in values:
        if key not in Settings.model_fields:
            raise _unknown(key, list(Settings.model_fields))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "the setting " + ".".join(str(part) for part in first["loc"]) if first["loc"] else "a setting"
        raise ChironError("X001", where, first["msg"].removeprefix("Value error, ")) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ChironError("X001", f"a settings file that cannot be read ({error.strerror})", "a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ChironError("X001", f"a settings file that is no TOML ({error})", "a TOML file") from None


def _value(text: str) -> Any:
    """A word's value as TOML reads it, or the bare text."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def _unknown(name: str, known: list[str]) -> ChironError:
    near = difflib.get_close_matches(name, known, 1)
    return ChironError("X001", f"the unknown setting {name}", f"perhaps {near[0]}" if near else ", ".join(known))
