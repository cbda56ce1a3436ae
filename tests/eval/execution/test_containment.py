"""Planned escapes. Each must fail under every containment that works here; what limits alone cover is tested, too."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from eval.execution import CaseTests, Limits, judge, judge_many, sandbox
from eval.execution.limits import MODES
from eval.execution.sandbox import works
from moe.errors import UserError
from tests.eval.execution.kinds import cases, needs

TRY = cases("attempt", ["int"], "str", (0, "done"))
CONTAINED = MODES[:-1]


@pytest.fixture(params=CONTAINED)
def contained(request):
    if reason := works(request.param):
        pytest.skip(f"{request.param} does not work here: {reason}")
    return Limits(seconds=20, containment=request.param)


@pytest.fixture(params=MODES)
def limits(request):
    if reason := works(request.param):
        pytest.skip(f"{request.param} does not work here: {reason}")
    return Limits(seconds=20, containment=request.param)


def attempt(body, limits, language="python"):
    code = "def attempt(n):\n" + textwrap.indent(textwrap.dedent(body), "    ")
    return judge(language, code, TRY, limits)


def alive(marker):
    """Processes whose command line holds the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if marker.encode() in words and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found.append(int(entry.name))
    return found


def gone(marker):
    for _ in range(100):
        if not alive(marker):
            return True
        time.sleep(0.02)
    return False


def test_fork_bomb(contained):
    started = time.monotonic()
    verdict = attempt("import os\nwhile True:\n    os.fork()\n", contained)
    assert verdict.status in ("runtime_error", "timeout"), verdict
    assert time.monotonic() - started < 120
    assert attempt("return 'done'", contained).passed  # the machine is still usable


def test_few_processes_with_limits_alone(limits):
    body = """
        import os, time
        for _ in range(200):
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)
        time.sleep(10)
        return 'done'
    """
    assert attempt(body, limits).status == "runtime_error"


def test_a_child_in_a_session_of_its_own_ends_with_the_verdict(limits):
    seconds = (
        f"{4000 + os.getpid() % 1000}.{CONTAINED.index(limits.containment) if limits.containment != 'none' else 9}"
    )
    body = f"""
        import os, subprocess
        subprocess.Popen(["sleep", "{seconds}"], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.execvp("sleep", ["sleep", "{seconds}"])
            os._exit(0)
        if os.fork() == 0:  # its first thread ends, another goes on
            import ctypes, threading, time
            os.setsid()
            run = lambda: (time.sleep(0.1), subprocess.run(["sleep", "{seconds}"]))
            threading.Thread(target=run).start()
            ctypes.CDLL(None).syscall(93 if os.uname().machine == "aarch64" else 60, 0)
        import time
        time.sleep(0.3)
        return 'done'
    """
    assert attempt(body, limits).passed
    assert gone(seconds)


def test_endless_output(limits):
    body = "import sys, os\nwhile True:\n    os.write(1, b'x' * 65536)\n    os.write(2, b'x' * 65536)\n"
    verdict = attempt(body, Limits(seconds=2, containment=limits.containment))
    assert verdict.status == "timeout"
    assert len(verdict.detail) < 1000


def test_endless_results(limits):
    verdict = attempt("return 'x' * (200 << 20)", limits)
    assert verdict.status in ("runtime_error", "timeout")  # a busy machine is still writing them


def test_network(contained):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        body = f"""
            import socket
            try:
                socket.create_connection(("127.0.0.1", {port}), timeout=5)
            except OSError:
                return 'refused'
            return 'done'
        """
        assert attempt(body, contained).status == "failed"
        assert "refused" in attempt(body, contained).detail


