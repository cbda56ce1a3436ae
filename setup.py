"""CodeBLEU's C extension; everything else about the package is in pyproject.toml."""

import runpy
from pathlib import Path

from setuptools import Extension, setup

SOURCES = sorted(Path("eval/codebleu/csrc").glob("*.[ch]"))
# The extension is loaded only if it was built from the sources that lie beside it.
DIGEST = runpy.run_path("eval/codebleu/csrc_digest.py")["sources_digest"]()

setup(
    ext_modules=[
        Extension(
            "eval.codebleu._native",
            [str(path) for path in SOURCES if path.suffix == ".c"],
            depends=[str(path) for path in SOURCES],
            define_macros=[("SOURCES", f'"{DIGEST}"')],
            extra_compile_args=["-O2", "-std=c11"],
            optional=True,  # without a compiler everything works, and CodeBLEU is slower
        )
    ]
)
