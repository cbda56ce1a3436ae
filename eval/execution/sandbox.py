"""Runs one program in a sandbox: bubblewrap, Linux namespaces, or resource limits alone.

A program sees ``/usr`` and the folders of its tools, read-only, and an empty ``/tmp`` of limited size as its home and
working folder. Data go in and come out through two pipes; standard output goes nowhere, standard error is for messages.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from eval.execution.limits import MODES, Limits, Mode
from moe.errors import UserError

HARNESS = Path(__file__).parent / "harness"
_PYTHON = (sys.executable, "-I", "-S")
_GRACE_S = 5.0  # for the supervisor to report before it is killed
_ERROR_BYTES = 64 << 10  # kept of standard error: half from its start, half from its end
_RESULT_BYTES = 64 << 20  # of all results of a run
_COMPILER_MEMORY, _COMPILER_DISK = 4 << 30, 1 << 30
_ADDR_NO_RANDOMIZE = 0x0040000
_UNSHARE = ("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try")
_SYSTEM = ("/usr", "/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime")
_ROOT_LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")
Why = Literal["timeout", "memory", "processes", "results"]


@dataclass(frozen=True)
class Program:
    """What to run.

    request: bytes that the program reads from the descriptor ``{request}`` of its arguments; it writes results to
    ``{results}``. readonly and writable: paths that it sees besides the system's. compiler: it may use more memory and
    write larger files. sanitized: its address space is larger than what it uses.
    """

    argv: Sequence[str]
    seconds: float
    request: bytes = b""
    readonly: Sequence[Path] = ()
    writable: Sequence[Path] = ()
    environment: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    compiler: bool = False
    sanitized: bool = False


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code (negative: a signal) or why it was stopped, its results and messages."""

    code: int | None
    why: Why | None
    results: bytes
    errors: str


class Stopped(Exception):
    """The judge is being stopped."""


