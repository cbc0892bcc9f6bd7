"""Limits that a grading process puts on itself before it reads a response (Linux).

Layers, each of which holds where the kernel refuses another: an empty network and a file system of Python's own folders
(namespaces, unshare(2)), a filter of system calls (seccomp(2), classic BPF), and rules of what may be read (Landlock,
landlock(7)). Root that gets neither of the two against reading becomes nobody. The pool logs which are in force.
"""

import ctypes
import os
import platform
import resource
import signal
import socket
import struct
import sys
import sysconfig
from collections.abc import Callable, Iterable

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH, CAPABILITY_VERSION = 2, 0x20080522
NOBODY = 65534
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
SECCOMP_MODE_FILTER, SECCOMP_ALLOW, SECCOMP_EPERM = 2, 0x7FFF0000, 0x00050000 | 1
PROBE_S = 30
"""Bound on finding out whether a layer of isolation can be had."""
ITEMS_OF_CPU = 100
"""CPU time that a process has in its life, in limits of one item; it retires at half of it."""

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# Numbers on x86_64 and aarch64; None where there is no such call.
_DENIED = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "io_uring_setup": (425, 425),
    "truncate": (76, 45), "ftruncate": (77, 46), "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None),
    "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36), "chmod": (90, None),
    "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "mknod": (133, None), "mknodat": (259, 33), "utimensat": (280, 88),
    "setxattr": (188, 5), "creat": (85, None), "openat2": (437, 437), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "mount_setattr": (442, 442),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424), "clone": (56, 220),
    "fork": (57, None), "vfork": (58, None), "clone3": (435, 435), "pidfd_getfd": (438, 438), "mq_open": (240, 180),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}  # fmt: skip
