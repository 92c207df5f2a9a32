"""A listening socket -> Prefect's API on it, without page and schedules, while the process that started it lives."""

from __future__ import annotations

import os
import socket
import sys
import threading


def serve(listener: socket.socket) -> None:
    """Answer on `listener` until standard input ends."""
    os.environ.update(PREFECT_UI_ENABLED="0", PREFECT__SERVER_EPHEMERAL="1", PREFECT__SERVER_FINAL="1")
    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=True), log_level="critical", lifespan="on"))
    threading.Thread(target=_end_with_parent, args=[server], daemon=True).start()
    server.run(sockets=[listener])


def _end_with_parent(server: object) -> None:
    sys.stdin.buffer.read()
    server.should_exit = True  # type: ignore[attr-defined]
    threading.Event().wait(3)
    os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