class Sandbox:
    """Runs programs under ``limits``; ``stop`` ends those that are running.

    Raises ``UserError`` where the containment asked for is impossible.
    """

    def __init__(self, limits: Limits, mode: Mode | None = None) -> None:
        self.limits = limits
        self.mode = mode or _choose(limits)
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self, program: Program) -> Ended:
        """Runs a program to its end. One that never started, as when memory was short, is tried again."""
        ended = self._run(program)
        if ended.code is None and ended.why is None and self.mode != "none":
            ended = self._run(program)
        return ended

    def _run(self, program: Program) -> Ended:
        with _working_folder(self.mode, program) as cwd:
            request_read, request_write = os.pipe()
            results_read, results_write = os.pipe()
            try:
                command = _command(self.mode, self.limits, program, cwd, request_read, results_write)
                for descriptor in (request_read, results_write):
                    os.fchmod(descriptor, 0o666)  # another user, in the sandbox, may open it by its name in /proc
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=(request_read, results_write),
                    start_new_session=True,
                    cwd="/",
                    env={"PATH": os.environ.get("PATH", os.defpath)},
                )
            except BaseException:
                os.close(request_write)
                os.close(results_read)
                raise
            finally:
                os.close(request_read)
                os.close(results_write)
            deadline = time.monotonic() + program.seconds + _GRACE_S
            return self._attend(process, request_write, program.request, results_read, deadline)

    def _attend(
        self, process: subprocess.Popen[bytes], request_pipe: int, request: bytes, results_pipe: int, deadline: float
    ) -> Ended:
        assert process.stdout and process.stderr
        report, results, head, tail = bytearray(), bytearray(), bytearray(), bytearray()
        why: Why | None = None
        request_left = memoryview(request)
        with selectors.DefaultSelector() as selector:
            for pipe in (process.stdout.fileno(), process.stderr.fileno(), results_pipe):
                os.set_blocking(pipe, False)
                selector.register(pipe, selectors.EVENT_READ)
            os.set_blocking(request_pipe, False)
            selector.register(request_pipe, selectors.EVENT_WRITE)
            try:
                running = True
                while running:
                    if self._stopped.is_set():
                        raise Stopped
                    if time.monotonic() > deadline:
                        why = "timeout"
                        break
                    for key, _ in selector.select(timeout=0.1):
                        if key.fd == request_pipe:
                            request_left = _write(request_pipe, request_left)
                            if not request_left:
                                selector.unregister(request_pipe)
                                os.close(request_pipe)
                                request_pipe = -1
                            continue
                        data = _read(key.fd)
                        if data == b"":
                            selector.unregister(key.fd)
                            running = running and key.fd != process.stdout.fileno()
                        elif key.fd == results_pipe:
                            results += data or b""
                            if len(results) > _RESULT_BYTES:
                                why, running = "results", False
                        elif key.fd == process.stdout.fileno():
                            report += data or b""
                        else:
                            head += (data or b"")[: max(0, _ERROR_BYTES // 2 - len(head))]
                            tail = (tail + (data or b""))[-_ERROR_BYTES // 2 :]
                while (data := _read(results_pipe)) and len(results) <= _RESULT_BYTES:
                    results += data
                while data := _read(process.stderr.fileno()):
                    head += data[: max(0, _ERROR_BYTES // 2 - len(head))]
                    tail = (tail + data)[-_ERROR_BYTES // 2 :]
            finally:
                _end(process)
                for pipe in (request_pipe, results_pipe):
                    if pipe >= 0:
                        os.close(pipe)
        errors = head if len(tail) < _ERROR_BYTES // 2 else head + b"\n...\n" + tail
        code: int | None = None
        if report and why is None:
            status = json.loads(report)
            code, why = status["code"], status["why"]
        return Ended(code, why, bytes(results), errors.decode("utf-8", errors="replace"))


def _write(pipe: int, data: memoryview) -> memoryview:
    try:
        return data[os.write(pipe, data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return data[:0]


def _read(pipe: int) -> bytes | None:
    """What is there; None for nothing yet, empty bytes at the end."""
    try:
        return os.read(pipe, 1 << 16)
    except BlockingIOError:
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the supervisor, which takes the rest with it: SIGTERM lets one without a PID namespace kill the others."""
    if process.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe:
            pipe.close()


@contextmanager
def _working_folder(mode: Mode, program: Program) -> Iterator[Path]:
    if mode != "none" or program.cwd:
        yield program.cwd or Path("/tmp/answer")
        return
    with tempfile.TemporaryDirectory(prefix="answer-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _command(mode: Mode, limits: Limits, program: Program, cwd: Path, request: int, results: int) -> list[str]:
    words = {"{request}": str(request), "{results}": str(results)}
    disk = _COMPILER_DISK if program.compiler else limits.disk
    # As root every program gets a user id of its own, whose processes the kernel counts.
    uid = random.randrange(1 << 20, 1 << 30) if mode != "none" and _administrator() else 0
    spec = {
        "argv": [words.get(word, word) for word in program.argv],
        "env": {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(cwd),
            "TMPDIR": str(cwd),
            "LANG": "C.UTF-8",
            **program.environment,
        },
        "cwd": str(cwd),
        "uid": uid,
        "pass": [request, results],
        "judge": os.getpid(),
        "seconds": program.seconds,
        "memory": _memory(limits, program),
        "processes": limits.processes,
        # AddressSanitizer of GCC 12 and before fails at random under much randomization.
        "personality": _ADDR_NO_RANDOMIZE if program.sanitized else 0,
        "rlimits": _rlimits(mode, limits, program, uid),
    }
    supervisor = [*_PYTHON, str(HARNESS / "supervisor.py"), json.dumps(spec)]
    if mode == "none":
        return supervisor
    links = [(path, os.readlink(path)) for path in _ROOT_LINKS if os.path.islink(path)]
    folders = [path for path in _ROOT_LINKS if os.path.isdir(path) and not os.path.islink(path)]
    readonly = [str(path) for path in (*_system_paths(), *folders, *program.readonly)]
    writable = [str(path) for path in program.writable]
    tmpfs = [("/tmp", disk), ("/dev/shm", disk)]
    if mode == "namespaces":
        root = {
            "readonly": [(path, path) for path in readonly],
            "writable": [(path, path) for path in writable],
            "symlinks": links,
            "tmpfs": tmpfs,
            "pass": [request, results],
            "judge": os.getpid(),
            "new_user": not _administrator(),
        }
        return [*_PYTHON, str(HARNESS / "namespaces.py"), json.dumps(root), *supervisor]
    bwrap = [str(shutil.which("bwrap")), *_UNSHARE, "--die-with-parent", "--new-session", "--as-pid-1"]
    if _administrator():
        bwrap += ["--cap-drop", "ALL"]
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_CHOWN"):
            bwrap += ["--cap-add", capability]
    else:
        bwrap += ["--unshare-user"]
    bwrap += ["--proc", "/proc", "--dev", "/dev"]
    for path, size in tmpfs:
        bwrap += ["--size", str(size), "--perms", "1777", "--tmpfs", path]
    for target, link in links:
        bwrap += ["--symlink", link, target]
    parents = dict.fromkeys(str(p) for path in (*readonly, *writable) for p in reversed(Path(path).parents))
    for parent in sorted(parents.keys() - {"/", "/tmp"}):
        bwrap += ["--perms", "0755", "--dir", parent]
    for path in readonly:
        bwrap += ["--ro-bind", path, path]
    for path in writable:
        bwrap += ["--bind", path, path]
    return [*bwrap, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/", "--", *supervisor]


def _rlimits(mode: Mode, limits: Limits, program: Program, uid: int) -> dict[str, int]:
    # Runtimes and compilers use several threads, so processor time may exceed wall time.
    cpu = int(program.seconds) * 2 + 2
    found = {"RLIMIT_CPU": cpu, "RLIMIT_FSIZE": _COMPILER_DISK if program.compiler else limits.disk, "RLIMIT_CORE": 0}
    if not program.sanitized:
        found["RLIMIT_DATA"] = _memory(limits, program)
    if uid or (mode != "none" and _kernel() >= (5, 14)):  # counted for each user in each user namespace
        found["RLIMIT_NPROC"] = limits.processes
    return found


def _memory(limits: Limits, program: Program) -> int:
    if program.compiler:
        return max(limits.memory, _COMPILER_MEMORY)
    return 2 * limits.memory if program.sanitized else limits.memory


@cache
def _administrator() -> bool:
    """Whether this is root with CAP_SYS_ADMIN; a root in a container may lack it and need a user namespace."""
    with open("/proc/self/status") as status:
        capabilities = next((line for line in status if line.startswith("CapEff")), "CapEff: 0")
    return os.geteuid() == 0 and bool(int(capabilities.split()[1], 16) >> 21 & 1)


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])


@cache
def _system_paths() -> tuple[Path, ...]:
    """What every program may read: the system's programs and libraries, the runtimes, and this folder's harness."""
    found = [Path(path) for path in (*_SYSTEM, *map(str, Path("/etc").glob("java*")))]
    found += [Path(sys.prefix), Path(sys.base_prefix), HARNESS]
    found += [Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    for tool in ("node", "java", "javac", "g++"):
        if place := shutil.which(tool):
            found += [Path(place).parent, Path(place).resolve().parent.parent]
    roots: list[Path] = []
    found = [path for path in found if path.exists() and not Path.home().is_relative_to(path)]
    for path in sorted(set(found), key=lambda p: len(p.parts)):
        if not any(path.is_relative_to(root) for root in roots) and str(path) not in _ROOT_LINKS:
            roots.append(path)
    return tuple(roots)


@cache
def works(mode: Mode) -> str:
    """An empty string where a mode contains programs on this machine, else why not."""
    if not sys.platform.startswith("linux"):
        return "this is not Linux"
    if mode == "none":
        return ""
    if mode == "bubblewrap" and not shutil.which("bwrap"):
        return "bwrap is not on the path"
    ended = Sandbox(Limits(), mode).run(Program([str(shutil.which("true"))], 10))
    return "" if ended.code == 0 else (ended.errors.strip().splitlines() or ["it does not start"])[-1]


def _choose(limits: Limits) -> Mode:
    if limits.containment != "auto":
        if reason := works(limits.containment):
            raise UserError(f"containment {limits.containment} does not work here: {reason}")
        return limits.containment
    for mode in MODES[:-1]:
        if not works(mode):
            return mode
    if limits.unsafe and not works("none"):
        return "none"
    raise UserError(
        "nothing here contains the code that would run (bubblewrap: "
        f"{works('bubblewrap')}; namespaces: {works('namespaces')}); install the package bubblewrap, or run it with "
        "resource limits alone: python -m eval execution --unsafe"
    )