_OPENS = {"open": (2, None, 1), "openat": (257, 56, 2)}
"""Numbers, and which argument holds the flags."""
_PRLIMIT = (302, 261)
"""Limits of a process: its own may be read, those of others not be set."""
_X32 = 0x40000000
"""Added to the number of a call, it is the same call by the x32 interface of x86_64."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def isolate() -> list[str]:
    """Move this process and its future children out of the network and of the file system, once all is imported.

    Returns what the kernel permits of "netns" (an empty network) and "mounts" (only `own_files`, which nobody can
    write); the process has no privilege left in the namespaces.
    """
    if not sys.platform.startswith("linux"):
        return []
    libc, user, group = _libc(), os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWNS):
        return ["netns"] if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0 else []
    try:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        _leave_file_system(libc)
        found = ["netns", "mounts"]
    except OSError:
        found = ["netns"]
    libc.syscall(
        {"x86_64": 126, "aarch64": 91}[platform.machine()], struct.pack("Ii", CAPABILITY_VERSION, 0), bytes(24)
    )
    return found


def _leave_file_system(libc: ctypes.CDLL) -> None:
    """Build a root of `own_files` at a folder that no import needs, and enter it; OSError where not permitted."""

    def mount(source: str | None, target: str, flags: int, kind: str | None = None) -> None:
        arguments = (text and text.encode() for text in (source, target, kind))
        if libc.mount(*arguments, flags, None):
            raise OSError(ctypes.get_errno(), f"mounting {target}")

    root = "/sys"
    mount(None, "/", MS_REC | MS_PRIVATE)
    mount("tmpfs", root, MS_NOSUID | MS_NODEV, "tmpfs")
    for path in own_files():
        target = root + path
        os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), exist_ok=True)
        if not os.path.isdir(path):
            os.close(os.open(target, os.O_CREAT))
        mount(path, target, MS_BIND | MS_REC)
        # The flags that a mount has already may not be taken from it.
        mount(None, target, MS_REMOUNT | MS_BIND | MS_RDONLY | os.statvfs(path).f_flag & (2 | 4 | 8 | 1024 | 2048))
    mount(None, root, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(root)
    if libc.syscall({"x86_64": 155, "aarch64": 41}[platform.machine()], b".", b".") or libc.umount2(b".", MNT_DETACH):
        raise OSError(ctypes.get_errno(), "entering the new root")
    os.chdir("/")


def deny_system_calls() -> bool:
    """Refuse sockets, processes, signals and changes of files from here on; False where the kernel has no filter."""
    if not sys.platform.startswith("linux") or platform.machine() not in _ARCHITECTURES:
        return False
    column, architecture = _ARCHITECTURES[platform.machine()]
    load, jump_if_equal, jump_if_at_least, jump_if_bits, give = 0x20, 0x15, 0x35, 0x45, 0x06

    def instruction(code: int, if_true: int, if_false: int, value: int) -> bytes:
        return struct.pack("HBBI", code, if_true, if_false, value)

    denied = [number for numbers in _DENIED.values() if (number := numbers[column]) is not None]
    refuse = instruction(give, 0, 0, SECCOMP_EPERM)
    # A foreign architecture is refused as a whole: its call numbers mean something else.
    program = [instruction(load, 0, 0, 4), instruction(jump_if_equal, 1, 0, architecture), refuse]
    program += [instruction(load, 0, 0, 0), instruction(jump_if_at_least, 0, 1, _X32), refuse]
    for number in denied:
        program += [instruction(jump_if_equal, 0, 1, number), refuse]
    for *numbers, argument in _OPENS.values():
        if (number := numbers[column]) is not None:
            program += [instruction(jump_if_equal, 0, 4, number), instruction(load, 0, 0, 16 + 8 * argument)]
            program += [instruction(jump_if_bits, 0, 1, _WRITING), refuse, instruction(load, 0, 0, 0)]
    program += [instruction(jump_if_equal, 0, 3, _PRLIMIT[column]), instruction(load, 0, 0, 16)]
    program += [instruction(jump_if_equal, 1, 0, 0), refuse, instruction(give, 0, 0, SECCOMP_ALLOW)]
    code = ctypes.create_string_buffer(b"".join(program))
    filter_program = _FilterProgram(len(program), ctypes.addressof(code))
    libc = _libc()
    privileges = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return privileges == libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(filter_program), 0, 0) == 0


def read_only(paths: Iterable[str]) -> bool:
    """Allow nothing of the file system but reading at and below `paths`; False where the kernel has no Landlock."""
    create, add, restrict, read_file, read_folder = 444, 445, 446, 0b0100, 0b1000
    if not sys.platform.startswith("linux"):
        return False
    libc = _libc()
    version = libc.syscall(create, None, 0, 1)
    if version < 1:
        return False
    # Every right to the file system that this version of Landlock knows: 13, then one more for each of three versions.
    rights = struct.pack("Q", (1 << (13 + min(version - 1, 2))) - 1)
    rules = libc.syscall(create, rights, len(rights), 0)
    if rules < 0:
        return False
    for path in paths:
        opened = os.open(path, os.O_PATH)
        libc.syscall(add, rules, 1, struct.pack("=Qi", read_file | read_folder * os.path.isdir(path), opened), 0)
        os.close(opened)
    held = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and libc.syscall(restrict, rules, 0) == 0
    os.close(rules)
    return held


def own_files() -> list[str]:
    """What a grading process may have to read: Python, its packages, C libraries, and the packages that it imported.

    The rest of the folders that a user's module came from, a repository with its data say, is not among them.
    """
    libraries = [
        f"{prefix}/{name}" for prefix in (sys.prefix, sys.base_prefix, "/usr", "") for name in ("lib", "lib64")
    ]
    libraries += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    packages = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    tops = [module for name, module in list(sys.modules.items()) if "." not in name]
    own = [path for top in tops for path in (*getattr(top, "__path__", ()), getattr(top, "__file__", None)) if path]
    found: list[str] = []
    for path in sorted({*libraries, *packages, *own}):
        if os.path.exists(path) and not any(path.startswith(f"{above}/") for above in found):
            found.append(path)
    return found


def become_nobody() -> bool:
    """Give up being root: files that are not for everybody cannot be read any more; False for other users."""
    if os.geteuid():
        return False
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    return True


def _no_socket(*_args: object, **_kwargs: object) -> None:
    raise PermissionError("a verifier process has no network")


def _succeeds(action: Callable[[], bool]) -> bool:
    """Whether an action succeeds within PROBE_S, found out in a process of its own."""
    pid = os.fork()
    if pid == 0:
        failed = True
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PROBE_S)  # ends this process, and with it the wait below
        try:
            failed = not action()
        finally:
            os._exit(failed)
    return os.waitpid(pid, 0)[1] == 0


def layers(namespaces: list[str]) -> list[str]:
    """The layers that `enter` will get here: those of `isolate`, and seccomp, landlock or nobody.

    Without seccomp it is "python": sockets are closed in Python only.
    """
    found = [*namespaces, "seccomp" if _succeeds(deny_system_calls) else "python"]
    if _succeeds(lambda: read_only(own_files())):
        return [*found, "landlock"]
    return [*found, "nobody"] if "mounts" not in found and _succeeds(become_nobody) else found


def gap(found: Iterable[str] | None = None) -> str | None:
    """What graded code could do where these layers are all there is (default: this machine's); None for nothing."""
    if found is None:
        found = layers(["mounts"] if _succeeds(lambda: "mounts" in isolate()) else [])
    gaps = [] if "seccomp" in found else ["open sockets and change files"]
    if not {"mounts", "landlock"} & {*found}:
        gaps.append("read files that everybody may read" if "nobody" in found else "read the files of this user")
    return " and ".join(gaps) or None


def enter(memory_mib: int, parent: int, item_s: float, found: list[str]) -> None:
    """Take on every limit that this machine grants.

    Args:
        memory_mib: address space of this process, MiB.
        parent: pid of the process that forked this one; its death kills this one.
        item_s: limit of one item, seconds.
        found: see `layers`.
    """
    if "nobody" in found:
        become_nobody()  # before the next lines, which a change of user would undo
    if sys.platform.startswith("linux"):
        _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
    limit = memory_mib * 1024 * 1024
    life = int(_cpu_used() + ITEMS_OF_CPU * max(item_s, 1.0))
    limits = {resource.RLIMIT_AS: limit, resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CPU: life}
    for kind, most in (limits | {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}).items():
        # Hard as well as soft: nothing that runs here can raise it again.
        resource.setrlimit(kind, (most, most))
    if "landlock" in found:
        read_only(own_files())
    if not deny_system_calls():
        socket.socket = _no_socket  # type: ignore[assignment, misc]


def _cpu_used() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def worn_out() -> bool:
    """Whether this process has used half of its CPU time and should make room for a fresh one."""
    return _cpu_used() > resource.getrlimit(resource.RLIMIT_CPU)[1] / 2
