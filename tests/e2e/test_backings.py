"""Volumes that stand on something: a raw file, images of other formats, an NBD export, another volume's checkpoint. And
disks that are adopted where they are.

1. What was not written reads as the backing has it, byte for byte; what was zeroed or discarded reads as zeros.
2. The backing is never written.
3. When everything has been brought over, the backing is not needed any more.
4. A backing that does not answer is an error, for as long as that lasts, and never wrong bytes."""

import contextlib
import errno
import filecmp
import json
import os
import pathlib
import random
import signal
import tempfile

import nbd
import pytest
from berth_host import BerthHost, wait_for_exit
from volume_tools import child, connect, copy_tree, differing, export_uri, read_export, run, wait_until

MIB = 1 << 20
BLOCK = 64 << 10
SIZE = 8 * MIB
FORMATS = {"qcow2": [], "vmdk": [], "vhdx": [], "vdi": []}


@pytest.fixture(scope="module", name="host")
def _host():
    with tempfile.TemporaryDirectory(prefix="berth-", dir="/dev/shm") as directory:
        with BerthHost(directory=directory) as host:
            yield host


@pytest.fixture(scope="module", name="source")
def _source(tmp_path_factory):
    """A raw disk with data in places, and holes."""
    path = tmp_path_factory.mktemp("source") / "disk.raw"
    chance = random.Random(5)
    with open(path, "wb") as file:
        file.truncate(SIZE)
        for offset in (0, 3 * BLOCK + 100, MIB, 2 * MIB - 7, 5 * MIB, SIZE - 1000):
            file.seek(offset)
            file.write(chance.randbytes(min(chance.randrange(1, 5 * BLOCK), SIZE - offset)))
    return path


@contextlib.contextmanager
def nbd_server(path, socket, *options):
    """A server of somebody else's."""
    with child("nbdkit", "--foreground", "--readonly", "--unix", socket, *options, "file", path) as process:
        wait_until(pathlib.Path(socket).exists, "nbdkit's socket")
        yield process
    pathlib.Path(socket).unlink(missing_ok=True)


@contextlib.contextmanager
def backing_of(kind, host, source, directory):
    """What to give as --backing, with the content of `source`, and a function that takes it away."""
    if kind == "raw":
        path = directory / "raw"
        copy_tree(source, path)
        yield path, path.unlink
    elif kind in FORMATS:
        path = directory / f"image.{kind}"
        run("qemu-img", "convert", "-f", "raw", "-O", kind, source, path)
        yield path, path.unlink
    elif kind == "nbd":
        with contextlib.ExitStack() as stack:
            stack.enter_context(nbd_server(source, directory / "nbd.sock"))
            yield f"nbd+unix:///?socket={directory}/nbd.sock", stack.close
    else:
        host.cli("volume", "create", "golden", "--import", source)
        host.cli("checkpoint", "create", "golden", "--name", "base")
        client = connect(host.serve("golden"))
        client.pwrite(b"\xee" * SIZE, 0)  # the checkpoint stays as it was
        client.shutdown()
        host.cli("volume", "unserve", "golden")

        def take_away():
            host.cli("checkpoint", "delete", "golden@base")
            host.cli("volume", "delete", "golden")
        yield "volume:golden@base", take_away


