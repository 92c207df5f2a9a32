"""A secret key of this installation, and anything that identifies -> a label that tells nothing without the key."""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pipeline.disk import is_full
from pipeline.errors import ChironError

KEY_BYTES = 32
LABEL = re.compile(r"[A-Za-z0-9]{1,64}")
Labels = Mapping[str, str]  # patient identity -> label


def load_key(file: Path | None = None) -> bytes:
    """The key of `file`, of $CHIRON_KEY_FILE or of the user's configuration; made at first use, for its owner only.

    X002 where the file is no key or others may read it; S002 where it cannot be made.
    """
    path = file or key_file()
    try:
        return _read(path)
    except FileNotFoundError:
        return _make(path)


def existing_key(file: Path | None = None) -> bytes | None:
    """The key that `load_key` gives; None where there is none yet, or its place cannot be reached. Writes nothing.

    X002 where the file is no key or others may read it.
    """
    try:
        path = file or key_file()
        path.stat()
    except (OSError, ChironError):
        return None
    return _read(path)


def key_file() -> Path:
    """Where the key stands: $CHIRON_KEY_FILE, else $XDG_CONFIG_HOME/chiron/pseudonym.key; S002 without a home."""
    named = os.environ.get("CHIRON_KEY_FILE")
    if named:
        return Path(named)
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else _home() / ".config") / "chiron" / "pseudonym.key"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # no $HOME, and the system knows no such user
        todo = "Set CHIRON_KEY_FILE to where the key of the pseudonyms shall stand."
        raise ChironError("S002", "no home folder for the pseudonym key", "$HOME or $CHIRON_KEY_FILE", todo) from None


def load_labels(file: Path) -> Labels:
    """A site's own labels: a table of PatientID and label, tab or comma between them, a line a patient.

    A first line of column names may stand above. X002 where others may read the file, or it is no such table; G005
    where two patients have one label (small and capital letters are the same to many disks), or one patient two.
    """
    labels: dict[str, str] = {}
    owner: dict[str, str] = {}
    for line, patient, label in _rows(_private_text(file)):
        if labels.setdefault(patient, label) != label:
            raise ChironError("G005", f"two labels for the patient of line {line}", "one", "Correct the table.")
        if owner.setdefault(label.lower(), patient) != patient:
            raise ChironError("G005", f"the label of line {line} for a second patient", "one", "Correct the table.")
    return labels


def label_of(labels: Labels, patient: str) -> str | None:
    """The site's label of a patient, by its whole identity or, before the backslash, without who issued it."""
    return labels.get(patient) or labels.get(patient.partition("\\")[0])


def pseudonym(key: bytes, *parts: str, length: int = 10) -> str:
    """Lower-case letters and digits 2 to 7 (BIDS-safe): keyed HMAC-SHA256 of `parts`, five bits a character."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        text = _bytes(part)
        mac.update(len(text).to_bytes(8, "big") + text)
    return base64.b32encode(mac.digest()).decode("ascii").lower()[:length]


def internal_id(key: bytes, *parts: str) -> str:
    """12 hex digits that name a scan where nothing identifying may stand."""
    return hmac.new(key, _bytes("\0".join(parts)), hashlib.sha256).hexdigest()[:12]


def _bytes(text: str) -> bytes:
    """Any text, also one that a wrong character set left in pieces."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _private_text(file: Path) -> str:
    try:
        mode, text = file.stat().st_mode, file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ChironError("X002", "a table of labels that is no text in UTF-8", "PatientID, a tab, label") from None
    except OSError as error:
        raise ChironError("X002", f"a table of labels that cannot be read ({error.strerror})", "a file") from None
    if mode & 0o077:
        raise ChironError("X002", "a table of labels that others may read", "mode 0600", "chmod 600 the table.")
    return text


def _rows(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, patient and label of every line that is not empty, but for one of column names at the top."""
    delimiter = "\t" if "\t" in text else ","
    for number, line in enumerate(text.splitlines(), 1):
        cells = _cells(line, delimiter)
        named = number == 1 and [re.sub("[ _]", "", cell.lower()) for cell in cells] == ["patientid", "label"]
        if named or not any(cells):
            continue
        if len(cells) != 2 or not cells[0] or not LABEL.fullmatch(cells[1]):
            expected = "a PatientID, a tab or comma, and a label of at most 64 letters and digits, without sub-"
            raise ChironError("X002", f"line {number} of the table of labels, which is none", expected)
        yield number, cells[0], cells[1]


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip(" \0") for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:  # a cell beyond all bounds
        return [line]


def _read(path: Path) -> bytes:
    try:
        mode, key = path.stat().st_mode, path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ChironError("X002", f"a pseudonym key that cannot be read ({error.strerror})", "a key file") from None
    if mode & 0o077:
        raise ChironError("X002", "a pseudonym key that others may read", "mode 0600", "chmod 600 the key file.")
    if len(key) < KEY_BYTES:
        raise ChironError("X002", f"a pseudonym key of {len(key)} bytes", f"at least {KEY_BYTES} random bytes")
    return key


def _make(path: Path) -> bytes:
    """Write a new key aside and link it into place, so that of two first runs one key wins, and it is whole."""
    key = secrets.token_bytes(KEY_BYTES)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(key)
            stream.flush()
            os.fsync(stream.fileno())
        path.hardlink_to(aside)
    except FileExistsError:
        return _read(path)
    except OSError as error:
        code = "S001" if is_full(error) else "S002"
        found = f"a pseudonym key that cannot be written ({error.strerror})"
        raise ChironError(code, found, "a private folder with room") from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    return key
