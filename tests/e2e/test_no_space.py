"""A file system that is full, or does not take writes. Then:

1. a guest's write succeeds, or fails with ENOSPC and leaves old or new, sector by sector; with space it succeeds again;
2. a volatile checkpoint is given up, with an event, before a guest's write fails; a durable one never is;
3. whatever else needs space is refused clearly, leaves nothing behind, and nothing hangs;
4. what was written is there afterwards, and so is what is known about changes."""

import contextlib
import os
import pathlib
import tempfile

import nbd
import pytest
from berth_host import BerthHost
from volume_tools import SECTOR, connect, copy_tree, export_uri, read_export, remove_tree, run, take_private_mounts

MIB = 1 << 20
BLOCK = 64 << 10
SIZE = 64 * MIB


@pytest.fixture(scope="module", name="private_mounts")
def _private_mounts():
    if not take_private_mounts():
        pytest.skip("needs a mount namespace of its own")


class SmallHost:
    """A host whose volumes lie on a file system of 48 MiB of their own, and one volume, larger than that."""

    def __init__(self, directory, kind):
        self.volumes = pathlib.Path(directory) / "s" / "volumes"
        self.volumes.mkdir(parents=True)
        if kind == "ext4":
            image = pathlib.Path(directory) / "image"
            with open(image, "wb") as file:
                file.truncate(48 * MIB)
            run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-J", "size=4", image)
            run("mount", "-o", "loop", image, self.volumes)
        else:
            run("mount", "-t", "tmpfs", "-o", "size=48M", "tmpfs", self.volumes)
        self.host = BerthHost(directory=directory)
        self.content = bytearray(SIZE)
        self.client = None

    def __enter__(self):
        self.host.create("disk", str(SIZE))
        self.uri = self.host.serve("disk")
        self.client = connect(self.uri)
        for offset in range(0, 8 * MIB, MIB):
            self.write(offset, b"\1" * MIB)
        self.client.flush()
        self.host.cli("refpoint", "create", "disk", "--name", "start")
        return self

    def __exit__(self, *exception):
        try:
            self.make_room()
            self.host.__exit__(*exception)
        finally:
            run("umount", self.volumes)

    @property
    def free(self):
        state = os.statvfs(self.volumes)
        return state.f_bavail * state.f_frsize

    def fill(self, leave=0):
        with open(self.volumes / ".ballast", "ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while self.free > leave:
                ballast.write(bytes(min(MIB, max(4096, self.free - leave))))

    def make_room(self):
        (self.volumes / ".ballast").unlink(missing_ok=True)

    def write(self, offset, data):
        """One write; None, or the error that it met. One that fails may have come through in part."""
        try:
            self.client.pwrite(data, offset)
        except nbd.Error as error:
            found = self.client.pread(len(data), offset)
            for at in range(0, len(data), SECTOR):
                assert found[at:at + SECTOR] in (data[at:at + SECTOR], self.content[offset + at:offset + at + SECTOR])
            self.content[offset:offset + len(data)] = found
            return error.errno
        self.content[offset:offset + len(data)] = data
        return None

    def flush(self):
        try:
            self.client.flush()
        except nbd.Error as error:
            return error.errno
        return None

    def reads_as_written(self):
        return read_export(self.uri) == self.content


@pytest.fixture(name="small", params=["tmpfs"])
def _small(private_mounts, request):
    with tempfile.TemporaryDirectory(prefix="berth-", dir="/dev/shm") as directory:
        with SmallHost(directory, request.param) as small:
            yield small


def refused(host, *words):
    """Refused in one line, for want of space."""
    done = host.refused(*words)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "No space left" in done.stderr, done.stderr


@pytest.mark.parametrize("small", ["tmpfs", "ext4"], indirect=True)
def test_a_guest_hears_of_a_full_disk_and_goes_on_when_there_is_space(small):
    small.fill()
    for offset in (20 * MIB, 40 * MIB + 512, SIZE - BLOCK):
        assert small.write(offset, b"\2" * BLOCK if offset % BLOCK == 0 else b"\2" * 512) == "ENOSPC"
    assert small.write(MIB, b"\3" * BLOCK) is None  # what is there already needs no space
    assert small.reads_as_written()
    small.make_room()
    for offset in (20 * MIB, 40 * MIB + 512):
        assert small.write(offset, b"\2" * 512) is None
    assert small.flush() is None
    assert small.reads_as_written()
    extents, exact = small.host.changes("disk", "start")
    changed = [(MIB, BLOCK), (20 * MIB, BLOCK), (40 * MIB, BLOCK)]
    assert exact and extents in (changed, changed + [(SIZE - BLOCK, BLOCK)])  # a write that failed may count as one


def test_the_whole_file_system_can_be_filled_by_the_guest_itself(small):
    errors = {small.write(offset, b"\4" * MIB) for offset in range(0, SIZE, MIB)}
    assert errors == {None, "ENOSPC"}
    assert small.flush() in (None, "ENOSPC")
    small.client.trim(32 * MIB, 0)  # the guest deletes files
    small.content[:32 * MIB] = bytes(32 * MIB)
    assert small.reads_as_written()
    assert small.write(SIZE - MIB, b"\5" * MIB) is None
    assert small.flush() is None
    assert small.reads_as_written()


def test_what_needs_space_is_refused_and_leaves_nothing_behind(small):
    small.fill()
    refused(small.host, "checkpoint", "create", "disk", "--name", "now")
    refused(small.host, "volume", "create", "new", "--import", "/bin/sh")
    refused(small.host, "volume", "create", "new", "--size", "1M")
    assert small.host.json("checkpoint", "list") == {"checkpoints": []}
    assert [volume["name"] for volume in small.host.json("volume", "list")["volumes"]] == ["disk"]
    assert sorted(path.name for path in small.volumes.iterdir() if path.name != "lost+found") == [".ballast", "disk"]
    assert small.write(MIB, b"\3" * BLOCK) is None  # no gate is closed
    small.make_room()
    small.host.cli("checkpoint", "create", "disk", "--name", "now")
    small.host.create("new", "1M")
    assert read_export(export_uri(small.uri, "disk@now")) == small.content


def test_of_two_volumes_that_are_cut_at_once_none_is_cut_where_one_has_no_space(small):
    """The other one's gate opens again, and the names are free."""
    other = small.host.directory / "elsewhere"
    small.host.create("roomy", "4M")
    copy_tree(small.volumes / "roomy", other)
    remove_tree(small.volumes / "roomy")
    (small.volumes / "roomy").symlink_to(other)
    roomy = connect(small.host.serve("roomy"))
    small.fill()
    refused(small.host, "checkpoint", "create", "roomy", "disk", "--name", "both")
    assert small.host.json("checkpoint", "list") == {"checkpoints": []}
    roomy.pwrite(b"\1" * 512, 0)
    assert small.write(0, b"\6" * 512) is None
    small.make_room()
    small.host.cli("checkpoint", "create", "roomy", "disk", "--name", "both")
    assert len(small.host.json("checkpoint", "list")["checkpoints"]) == 2
    roomy.shutdown()


@pytest.mark.parametrize("request_bytes", [BLOCK, MIB])
def test_a_volatile_checkpoint_is_given_up_before_a_guests_write_fails(small, request_bytes):
    """Whether one block is to be held at the time, or many."""
    small.host.cli("checkpoint", "create", "disk", "--name", "quick", "--volatile")
    small.fill(leave=256 << 10)
    mark = small.host.last_event()
    for offset in range(0, 8 * MIB, request_bytes):
        assert small.write(offset, b"\7" * request_bytes) is None
    event = small.host.wait_for_event("checkpoint_lost", "disk", since=mark)
    assert "quick" in event["message"] and "full" in event["message"]
    assert small.host.json("checkpoint", "info", "disk@quick")["lost"] is True
    done = small.host.refused("checkpoint", "export", "disk@quick", small.host.directory / "out.raw")
    assert done.returncode == 4 and "quick" in done.stderr, done.stderr
    assert small.reads_as_written()
    small.make_room()
    small.host.cli("checkpoint", "delete", "disk@quick")
    assert small.flush() is None


def test_a_durable_checkpoint_is_kept_and_the_guests_write_fails(small):
    small.host.cli("checkpoint", "create", "disk", "--name", "safe")
    before = bytes(small.content)
    small.fill()
    assert small.write(0, b"\7" * BLOCK) == "ENOSPC"
    small.host.kill_keeper("disk")  # the next keeper finds the same
    small.client = connect(small.uri)
    assert small.write(0, b"\7" * BLOCK) == "ENOSPC"
    assert small.reads_as_written() and small.content == before
    small.make_room()
    assert small.write(0, b"\7" * BLOCK) is None
    assert read_export(export_uri(small.uri, "disk@safe")) == before
    assert small.host.changes("disk", "safe") == ([(0, BLOCK)], True)


def test_a_volume_that_cannot_be_closed_for_want_of_space_loses_nothing(small):
    assert small.write(30 * MIB, b"\5" * BLOCK) is None
    small.fill()
    small.client.shutdown()
    small.host.cli("volume", "unserve", "disk")
    small.host.run("daemon", "--stop-keepers")
    assert small.host.daemon.wait() == 0
    small.make_room()
    small.host.start()
    assert small.host.json("volume", "check", "disk")["sound"] is True
    small.host.serve("disk")
    assert small.reads_as_written()
    assert small.host.changes("disk", "start") == ([(30 * MIB, BLOCK)], True)


def test_a_read_only_file_system_is_named_and_does_no_harm(small):
    small.client.shutdown()
    small.host.cli("volume", "unserve", "disk")
    small.host.cli("volume", "check", "disk")
    run("mount", "-o", "remount,ro", small.volumes)
    for words in ("volume serve disk", "volume info disk", "checkpoint create disk --name now",
                  "changes disk --since start", "volume delete disk", "volume resize disk --size 1G",
                  "volume create new --size 1M", "volume check disk --repair"):
        done = small.host.refused(*words.split())
        assert done.returncode == 4 and "Read-only file system" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
    assert small.host.json("volume", "check", "disk")["sound"] is True
    run("mount", "-o", "remount,rw", small.volumes)
    small.host.serve("disk")
    small.client = connect(small.uri)
    assert small.reads_as_written()
    assert small.write(0, b"\2" * 512) is None and small.flush() is None
    assert small.host.changes("disk", "start") == ([(0, BLOCK)], True)


@pytest.mark.parametrize("small", ["ext4"], indirect=True)
def test_a_file_system_that_turns_read_only_under_a_guest_fails_its_flushes_until_it_is_back(small):
    """As ext4 does when it finds itself damaged: nothing is acknowledged as durable that is not."""
    assert small.flush() is None
    flushed = bytes(small.content)
    run("mount", "-o", "remount,abort", small.volumes, check=False)
    error = small.write(20 * MIB, b"\2" * 512) or small.flush()
    assert error in ("EIO", "EROFS", "EPERM"), error
    assert small.flush() is not None
    done = small.host.run("checkpoint", "create", "disk", "--name", "now")
    assert done.returncode in (1, 4) and len(done.stderr.splitlines()) == 1, done.stderr
    small.client.shutdown()
    small.host.cli("volume", "unserve", "disk")
    small.host.kill_keeper("disk", small.host.keeper_pid("disk"))
    run("umount", small.volumes)
    run("mount", "-o", "loop", small.host.directory / "image", small.volumes)
    small.host.serve("disk")
    small.client = connect(small.uri)
    found = read_export(small.uri)
    assert found[:20 * MIB] == flushed[:20 * MIB] and found[20 * MIB + 512:] == flushed[20 * MIB + 512:]
    assert small.write(20 * MIB, b"\4" * 512) is None and small.flush() is None