def test_files_of_the_user_are_not_there(contained, tmp_path):
    (tmp_path / "secret").write_text("secret")
    places = [str(tmp_path / "secret"), str(Path(__file__)), "/etc/shadow", str(Path.home() / ".ssh")]
    body = f"""
        import os
        places = {places!r}
        places += ["/proc/1/environ" if "JUDGE_SECRET" in open("/proc/1/environ").read() else "/absent"]
        return 'done' if any(os.path.exists(place) for place in places) else str(sorted(os.environ))
    """
    os.environ["JUDGE_SECRET"] = "1"
    try:
        verdict = attempt(body, contained)
    finally:
        del os.environ["JUDGE_SECRET"]
    assert "JUDGE_SECRET" not in verdict.detail
    assert verdict.status in ("failed", "runtime_error"), verdict


def test_nothing_outside_can_be_written(contained, tmp_path):
    outside = tmp_path / "planted"
    system = ["/usr/planted", "/planted", "/etc/planted", "/dev/planted"]
    places = [str(outside), *system, f"{sys.prefix}/planted"]
    tmp_path.chmod(0o777)
    body = f"""
        import os
        written = []
        for place in {places!r}:
            try:
                os.makedirs(os.path.dirname(place), exist_ok=True)
                open(place, "w").write("x")
                written.append(place)
            except OSError:
                pass
        return str(written)
    """
    verdict = attempt(body, contained)
    assert "case 0 got" in verdict.detail, verdict
    assert not [place for place in places[1:] if f"'{place}'" in verdict.detail]  # the first is in its own /tmp
    assert not outside.exists()
    assert not Path("/usr/planted").exists()


def test_the_system_cannot_be_made_writable_again(contained):
    body = """
        import ctypes
        libc, remount_bind = ctypes.CDLL(None), 32 | 4096
        for _ in range(2):
            libc.mount(None, b"/usr", None, remount_bind, None)
            try:
                open("/usr/planted", "w").close()
                return 'done'
            except OSError:
                libc.unshare(0x10000000 | 0x20000)  # new user and mount namespaces
        return 'refused'
    """
    assert "refused" in attempt(body, contained).detail
    assert not Path("/usr/planted").exists()


def test_the_judge_cannot_be_killed(contained):
    body = """
        import os, signal
        for pid in [os.getppid(), *range(1, 400)]:
            if pid != os.getpid():
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    pass
        return 'done'
    """
    assert attempt(body, contained).passed


def test_ten_gigabytes(limits):
    assert attempt("x = bytearray(10 << 30)\nreturn 'done'", limits).status == "runtime_error"
    fork = "x = []\nimport os\nfor _ in range(8):\n    os.fork()\n"
    parts = fork + "while True:\n    x.append(bytes(range(256)) * (64 << 12))\n"
    slow = Limits(seconds=20, memory=512 << 20, processes=1000, containment=limits.containment)
    verdict = attempt(parts, slow)
    assert verdict.status == "runtime_error", verdict


def test_memory_of_all_processes_together_is_limited(limits):
    body = """
        import os, time
        for _ in range(6):
            if os.fork() == 0:
                x = b"x" * (200 << 20)
                time.sleep(20)
                os._exit(0)
        time.sleep(15)
        return 'done'
    """
    verdict = attempt(body, limits)
    assert verdict.status == "runtime_error"
    assert "memory" in verdict.detail


def test_disk_is_limited_and_private(contained):
    body = """
        import os
        try:
            for i in range(40):
                open(f"part{i}", "wb").write(b"x" * (4 << 20))
        except OSError:
            return 'full'
        return 'done'
    """
    verdict = attempt(body, contained)
    assert "full" in verdict.detail, verdict


def test_a_hundred_thousand_files_are_gone_with_the_verdict(limits):
    body = "for i in range(100_000):\n    open(f'many-{i}', 'w').close()\nreturn 'done'"
    before = set(os.listdir("/tmp"))
    verdict = attempt(body, Limits(seconds=60, containment=limits.containment))
    assert verdict.status in ("passed", "failed", "runtime_error", "timeout")
    new = {name for name in set(os.listdir("/tmp")) - before if name.startswith(("many-", "answer-"))}
    assert not [name for name in new if len(os.listdir(f"/tmp/{name}")) > 10**4]


