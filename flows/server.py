"""A listening socket -> Prefect's API on it, or all of Prefect's server, while the process that started it lives."""

from __future__ import annotations

import os
import socket
import sys
import threading

UNHEARD = ("EVENT_PERSISTER", "EVENT_LOGGER", "TRIGGERS")  # without page and automations nobody listens to events

# One write for each of a scan's thirty events would hold SQLite's only lock so often that the scans wait for it.
IN_BATCHES = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}


def serve(listener: socket.socket, everything: bool = False) -> None:
    """Answer on `listener` until standard input ends; `everything` is with the page, the schedules, the automations."""
    os.environ["PREFECT__SERVER_FINAL"] = "1"
    os.environ.update(IN_BATCHES)
    if not everything:
        os.environ.update(PREFECT_UI_ENABLED="0", PREFECT__SERVER_EPHEMERAL="1")
        for service in UNHEARD:  # a scan's events are three quarters of what the database would hold
            os.environ[f"PREFECT_SERVER_SERVICES_{service}_ENABLED"] = "false"
    import uvicorn
    from prefect.server.api.server import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(ephemeral=not everything), log_level="critical", lifespan="on"))
    threading.Thread(target=_end_with_parent, args=[server], daemon=True).start()
    server.run(sockets=[listener])


def _end_with_parent(server: object) -> None:
    sys.stdin.buffer.read()
    server.should_exit = True  # type: ignore[attr-defined]
    threading.Event().wait(3)
    os._exit(0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:] == ["everything"])
