"""Installs the four rooms of the project; ``pip install -c constraints.txt -e .[test]`` for working on it."""

from setuptools import find_packages, setup

GRAMMARS = ("python", "java", "javascript", "cpp", "c", "go", "rust", "c-sharp", "php", "ruby", "typescript")

setup(
    name="language-experts",
    version="0.1.0",
    description="Turns a dense code model into a mixture of language experts",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["kernels*", "moe*", "checkpoints*", "eval*"]),
    package_data={"moe": ["presets/*.toml"]},
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
