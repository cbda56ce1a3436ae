"""The house rules that a reader relies on: imports go one way, files stay readable."""

from __future__ import annotations

import ast
from pathlib import Path

ROOMS = ("kernels", "moe", "checkpoints", "eval", "scripts")
SCRIPTS = ("train.py", "generate.py")


def room_of(path: Path, root: Path) -> str:
    first = path.relative_to(root).parts[0]
    return "scripts" if first in SCRIPTS else first


def sources(root: Path) -> list[Path]:
    files = [p for room in ROOMS[:-1] for p in (root / room).rglob("*.py")]
    return files + [root / name for name in SCRIPTS if (root / name).exists()]


def imported_modules(path: Path, root: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(root).parts[:-1]
            base = package[: len(package) - node.level + 1] if node.level else ()
            found.add(".".join((*base, node.module or "")).strip("."))
    return found


def test_imports_go_one_way(root):
    wrong = []
    for path in sources(root):
        own = ROOMS.index(room_of(path, root))
        for module in imported_modules(path, root):
            first = module.split(".")[0]
            room = "scripts" if f"{first}.py" in SCRIPTS else first
            if room in ROOMS and ROOMS.index(room) > own:
                wrong.append(f"{path.relative_to(root)} imports {module}")
    assert not wrong, wrong


def test_codebleu_stands_alone(root):
    for path in (root / "eval" / "codebleu").rglob("*.py"):
        ours = {m for m in imported_modules(path, root) if m.split(".")[0] in ROOMS}
        assert all(m.startswith("eval.codebleu") for m in ours), (path, ours)


def test_the_model_knows_no_command_line_and_kernels_know_no_files(root):
    for path in (root / "moe").rglob("*.py"):
        assert "argparse" not in imported_modules(path, root), path


def test_files_stay_readable(root):
    long = {str(p.relative_to(root)): n for p in sources(root) if (n := len(p.read_text().splitlines())) > 420}
    assert not long, long


def test_nothing_is_unpickled(root):
    for path in sources(root):
        text = path.read_text(encoding="utf-8")
        assert "pickle.load" not in text and "torch.load(" not in text, path
