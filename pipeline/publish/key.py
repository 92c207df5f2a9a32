"""The pseudonym key of an output folder: its fingerprint stands there, so that no patient gets a second pseudonym.

It stands in the private folder and in every manifest, which tell it where the private folder was deleted.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from pipeline.errors import ChironError
from pipeline.identity import existing_key, load_key, pseudonym
from pipeline.ledger import read_manifests
from pipeline.publish.dataset import private
from pipeline.publish.swap import put_once, write
from pipeline.work import disk_error

NAME = "key-fingerprint"


def key_of(output: Path, file: Path | None = None) -> bytes:
    """The key of `file`, else of this user, for `output`. A first output makes the key; a later one never does.

    X004 where the key is missing or is another one than that of the output, and what `load_key` raises.
    """
    check_key(output, existing_key(file))
    key = load_key(file)
    check_key(output, key)
    return key


def check_key(output: Path, key: bytes | None) -> None:
    """X004 where results in `output` were made with another key, or with one where there is none now."""
    known = recorded(output)
    if key is None:
        if known or read_manifests(output):
            raise ChironError("X004", "no pseudonym key, and results that were made with one", "the key file of OUTPUT")
        return
    if known and known != fingerprint(key):
        raise ChironError("X004", f"a key with the fingerprint {fingerprint(key)}", f"the one with {known}")


def record_key(output: Path, key: bytes) -> None:
    """Record the fingerprint in `output`, which is prepared, unless one stands there. X004 where that is another."""
    check_key(output, key)
    aside = private(output) / f".{NAME}.{secrets.token_hex(8)}"
    try:
        write(aside, fingerprint(key).encode())
        put_once(aside, private(output) / NAME)
    except FileExistsError:
        check_key(output, key)
    except OSError as error:
        raise disk_error(error) from None
    finally:
        aside.unlink(missing_ok=True)


def fingerprint(key: bytes) -> str:
    """Tells two keys apart and tells nothing of either."""
    return pseudonym(key, "fingerprint", length=16)


def recorded(output: Path) -> str:
    """The fingerprint that stands in `output`; empty where none was recorded.

    X004 where it cannot be read, S002 where it is another user's.
    """
    try:
        text = (private(output) / NAME).read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return next((str(key) for r in read_manifests(output) if (key := r.get("key_fingerprint"))), "")
    except PermissionError:
        found = "private files of an output folder that are another user's"
        todo = "Run the command as the user whose folder OUTPUT/.chiron is."
        raise ChironError("S002", found, "its owner", todo) from None
    except (OSError, ValueError):
        text = ""
    if not text:
        todo = f"Where the key is the right one, remove the file {NAME} of OUTPUT/.chiron."
        raise ChironError("X004", "a fingerprint of the key that cannot be read", "what was recorded", todo)
    return text
