"""Power loss, as near as a process can come: everything of a host lies on a disk whose unflushed writes are lost.

    ext4 on a loop device on a FUSE file (nbdfuse) on an NBD server of this file's own (VolatileDisk), which keeps
    writes in memory until they are flushed. Pulling the plug drops them: all of them, or all but some, at random and in
    versions of different ages, as a disk's own cache may.

At the same time daemon and keeper are killed and the run directory goes, or the boot id changes, as in a reboot. Then:
what was flushed is there; no answer about changes leaves out a block that differs, and answers are marked as inexact;
durable checkpoints read the same bytes, volatile ones say that they are lost.

The first tests show that the disk itself does what is claimed here: without them the rest would prove nothing."""

import contextlib
import hashlib
import json
import mmap
import os
import pathlib
import random
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import pytest

import berth_host
import volume_tools
from volume_tools import PAGE, RecordingClient, check_cut, differing, export_uri, read_export, run

_DISK_BYTES = 192 << 20
_VOLUME_BYTES = 20 << 20
_WRITABLE_BYTES = 12 << 20
_CYCLES = 10
_SEED = 40
_REGION = 4 << 20
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


# --- The disk. It runs as a process of its own: python3 test_crash_power.py IMAGE SOCKET.

class VolatileDisk:
    """An NBD server (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, fixed newstyle, one export)
    of a file that writes reach when they are flushed. A line on standard input ends it: {"keep": p, "seed": n} lets
    each page that was written since reach the file with that probability, in one of its versions since."""

    _FLAGS = 1 | 4 | 8  # has flags, flush, FUA

    def __init__(self, image_path, socket_path):
        self._image = os.open(image_path, os.O_RDWR)
        self.size = os.fstat(self._image).st_size
        self._durable = mmap.mmap(self._image, self.size)
        self._current = mmap.mmap(self._image, self.size, flags=mmap.MAP_PRIVATE)
        self._dirty = {}  # page: its versions since the last flush
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(socket_path)
        self._listener.listen(4)

    def live(self):
        """Serves until the plug is pulled, or until whoever started it is gone."""
        threading.Thread(target=self._accept, daemon=True).start()
        line = sys.stdin.readline()
        with self._lock:  # for good: no request is answered any more
            if line.strip():
                self._pull_the_plug(**json.loads(line))
            os._exit(0)

    def _pull_the_plug(self, keep, seed):
        chance = random.Random(seed)
        for page, versions in sorted(self._dirty.items()):
            if chance.random() < keep:
                self._durable[page * PAGE:(page + 1) * PAGE] = chance.choice(versions)

    def _accept(self):
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with contextlib.suppress(OSError, EOFError, struct.error), connection, connection.makefile("rb") as stream:
            self._negotiate(connection, stream)
            while True:
                self._answer(connection, stream)

    @staticmethod
    def _read(stream, length):
        data = stream.read(length)
        if len(data) != length:
            raise EOFError
        return data

    def _negotiate(self, connection, stream):
        connection.sendall(struct.pack(">QQH", 0x4e42444d41474943, 0x49484156454f5054, 1 | 2))
        self._read(stream, 4)
        while True:
            _, option, length = struct.unpack(">QII", self._read(stream, 16))
            self._read(stream, length)
            if option == 1:  # EXPORT_NAME; no zeroes were agreed on
                connection.sendall(struct.pack(">QH", self.size, self._FLAGS))
                return
            if option == 7:  # GO
                self._reply(connection, option, 3, struct.pack(">HQH", 0, self.size, self._FLAGS))
                self._reply(connection, option, 1)
                return
            if option == 2:  # ABORT
                self._reply(connection, option, 1)
                raise EOFError
            self._reply(connection, option, 0x80000001)

    @staticmethod
    def _reply(connection, option, kind, payload=b""):
        connection.sendall(struct.pack(">QIII", 0x3e889045565a9, option, kind, len(payload)) + payload)

    def _answer(self, connection, stream):
        _, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", self._read(stream, 28))
        payload = self._read(stream, length) if kind == 1 else b""
        error, data = 0, b""
        with self._lock:
            if kind == 0:
                data = self._current[offset:offset + length]
            elif kind == 1:
                self._write(offset, payload)
                if flags & 1:
                    self._flush()
            elif kind == 3:
                self._flush()
            elif kind == 2:
                raise EOFError
            else:
                error = 22
        connection.sendall(struct.pack(">IIQ", 0x67446698, error, cookie) + data)

    def _write(self, offset, data):
        self._current[offset:offset + len(data)] = data
        for page in range(offset // PAGE, -(-(offset + len(data)) // PAGE)):
            self._dirty.setdefault(page, []).append(self._current[page * PAGE:(page + 1) * PAGE])

    def _flush(self):
        for page, versions in self._dirty.items():
            self._durable[page * PAGE:(page + 1) * PAGE] = versions[-1]
        self._dirty.clear()


# --- A machine with such a disk.

class Machine:
    """A file system on a volatile disk, which is switched on and off."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.mount_point = self.directory / "mnt"
        self.mount_point.mkdir()
        # In memory: what is durable here is what the disk's server has put there.
        self._image = self.directory / "image"
        with open(self._image, "wb") as image:
            image.truncate(_DISK_BYTES)
        run("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=8", "-E", "lazy_itable_init=0,lazy_journal_init=0", self._image)
        self._file = self.directory / "disk"
        self._socket = self.directory / "nbd.sock"
        self._file.touch()
        self._disk = self._fuse = None

    def switch_on(self):
        """Mounts the file system as the disk has it."""
        self._disk = _quiet(sys.executable, __file__, self._image, self._socket, stdin=subprocess.PIPE)
        volume_tools.wait_until(self._socket.exists, "the disk's server")
        self._fuse = _quiet("nbdfuse", self._file, "--unix", self._socket)
        volume_tools.wait_until(lambda: self._file.stat().st_size == _DISK_BYTES, "nbdfuse")
        loop = run("losetup", "--find", "--show", "--direct-io=on", "--sector-size=4096", self._file).stdout.strip()
        try:
            run("mount", "-t", "ext4", "-o", "noatime", loop, self.mount_point)
        finally:
            run("losetup", "--detach", loop)  # when nothing uses it any more: after the unmount

    def pull_the_plug(self, keep, seed):
        """From this instant on nothing reaches the disk; of what was not flushed, `keep` of it has."""
        self._disk.stdin.write(json.dumps({"keep": keep, "seed": seed}).encode() + b"\n")
        self._disk.stdin.flush()
        self._disk.wait(volume_tools.LIMIT_S)

    def put_away(self):
        """After the plug was pulled: what is left of the mounts goes."""
        for target in (self.mount_point, self._file):
            if _is_mounted(target) and run("umount", target, check=False).returncode != 0:
                run("umount", "--lazy", target, check=False)
        for process in (self._fuse, self._disk):
            if process is not None:
                process.kill()
                process.wait()
        if _is_mounted(self._file):
            run("umount", "--lazy", self._file)
        self._socket.unlink(missing_ok=True)
        self._disk = self._fuse = None


def _quiet(*command, **options):
    """A process that dies with this one, without a word and without a core dump (nbdfuse aborts when its server dies)."""
    options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *map(str, command)], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, **options)


def _is_mounted(path):
    return any(line.split()[1] == str(path) for line in pathlib.Path("/proc/self/mounts").read_text().splitlines())


@pytest.fixture(scope="module", name="private_mounts")
def _private_mounts():
    """Mounts of this process and its children alone: they go with it, whatever happens."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it mounts file systems")
    missing = [tool for tool in ("nbdfuse", "losetup", "mkfs.ext4", "mount") if shutil.which(tool) is None]
    if missing or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        pytest.skip(f"needs FUSE and loop devices; missing: {missing or 'the devices'}")
    if not volume_tools.take_private_mounts():
        pytest.skip("needs a mount namespace of its own")
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