class Overlay:
    """A served volume over a backing, and what must be on it."""

    def __init__(self, host, name, content):
        self.host, self.name, self.content = host, name, bytearray(content)
        self.uri = host.serve(name)
        self.client = connect(self.uri)

    def write(self, offset, data):
        self.client.pwrite(data, offset)
        self.content[offset:offset + len(data)] = data

    def zero(self, offset, length, how):
        how(length, offset)
        self.content[offset:offset + length] = bytes(length)

    def is_right(self):
        assert differing(read_export(self.uri), self.content) == []

    def copy_is_right(self, directory):
        """As stock clients see it."""
        expected, copy = directory / "expected.raw", directory / "copy.raw"
        expected.write_bytes(self.content)
        run("nbdcopy", self.uri, copy)
        assert filecmp.cmp(expected, copy, shallow=False)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", expected, self.uri)

    def allocation(self):
        extents = json.loads(run("nbdinfo", "--json", "--map", self.uri).stdout)
        assert sum(extent["length"] for extent in extents) == len(self.content)
        return extents

    def says_no_zeros_where_there_are_none(self):
        for extent in self.allocation():
            part = self.content[extent["offset"]:extent["offset"] + extent["length"]]
            assert not extent["type"] & 2 or not any(part), extent

    def delete(self):
        self.client.shutdown()
        self.host.cli("volume", "unserve", self.name)
        self.host.cli("volume", "delete", self.name)


@pytest.mark.parametrize("kind", ["raw", *FORMATS, "nbd", "checkpoint"])
def test_a_volume_reads_its_backing_keeps_what_is_written_and_can_do_without_it(host, source, tmp_path, kind):
    with backing_of(kind, host, source, tmp_path) as (backing, take_away):
        digest = pathlib.Path(backing).read_bytes() if isinstance(backing, pathlib.Path) else None
        made = host.json("volume", "create", kind, "--backing", backing)
        assert made["size"] == SIZE and made["backing"].endswith(str(backing))
        disk = Overlay(host, kind, source.read_bytes())
        disk.copy_is_right(tmp_path)
        disk.says_no_zeros_where_there_are_none()

        disk.write(3 * BLOCK + 1000, b"a part of a block that has data")
        disk.write(MIB + BLOCK - 5, b"over the border")
        disk.write(4 * MIB + 17, b"into a hole")
        disk.write(SIZE - 3, b"end")
        disk.zero(5 * MIB, BLOCK, disk.client.trim)
        disk.zero(5 * MIB + BLOCK + 512, 1024, disk.client.zero)
        disk.zero(0, 2 * BLOCK, disk.client.zero)
        disk.copy_is_right(tmp_path)
        disk.says_no_zeros_where_there_are_none()
        host.cli("checkpoint", "create", kind, "--name", "over")
        before = bytes(disk.content)
        disk.write(MIB, b"\x77" * 3 * BLOCK)
        assert differing(read_export(export_uri(disk.uri, f"{kind}@over")), before) == []

        job = host.json("volume", "populate", kind, "--detach")
        disk.write(2 * MIB - 100, b"\x78" * BLOCK)  # meanwhile
        assert host.wait_for_job(job["id"])["state"] == "done"
        assert host.json("volume", "populate", kind)["copied"] == 0
        disk.is_right()
        assert digest is None or backing.read_bytes() == digest
        if kind == "checkpoint":
            assert host.refused("checkpoint", "delete", "golden@base").returncode == 4  # for as long as it stands on it
            disk.delete()
            take_away()
            return
        host.cli("checkpoint", "delete", f"{kind}@over")  # what it holds of absent blocks is the backing's
        take_away()
        disk.is_right()
        disk.delete()


def test_a_volume_that_has_everything_opens_without_its_backing(host, source, tmp_path):
    path = copy_tree(source, tmp_path / "raw")
    host.cli("volume", "create", "whole", "--backing", path)
    host.cli("volume", "populate", "whole")
    host.cli("volume", "check", "whole")  # ends its keeper
    path.unlink()
    disk = Overlay(host, "whole", source.read_bytes())
    disk.is_right()
    disk.delete()


