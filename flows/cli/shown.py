"""Scans to do, as a function of a batch -> the batch done, told on the way on standard error, and its end on output."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from flows import show
from flows.cli.options import INTERRUPTED, NOTHING_DONE

if TYPE_CHECKING:
    from flows.batch import Batch, Outcome
    from flows.crew import Terms


def shown(
    do: Callable[[Batch], None], output: Path, terms: Terms, fail_on_qc: bool = False, as_json: bool = False
) -> Batch:
    """Let `do` fill a batch while a person, or a log, looks on."""
    from flows.batch import Batch
    from flows.engine import last_word
    from flows.screen import is_pipe
    from flows.watch import Board

    beside, out = show.console(stderr=True), show.console()
    board = Board(beside, terms.workers > 1, drawn=as_json or not is_pipe(sys.stdout))

    def ended(how: Outcome) -> None:
        board.ended()
        if not as_json:
            show.outcome(how, output, out)

    batch = Batch(
        output,
        fail_on_qc,
        on_found=lambda found: beside.print(show.counted(found)),
        on_note=beside.print,
        on_work=board.expect,
        on_outcome=ended,
        watch=board.watch,
        terms=terms,
        on_stop=lambda: show.say("stopping; Ctrl-C again ends it at once"),
    )
    try:
        do(batch)
    except KeyboardInterrupt:
        board.close()
        last_word("interrupted; what is done is kept, the same command continues")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        board.close()
    if as_json:
        show.as_json([how.json() for how in batch.outcomes])
    for said in batch.remarks():
        beside.print(said)
    if batch.exit_code() == NOTHING_DONE:
        beside.print("nothing to do")
    return batch
