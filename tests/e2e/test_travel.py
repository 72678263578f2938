"""Volumes that leave one host as a directory, copied by `berth volume export` or by `cp -a`, and come to another one.

Moved: it is the same volume. What it says has changed since any of its reference points is what a comparison of the
bytes says, an increment patched onto an old full copy is the disk, checkpoints are what they were. Copied: it is
another volume with the same bytes and the same checkpoints, and every reference point of the original is refused, never
answered with an empty list. What was not closed, was changed since, or leads out of its directory does not come in;
whatever dies in the middle leaves nothing."""

import contextlib
import filecmp
import json
import os
import random
import shutil
import signal
import socket
import tempfile

import pytest
from berth_formats import Volume
from berth_host import BerthHost, wait_for_exit
from volume_tools import connect, copy_tree, differing, export_uri, read_export, wait_until

MIB = 1 << 20
BLOCK = 64 << 10
SIZE = 64 * MIB + 3 * 4096  # the last block is a short one
WAYS = ["export", "cp"]


@contextlib.contextmanager
def host_in_memory():
    """No power is lost here, and nobody has to wait for a disk. What leaves it goes to another file system."""
    with tempfile.TemporaryDirectory(prefix="berth-", dir="/dev/shm") as directory:
        with BerthHost(directory=directory) as host:
            yield host


@pytest.fixture(name="here")
def _here():
    with host_in_memory() as host:
        yield host


@pytest.fixture(name="there")
def _there():
    with host_in_memory() as host:
        yield host


class Disk:
    """A volume under test, served, and what must be on it."""

    def __init__(self, host, name="disk", size=SIZE, seed=1):
        self.host, self.name, self.content = host, name, bytearray(size)
        self.size, self.random = size, random.Random(seed)
        self.points = {}  # what was on it
        host.create(name, str(size))
        self.serve()

    def serve(self):
        self.uri = self.host.serve(self.name)
        self.client = connect(self.uri)

    def write(self, offset, data):
        self.client.pwrite(data, offset)
        self.content[offset:offset + len(data)] = data

    def write_somewhere(self, times):
        """Whole and partial blocks, over borders of blocks and at the end; every write changes what it covers."""
        for _ in range(times):
            length = self.random.choice([512, 4096, BLOCK, 3 * BLOCK])
            offset = self.random.choice([self.size - length, self.random.randrange(0, self.size - length, 512)])
            self.write(offset, self.random.randbytes(length))

    def remember(self, name):
        self.points[name] = bytes(self.content)

    def checkpoint(self, name):
        self.host.cli("checkpoint", "create", self.name, "--name", name)
        self.remember(name)

    def refpoint(self, name):
        status, answer = self.host.api("POST", "/v1/refpoints", {"volumes": [self.name], "name": name})
        assert status in (200, 201), answer
        self.remember(name)

    def unserve(self):
        self.client.shutdown()
        self.host.cli("volume", "unserve", self.name)

    def close(self):
        """After unserve()."""
        assert self.host.json("volume", "check", self.name)["sound"]  # ends its keeper

    @property
    def path(self):
        return self.host.state_dir / "volumes" / self.name

    def changed_since(self, since):
        """As the extents that Berth lists, by a comparison of the bytes."""
        old, extents = self.points[since], []
        for start in range(0, self.size, BLOCK):
            end = min(start + BLOCK, self.size)
            if old[start:end] == self.content[start:end]:
                continue
            if extents and sum(extents[-1]) == start:
                extents[-1] = (extents[-1][0], end - extents[-1][0])
            else:
                extents.append((start, end - start))
        return extents


def leave(disk, way, to):
    """Copies the closed volume's directory."""
    if way == "export":
        done = disk.host.json("volume", "export", disk.name, to)
        assert done["path"] == str(to) and done["id"] == disk.host.json("volume", "info", disk.name)["id"]
    else:
        disk.close()
        copy_tree(disk.path, to)
    return to


