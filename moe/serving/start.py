"""What ``generate.py --serve PORT`` does; the only part that loads without the server's libraries."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from moe.errors import UserError
from moe.inference.answers import Writer

WAITING = 256  # requests that may wait for a place in the batch


def open_port(port: int) -> socket.socket:
    """A socket for :func:`serve`; raises :class:`UserError` where a port is taken or a library is missing."""
    try:
        from moe.serving.app import listen
    except ImportError as error:
        raise UserError(f"the server needs {error.name}; type: pip install starlette uvicorn") from None
    return listen(port)


def serve(writer: Writer, model: Path, listener: socket.socket, rows: int, say: Callable[[str], object]) -> None:
    """Serves a model under the name of its run or folder until Ctrl-C or SIGTERM."""
    from moe.serving.app import Service

    model = model.resolve()
    name = model.parent.name if model.name == "model" else model.name
    service = Service(writer, name, listener, rows, WAITING)
    service.run(lambda: say(f"serving {name!r} at {service.url}; Ctrl-C stops"))
    say("stopped")
