"""Installs the four rooms of the project; ``pip install -c constraints.txt -e .[test]`` for working on it."""

import runpy
from pathlib import Path

from setuptools import Extension, find_packages, setup

GRAMMARS = ("python", "java", "javascript", "cpp", "c", "go", "rust", "c-sharp", "php", "ruby", "typescript")
C_SOURCES = sorted(Path("eval/codebleu/csrc").glob("*.[ch]"))
# The extension is loaded only if it was built from the sources that lie beside it.
SOURCES_DIGEST = runpy.run_path("eval/codebleu/csrc_digest.py")["sources_digest"]()

setup(
    name="language-experts",
    version="0.1.0",
    description="Turns a dense code model into a mixture of language experts",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["kernels*", "moe*", "checkpoints*", "eval*"]),
    package_data={"moe": ["presets/*.toml"], "eval.codebleu": ["csrc/*"]},
    ext_modules=[
        Extension(
            "eval.codebleu._native",
            [str(path) for path in C_SOURCES if path.suffix == ".c"],
            depends=[str(path) for path in C_SOURCES],
            define_macros=[("SOURCES", f'"{SOURCES_DIGEST}"')],
            extra_compile_args=["-O2", "-std=c11"],
            optional=True,  # without a compiler everything works, and CodeBLEU is slower
        )
    ],
    py_modules=["train", "generate"],
    install_requires=[
        "torch>=2.11",
        'triton>=3.6; platform_system == "Linux" and platform_machine == "x86_64"',
        "numpy",
        "safetensors>=0.5",
        "sentencepiece>=0.2.3",  # earlier ones end the process when a text has too few pairs to merge
        "tokenizers>=0.21",
        "gguf>=0.17",
        "rich>=13",
        "tqdm",
        "tree-sitter>=0.25",
        *(f"tree-sitter-{name}" for name in GRAMMARS),
    ],
    extras_require={
        "tensorboard": ["tensorboard"],
        "plots": ["matplotlib"],
        "test": [
            "hypothesis",
            "jinja2",
            "matplotlib",
            "mistral-common",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "tensorboard",
            "transformers>=5",
        ],
    },
)