def reason_of(host, *arguments, code=4):
    """Why a command is refused; on one line."""
    done = host.refused(*arguments)
    assert done.returncode == code and done.stdout == "" and len(done.stderr.splitlines()) == 1, done
    return done.stderr


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(name="story")
def _story(here, tmp_path):
    """A volume with a backup, a reference point of that backup, a checkpoint, and writes before and after each."""
    disk = Disk(here)
    disk.write_somewhere(40)
    disk.checkpoint("sunday")
    here.cli("checkpoint", "export", "disk@sunday", tmp_path / "full.raw")
    here.cli("refpoint", "convert", "disk@sunday")
    here.cli("refpoint", "export", "disk@sunday", tmp_path / "sunday.json")
    disk.write_somewhere(20)
    disk.checkpoint("kept")
    disk.write_somewhere(20)
    disk.unserve()
    return disk


@pytest.mark.parametrize("way", WAYS)
def test_a_moved_volume_goes_on_with_its_points(story, there, tmp_path, way):
    directory = leave(story, way, tmp_path / "moved")
    before = {path: path.stat() for path in [directory / "data", directory / "map"]}
    arrived = there.json("volume", "import", "other", directory, "--moved")
    assert (arrived["name"], arrived["arrival"]) == ("other", "moved")
    assert arrived["void_refpoints"] == [] and arrived["lost_checkpoints"] == []
    volume = Volume(there.state_dir / "volumes" / "other")
    assert volume.events[-1] == "identity" and volume.id == arrived["id"]
    for path, status in before.items():
        now = path.stat()
        assert (now.st_mtime_ns, now.st_ino) == (status.st_mtime_ns, status.st_ino)
    shutil.rmtree(directory)

    expected = story.changed_since("sunday")
    assert there.changes("other", "sunday") == (expected, True)
    assert there.json("refpoint", "import", "other", tmp_path / "sunday.json")["name"] == "sunday"
    uri = there.serve("other")
    assert differing(read_export(uri), story.content) == []
    assert differing(read_export(export_uri(uri, "other@kept")), story.points["kept"]) == []
    client = connect(uri)
    client.pwrite(b"on the new host", 5 * BLOCK - 3)
    story.content[5 * BLOCK - 3:5 * BLOCK + 12] = b"on the new host"
    there.cli("checkpoint", "create", "other", "--name", "monday")
    there.cli("checkpoint", "export", "other@monday", tmp_path / "full.raw", "--since", "sunday")
    assert differing((tmp_path / "full.raw").read_bytes(), story.content) == []
    client.shutdown()
    there.cli("volume", "unserve", "other")
    assert there.json("volume", "check", "other")["sound"]
    assert there.changes("other", "sunday") == (story.changed_since("sunday"), True)


@pytest.mark.parametrize("way", WAYS)
def test_a_copied_volume_is_another_one_with_the_same_checkpoints(story, there, tmp_path, way):
    directory = leave(story, way, tmp_path / "copied")
    original = story.host.json("volume", "info", "disk")
    arrived = there.json("volume", "import", "copy", directory, "--copied")
    assert arrived["id"] != original["id"]
    assert arrived["void_refpoints"] == ["sunday"] and arrived["lost_checkpoints"] == []
    assert there.json("volume", "info", "copy")["id"] == arrived["id"]
    assert json.loads((there.state_dir / "volumes" / "copy" / "volume.json").read_text())["id"] == arrived["id"]

    said = reason_of(there, "changes", "copy", "--since", "sunday")
    assert "copy" in said and "full backup" in said
    assert "copy" in reason_of(there, "changes", "copy", "--since", "kept")
    assert "another volume" in reason_of(there, "refpoint", "import", "copy", tmp_path / "sunday.json")
    assert reason_of(there, "checkpoint", "export", "copy@kept", tmp_path / "inc.raw", "--since", "sunday")
    assert not (tmp_path / "inc.raw").exists()

    uri = there.serve("copy")
    assert differing(read_export(uri), story.content) == []
    assert differing(read_export(export_uri(uri, "copy@kept")), story.points["kept"]) == []
    there.cli("checkpoint", "export", "copy@kept", tmp_path / "kept.raw")
    assert (tmp_path / "kept.raw").read_bytes() == story.points["kept"]
    there.cli("refpoint", "create", "copy", "--name", "own")
    client = connect(uri)
    client.pwrite(b"x", 7 * BLOCK)
    client.shutdown()
    assert there.changes("copy", "own") == ([(7 * BLOCK, BLOCK)], True)
    there.kill_keeper("copy")
    assert there.changes("copy", "own") == ([(7 * BLOCK, BLOCK)], True)

    # A point of the original's is none of the copy's, whatever it is called.
    nonce = json.loads((tmp_path / "sunday.json").read_text())["nonce"]
    there.cli("refpoint", "delete", "copy@sunday")
    there.cli("refpoint", "create", "copy", "--name", "sunday")
    assert there.changes("copy", "sunday") == ([], True)
    assert "another one" in reason_of(there, "changes", "copy", "--since", "sunday", "--nonce", nonce)

    # And the original goes on.
    assert story.host.changes("disk", "sunday") == (story.changed_since("sunday"), True)
    there.cli("volume", "unserve", "copy")
    assert there.json("volume", "check", "copy")["sound"]


