"""Shares of entries on standard input -> what is in the files of each, on standard output: a process of `read_all`."""

from __future__ import annotations

import os
import pickle
import sys

from pipeline.find.reading import read


def serve() -> None:
    """Answer until standard input ends."""
    while True:
        try:
            share = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        sys.stdout.buffer.write(pickle.dumps(read(share)))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    os.chdir(sys.argv[1])  # once all is imported: the paths of entries may be relative
    serve()
