"""A process -> those below it."""

from __future__ import annotations

from pathlib import Path


def below(parent: int, words: str = "") -> list[int]:
    """The process and those that it started, directly or not, whose command holds the words."""
    found, todo = [], [parent]
    while todo:
        pid = todo.pop(0)
        try:
            tasks = Path(f"/proc/{pid}/task").iterdir()
            todo += [int(child) for task in tasks for child in (task / "children").read_text().split()]
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if words in command:
            found.append(pid)
    return found
