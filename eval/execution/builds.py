"""Compiles answers, and the harness that they are linked with or loaded by; what was compiled once is kept.

Results are kept by the hash of everything that they are made of, in a folder of this process or in one that the user
names. Compilers run in the sandbox, too: a source may include any file that it can name.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eval.execution.sandbox import HARNESS, Ended, Program, Sandbox
from eval.execution.sources import java
from moe.errors import UserError

CPP_FLAGS = ("-std=gnu++20", "-Werror=return-type", "-fno-access-control", "-fmax-errors=1")
HEADERS = ("judged.hpp", "everything.hpp")
PLAIN = ("-O0",)
SANITIZED = ("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
JVM_FLAGS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto", "-XX:-UsePerfData")
_KEPT = 512  # compiled answers in the folder of a process
_WORTH_PRECOMPILING = 5  # C++ answers of one kind: precompiling a header takes as long as it takes in these
_JAVA_BATCH_S = 2.0  # added to the time limit for each further file of one compiler run


@dataclass(frozen=True)
class Built:
    """A folder with what the compiler made, or its first error."""

    folder: Path
    error: str = ""
    timed_out: bool = False


class Builds:
    """Compiled answers by their sources. Threads may share one."""

    def __init__(self, folder: Path | None = None) -> None:
        self._bounded = folder is None
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="execution-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
        else:
            folder = folder.absolute()
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._known: dict[str, Built] = {}
        self._answers: deque[str] = deque()  # the compiled ones, the oldest first
        self._headers: Counter[tuple[str, Sequence[str]]] = Counter()  # how often each was wanted first in a file
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def _make(self, key: Sequence[str], build: Callable[[Path], Built]) -> Built:
        """What ``build`` makes in a new folder; a second call with the same key gets the first one's."""
        name = hashlib.sha256("\0".join(key).encode("utf-8", errors="surrogatepass")).hexdigest()[:32]
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name in self._known:
                return self._known[name]
            final = self.folder / name
            if (final / "done").exists():
                return self._known.setdefault(name, Built(final))
            work = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
            os.chmod(work, 0o777)  # in the sandbox another user writes to it
            try:
                built = build(work)
            except BaseException:  # it was interrupted
                shutil.rmtree(work, ignore_errors=True)
                raise
            if built.error:
                shutil.rmtree(work, ignore_errors=True)
            else:
                (work / "done").touch()
                try:
                    work.rename(final)
                except OSError:  # another process was faster
                    shutil.rmtree(work, ignore_errors=True)
                built = Built(final)
            if not built.timed_out:
                self._known[name] = built
            if self._bounded and key[0] in ("cpp", "java"):
                self._answers.append(name)
                if len(self._answers) > _KEPT and (oldest := self._known.pop(self._answers.popleft(), None)):
                    shutil.rmtree(oldest.folder, ignore_errors=True)
            return built

    def cpp(self, sandbox: Sandbox, source: str, kind: Sequence[str], flags: Sequence[str], header: str = "") -> Built:
        """Links ``source`` with the harness to the program ``answer``.

        kind: :data:`PLAIN` or :data:`SANITIZED`. header: the one that the source begins with, which is precompiled once
        it is worth it.
        """
        runtime = self.runtime(sandbox, kind)

        def build(folder: Path) -> Built:
            include = self._header(sandbox, kind, header) if header else HARNESS
            (folder / "answer.cpp").write_text(source, encoding="utf-8", errors="replace")
            command = [_tool("g++"), *CPP_FLAGS, *kind, "-I", str(include), "answer.cpp", str(runtime / "judged.o")]
            command += ["-Wl,--wrap=main", *flags, "-o", "answer"]
            return _compiled(sandbox, command, folder, [runtime, include])

        return self._make(("cpp", source, *kind, *flags, runtime.name), build)

    def runtime(self, sandbox: Sandbox, kind: Sequence[str]) -> Path:
        """The folder with the harness's object file. Raises ``UserError`` where it does not compile."""

        def build(folder: Path) -> Built:
            command = [_tool("g++"), *CPP_FLAGS, *kind, "-c", str(HARNESS / "judged.cpp"), "-o", "judged.o"]
            return _compiled(sandbox, command, folder, [])

        built = self._make(("runtime", *_texts("judged.cpp", *HEADERS), *_made_by("g++"), *CPP_FLAGS, *kind), build)
        if built.error:
            raise UserError(f"g++ does not compile the C++ harness ({built.error}); it needs GCC 11 or later")
        return built.folder

    def sanitizes(self, sandbox: Sandbox) -> bool:
        """Whether the compiler has the sanitizers."""
        try:
            built = self.cpp(sandbox, "int main() {}", SANITIZED, ())
        except UserError:
            return False
        return not built.error

    def _header(self, sandbox: Sandbox, kind: Sequence[str], name: str) -> Path:
        """The folder to find the header in: that of its precompiled form where there is one."""
        key = ("header", name, *_texts(*HEADERS), *_made_by("g++"), *CPP_FLAGS, *kind)
        with self._lock:
            self._headers[name, kind] += 1
            wanted = self._headers[name, kind]
        if wanted <= _WORTH_PRECOMPILING and not self._has(key):
            return HARNESS

        def build(folder: Path) -> Built:
            for each in HEADERS:
                shutil.copy(HARNESS / each, folder)
            command = [_tool("g++"), *CPP_FLAGS, *kind, "-x", "c++-header", name, "-o", f"{name}.gch"]
            return _compiled(sandbox, command, folder, [])

        built = self._make(key, build)
        return HARNESS if built.error else built.folder

    def java_harness(self, sandbox: Sandbox) -> Path:
        """The folder with the classes of the Java harness. Raises ``UserError`` where they do not compile."""

        def build(folder: Path) -> Built:
            sources = [str(HARNESS / name) for name in ("Compiler.java", "Worker.java")]
            command = [_tool("javac"), *(f"-J{flag}" for flag in JVM_FLAGS), "-proc:none", "-d", ".", *sources]
            return _compiled(sandbox, command, folder, [])

        built = self._make(("java harness", *_texts("Compiler.java", "Worker.java"), *_made_by("javac")), build)
        if built.error:
            raise UserError(f"javac does not compile the Java harness ({built.error}); it needs a JDK 17 or later")
        return built.folder

    def java(self, sandbox: Sandbox, sources: Sequence[str], paths: Sequence[Path] = ()) -> list[Built]:
        """Compiles whole files, several in one run of the compiler."""
        harness = self.java_harness(sandbox)
        keys = {source: ("java", source, harness.name, *map(str, paths)) for source in sources}
        missing = [source for source, key in keys.items() if not self._has(key)]
        done: dict[str, Built] = {}
        if len(missing) > 1:
            made = self._compile_java(sandbox, harness, missing, paths)
            done = dict(zip(missing, made)) if made else {}  # one of them stopped the compiler: one at a time
        results = []
        for source in sources:

            def build(folder: Path, source: str = source) -> Built:
                if source in done:
                    built = done[source]
                    for path in built.folder.iterdir():
                        path.rename(folder / path.name)
                    return Built(folder, built.error)
                return self._java_alone(sandbox, harness, source, paths, folder)

            results.append(self._make(keys[source], build))
        for built in done.values():
            shutil.rmtree(built.folder, ignore_errors=True)
        return results

    def _has(self, key: Sequence[str]) -> bool:
        name = hashlib.sha256("\0".join(key).encode("utf-8", errors="surrogatepass")).hexdigest()[:32]
        return name in self._known or (self.folder / name / "done").exists()

    def _java_alone(self, sandbox: Sandbox, harness: Path, source: str, paths: Sequence[Path], folder: Path) -> Built:
        built = self._compile_java(sandbox, harness, [source], paths, folder)
        return built[0] if built else Built(folder, "the compiler did not end", True)

    def _compile_java(
        self, sandbox: Sandbox, harness: Path, sources: Sequence[str], paths: Sequence[Path], folder: Path | None = None
    ) -> list[Built]:
        """The results for each source; none at all if the compiler did not come to its end."""
        folders = [folder or Path(tempfile.mkdtemp(prefix="java-", dir=self.folder)) for _ in sources]
        class_path = os.pathsep.join(map(str, paths)).encode().hex() or "-"
        lines = []
        for target, source in zip(folders, sources):
            os.chmod(target, 0o777)
            lines.append(f"{target} {class_path} {source.encode('utf-8', errors='replace').hex()}\n")
        command = [_tool("java"), *JVM_FLAGS, "-Xmx1g", "-cp", str(harness), "Compiler", "{request}", "{results}"]
        program = Program(
            command,
            sandbox.limits.compile_seconds + _JAVA_BATCH_S * len(sources),
            "".join(lines).encode(),
            [harness, *paths],
            folders,
            compiler=True,
        )
        ended = sandbox.run(program)
        errors = dict(line.split(" ") for line in ended.results.decode().splitlines() if line.count(" ") == 1)
        if any(str(target) not in errors for target in folders):
            for target in folders if folder is None else ():
                shutil.rmtree(target, ignore_errors=True)
            return []
        return [Built(target, bytes.fromhex(errors[str(target)]).decode()) for target in folders]


