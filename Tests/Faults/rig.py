"""A node under load on a disk of its own, and the ways to take the ground from under it."""

import atexit
import ctypes
import fcntl
import mmap
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "Browser"))

from clients import GONE, Appender, Follower, Maker, Producer, Refused, Talker, Worker
from node import Node, wait_for

SEED = int(os.environ.get("PARLEY_SEED") or int.from_bytes(os.urandom(3)))
IS_LONG = os.environ.get("PARLEY_LONG") == "1"
HERE = pathlib.Path(__file__).resolve().parent


class Disk:
    """A file system of its own, in an image on a loop device, that can lose power at any moment.

    `cut` has ext4 stop where it stands, as a power cut does: what it has not yet handed to the device is gone, of files and of its journal; a
    later mount finds what the device has. It needs root and loop devices. All mounts are in a mount namespace of the test's own, so that the
    kernel takes them away with the process, however that ends.
    """

    SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH

    def __init__(self, folder, megabytes=512):
        self.image, self.path = folder / "disk.image", folder / "disk"
        self.path.mkdir()
        self.is_mounted = False
        own_mounts()
        with open(self.image, "wb") as image:
            image.truncate(megabytes << 20)
        run("mkfs.ext4", "-q", "-F", "-m", "0", str(self.image))

    def mount(self, options="data=ordered"):
        run("mount", "-o", f"loop,{options}", str(self.image), str(self.path))
        self.is_mounted = True

    def cut(self):
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, Disk.SHUTDOWN, struct.pack("I", Disk.WITHOUT_FLUSH))
        finally:
            os.close(descriptor)

    def write_back(self):
        """Has the kernel write what is dirty, as it does by itself every few seconds."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            LIBC.syncfs(descriptor)
        finally:
            os.close(descriptor)

    def unmount(self):
        if self.is_mounted:
            run("umount", str(self.path))
        self.is_mounted = False


LIBC = ctypes.CDLL(None, use_errno=True)


def own_mounts():
    """Leaves the system's mount namespace, once."""
    if getattr(own_mounts, "done", False):
        return
    if os.geteuid() != 0:
        raise AssertionError("power cuts need a file system of their own on a loop device: run the tests as root")
    if not pathlib.Path("/dev/loop-control").exists():
        raise AssertionError("power cuts need loop devices, and there is no /dev/loop-control: modprobe loop, or start the container with --privileged")
    if LIBC.unshare(0x00020000) != 0:  # CLONE_NEWNS
        raise AssertionError(f"no mount namespace of their own ({os.strerror(ctypes.get_errno())}): start the container with --privileged")
    run("mount", "--make-rprivate", "/")
    own_mounts.done = True


def run(*words):
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(words)}: {result.stderr.strip()}"


class Load:
    """All kinds of clients on one node."""

    def __init__(self, node, seed):
        appenders = [Appender(node, "single", seed), Appender(node, "batches", seed, batch=20), Producer(node, "producer", seed)]
        self.talkers = [Talker(node, "talker", seed, "assistant/one"), Talker(node, "other", seed, "assistant/two", pause=0.5)]
        self.clients = appenders + [Follower(appenders[1]), Maker(node, "made", seed), Worker(node, "worked", seed)] + self.talkers

    def prepare(self):
        for client in self.clients:
            client.prepare()
            client.close()

    def begin(self):
        for client in self.clients:
            client.begin()

    def end(self):
        for client in self.clients:
            client.end()

    def check(self):
        for client in self.clients:
            client.check()
            client.close()

    def settle(self):
        """Waits until all turns have ended, and looks at everything again."""
        for talker in self.talkers:
            wait_for(f"the turns of {talker.agent}", talker.settled)
        self.check()

    @property
    def acknowledged(self):
        return sum(client.acknowledged for client in self.clients)


class Scratch:
    """A folder for one test, that goes with it."""

    def __init__(self):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="parley-faults-"))

    def remove(self):
        shutil.rmtree(self.path, ignore_errors=True)


class Faults:
    """What goes wrong in a node's calls of the system, by faults.c: numbers that are set here and obeyed there, at once."""

    NAMES = (
        "clock_offset", "skip_syncs", "sync_error", "write_error", "short_writes",
        "failed_syncs", "failed_writes", "shortened_writes", "later_syncs",
    )
    library = None

    def __init__(self, node, folder):
        """From its next start on the node obeys."""
        if not Faults.library:
            compiler = shutil.which("clang") or shutil.which("gcc")
            assert compiler, "no C compiler on the PATH: the Swift toolchain has one, clang; or apt-get install gcc"
            library = pathlib.Path(tempfile.mkdtemp(prefix="parley-faults-")) / "faults.so"
            atexit.register(shutil.rmtree, library.parent, True)
            run(compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(HERE / "faults.c"), "-ldl")
            Faults.library = library
        path = folder / "faults"
        path.write_bytes(bytes(4096))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 4096)
        node.environment.update(LD_PRELOAD=str(Faults.library), FAULTS_FILE=str(path))

    def __getitem__(self, name):
        return struct.unpack_from("q", self._map, 8 * Faults.NAMES.index(name))[0]

    def __setitem__(self, name, value):
        struct.pack_into("q", self._map, 8 * Faults.NAMES.index(name), value)

    def clear(self):
        self._map[:] = bytes(4096)
