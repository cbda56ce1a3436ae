"""Runs one program under limits and kills everything that it started: ``python -I -S supervisor.py SPEC``.

In a PID namespace this is process 1, which nothing inside can kill, and its exit kills all other processes. Without one
it adopts orphans (PR_SET_CHILD_SUBREAPER) and kills its descendants before it exits. SPEC is JSON; the last line of
standard output is ``{"code": exit code or null, "why": null, "timeout", "memory" or "processes"}``.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import time

POLL_S = 0.02
PAGE = os.sysconf("SC_PAGE_SIZE")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def processes():
    """Process id -> (parent's id, resident bytes) of every process that /proc shows."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] != b"Z" or int(fields[17]) > 1:  # its first thread may end before the others
                found[int(name)] = (int(fields[1]), int(fields[21]) * PAGE)
    return found


def descendants():
    """As :func:`processes`, of those that this process started."""
    found, me = processes(), os.getpid()
    if me == 1:
        found.pop(me, None)
        return found
    tree = {me}
    while True:
        more = {pid for pid, (parent, _) in found.items() if parent in tree} - tree
        if not more:
            return {pid: found[pid] for pid in tree - {me}}
        tree |= more


def kill_descendants():
    """Kills until none is left; stopped ones cannot start others meanwhile.

    Twice none: the parent of one that is read may end before it is read itself.
    """
    none = 0
    for _ in range(1000):
        left = descendants()
        none = 0 if left else none + 1
        for code in (signal.SIGSTOP, signal.SIGKILL):
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, code)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if none > 1:
            return
        time.sleep(0.001)


def prctl(option, value):
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def become_program(spec):
    """In the child: sets the limits, gives up root, becomes the program."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    if not os.path.isdir(spec["cwd"]):
        os.mkdir(spec["cwd"])
        os.chmod(spec["cwd"], 0o777)
    if spec["personality"]:
        import ctypes

        ctypes.CDLL(None).personality(spec["personality"])
    if spec["uid"]:
        os.setgroups([])
        os.setresgid(spec["uid"], spec["uid"], spec["uid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    os.chdir(spec["cwd"])
    for name, limit in spec["rlimits"].items():
        hard = resource.getrlimit(getattr(resource, name))[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(getattr(resource, name), (limit, limit))
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for descriptor in spec["pass"]:
        os.set_inheritable(descriptor, True)
    os.execve(spec["argv"][0], spec["argv"], spec["env"])


def main():
    spec = json.loads(sys.argv[1])
    contained = os.getpid() == 1
    if not contained:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != spec["judge"]:
            return  # the judge was gone before
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM])
    deadline = time.monotonic() + spec["seconds"]
    judge = os.dup(1)  # not inheritable, as every descriptor that Python opens
    child = os.fork()
    if child == 0:
        try:
            if not contained:
                prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            become_program(spec)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(126)
    for descriptor in spec["pass"]:
        os.close(descriptor)
    code, why = None, None
    while code is None and why is None:
        left = deadline - time.monotonic()
        if left <= 0:
            why = "timeout"
            break
        received = signal.sigtimedwait([signal.SIGCHLD, signal.SIGTERM], min(left, POLL_S))
        if received and received.si_signo == signal.SIGTERM:
            break
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    code = os.waitstatus_to_exitcode(ended[1])
        if code is None:
            found = descendants()
            if sum(size for _, size in found.values()) > spec["memory"]:
                why = "memory"
            elif len(found) > spec["processes"]:
                why = "processes"
    if not contained:
        kill_descendants()
    os.write(judge, json.dumps({"code": code, "why": why}).encode() + b"\n")
    os._exit(0)


main()