def test_two_hundred_reference_points_stay_good(here, there, tmp_path):
    disk = Disk(here, size=4 * MIB)
    for number in range(200):
        disk.refpoint(f"r{number}")
        disk.write_somewhere(1)
    disk.unserve()
    there.cli("volume", "import", "disk", leave(disk, "export", tmp_path / "moved"), "--moved")
    for number in range(200):
        status, answer = there.api("GET", f"/v1/volumes/disk/changes?since=r{number}")
        assert status == 200, answer
        assert answer["exact"] and answer["complete"]
        assert [tuple(extent) for extent in answer["extents"]] == disk.changed_since(f"r{number}"), number


def test_what_is_asked_of_a_moved_volume_and_is_not_its_own_is_refused(story, there, tmp_path):
    directory = leave(story, "export", tmp_path / "moved")
    # The original went on, against what was said: of a point that it has made since the copy knows nothing.
    story.host.cli("refpoint", "create", "disk", "--name", "future")
    story.host.cli("refpoint", "export", "disk@future", tmp_path / "future.json")
    foreign = Disk(there, "foreign", MIB)
    foreign.refpoint("sunday")
    foreign.unserve()
    there.cli("refpoint", "export", "foreign@sunday", tmp_path / "foreign.json")
    there.cli("volume", "import", "disk", directory, "--moved")
    assert "no record" in reason_of(there, "refpoint", "import", "disk", tmp_path / "future.json")
    assert "another volume" in reason_of(there, "refpoint", "import", "disk", tmp_path / "foreign.json")
    assert "future" in reason_of(there, "changes", "disk", "--since", "future")
    nonce = json.loads((tmp_path / "foreign.json").read_text())["nonce"]
    assert "another one" in reason_of(there, "changes", "disk", "--since", "sunday", "--nonce", nonce)
    there.cli("refpoint", "delete", "disk@sunday")
    assert "no record" in reason_of(there, "refpoint", "import", "disk", tmp_path / "sunday.json")


# --- Where it lies already.

def test_a_directory_that_was_put_among_the_volumes_is_taken_in_where_it_is(story, there):
    story.close()
    there.create("first", "1M")  # makes the directory of volumes
    there.cli("volume", "check", "first")
    there.stop()
    path = copy_tree(story.path, there.state_dir / "volumes" / "disk")
    inode = (path / "data").stat().st_ino
    there.start()
    there.cli("volume", "import", "disk", path, "--moved")
    there.cli("volume", "import", "disk", path, "--moved")  # nothing is left to be done
    assert (path / "data").stat().st_ino == inode
    assert there.changes("disk", "sunday") == (story.changed_since("sunday"), True)
    # Of the same host it is the same volume, and can only be copied.
    assert "'disk' of this host" in reason_of(there, "volume", "import", "clone", path, "--moved")
    there.cli("volume", "import", "clone", path, "--copied")  # ends an idle keeper
    assert "copy" in reason_of(there, "changes", "clone", "--since", "sunday")
    assert there.changes("disk", "sunday") == (story.changed_since("sunday"), True)


