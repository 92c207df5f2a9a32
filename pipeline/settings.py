"""A TOML file and `section.name=value` words -> all settings of a run, checked, in one model."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.classical import MEDI, NLTV, RTS, TFI, TKD, TV, Tikhonov
from models.cyclegan import CycleGAN
from models.diffusion import Diffusion
from models.dip import DIP
from models.methods import Choice
from models.params import check_ranges, filled, is_whole, unset
from pipeline.background import LBV, PDF, RESHARP, VSHARP, Background
from pipeline.child import working_folder
from pipeline.convert import Acquisition
from pipeline.device import device_name
from pipeline.errors import CATALOGUE, ChironError
from pipeline.field import Fit
from pipeline.mask import Mask
from pipeline.names import did_you_mean, meant
from pipeline.phase import Phase
from pipeline.r2star import R2Star
from pipeline.swi import SWI
from pipeline.unwrap import Unwrap
from pipeline.water import Reference

PRESET: dict[str, type] = {"dip": DIP, "cyclegan": CycleGAN}  # sections with presets
FINEST = 4.0  # times: beyond that, next to all of a map would be guessed


class Settings(BaseModel):
    """Everything that changes what a run computes or writes. Sections are the parameters of one step each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Choice = Field("auto", description="reconstruction to publish: auto is dip on a GPU, else classical")
    also: tuple[Choice, ...] = Field((), description="further methods to run and publish beside it")
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

    @model_validator(mode="before")
    @classmethod
    def _presets(cls, values: Any) -> Any:
        """What a preset gives stands where nothing else is asked for, so that the settings say what is really used."""
        if not isinstance(values, dict):
            return values
        sections = {name: filled(PRESET[name], values[name]) for name in PRESET if isinstance(values.get(name), dict)}
        return {**values, **sections}

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
    asked = list(words)
    for group in PRESET:
        presets = [word for word in asked if word.partition("=")[0].strip() == f"{group}.preset"]
        before, preset = values.get(group, {}), presets[-1].partition("=")[2].strip() if presets else ""
        if preset and is_whole(PRESET[group], before) and _value(preset) != before["preset"]:
            values[group] = unset(PRESET[group], before)
    for word in asked:
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
    """Settings of a plain nested dict; X001, naming the setting, where one is unknown or out of range.

    R001 where the device is no device's name.
    """
    for name, params in sections().items():
        known = [field.name for field in dataclasses.fields(params)]
        for key in values.get(name, {}) if isinstance(values.get(name), dict) else ():
            if key not in known:
                raise _unknown(key, known, name)
    for key in values:
        if key not in Settings.model_fields:
            raise _unknown(key, list(Settings.model_fields))
    try:
        settings = Settings.model_validate(_named(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "the setting " + ".".join(str(part) for part in first["loc"]) if first["loc"] else "a setting"
        message = first["msg"].removeprefix("Value error, ")
        found, outside, limits = message.partition(" is outside ")
        if outside:
            raise ChironError("X001", f"the setting {found}", limits) from None
        if first["type"] in ("tuple_type", "list_type"):
            message = "a list, such as [0.004, 0.01]"
        raise ChironError("X001", where, message) from None
    if settings.cyclegan.preset == "seed" and settings.cyclegan.consistency and "cyclegan" in values:
        raise ChironError("X001", "cyclegan.consistency with preset=seed", "a preset whose network has learned it")
    return settings


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


def _unknown(name: str, known: list[str], section: str = "") -> ChironError:
    place = f"{section}." if section else ""
    near = did_you_mean(name, known, CATALOGUE["X001"].todo).replace("Did you mean ", f"Did you mean {place}")
    where = f"a setting of [{section}]: " if section else ""
    return ChironError("X001", f"the unknown setting {place}{name}", where + ", ".join(known), near)


def _named(values: dict[str, Any]) -> dict[str, Any]:
    """The values with each choice by its own name, whatever its case; X001, with the nearest, for one that is none."""
    named = dict(values)
    if isinstance(named.get("device"), str):
        named["device"] = device_name(named["device"])
    if isinstance(named.get("method"), str):
        named["method"] = meant(str(named["method"]), get_args(Choice), "method", "X001")
    if isinstance(also := named.get("also"), str | list | tuple):
        words = also.split(",") if isinstance(also, str) else also
        named["also"] = [meant(str(word), get_args(Choice), "method", "X001") for word in words if word != ""]
    for section, params in sections().items():
        if isinstance(values.get(section), dict):
            named[section] = _choices(section, params, values[section])
    return named


def _choices(section: str, params: type, values: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(params)
    return {
        name: meant(value, get_args(hints[name]), f"value of {section}.{name}", "X001")
        if isinstance(value, str) and get_origin(hints[name]) is Literal
        else value
        for name, value in values.items()
    }