@cache
def _texts(*names: str) -> tuple[str, ...]:
    return tuple((HARNESS / name).read_text(encoding="utf-8") for name in names)


@cache
def _made_by(tool: str) -> tuple[str, ...]:
    """Tells compilers apart: a folder of builds may outlive one."""
    path = os.path.realpath(_tool(tool))
    status = os.stat(path)
    return path, str(status.st_size), str(status.st_mtime_ns)


@cache
def _tool(name: str) -> str:
    return str(shutil.which(name))


def _compiled(sandbox: Sandbox, command: Sequence[str], folder: Path, readonly: Sequence[Path]) -> Built:
    program = Program(
        command, sandbox.limits.compile_seconds, readonly=readonly, writable=[folder], compiler=True, cwd=folder
    )
    ended = sandbox.run(program)
    if ended.code == 0:
        return Built(folder)
    if ended.why == "timeout":
        return Built(folder, f"the compiler did not end after {sandbox.limits.compile_seconds:g} s", True)
    return Built(folder, first_error(ended) or "the compiler failed")


def first_error(ended: Ended) -> str:
    """The first line of a compiler's messages that names an error."""
    lines = [line.strip() for line in ended.errors.splitlines() if line.strip()]
    return next((line for line in lines if "rror" in line), lines[0] if lines else "")


def java_source(answer: str) -> str:
    """The answer as one file; see :func:`eval.execution.sources.java`."""
    return java(answer).source