def test_a_copy_that_is_opened_before_anybody_says_what_it_is_says_how_it_could_have_been(story, there):
    story.close()
    there.create("first", "1M")
    copy_tree(story.path, there.state_dir / "volumes" / "disk")
    mark = there.last_event()
    assert "was changed" in reason_of(there, "changes", "disk", "--since", "sunday")
    assert "volume import" in there.wait_for_event("refpoints_void", "disk", since=mark)["message"]


def test_a_directory_becomes_the_volumes_by_a_rename(story, there, tmp_path):
    directory = there.state_dir / "brought"  # on the same file system
    leave(story, "export", directory)
    inode = (directory / "data").stat().st_ino
    there.cli("volume", "import", "disk", directory, "--moved", "--move-files")
    assert not directory.exists() and (there.state_dir / "volumes" / "disk" / "data").stat().st_ino == inode
    assert there.changes("disk", "sunday") == (story.changed_since("sunday"), True)
    elsewhere = tmp_path / "x"
    story.host.cli("volume", "export", "disk", elsewhere)
    assert "--move-files" in reason_of(there, "volume", "import", "x", elsewhere, "--copied", "--move-files", code=1)


# --- What is not as it should be.

def test_a_volume_that_is_in_use_is_not_exported_and_says_what_can_be(here, tmp_path):
    disk = Disk(here, size=MIB)
    said = reason_of(here, "volume", "export", "disk", tmp_path / "x")
    assert "served" in said and "checkpoint export" in said
    disk.unserve()
    assert here.json("volume", "info", "disk")["listeners"] == []  # a keeper that is open and idle is no hindrance
    here.cli("volume", "export", "disk", tmp_path / "x")
    assert names_in(tmp_path) == ["x"]
    assert "exists" in reason_of(here, "volume", "export", "disk", tmp_path / "x")
    assert "none" in reason_of(here, "volume", "export", "disk", tmp_path / "none" / "x", code=3)
    assert reason_of(here, "volume", "export", "disk", here.state_dir / "volumes" / "x", code=2)
    assert reason_of(here, "volume", "export", "absent", tmp_path / "y", code=3)


def test_a_volume_whose_keeper_was_killed_is_closed_first(story, tmp_path):
    story.host.kill_keeper("disk")
    story.host.cli("volume", "export", "disk", tmp_path / "x")
    volume = Volume(tmp_path / "x")
    assert volume.state.clean and volume.content(None) == story.content
    assert volume.content(volume.point("kept")) == story.points["kept"]


def test_a_volume_that_was_not_closed_can_only_be_copied(here, there, tmp_path):
    disk = Disk(here)
    disk.write_somewhere(20)
    disk.refpoint("sunday")
    disk.checkpoint("kept")
    disk.write_somewhere(20)
    disk.client.flush()
    keeper = here.keeper_pid("disk")
    here.daemon.kill()
    os.kill(keeper, signal.SIGKILL)
    wait_for_exit(keeper)
    directory = copy_tree(disk.path, tmp_path / "unclean")
    here.start()
    said = reason_of(there, "volume", "import", "disk", directory, "--moved")
    assert "not closed" in said and "copied" in said
    assert names_in(there.state_dir / "volumes") == []
    arrived = there.json("volume", "import", "disk", directory, "--copied")
    assert arrived["void_refpoints"] == ["sunday"]
    uri = there.serve("disk")
    assert differing(read_export(uri), disk.content) == []
    assert differing(read_export(export_uri(uri, "disk@kept")), disk.points["kept"]) == []
    assert "copy" in reason_of(there, "changes", "disk", "--since", "sunday")
    there.cli("volume", "unserve", "disk")