@pytest.fixture(name="machine")
def _machine(private_mounts):
    with tempfile.TemporaryDirectory(prefix="berth-power-", dir="/dev/shm") as directory:
        machine = Machine(directory)
        try:
            machine.switch_on()
            yield machine
        finally:
            machine.put_away()


# --- The disk does what is claimed of it.

@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_the_disk_keeps_what_was_flushed_and_loses_what_was_not(machine, keep):
    names = ("flushed", "unflushed")
    pages = 256
    for name in names:
        (machine.mount_point / name).write_bytes(b"\1" * (pages * PAGE))
    os.sync()
    aligned = mmap.mmap(-1, pages * PAGE)
    aligned.write(b"\2" * (pages * PAGE))
    for name in names:
        fd = os.open(machine.mount_point / name, os.O_RDWR | os.O_DIRECT)
        if name == "flushed":
            os.pwrite(fd, aligned, 0)
            os.fdatasync(fd)
        else:
            for page in range(pages):
                os.pwrite(fd, memoryview(aligned)[:PAGE], page * PAGE)
        os.close(fd)
    machine.pull_the_plug(keep, seed=1)
    with pytest.raises(OSError):
        fd = os.open(machine.mount_point / "flushed", os.O_RDWR | os.O_DIRECT)
        try:
            os.pwrite(fd, aligned, 0)
        finally:
            os.close(fd)
    machine.put_away()
    machine.switch_on()
    assert (machine.mount_point / "flushed").read_bytes() == b"\2" * (pages * PAGE)
    kept = (machine.mount_point / "unflushed").read_bytes().count(b"\2" * PAGE)
    assert kept == 0 if keep == 0 else pages // 4 < kept < pages * 3 // 4


