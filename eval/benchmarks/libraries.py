"""Libraries outside a language's own that benchmarks need: whether they are installed, and what installs them."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from eval.execution import PACKAGES, missing_tools

# Where distributions and npm -g put Node's modules.
_NODE_FOLDERS = ("/usr/local/lib/node_modules", "/usr/lib/node_modules", "/usr/share/nodejs")
# Headers by the start of their name: Debian's package, and what the linker needs.
_HEADERS = {"boost/": ("libboost-dev", ()), "openssl/": ("libssl-dev", ("-lcrypto",))}
_NODE_MODULE = re.compile(
    r"""(?:\brequire\(|^[ \t]*import\b(?:[^'";]*\bfrom)?)\s*['"]([^'".][^'"]*)['"]""",
    re.MULTILINE,
)


@dataclass
class Libraries:
    """What a program needs besides its language: missing ones in words, Node's folders, flags for the linker."""

    missing: list[str] = field(default_factory=list)
    paths: tuple[Path, ...] = ()
    flags: tuple[str, ...] = ()


def missing_toolchain(language: str) -> str | None:
    """What to install before ``language`` can be run, None when all is there."""
    tools = missing_tools(language)
    return f"{' and '.join(tools)}; install {PACKAGES[tools[0]]}" if tools else None


def find_libraries(language: str, program: str, needed: str) -> Libraries:
    """Finds the libraries that ``program`` uses; those that ``needed``, a part of it, uses are required.

    needed: what does not come from a model: prompt, tests, the benchmark's own solution.
    """
    found = Libraries()
    if language == "javascript":
        folders = {name: node_folder(name) for name in _node_modules(program)}
        found.paths = tuple(dict.fromkeys(folder for folder in folders.values() if folder is not None))
        found.missing = [f"{name} (npm install {name})" for name in _node_modules(needed) if folders[name] is None]
    elif language == "cpp":
        for prefix, (package, flags) in _HEADERS.items():
            headers = [name for name in _includes(program) if name.startswith(prefix)]
            if headers and has_header(headers[0]):
                found.flags += flags
            elif any(name.startswith(prefix) for name in _includes(needed)):
                found.missing.append(f"{headers[0]} (apt-get install {package})")
    elif language == "python":
        found.missing = [f"{name} (pip install {name})" for name in _imports(needed) if not has_module(name)]
    return found


def _node_modules(text: str) -> Sequence[str]:
    """Names of modules that JavaScript loads and that are not Node's own."""
    modules = []
    for name in _NODE_MODULE.findall(text):
        parts = name.split("/")
        top = "/".join(parts[:2]) if name.startswith("@") else parts[0]
        if not top.startswith("node:") and top not in _node_builtins():
            modules.append(top)
    return list(dict.fromkeys(modules))


@cache
def _node_builtins() -> frozenset[str]:
    node = shutil.which("node")
    if node is None:
        return frozenset()
    command = [node, "-p", "require('module').builtinModules.join(' ')"]
    return frozenset(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.split())


@cache
def node_folder(name: str) -> Path | None:
    """The ``node_modules`` folder that holds the module: here or above, of ``NODE_PATH``, or the system's."""
    here = [folder / "node_modules" for folder in (Path.cwd(), *Path.cwd().parents)]
    listed = [Path(folder) for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
    candidates = [*here, *listed, *map(Path, _NODE_FOLDERS)]
    return next((folder for folder in candidates if (folder / name).is_dir()), None)


@cache
def return_checks() -> tuple[str, ...]:
    """Flags that report a function's end that is reached without a return, instead of one that might be."""
    flags = ("-Wno-error=return-type", "-fsanitize=return", "-fno-sanitize-recover=return")
    return flags if _compiles("int main() {}\n", *flags, "-o", os.devnull) else ()


def _compiles(source: str, *flags: str) -> bool:
    compiler = shutil.which("g++")
    if compiler is None:
        return False
    command = [compiler, "-x", "c++", "-", *flags]
    return subprocess.run(command, input=source, text=True, capture_output=True, timeout=60).returncode == 0


def _includes(text: str) -> list[str]:
    return re.findall(r"^[ \t]*#[ \t]*include[ \t]*[<\"]([^>\"\n]+)[>\"]", text, re.MULTILINE)


@cache
def has_header(name: str) -> bool:
    """Whether the C++ compiler finds the header."""
    return _compiles(f"#if !__has_include(<{name}>)\n#error\n#endif\n", "-E", "-o", os.devnull)


def _imports(text: str) -> list[str]:
    """Modules that Python code imports anywhere, by their first name; none for code that does not parse."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module)
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


@cache
def has_module(name: str) -> bool:
    """Whether the Python that runs answers finds the module."""
    return name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None