@pytest.mark.parametrize("change", ["time", "content", "size"])
def test_a_data_file_that_was_changed_is_only_copied_and_without_checkpoints(story, there, tmp_path, change):
    directory = leave(story, "export", tmp_path / "changed")
    if change == "time":
        os.utime(directory / "data", ns=(0, (directory / "data").stat().st_mtime_ns + 1))
    elif change == "content":
        with open(directory / "data", "r+b") as file:
            file.write(b"by somebody else")
    else:
        os.truncate(directory / "data", SIZE + 1)
    said = reason_of(there, "volume", "import", "disk", directory, "--moved")
    assert ("size" if change == "size" else "time of modification") in said and "cp -a" in said
    assert names_in(there.state_dir / "volumes") == []
    arrived = there.json("volume", "import", "disk", directory, "--copied")
    assert arrived["lost_checkpoints"] == ["kept"] and arrived["void_refpoints"] == ["sunday"]
    uri = there.serve("disk")
    expected = b"by somebody else" + story.content[16:] if change == "content" else story.content
    assert differing(read_export(uri), expected) == []
    assert there.json("checkpoint", "list", "disk")["checkpoints"][0]["lost"]
    there.cli("volume", "unserve", "disk")


def test_one_of_the_two_has_to_be_said(story, there, tmp_path):
    directory = leave(story, "export", tmp_path / "x")
    for words in ([], ["--moved", "--copied"]):
        said = reason_of(there, "volume", "import", "disk", directory, *words, code=2)
        assert "--moved: the original is gone" in said and "--copied: the original goes on" in said
    there.create("disk", "1M")
    assert "already" in reason_of(there, "volume", "import", "disk", directory, "--copied")


