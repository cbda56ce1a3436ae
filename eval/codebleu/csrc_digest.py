"""A digest of the C sources; ``setup.py`` runs this file, so it imports only the standard library."""

from __future__ import annotations

import hashlib
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"


def sources_digest() -> str:
    """A digest of the C sources as they are; the build writes it into the extension module."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
