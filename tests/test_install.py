"""Installation: what plain PyPI resolves to, what the source archive holds, and the other package named `kernels`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest


def uv(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs uv on the default package index alone: no configuration file, no further index, no folder of wheels."""
    program = pytest.importorskip("uv", reason="uv is not installed").find_uv_bin()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    command = [program, "--no-config", "--no-python-downloads", "--quiet", *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def package_index(tmp_path_factory) -> None:
    """Skips where the package index does not answer."""
    wanted = tmp_path_factory.mktemp("index") / "requirements.in"
    wanted.write_text("iniconfig\n")
    once = {"UV_HTTP_RETRIES": "0", "UV_HTTP_TIMEOUT": "10"}
    if uv("--no-cache", "pip", "compile", "--no-deps", str(wanted), **once).returncode:
        pytest.skip("offline: the package index does not answer")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("python", "torch"), [("3.11", "2.13"), ("3.12", "2.13"), ("3.13", "2.13"), ("3.12", "2.11"), ("3.12", "2.15")]
)
def test_plain_pypi_has_every_pinned_version(root, package_index, tmp_path, python, torch):
    """Wheels for each supported Python, and for the oldest and newest torch; judged by metadata alone."""
    constraints = (root / "constraints.txt").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", constraints, re.MULTILINE))
    assert pinned.pop("torch") == "2.13.0"
    (tmp_path / "constraints.txt").write_text(constraints.replace("torch==2.13.0", f"torch=={torch}.*"))
    done = uv(
        *("pip", "compile", "--no-header", "--no-annotate", "--extra", "test", str(root / "pyproject.toml")),
        *("--constraints", str(tmp_path / "constraints.txt")),
        *("--only-binary", ":all:"),
        *("--python-version", python, "--python-platform", "x86_64-manylinux_2_28"),
    )
    assert done.returncode == 0, done.stderr
    versions = dict(line.split("==") for line in done.stdout.splitlines())
    assert pinned.items() <= versions.items()
    assert versions["torch"].startswith(torch)
    assert "triton" in versions


def make(root: Path, *arguments: str) -> list[str]:
    """The commands that make would run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    ours = (
        "PYTHON",
        "VENV",
        "TORCH_INDEX",
        "MAKEFLAGS",
        "MAKEOVERRIDES",
        "MAKELEVEL",
        "MFLAGS",
    )  # of the make that runs the tests
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    command = ["make", "--dry-run", "--always-make", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_make_takes_torch_alone_from_the_given_index(root):
    plain = [line for line in make(root, "demo") if " pip " in line]
    with_index = [line for line in make(root, "demo", "TORCH_INDEX=file:///wheels/simple") if " pip " in line]
    added = [line for line in with_index if line not in plain]
    assert plain == [line for line in with_index if line not in added] and len(plain) == 2
    assert len(added) == 1 and added[0].endswith("--no-deps --index-url 'file:///wheels/simple' torch")
    assert with_index.index(added[0]) < with_index.index(plain[-1]), "the rest would bring another torch first"


def test_make_keeps_an_environment_for_each_python(root):
    assert make(root, "test")[0] == "python3 -m venv .venv"
    assert make(root, "test", "PYTHON=/opt/bin/python3.12")[0] == "/opt/bin/python3.12 -m venv .venv-python3.12"


def test_skipped_tests_are_counted_in_one_line(root, tmp_path):
    (tmp_path / "test_skips.py").write_text(
        "import pytest\n\ndef test_a(shared_data): pass\ndef test_b(shared_data): pass\n"
        "def test_c(): pytest.skip('no reason')\n"
    )
    command = [sys.executable, "-m", "pytest", "-c", str(root / "pyproject.toml"), "-p", "tests.conftest"]
    environment = os.environ | {"SHARED_DIR": str(tmp_path / "missing")}
    done = subprocess.run([*command, str(tmp_path)], cwd=root, env=environment, capture_output=True, text=True)
    assert "3 tests skipped: no shared data folder (set SHARED_DIR): 2; no reason: 1" in done.stdout.splitlines()


def test_the_source_archive_holds_every_file_of_the_rooms(root, tmp_path):
    """Presets, tables and C sources among them, which setuptools finds by pattern; documents may be left out."""
    rooms = ("kernels", "moe", "checkpoints", "eval")
    copy = tmp_path / "copy"
    for room in rooms:
        shutil.copytree(root / room, copy / room, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "train.py", "generate.py"):
        shutil.copy(root / name, copy)
    build = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(copy / "dist" / done.stdout.splitlines()[-1]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    files = {
        str(path.relative_to(copy)) for room in rooms for path in (copy / room).rglob("*.*") if path.suffix != ".md"
    }
    assert len(files) > 100
    assert not files - held


BESIDE = """
import importlib.metadata, json
import kernels, torch, transformers

config = transformers.MistralConfig(
    vocab_size=97, hidden_size=32, intermediate_size=48,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
)
model = transformers.MistralForCausalLM(config).eval()
tokens = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, min_new_tokens=5, do_sample=False)
print(json.dumps([importlib.metadata.version("kernels"), kernels.__file__, list(tokens.shape)]))
"""


@pytest.mark.slow
def test_transformers_generates_beside_the_other_kernels(root, package_index, tmp_path):
    """In the repository ``kernels`` is ours, also where Hugging Face's package of that name is installed.

    Its release is pinned: transformers 5.23 imports names that only theirs has once it finds 0.18.2 or a later 0.18.
    """
    done = uv("pip", "install", "--python", sys.executable, "--target", str(tmp_path), "--no-deps", "kernels==0.17.2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kernels" / "__init__.py").is_file()
    # The current folder comes first, then what stands for site-packages, as in `python -m checkpoints`.
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", BESIDE], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["0.17.2", str(root / "kernels" / "__init__.py"), [1, 8]]