def spoil(directory, how):
    """Makes of a volume's directory what somebody could send."""
    holds = directory / "holds"
    hold = next(holds.iterdir())
    if how == "data leads out":
        (directory / "data").unlink()
        (directory / "data").symlink_to("/etc/passwd")
    elif how == "map leads out":
        (directory / "map").unlink()
        (directory / "map").symlink_to("/dev/zero")
    elif how == "holds lead out":
        shutil.rmtree(holds)
        holds.symlink_to("/etc")
    elif how == "a hold leads out":
        hold.unlink()
        hold.symlink_to("/etc/passwd")
    elif how == "something leads out":
        (directory / "volume.json.new").symlink_to("/etc/passwd")
    elif how == "a socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(holds / "s"))
    elif how == "a fifo":
        hold.unlink()
        os.mkfifo(hold)
    elif how == "no map":
        (directory / "map").unlink()
    elif how == "no data":
        (directory / "data").unlink()
    elif how == "no hold":
        hold.unlink()
    elif how == "a short data file":
        status = (directory / "data").stat()
        os.truncate(directory / "data", SIZE // 2)
        os.utime(directory / "data", ns=(status.st_atime_ns, status.st_mtime_ns))
    elif how == "a short map":
        os.truncate(directory / "map", MIB)
    elif how == "noise for a map":
        (directory / "map").write_bytes(random.Random(3).randbytes(4 * MIB))
    elif how == "an empty map":
        os.truncate(directory / "map", 0)
    elif how == "a map of another volume's pages":
        with open(directory / "map", "r+b") as file:
            file.seek(128 * MIB)
            file.write(random.Random(3).randbytes(16384))


HOSTILE = {  # and the exit code
    "data leads out": 4, "map leads out": 2, "holds lead out": 2, "a hold leads out": 2, "something leads out": 2,
    "a socket": 2, "a fifo": 2, "no map": 2, "no data": 2, "no hold": 1, "a short data file": 1, "a short map": 1,
    "noise for a map": 1, "an empty map": 1, "a map of another volume's pages": 1}


@pytest.mark.parametrize("way", ["copy", "in place"])
def test_hostile_directories_are_refused_and_leave_nothing(story, there, tmp_path, way):
    exported = leave(story, "export", tmp_path / "x")
    there.create("first", "1M")
    volumes = there.state_dir / "volumes"
    for how, code in HOSTILE.items():
        directory = copy_tree(exported, volumes / "disk" if way == "in place" else tmp_path / "spoiled")
        spoil(directory, how)
        for arrival in ("--moved", "--copied"):
            assert reason_of(there, "volume", "import", "disk", directory, arrival, code=code), how
        shutil.rmtree(directory)
        assert names_in(volumes) == ["first"], how
    for nothing in (tmp_path / "absent", exported / "data", "/dev/null", "/"):
        done = there.refused("volume", "import", "disk", nothing, "--copied")
        assert done.returncode in (1, 2, 3) and len(done.stderr.splitlines()) == 1, done
    assert names_in(volumes) == ["first"]
    there.cli("volume", "import", "disk", exported, "--moved")
    assert there.changes("disk", "sunday") == (story.changed_since("sunday"), True)


# --- What they stand on.

def test_a_backing_has_to_be_where_it_was(here, there, tmp_path):
    backing = tmp_path / "backing.raw"
    content = random.Random(4).randbytes(4 * MIB)
    backing.write_bytes(content)
    here.cli("volume", "create", "disk", "--backing", backing)
    client = connect(here.serve("disk"))
    client.pwrite(b"over it", 100)
    here.cli("refpoint", "create", "disk", "--name", "sunday")
    client.pwrite(b"again", 2 * BLOCK)
    client.shutdown()
    here.cli("volume", "unserve", "disk")
    here.cli("volume", "export", "disk", tmp_path / "x")
    backing.rename(tmp_path / "elsewhere.raw")
    assert str(backing) in reason_of(there, "volume", "import", "disk", tmp_path / "x", "--moved")
    assert names_in(there.state_dir / "volumes") == []
    (tmp_path / "elsewhere.raw").rename(backing)
    there.cli("volume", "import", "disk", tmp_path / "x", "--moved")
    uri = there.serve("disk")
    expected = bytearray(content)
    expected[100:107], expected[2 * BLOCK:2 * BLOCK + 5] = b"over it", b"again"
    assert differing(read_export(uri), expected) == []
    assert there.changes("disk", "sunday") == ([(2 * BLOCK, BLOCK)], True)
    there.cli("volume", "unserve", "disk")


def test_what_stands_on_another_volume_comes_along_when_it_has_everything(here, there, tmp_path):
    base = Disk(here, "base", MIB)
    base.write(0, b"base" * 1024)
    base.checkpoint("gold")
    base.unserve()
    here.cli("volume", "create", "clone", "--backing", "volume:base@gold")
    said = reason_of(here, "volume", "export", "clone", tmp_path / "x")
    assert "base@gold" in said and "populate" in said
    here.cli("volume", "populate", "clone")
    here.cli("volume", "export", "clone", tmp_path / "x")
    # Whatever is called so on the other host, even itself, is nothing to it.
    there.cli("volume", "import", "base", tmp_path / "x", "--moved")
    uri = there.serve("base")
    assert differing(read_export(uri), base.content) == []
    there.cli("volume", "unserve", "base")
    there.cli("volume", "import", "clone", tmp_path / "x", "--copied")
    assert there.json("volume", "info", "clone")["backing"] == "volume:base@gold"
    there.cli("checkpoint", "create", "base", "--name", "gold")
    there.cli("checkpoint", "delete", "base@gold")
    there.cli("volume", "delete", "base")
    uri = there.serve("clone")
    assert differing(read_export(uri), base.content) == []
    there.cli("volume", "unserve", "clone")
    # One that was copied by hand, and has not everything.
    here.cli("volume", "create", "poor", "--backing", "volume:base@gold")
    here.cli("volume", "check", "poor")
    copy_tree(here.state_dir / "volumes" / "poor", tmp_path / "poor")
    assert "base@gold" in reason_of(there, "volume", "import", "poor", tmp_path / "poor", "--moved")
    # Where it has always been it stands on what it stood on.
    here.cli("volume", "check", "poor")
    (here.state_dir / "volumes" / "poor").rename(here.state_dir / "aside")
    copy_tree(here.state_dir / "aside", here.state_dir / "volumes" / "poor")
    here.cli("volume", "import", "poor", here.state_dir / "volumes" / "poor", "--moved")
    uri = here.serve("poor")
    assert differing(read_export(uri), base.content) == []
    here.cli("volume", "unserve", "poor")


def test_adopted_data_does_not_travel(here, tmp_path):
    (tmp_path / "disk.raw").write_bytes(bytes(MIB))
    here.cli("volume", "create", "adopted", "--adopt", tmp_path / "disk.raw")
    said = reason_of(here, "volume", "export", "adopted", tmp_path / "x")
    assert "adopted" in said and str(tmp_path / "disk.raw") in said
    assert names_in(tmp_path) == ["disk.raw"]


# --- Ends in the middle.

@pytest.fixture(name="large")
def _large(here):
    """A volume whose copy takes a while."""
    disk = Disk(here, "large", 256 * MIB)
    for offset in range(0, 256 * MIB, 4 * MIB):
        disk.write(offset, os.urandom(4 * MIB))
    disk.refpoint("sunday")
    disk.unserve()
    disk.close()
    return disk


def wait_in_the_middle(partial):
    wait_until(lambda: (partial / "data").exists() and (partial / "data").stat().st_blocks > 0, f"{partial}", step_s=0)


@pytest.mark.parametrize("end", ["kill", "cancel"])
def test_an_export_that_is_cut_short_leaves_nothing(large, tmp_path, end):
    host, partial = large.host, tmp_path / ".x.berth-export"
    job = host.json("volume", "export", "large", tmp_path / "x", "--detach")
    wait_in_the_middle(partial)
    if end == "kill":
        host.daemon.kill()
        assert not (tmp_path / "x").exists() and partial.exists(), "it was not in the middle"
        host.start()
        assert host.json("job", "info", job["id"])["state"] == "failed"
        host.create("next", "1M")  # any command that makes something
    else:
        host.cli("job", "cancel", job["id"])
        assert host.wait_for_job(job["id"])["state"] == "cancelled"
    assert names_in(tmp_path) == []
    assert [name for name in names_in(host.state_dir / "volumes") if name.startswith(".")] == []
    host.cli("volume", "export", "large", tmp_path / "x")
    assert filecmp.cmp(tmp_path / "x" / "data", large.path / "data", shallow=False)
    assert host.changes("large", "sunday") == ([], True)


@pytest.mark.parametrize("end", ["kill", "cancel"])
def test_an_import_that_is_cut_short_leaves_nothing(large, there, tmp_path, end):
    large.host.cli("volume", "export", "large", tmp_path / "x")
    partial = there.state_dir / "volumes" / ".creating-large"
    job = there.json("volume", "import", "large", tmp_path / "x", "--moved", "--detach")
    wait_in_the_middle(partial)
    if end == "kill":
        there.daemon.kill()
        assert partial.exists(), "it was not in the middle"
        there.start()
        assert there.json("volume", "list")["volumes"] == []
    else:
        there.cli("job", "cancel", job["id"])
        assert there.wait_for_job(job["id"])["state"] == "cancelled"
        assert names_in(there.state_dir / "volumes") == []
    there.cli("volume", "import", "large", tmp_path / "x", "--moved")
    assert names_in(there.state_dir / "volumes") == ["large"]
    assert filecmp.cmp(there.state_dir / "volumes" / "large" / "data", large.path / "data", shallow=False)
    assert there.changes("large", "sunday") == ([], True)


def test_daemons_that_die_at_any_moment_of_an_arrival_leave_a_volume_that_can_arrive(story, there, tmp_path):
    """In place, where nothing is copied: what is recorded is there or not."""
    exported = leave(story, "export", tmp_path / "x")
    there.create("first", "1M")
    path = there.state_dir / "volumes" / "disk"
    chance = random.Random(6)
    for _ in range(12):
        copy_tree(exported, path)
        job = there.json("volume", "import", "disk", path, "--moved", "--detach")
        for _ in range(chance.randrange(5)):
            there.api("GET", f"/v1/jobs/{job['id']}")
        there.daemon.kill()
        there.start()
        there.cli("volume", "import", "disk", path, "--moved")
        assert there.changes("disk", "sunday") == (story.changed_since("sunday"), True)
        there.cli("volume", "delete", "disk")