@pytest.mark.parametrize("size", [SIZE // 2, SIZE - BLOCK - 512, SIZE + BLOCK // 2])
def test_a_backing_of_another_size_is_cut_off_or_followed_by_zeros(host, source, tmp_path, size):
    content = source.read_bytes()[:size].ljust(size, b"\0")
    name = f"size-{size}"
    host.create(name, str(size), "--backing", source)
    disk = Overlay(host, name, content)
    disk.is_right()
    disk.write(min(size, SIZE) - 100, b"x" * (100 if size < SIZE else 300))  # the block in which it ends
    disk.copy_is_right(tmp_path)
    if size % 4096 == 0:  # others keep their size
        host.cli("volume", "resize", name, "--size", str(2 * SIZE))
        disk.content += bytes(2 * SIZE - size)  # what the backing has there is not of this disk
    disk.is_right()
    host.cli("volume", "populate", name)
    disk.is_right()
    disk.delete()


# --- Backings that do not answer.

def read_error(client, offset):
    """What a read ends with: None, or the name of the error."""
    try:
        client.pread(512, offset)
        return None
    except nbd.Error as error:
        return error.errno


def test_an_nbd_backing_that_goes_away_is_an_error_until_it_is_back(host, source, tmp_path):
    socket = tmp_path / "nbd.sock"
    with nbd_server(source, socket):
        host.create("remote", str(SIZE), "--backing", f"nbd+unix:///?socket={socket}")
        disk = Overlay(host, "remote", source.read_bytes())
        disk.write(0, b"here" * 128 * 128)
    # A keeper that cannot reach it waits for a while, and says so then: to reads, and to writes that need what is there.
    other = connect(disk.uri)
    failed = []
    other.aio_pwrite(b"part", MIB, lambda error: failed.append(error.value) or 1)
    assert read_error(disk.client, MIB) == "EIO"
    assert bytes(disk.client.pread(512, 0)) == b"here" * 128
    wait_until(lambda: other.poll(100) and failed, "the write's end")
    assert failed == [errno.EIO]
    other.shutdown()
    disk.write(2 * MIB, b"\x11" * BLOCK)  # whole blocks need nobody
    with nbd_server(source, socket):
        disk.is_right()
        disk.write(MIB, b"part")
        disk.is_right()
        host.cli("volume", "populate", "remote")
    disk.is_right()
    disk.delete()


def test_a_backing_that_comes_back_with_another_size_is_not_the_same(host, source, tmp_path):
    socket, other = tmp_path / "nbd.sock", tmp_path / "other"
    other.write_bytes(b"\xbb" * (SIZE // 2))
    with nbd_server(source, socket):
        host.create("swapped", str(SIZE), "--backing", f"nbd+unix:///?socket={socket}")
        disk = Overlay(host, "swapped", source.read_bytes())
    with nbd_server(other, socket):
        assert read_error(disk.client, MIB) == "EIO"
    disk.delete()


def test_an_image_whose_reader_dies_is_an_error_until_the_keeper_is_started_again(host, source, tmp_path):
    image = tmp_path / "image.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, image)
    host.cli("volume", "create", "image", "--backing", image)
    disk = Overlay(host, "image", source.read_bytes())
    disk.is_right()
    keeper = host.keeper_pid("image")
    (reader,) = map(int, pathlib.Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split())
    os.kill(reader, signal.SIGKILL)
    wait_for_exit(reader)
    assert read_error(disk.client, MIB) in (None, "EIO")
    disk.write(2 * MIB, b"\x11" * BLOCK)
    host.kill_keeper("image", keeper)
    disk.client = connect(disk.uri)
    disk.is_right()
    disk.delete()


def test_a_raw_backing_that_has_become_shorter_is_an_error_and_not_zeros(host, source, tmp_path):
    path = copy_tree(source, tmp_path / "raw")
    host.cli("volume", "create", "short", "--backing", path)
    disk = Overlay(host, "short", source.read_bytes())
    os.truncate(path, SIZE // 2)
    assert read_error(disk.client, 5 * MIB) == "EIO"
    assert read_error(disk.client, MIB) is None
    disk.client.shutdown()
    host.cli("volume", "unserve", "short")
    host.cli("volume", "check", "short")
    refused = host.refused("volume", "serve", "short")
    assert refused.returncode == 1 and str(path) in refused.stderr and str(SIZE // 2) in refused.stderr, refused.stderr
    path.write_bytes(source.read_bytes())
    disk = Overlay(host, "short", source.read_bytes())
    disk.is_right()
    disk.delete()


def test_a_backing_that_is_gone_is_named_and_the_volume_can_still_be_deleted(host, source, tmp_path):
    path = copy_tree(source, tmp_path / "raw")
    host.cli("volume", "create", "orphan", "--backing", path)
    path.unlink()
    refused = host.refused("volume", "serve", "orphan")
    assert refused.returncode == 3 and str(path) in refused.stderr, refused.stderr
    assert host.json("volume", "check", "orphan")["sound"] is True
    host.cli("volume", "delete", "orphan")


# --- Disks that are adopted where they are.

def test_an_adopted_file_is_written_in_place_and_vouched_for(host, source, tmp_path):
    path = copy_tree(source, tmp_path / "adopted.raw")
    host.cli("volume", "create", "adopted", "--adopt", path)
    disk = Overlay(host, "adopted", source.read_bytes())
    disk.is_right()
    host.cli("refpoint", "create", "adopted", "--name", "start")
    disk.write(MIB + 5, b"in place")
    disk.client.shutdown()
    host.cli("volume", "unserve", "adopted")
    host.cli("volume", "check", "adopted")
    assert path.read_bytes() == disk.content
    assert host.changes("adopted", "start") == ([(MIB, BLOCK)], True)
    host.cli("volume", "delete", "adopted")
    assert path.read_bytes() == disk.content


@pytest.fixture(name="device")
def _device(source, tmp_path):
    """A loop device with the content of the source, and its file."""
    path = copy_tree(source, tmp_path / "device.raw")
    done = run("losetup", "--find", "--show", path, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs a loop device: {done.stderr}")
    device = done.stdout.strip()
    try:
        yield device, path
    finally:
        run("losetup", "--detach", device)


def test_an_adopted_block_device_is_written_in_place_and_keeps_its_bytes(host, source, device):
    device, path = device
    assert host.json("volume", "create", "device", "--adopt", device)["size"] == SIZE
    disk = Overlay(host, "device", source.read_bytes())
    disk.is_right()
    host.cli("checkpoint", "create", "device", "--name", "start", "--refpoint", "start")
    disk.write(MIB + 5, b"in place")
    disk.zero(5 * MIB, BLOCK, disk.client.zero)
    disk.is_right()
    assert differing(read_export(export_uri(disk.uri, "device@start")), source.read_bytes()) == []
    host.kill_keeper("device")
    disk.client = connect(disk.uri)
    disk.is_right()
    disk.client.flush()
    disk.client.shutdown()
    assert host.changes("device", "start") == ([(MIB, BLOCK), (5 * MIB, BLOCK)], True)
    host.cli("volume", "unserve", "device")
    host.cli("volume", "delete", "device")
    with open(device, "rb") as file:
        assert differing(file.read(), disk.content) == []
    assert path.stat().st_size == SIZE


def test_what_cannot_be_adopted_is_left_as_it_is(host, source, tmp_path, device):
    image = tmp_path / "image.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", image, "1M")
    bytes_before = image.read_bytes()
    refused = host.refused("volume", "create", "none", "--adopt", image)
    assert refused.returncode == 2 and "qcow2" in refused.stderr and "backing" in refused.stderr, refused.stderr
    refused = host.refused("volume", "create", "none", "--adopt", device[0], "--size", str(SIZE + 512))
    assert refused.returncode == 2 and str(SIZE) in refused.stderr, refused.stderr
    host.cli("volume", "create", "first", "--adopt", device[0])
    alias = tmp_path / "alias"
    alias.symlink_to(device[0])
    for path in (device[0], alias):
        refused = host.refused("volume", "create", "second", "--adopt", path)  # two would not know of each other
        assert refused.returncode == 4 and str(path) in refused.stderr and "'first'" in refused.stderr, refused.stderr
    alias.unlink()
    host.cli("volume", "delete", "first")
    assert image.read_bytes() == bytes_before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device.raw", "image.qcow2"]
