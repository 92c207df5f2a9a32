"""Words of a command line -> the work asked for, its outcome in print, and an exit code.

What is heavy is imported by the command that needs it, so that the others answer at once.
"""

from __future__ import annotations

import errno
import inspect as inspect_module
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Annotated

import typer

from flows import show
from flows.cli.command import Command, InterruptError
from flows.cli.look import doctor, explain, inspect, report, settings, status
from flows.cli.maintain import prune, reconcile, reprocess
from flows.cli.measure import bench, evaluate, grid, step
from flows.cli.options import INTERRUPTED
from flows.cli.reconstruct import demo, run
from flows.cli.serve import deploy, serve, worker
from flows.cli.streams import exit_code, guarded
from flows.cli.train import train
from flows.engine import abort, begin, last_word, leave
from pipeline import __version__, child
from pipeline.disk import disk_error, is_full
from pipeline.errors import ChironError

EXIT_CODES = (
    "Exit codes: 0 done, 1 an error of our own, 2 wrong usage, 10 some scans failed or were set aside, "
    "11 nothing to do, 12 all failed, 13 input unreadable, 14 output or disk space, 15 settings or weights, "
    "16 no such device, 17 another run has the scan, 18 Prefect cannot be reached, "
    "19 quality is red and --fail-on-qc was given, 130 interrupted."
)

app = typer.Typer(
    help="Quantitative susceptibility maps from multi-echo MRI exports. Research use only, not for diagnostic use.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
NO_RUN = EXIT_CODES.replace("17 another run has the scan, 18 Prefect cannot be reached, ", "").replace(
    "19 quality is red and --fail-on-qc was given, ", ""
)


def command(epilog: str | None = None) -> Callable[[Callable[..., None]], object]:
    """Add a command whose help is its docstring, each paragraph of which fills the lines of the terminal."""

    def add(function: Callable[..., None]) -> object:
        paragraphs = inspect_module.cleandoc(function.__doc__ or "").split("\n\n")
        text = "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)
        return app.command(cls=Command, help=text, epilog=epilog)(function)

    return add


command(epilog=EXIT_CODES)(run)
command(epilog=EXIT_CODES)(demo)
command(epilog=EXIT_CODES)(reprocess)
command(epilog="Exit codes: 0 done, 13 no such folder, 14 output or disk space, 18 Prefect.")(reconcile)
command(epilog="Exit codes: 0 done, 13 no such folder, 14 output or disk space, 18 Prefect.")(prune)
command(epilog=EXIT_CODES)(serve)
command(epilog=EXIT_CODES)(deploy)
command(epilog=EXIT_CODES)(worker)
command(epilog=NO_RUN)(inspect)
command(epilog="Exit codes: 0 done, 13 no such folder.")(status)
command(epilog="Exit codes: 0 found, 11 no such subject, 13 no such folder.")(report)
command(
    epilog="Exit codes: 0 done, 2 wrong stage or artefacts, 10 unusable data, 13 no such folder, "
    "14 output or disk space, 15 settings, 16 no such device."
)(step)
command(epilog="Exit codes: 0 done, 2 unreadable files, 10 files that do not fit together.")(evaluate)
command(epilog="Exit codes: 0 done, 2 wrong usage, 14 a page that cannot be written, 16 no such device.")(bench)
command(
    epilog="Exit codes: 0 done, 2 wrong usage or label maps, 13 no such folder, 14 a page that cannot be written, "
    "15 settings, 16 no such device."
)(grid)
command(
    epilog="Exit codes: 0 done, 2 wrong usage or files, 13 no such folder, 14 output or disk space, 15 settings, "
    "16 no such device."
)(train)
command(epilog="Exit codes: 0 well, 14 OUTPUT, 15 an installation or key that is wrong, 16 the device, 18 Prefect.")(
    doctor
)
command()(settings)
command(epilog="Exit codes: 0 done, 2 no such code.")(explain)


def main() -> None:
    """Run the command and leave at once: no library's exit hook may keep a finished command waiting."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # as a shell has it for a command in the background
            signal.signal(number, _stop)
    child.close()
    with guarded() as out:
        try:
            code = execute(sys.argv[1:])
        except KeyboardInterrupt:  # before a command had begun, or after its end
            last_word("interrupted")
            code = INTERRUPTED
        if code == INTERRUPTED:
            child.kill_companions()
    leave(exit_code(code, out))


def execute(words: Sequence[str]) -> int:
    """Run one command; returns its exit code. Every error is printed, none is raised."""
    begin()
    try:
        app(args=list(words), prog_name="chiron")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except InterruptError:
        last_word("interrupted")
        return INTERRUPTED
    except ChironError as error:
        show.error(error)
        return error.fault.exit
    except Exception as error:
        if _interrupts:  # a library that failed at the interrupt
            last_word("interrupted")
            return INTERRUPTED
        fault = _coded(error)
        show.error(fault)
        if os.environ.get("CHIRON_TRACE"):
            traceback.print_exc()
        return fault.fault.exit
    return 0


def _coded(error: Exception) -> ChironError:
    """S001 or S002 for a disk that is full or read-only wherever it was met; else R005, an error of our own."""
    if isinstance(error, OSError) and (is_full(error) or error.errno == errno.EROFS):
        return disk_error(error)
    return ChironError("R005", f"an unexpected {type(error).__name__}", "", "Set CHIRON_TRACE=1 to see the trace.")


_interrupts: list[int] = []


def _stop(number: int, frame: FrameType | None) -> None:
    """The first SIGINT or SIGTERM stops the work; the second ends the process at once."""
    if _interrupts:
        abort("interrupted")
    _interrupts.append(number)
    raise KeyboardInterrupt


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False) -> None:
    if version:
        print(f"chiron {__version__}")
        raise typer.Exit
