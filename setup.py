"""CodeBLEU's C extension; everything else about the package is in pyproject.toml."""

import hashlib
from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(Path("eval/codebleu/csrc").glob("*.[ch]"))


def sources_digest() -> str:
    """As in eval/codebleu/native.py, which refuses a module that was built from other sources."""
    digest = hashlib.sha256()
    for path in SOURCES:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


setup(
    ext_modules=[
        Extension(
            "eval.codebleu._native",
            [str(path) for path in SOURCES if path.suffix == ".c"],
            depends=[str(path) for path in SOURCES],
            define_macros=[("SOURCES", f'"{sources_digest()}"')],
            extra_compile_args=["-O2", "-std=c11"],
            optional=True,  # without a compiler everything works, and CodeBLEU is slower
        )
    ]
)