def test_a_planted_symlink_is_not_followed(limits, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    names = ("answer.py", "answer.js", "stdout", "stderr", "results", "done", "link")
    body = f"""
        import os
        for name in {names!r}:
            if os.path.exists(name):
                os.unlink(name)
            os.symlink({str(victim / "file")!r}, name)
        os.symlink({str(victim)!r}, "folder")
        return 'done'
    """
    assert attempt(body, limits).passed
    assert (victim / "file").read_text() == "kept"


@pytest.mark.parametrize("language", ["javascript", "java", "cpp"])
def test_other_languages_are_contained_alike(contained, language, tmp_path):
    needs(language)
    (tmp_path / "secret").write_text("secret")
    secret = str(tmp_path / "secret")
    code = {
        "javascript": f"const attempt = (n) => require('fs').existsSync({secret!r}) ? 'done' : 'absent';\n",
        "java": f'static String attempt(int n) {{ return new java.io.File("{secret}").exists() ? "done" : "absent"; }}\n',
        "cpp": f'std::string attempt(int n) {{ return std::ifstream("{secret}") ? "done" : "absent"; }}\n',
    }[language]
    verdict = judge(language, code, TRY, Limits(seconds=20, containment=contained.containment, sanitize=False))
    assert "absent" in verdict.detail, verdict


def test_the_compiler_is_contained(contained, tmp_path):
    needs("cpp")
    (tmp_path / "secret.h").write_text('#define SECRET "done"\n')
    code = f'#include "{tmp_path / "secret.h"}"\nstd::string attempt(int n) {{ return SECRET; }}\n'
    assert judge("cpp", code, TRY, contained).status == "compile_error"


def test_without_containment_limits_alone_have_to_be_asked_for(monkeypatch):
    monkeypatch.setattr(sandbox, "works", lambda mode: "" if mode == "none" else "not here")
    with pytest.raises(UserError, match=r"install the package bubblewrap.*--unsafe") as caught:
        attempt("return 'done'", Limits())
    assert "\n" not in str(caught.value)
    assert attempt("return 'done'", Limits(unsafe=True)).passed
    with pytest.raises(UserError, match="bubblewrap does not work here: not here"):
        attempt("return 'done'", Limits(containment="bubblewrap"))


JUDGE = """
import sys
sys.path.insert(0, {root!r})
from eval.execution import CaseTests, Limits, judge_many
tests = CaseTests.parse({{"function": "f", "parameters": [], "returns": "int", "cases": [{{"arguments": [], "expected": 1}}]}})
answer = "import subprocess\\ndef f():\\n    subprocess.run(['sleep', '{seconds}'])\\n"
print("ready", flush=True)
list(judge_many([("python", answer, tests)] * 4, Limits(seconds=300, containment={mode!r}), 2))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_programs_die_with_the_judge(limits, sent):
    seconds = f"{5000 + os.getpid() % 1000}.{MODES.index(limits.containment)}{int(sent)}"
    root = str(Path(sandbox.__file__).parents[2])
    code = JUDGE.format(root=root, seconds=seconds, mode=limits.containment)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1500):
            if len(alive(seconds)) >= 2:
                break
            time.sleep(0.02)
        else:
            pytest.fail("the programs did not start")
        process.send_signal(sent)
        started = time.monotonic()
        process.wait(30)
        assert time.monotonic() - started < 5  # a second on a machine that is not busy
        assert gone(seconds)
    finally:
        process.kill()


def test_closing_the_iterator_ends_what_runs():
    tests = CaseTests.parse(
        {"function": "f", "parameters": [], "returns": "int", "cases": [{"arguments": [], "expected": 1}]}
    )
    fast, slow = "def f():\n    return 1\n", "import time\ndef f():\n    time.sleep(100)\n"
    limits = Limits(seconds=200, unsafe=True)
    verdicts = judge_many([("python", fast, tests), ("python", slow, tests), ("python", slow, tests)], limits, 2)
    assert next(verdicts).passed
    started = time.monotonic()
    verdicts.close()
    assert time.monotonic() - started < 20
    assert threading.active_count() < 20
