"""Contains a program by Linux namespaces where bubblewrap is absent: ``python -I -S namespaces.py SPEC COMMAND...``.

New mount, PID, network, IPC and UTS namespaces, and a user namespace where they need one; the root is a tmpfs that
holds only what SPEC lists, read-only. COMMAND becomes process 1 of the PID namespace, and dies with this process, which
dies with the judge.
"""

import ctypes
import json
import os
import signal
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH, PIVOT_ROOT = 2, {"x86_64": 155, "aarch64": 41}
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
NOBODY = 65534
DEVICES = ("null", "zero", "full", "random", "urandom")


def check(result, what):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source, target, kind, flags, options=""):
    words = [text.encode() if text else None for text in (source, target, kind, options)]
    check(LIBC.mount(*words[:3], flags, words[3]), f"mount {target}")


def bind(source, target):
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a").close()
    mount(source, target, None, BIND | REC)


def locked_flags(path):
    """Flags of a mount that a user namespace may not take away."""
    flags = os.statvfs(path).f_flag
    return flags & (NOSUID | NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME | os.ST_RELATIME)


def set_up_root(spec):
    mount(None, "/", None, REC | PRIVATE)
    root = "/tmp"  # any directory: a tmpfs hides it, in this namespace alone
    keep = {source: os.open(source, os.O_PATH) for source, _ in [*spec["readonly"], *spec["writable"]]}
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES}
    mount("tmpfs", root, "tmpfs", NOSUID | NODEV, "mode=755,size=16m")
    for path, size in spec["tmpfs"]:
        os.makedirs(root + path, exist_ok=True)
        mount("tmpfs", root + path, "tmpfs", NOSUID | NODEV, f"mode=1777,size={size}")
    for target, link in spec["symlinks"]:
        os.symlink(link, root + target)
    for readonly, binds in ((True, spec["readonly"]), (False, spec["writable"])):
        for source, target in binds:
            bind(f"/proc/self/fd/{keep[source]}", root + target)
            if readonly:
                mount(None, root + target, None, REMOUNT | BIND | RDONLY | locked_flags(root + target))
    for name, descriptor in devices.items():
        bind(f"/proc/self/fd/{descriptor}", f"{root}/dev/{name}")
    os.symlink("/proc/self/fd", f"{root}/dev/fd")
    os.makedirs(f"{root}/proc", exist_ok=True)
    mount("proc", f"{root}/proc", "proc", NOSUID | NODEV | os.ST_NOEXEC)
    os.chdir(root)
    check(LIBC.syscall(PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    check(LIBC.umount2(b".", DETACH), "umount")
    os.chdir("/")
    mount(None, "/", None, REMOUNT | BIND | RDONLY | NOSUID | NODEV)
    for descriptor in [*keep.values(), *devices.values()]:
        os.close(descriptor)


def main():
    spec = json.loads(sys.argv[1])
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != spec["judge"]:
        return  # the judge was gone before
    user, group = os.geteuid(), os.getegid()
    flags = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    check(LIBC.unshare(flags | NEWUSER if spec["new_user"] else flags), "unshare")
    if spec["new_user"]:
        # Not as root inside, either: root would keep the capability to make the mounts writable.
        own, groups = (f"{number or NOBODY} {number} 1" for number in (user, group))
        for name, text in (("setgroups", "deny"), ("uid_map", own), ("gid_map", groups)):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    child = os.fork()
    if child == 0:
        try:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            set_up_root(spec)
            LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            for descriptor in spec["pass"]:
                os.set_inheritable(descriptor, True)
            os.execv(sys.argv[2], sys.argv[2:])
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(125)
    for descriptor in [1, *spec["pass"]]:
        os.close(descriptor)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)


main()
