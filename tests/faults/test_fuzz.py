"""Damaged files and odd identities by the thousand: used, ignored or set aside; never an exception, never a wait.

`make soak` runs the large numbers, `make test` small ones.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_dicom import KEY, SENTINEL, TIMES, search, write
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from pipeline.convert import Acquisition, convert
from pipeline.errors import ChironError
from pipeline.find import Scan
from pipeline.identity import internal_id, pseudonym
from pipeline.phase import Phase, to_radians

PATIENCE_S = 300  # after which an export counts as one that hangs
Mutation = Callable[[random.Random, bytearray], bytearray]


@contextmanager
def given_up(what: str) -> Iterator[None]:
    """Ends a test that hangs, and says at what."""

    def hung(*_: object) -> None:
        raise TimeoutError(what)

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def flip(chance: random.Random, content: bytearray) -> bytearray:
    for _ in range(chance.choice((1, 1, 3, 20))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


def flip_in_header(chance: random.Random, content: bytearray) -> bytearray:
    for _ in range(chance.choice((1, 2, 8))):
        content[chance.randrange(128, min(len(content), 2500))] ^= 1 << chance.randrange(8)
    return content


def truncate(chance: random.Random, content: bytearray) -> bytearray:
    return content[: chance.randrange(len(content))]


def cut_out(chance: random.Random, content: bytearray) -> bytearray:
    start = chance.randrange(len(content))
    del content[start : start + chance.choice((1, 2, 8, 100, 1000))]
    return content


def swap_tags(chance: random.Random, content: bytearray) -> bytearray:
    """Two elements' first eight bytes (tag, representation, length) exchanged."""
    one, other = _element(chance, content), _element(chance, content)
    content[one : one + 8], content[other : other + 8] = content[other : other + 8], content[one : one + 8]
    return content


def change_length(chance: random.Random, content: bytearray) -> bytearray:
    at = _element(chance, content) + 6
    content[at : at + 2] = chance.choice((0, 1, 7, 255, 4096, 65534, 65535)).to_bytes(2, "little")
    return content


def change_kind(chance: random.Random, content: bytearray) -> bytearray:
    at = _element(chance, content) + 4
    content[at : at + 2] = chance.choice((b"SQ", b"UN", b"OB", b"DS", b"IS", b"UI", b"PN", b"FD", b"AT", b"??"))
    return content


def overwrite(chance: random.Random, content: bytearray) -> bytearray:
    """A value of an element in other letters."""
    at = _element(chance, content) + 8
    word = chance.choice(
        (b"\0" * 8, b"NaN     ", b"1e400   ", b"-1      ", b"\xff" * 8, b"99999999", b"\\\\\\\\\\\\\\\\")
    )
    content[at : at + 8] = word
    return content


def repeat(chance: random.Random, content: bytearray) -> bytearray:
    start = _element(chance, content)
    return content[:start] + content[start : start + 400] * chance.choice((1, 5)) + content[start:]


def _element(chance: random.Random, content: bytearray) -> int:
    """Where an element with an explicit representation begins, or anywhere."""
    found = [m.start() for m in re.finditer(rb"[\x08\x10\x18\x20\x28]\0..[A-Z]{2}", bytes(content[:20_000]), re.DOTALL)]
    return chance.choice(found) if found else chance.randrange(len(content))


MUTATIONS: list[Mutation] = [
    flip, flip_in_header, truncate, cut_out, swap_tags, change_length, change_kind, overwrite, repeat,
]  # fmt: skip
KINDS = {
    "siemens": ("siemens", {}),
    "philips": ("philips", {}),
    "ge": ("ge", {}),
    "enhanced": ("philips-enhanced", {}),
    "compressed": ("siemens", {"transfer_syntax": RLELossless}),
    "implicit": ("philips", {"transfer_syntax": ImplicitVRLittleEndian}),
    "deflated": ("siemens", {"transfer_syntax": "1.2.840.10008.1.2.1.99"}),
}


