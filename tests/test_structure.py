"""Architecture rules: import directions, no circles, no command line in the model, file length, no pickle.

docs/architecture.md says what each room is for.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("train", "generate")
MAX_LINES = 400
COMMANDS = ("moe.data.__main__",)  # a command line inside a room that has none: a script by its imports
# Rooms from the ground floor up, and the floors inside a room: a module may import what stands before it in its list,
# and its own folder. "" are the files at the top of the room.
ROOMS = ("kernels", "moe", "checkpoints", "eval", "scripts")
FLOORS = {
    "kernels": ("", "cpu", "gpu", "bench"),
    "moe": ("", "tokenizer", "data", "inference", "serving", "training"),
    "checkpoints": ("storage", "formats", "", "transforms", "runs", "commands"),
}
# Modules that stand at the top of a room and reach further up than its other files, to the floor named.
HIGHER = {
    "kernels.ops": "gpu",  # operations call the implementation for the device
    "kernels.custom_ops": "gpu",
    "kernels.benchmark": "bench",  # commands
    "kernels.compile_check": "bench",
    "checkpoints.streamed_proof": "transforms",
    "checkpoints.benchmark": "commands",
    "checkpoints.__main__": "commands",
}


@cache
def modules() -> dict[str, Path]:
    """Every product module by its dotted name."""
    found = {name: ROOT / f"{name}.py" for name in SCRIPTS}
    for room in ROOMS[:-1]:
        for path in (ROOT / room).rglob("*.py"):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


@cache
def imports(module: str) -> frozenset[str]:
    """Our own modules that ``module`` imports anywhere: lazily and for type checking, too."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports relatively; write the whole name"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & modules().keys() or {node.module}
    return frozenset(found & modules().keys()) - {module}


def room(module: str) -> str:
    first = module.split(".")[0]
    return "scripts" if first in SCRIPTS or module in COMMANDS else first


def floor(module: str) -> str:
    """The folder inside the room; "" for the room's own files."""
    parts = module.split(".")
    inside = len(parts) > 2 or modules()[module].name == "__init__.py"
    return parts[1] if len(parts) > 1 and inside else ""


def strings(module: str) -> list[str]:
    """String constants that are not docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree(module))
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    constants = (n for n in ast.walk(tree(module)) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return [node.value for node in constants if id(node) not in docs]


def test_rooms_import_downwards():
    wrong = [
        f"{module} imports {other}"
        for module in modules()
        for other in imports(module)
        if ROOMS.index(room(other)) > ROOMS.index(room(module))
    ]
    assert not wrong, "\n".join(wrong)


def test_floors_inside_a_room_import_downwards():
    wrong = []
    for module in modules():
        floors = FLOORS.get(room(module), ())
        for other in imports(module) if floors else ():
            if room(other) != room(module) or floor(module) == floor(other):
                continue
            if floors.index(floor(other)) > floors.index(HIGHER.get(module, floor(module))):
                wrong.append(f"{module} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_devices_do_not_know_each_other():
    for module in modules():
        if floor(module) in ("cpu", "gpu") and room(module) == "kernels":
            other = "gpu" if floor(module) == "cpu" else "cpu"
            assert not any(m.startswith(f"kernels.{other}") for m in imports(module)), module


def test_products_do_not_import_the_oracle():
    users = {m for m in modules() if "kernels.reference" in imports(m)}
    assert all(floor(m) == "bench" or m == "kernels.benchmark" for m in users), users


def test_codebleu_stands_alone():
    for module in modules():
        if module.startswith("eval.codebleu."):
            assert all(m.startswith("eval.codebleu") for m in imports(module)), (module, imports(module))


def test_synthetic_data_have_one_door():
    inside = "moe.data.synthetic"
    wrong = {
        module: sorted(other for other in imports(module) if other.startswith(inside + "."))
        for module in modules()
        if not module.startswith(inside)
    }
    assert not {m: o for m, o in wrong.items() if o}


def test_no_import_circles():
    """Packages' empty ``__init__`` files aside, no module can be reached from itself."""
    try:
        TopologicalSorter({module: imports(module) for module in modules()}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("name", ROOMS[:-2])
def test_no_room_starts_one_above_it_by_name(name):
    above = ROOMS[ROOMS.index(name) + 1 : -1]
    starts = re.compile(rf"^(?:{'|'.join(above)})\.[\w.]+$|^(?:train|generate)\.py$")
    for module in modules():
        if room(module) == name:
            assert not [text for text in strings(module) if starts.match(text)], module


def test_the_model_has_no_command_line():
    """moe parses no arguments, prints nothing, and its messages name settings, not flags."""
    flag = re.compile(r"(?:^|[\s`'\"(])--[a-z][a-z-]+")
    wrong = []
    for module in (name for name in modules() if room(name) == "moe"):
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"):
                wrong.append(f"{module}:{node.lineno} calls {node.func.id}")
            if isinstance(node, ast.Attribute) and node.attr in ("argv", "stdin", "stdout", "stderr"):
                wrong.append(f"{module}:{node.lineno} uses {node.attr}")
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                wrong += [f"{module} imports {name}" for name in names & {"argparse", "argv", "rich"}]
        if not module.startswith("moe.data.synthetic"):  # its C++ and Java have --i
            wrong += [f"{module} names a flag: {text!r}" for text in strings(module) if flag.search(text)]
    assert not wrong, "\n".join(wrong)


def test_files_stay_readable():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_LINES}


def test_nothing_is_unpickled():
    for module, path in modules().items():
        text = path.read_text(encoding="utf-8")
        assert "pickle.load" not in text and "torch.load(" not in text, module
