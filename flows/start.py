"""The command `chiron`: an interrupt while it is still being read ends it without a trace of Python's."""

import signal


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from flows.cli import main

    main()