def fuzz(folder: Path, files: int, seed: int) -> Counter[str]:
    """Mutate that many files, a few of an export at a time, and read each export; how often what came of it."""
    chance, seen = random.Random(seed), Counter[str]()
    sound = {}
    for name, (vendor, options) in KINDS.items():
        paths = write(folder / "sound" / name, vendor, shape=(6, 8, 3), times=TIMES[:2], **options)
        sound[name] = {path.name: path.read_bytes() for path in paths}
    while seen["files"] < files:
        kind = chance.choice(list(KINDS))
        export = folder / f"{SENTINEL} {kind}"
        shutil.rmtree(export, ignore_errors=True)
        export.mkdir()
        chosen = chance.sample(list(sound[kind]), chance.randint(1, len(sound[kind])))
        for name, content in sound[kind].items():
            damaged = bytearray(content)
            if name in chosen:
                damaged = chance.choice(MUTATIONS)(chance, damaged)
                seen["files"] += 1
            (export / name).write_bytes(damaged)
        seen["exports"] += 1
        with given_up(f"seed {seed}, export {seen['exports']}"):
            found = search(export)
            for scan in found.scans:
                seen["converted" if _converts(scan, folder) else "declined on conversion"] += 1
        seen.update(aside.code for aside in found.set_aside)
    return seen


def _converts(scan: Scan, folder: Path) -> bool:
    try:
        to_radians(convert(scan, Acquisition(), folder / "scratch"), Phase())
    except ChironError as error:
        assert SENTINEL not in str(error) and str(folder) not in str(error)
        return False
    return True


def test_6_mutated_files_are_used_ignored_or_set_aside(tmp_path: Path) -> None:
    seen = fuzz(tmp_path, 300, seed=1)
    assert seen["files"] >= 300 and seen["converted"] > 0 and seen["F003"] > 0


@pytest.mark.slow
def test_6_ten_thousand_mutated_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = fuzz(tmp_path, 10_000, seed=2)
    with capsys.disabled():
        print(dict(seen))
    assert seen["files"] >= 10_000 and seen["converted"] > 100


def every_offset(folder: Path, offsets: range | None) -> int:
    """Truncate the first file of a small export at these offsets; it never passes for whole. How many were tried."""
    (path, *_) = paths = write(folder, "siemens", shape=(4, 4, 2), times=TIMES[:1])
    content = path.read_bytes()
    tried = offsets or range(1, len(content))
    for length in tried:
        path.write_bytes(content[:length])
        found = search(folder)
        assert not found.scans and {a.code for a in found.set_aside} <= {"F003", "F004", "E002", "E001"}, length
        assert found.files_seen == len(paths)
    return len(tried)


@pytest.mark.slow
def test_3_4_truncated_at_every_byte(tmp_path: Path) -> None:
    assert every_offset(tmp_path, None) > 1000


NASTY = st.one_of(
    st.text(max_size=80),
    st.text(alphabet=st.characters(codec=None, categories=None), max_size=40),  # with lone surrogates
    st.text(max_size=20).map(lambda t: t * 500 if len(t) > 9 else f"../{t}\0{t}"),
    st.sampled_from(["", ".", "..", "/", "\\", "CON", "nul", "-rf", "~", "$HOME", "%n%n", "\r\n", "\u202e", "\ufeff"]),
    st.binary(max_size=64).map(lambda b: b.decode("utf-8", "surrogateescape")),
)


def check_identity(identity: str, known: dict[str, str]) -> None:
    """Its label is safe, the same each time, and nobody else's; neither label nor number repeats what it stands for."""
    label, number = pseudonym(KEY, "patient", identity), internal_id(KEY, identity)
    assert re.fullmatch("[a-z2-7]{10}", label) and re.fullmatch("[0-9a-f]{12}", number)
    assert label == pseudonym(bytes(KEY), "patient", identity) and label != pseudonym(KEY[::-1], "patient", identity)
    assert len(identity) < 4 or identity.lower() not in (label, number)
    assert known.setdefault(label, identity) == identity


KNOWN: dict[str, str] = {}


@settings(max_examples=200, deadline=None)
@given(NASTY)
def test_27_31_odd_identities_have_safe_labels_of_their_own(identity: str) -> None:
    check_identity(identity, KNOWN)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(NASTY)
def test_27_31_five_thousand_odd_identities(identity: str) -> None:
    check_identity(identity, KNOWN)