# --- Berth on it.

def _restore_boot_id():
    while _is_mounted(_BOOT_ID):
        run("umount", _BOOT_ID)


class _Host:
    """A Berth host on the machine, one volume under load, and what must stay true of it."""

    def __init__(self, machine, stack):
        self.machine = machine
        self.random = random.Random(_SEED)
        self.run_directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="berth-", dir="/dev/shm")))
        self.host = stack.enter_context(berth_host.BerthHost(directory=self.run_directory, state_dir=machine.mount_point / "state"))
        self.host.create("disk", str(_VOLUME_BYTES))
        self.host.create("other", "4M")
        self.client = RecordingClient(self.host.serve("disk"), _VOLUME_BYTES, _SEED, space=_WRITABLE_BYTES)
        self.refpoints = {}    # name: content of the disk then
        self.checkpoints = {}  # name: (digest of its content, whether it is durable)
        self.lost_sectors = 0
        self.over_reported = 0

    def berth_beside(self, *arguments):
        done = self.client.run_beside([berth_host.program(), *arguments], env=self.host.environment)
        assert done.returncode == 0, done.stderr

    def make_points(self, cycle):
        """A reference point while nothing is written, and checkpoints while much is."""
        self.client.drain()
        self.host.cli("refpoint", "create", "disk", "--name", f"r{cycle}")
        self.refpoints[f"r{cycle}"] = bytes(self.client.content)
        _, exact = self.host.changes("disk", f"r{cycle}")
        assert exact, "a reference point is inexact from its beginning"
        for name, options in ((f"d{cycle}", ()), (f"v{cycle}", ("--volatile",))):
            if cycle % 3 == (0 if name.startswith("d") else 1):
                with self.client.cut() as cut:
                    self.berth_beside("checkpoint", "create", "disk", "--name", name, *options)
                self.client.drain()
                found = read_export(export_uri(self.client.uri, f"disk@{name}"))
                check_cut([(cut, found)])
                self.checkpoints[name] = (hashlib.sha256(found).digest(), not options)

    def load(self):
        """Writes with flushes in between; some of what was written is not flushed."""
        self.client.run(self.random.uniform(0.1, 0.3))
        for _ in range(self.random.randrange(1, 4)):
            self.client.flush()
            self.client.run(self.random.uniform(0.0, 0.15))

    def lose_power(self, cycle):
        """The plug is pulled under load; with some cycles a cut or a flush is under way. What was under way."""
        keeper = self.host.keeper_pid("disk")
        other = self.host.keeper_pid("other")
        self.client.run(self.random.uniform(0.0, 0.1))
        raced = None
        if cycle % 4 in (1, 3):
            # Several volumes: all of them have the checkpoint, or none.
            volumes = ["disk", "other"] if cycle % 4 == 3 else ["disk"]
            raced = (volumes, self.client._begin_cut(), subprocess.Popen(
                [berth_host.program(), "checkpoint", "create", *volumes, "--name", f"raced{cycle}"], env=self.host.environment,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            self.client.run(self.random.uniform(0.0, 0.1))
        keep = self.random.choice((0.0, 0.0, 0.3, 0.7))
        self.client.errors_expected = True
        if cycle % 2 == 0:
            # The disk dies first, and the keeper must not take its errors for anything else.
            self.machine.pull_the_plug(keep, cycle)
            with contextlib.suppress(AssertionError):
                self.client.run(0.05)
            if self.client.connected and cycle % 4 == 0:
                assert not self.client.flush(), "a flush was acknowledged by a keeper without a disk"
        self.host.daemon.kill()
        for pid in (keeper, other):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if cycle % 2 == 1:
            self.machine.pull_the_plug(keep, cycle)
        for pid in (keeper, other):
            berth_host.wait_for_exit(pid)
        self.client.disconnected()
        self.client.errors_expected = False
        code = raced[2].wait(volume_tools.LIMIT_S) if raced else None
        return (*raced[:2], code) if raced else None

    def reboot(self, cycle):
        """As after a reboot: nothing is left in memory; or all of it is, of another boot."""
        self.machine.put_away()
        _restore_boot_id()
        if cycle % 3 == 2:
            new_id = self.run_directory / "boot_id"
            new_id.write_text(f"00000000-0000-4000-8000-{cycle:012d}\n")
            run("mount", "--bind", new_id, _BOOT_ID)
            for name in ("keepers", "volumes", "nbd"):
                shutil.rmtree(self.host.run_dir / name)
        else:
            shutil.rmtree(self.host.run_dir)
        self.machine.switch_on()
        self.host.start()
        self.client.uri = self.host.serve("disk")
        self.client.attach()

    def check(self, raced, cycle):
        self.lost_sectors += self.client.verify_after_power_loss()
        found = self.client.content
        hot = volume_tools.blocks_of([(0, _WRITABLE_BYTES)])
        for name, then in self.refpoints.items():
            extents, exact = self.host.changes("disk", name)
            assert not exact, f"the changes since {name} claim to be exact"
            reported = volume_tools.blocks_of(extents)
            changed = {offset // volume_tools.BLOCK for offset in differing(found, then, volume_tools.BLOCK)}
            assert changed <= reported, f"blocks {sorted(changed - reported)} differ from {name} and are not among the changes"
            assert reported <= hot, "regions that were never written are among the changes"
            self.over_reported += len(reported - changed)
        listed = self.host.points("checkpoint", "disk")
        for name, (digest, durable) in list(self.checkpoints.items()):
            assert name in listed, f"the checkpoint {name} is gone"
            assert listed[name]["lost"] is not durable
            if durable:
                content = read_export(export_uri(self.client.uri, f"disk@{name}"))
                assert hashlib.sha256(content).digest() == digest, f"the checkpoint {name} reads other bytes than before"
            else:
                self.host.cli("checkpoint", "delete", f"disk@{name}")
                del self.checkpoints[name]
        if raced:
            self._check_raced(raced, f"raced{cycle}", listed)

    def _check_raced(self, raced, name, listed):
        volumes, cut, code = raced
        there = name in listed and not listed[name]["lost"]
        assert there or code != 0, "a checkpoint was acknowledged and is gone"
        if len(volumes) > 1:
            others = set(self.host.points("checkpoint", "other"))
            assert (name in others) == (name in listed), "one volume has the checkpoint and the other has not"
        if there:
            check_cut([(cut, read_export(export_uri(self.client.uri, f"disk@{name}")))])
            for volume in volumes:
                self.host.cli("checkpoint", "delete", f"{volume}@{name}")

    def forget(self, cycle):
        """Older points go, so that every power loss meets some that have come and gone."""
        if cycle % 5 == 4:
            for name in list(self.refpoints)[:-2]:
                self.host.cli("refpoint", "delete", f"disk@{name}")
                del self.refpoints[name]
            for name in list(self.checkpoints)[:-1]:
                self.host.cli("checkpoint", "delete", f"disk@{name}")
                del self.checkpoints[name]


def test_flushed_data_changes_and_checkpoints_survive_power_losses(machine, capsys):
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        host = _Host(machine, stack)
        stack.callback(_restore_boot_id)
        stack.enter_context(volume_tools.log_on_failure(host.host))
        cycles = 0
        for cycle in range(_CYCLES):
            T=[time.monotonic()]
            host.make_points(cycle)
            T.append(time.monotonic())
            host.load()
            T.append(time.monotonic())
            raced = host.lose_power(cycle)
            T.append(time.monotonic())
            host.reboot(cycle)
            T.append(time.monotonic())
            host.check(raced, cycle)
            T.append(time.monotonic())
            host.forget(cycle)
            print(cycle, [round(b-a,2) for a,b in zip(T,T[1:])], os.getloadavg()[0])
            cycles += 1
        host.client.close()
        host.host.cli("volume", "unserve", "disk")
    assert host.lost_sectors > 0, "no power loss has lost anything: the disk kept all that was written"
    with capsys.disabled():
        print(f"\n{cycles} power losses in {time.monotonic() - began:.0f} s: {host.lost_sectors} sectors of unflushed writes were "
              f"lost, {host.over_reported} blocks reported as changed that were not")


if __name__ == "__main__":
    VolatileDisk(*sys.argv[1:]).live()
