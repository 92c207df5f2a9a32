"""Settings from a file, words and keywords: the later one wins, every one has a meaning, and a wrong one is named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from models.params import check_ranges, param
from pipeline.errors import ChironError
from pipeline.settings import Settings, load, parse, sections

NUMBERS = [
    (section, field)
    for section, params in sections().items()
    for field in dataclasses.fields(params)
    if field.metadata.get("low") is not None
]


def test_every_setting_says_what_it_means() -> None:
    for section, params in sections().items():
        for field in dataclasses.fields(params):
            assert len(field.metadata["help"]) > 10 or field.metadata["help"] == "at most", f"{section}.{field.name}"
    for name, info in Settings.model_fields.items():
        assert name in sections() or info.description, name


def test_every_number_has_a_range_that_holds_its_default() -> None:
    for section, params in sections().items():
        check_ranges(params())
        for field in dataclasses.fields(params):
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                assert None not in (field.metadata["low"], field.metadata["high"]), f"{section}.{field.name}"


@pytest.mark.parametrize(("section", "field"), NUMBERS, ids=lambda v: getattr(v, "name", v))
def test_every_number_is_held_to_its_range(section: str, field: dataclasses.Field[float]) -> None:
    low, high = field.metadata["low"], field.metadata["high"]
    for end in (low, high):
        assert getattr(getattr(load(words=[f"{section}.{field.name}={end:.12g}"]), section), field.name) == end
    for beyond in (low - 1, high * 2 + 1, float("nan")):
        with pytest.raises(ChironError, match="X001") as caught:
            load(words=[f"{section}.{field.name}={beyond}"])
        assert field.name in caught.value.sentence()


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("tv.strenght=3", "tv.strength"),
        ("vsharp.largest=3", "vsharp.largest_mm"),
        ("metod=tv", "method"),
        ("tvv.strength=3", "tv"),
        ("tv.STRENGTH=3", "tv.strength"),
        ("unwrap.bipola=yes", "unwrap.bipolar"),
    ],
)
def test_an_unknown_name_is_met_with_a_near_one(word: str, near: str) -> None:
    with pytest.raises(ChironError) as caught:
        load(words=[word])
    assert caught.value.code == "X001" and caught.value.todo.startswith(f"Did you mean {near}?")


@pytest.mark.parametrize(
    "word",
    [
        "tv.strength",
        "=3",
        "tv=3",
        "method=magic",
        "tv.strength=much",
        "unwrap.bipolar=perhaps",
        "x.y.z=1",
    ],
)
def test_what_is_no_setting_is_a_fault(word: str) -> None:
    with pytest.raises(ChironError, match="X001"):
        load(words=[word])


def test_keywords_come_before_words_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "chiron.toml"
    file.write_text('method = "rts"\ndevice = "cpu"\n[tv]\nstrength = 7\niterations = 9\n[dip]\nchannels = [2, 3]\n')
    settings = load(file, ["tv.strength=8", "device=cuda:1", " tkd.threshold = 0.2 "], device="auto", method=None)
    assert settings.tv.strength == 8 and settings.tv.iterations == 9 and settings.tkd.threshold == 0.2
    assert settings.device == "auto" and settings.method == "rts" and settings.dip.channels == (2, 3)
    assert load(file).tv.strength == 7 and load().tv == sections()["tv"]()


def test_the_last_word_wins() -> None:
    assert load(words=["tv.strength=3", "tv.strength=4"]).tv.strength == 4


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("mask.file=/some where/a=b.nii", "/some where/a=b.nii"),
        ('mask.file="/quoted"', "/quoted"),
        ("mask.file=''", ""),
    ],
)
def test_a_word_may_hold_text(word: str, value: str) -> None:
    assert load(words=[word]).mask.file == value


@pytest.mark.parametrize("content", [b"method = ", b"\xff\xfe", b"[tv]\nstrength = 'x'", b"nothing = 1"])
def test_a_bad_file_is_a_fault(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "secret name.toml").write_bytes(content)
    with pytest.raises(ChironError, match="X001") as caught:
        load(tmp_path / "secret name.toml")
    assert "secret name" not in str(caught.value)
    with pytest.raises(ChironError, match="X001"):
        load(tmp_path / "missing.toml")


def test_settings_survive_json_and_do_not_change() -> None:
    settings = load(
        words=["tv.strength=3", "dip.channels=[4, 5]", "acquisition.echo_times_s=[0.004, 0.01]"], also=("rts",)
    )
    assert parse(settings.model_dump(mode="json")) == settings
    with pytest.raises(ValueError, match="frozen"):
        settings.method = "tkd"


def test_a_range_counts_its_ends_and_leaves_words_and_flags_alone() -> None:
    @dataclasses.dataclass(frozen=True)
    class Params:
        share: float = param(0.5, "a share", 0, 1)
        word: str = param("x", "a word")
        flag: bool = param(True, "a flag", 5, 6)

    check_ranges(Params(0))
    check_ranges(Params(1, "y", False))
    with pytest.raises(ValueError, match=r"share = 1\.01 is outside 0 to 1: a share"):
        check_ranges(Params(1.01))


@pytest.mark.parametrize(
    "words", [["method=tv", "method.x=1"], ["tv=3", "tv.strength=1"], ["dip.channels=[]"], ["dip.channels=[0]"]]
)
def test_words_that_make_no_sense_together_are_told(words: list[str]) -> None:
    with pytest.raises(ChironError, match="X001"):
        load(words=words)
