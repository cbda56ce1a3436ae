"""A file of answers that grows while they are written, and continues after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.storage.files import read_json_object
from moe.errors import UserError
from moe.files import json_bytes, json_lines, read_json_lines, replace_file, write_json_lines


class AnswersFile:
    """A JSON Lines file that grows by an answer at a time, and continues after the process was killed.

    Rows come in the order in which answers are done, each with its ``number``, and are on the disk when :meth:`add`
    returns. Until :meth:`finish` puts them in order, a file beside it, ``*.unfinished``, holds what they depend on.

    Args:
        settings: what the answers depend on, JSON-able; a file that was begun with others is not continued.
        force: begin anew.

    Raises:
        UserError: the file exists, and was not left unfinished with these settings.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], force: bool = False):
        self.path = Path(path)
        self.note = self.path.with_name(self.path.name + ".unfinished")
        self.rows: dict[int, dict[str, Any]] = {}
        if self.path.exists() and not force:
            self._continue(settings)
        else:
            replace_file(self.note, json_bytes(dict(settings)))
            replace_file(self.path, b"")

    def _continue(self, settings: Mapping[str, Any]) -> None:
        if not self.note.exists():
            raise UserError(f"{self.path} exists; give another --output or --force to replace it")
        if read_json_object(self.note) != json.loads(json_bytes(dict(settings))):
            raise UserError(
                f"{self.path} was begun with other prompts, settings or another model; give those, another --output, "
                "or --force to begin anew"
            )
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):  # a line that a kill cut short
            with self.path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)
        for place, (_, row) in enumerate(read_json_lines(self.path, "answers")):
            self.rows[row.pop("number", place)] = row  # a kill may come after :meth:`finish` put them in order

    def add(self, number: int, row: dict[str, Any]) -> None:
        """Adds a row and flushes it to the disk."""
        with self.path.open("ab") as file:
            file.write(json_lines([{**row, "number": number}]).encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows[number] = row

    def finish(self) -> None:
        """Puts the rows in the order of their numbers, which they lose; atomic."""
        write_json_lines(self.path, [row for _, row in sorted(self.rows.items())])
        self.note.unlink()
