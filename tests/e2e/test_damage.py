"""Damaged files of a volume: its block map, its holds, its data file. What stays true, whatever was damaged:

1. the live disk reads as it was written, as soon as the volume opens;
2. `berth changes` leaves out no block that differs: it lists it, or says full_backup_required (exit code 4) and why;
3. a checkpoint reads as it was at its cut, or is said to be lost;
4. `berth volume check` says that something is wrong, `--repair` leaves a volume that is sound and opens.

The places of things are those of docs/formats."""

import os
import shutil
import struct
import tempfile

import pytest
from berth_host import BerthHost
from volume_tools import blocks_of, connect, export_uri, read_export

MIB = 1 << 20
SIZE = 16 * MIB
BLOCK = 4096
SECTOR = 4096
JOURNAL_A, JOURNAL_B, JOURNAL_SIZE = 1 * MIB, 64 * MIB, 63 * MIB
PAGES = 128 * MIB
HOLD_SLOT = SECTOR + BLOCK


class Disk:
    """A volume with a reference point, a checkpoint and a held block, closed; and what must be in it."""

    def __init__(self, host):
        self.host = host
        self.directory = host.state_dir / "volumes" / "disk"
        host.create("disk", str(SIZE), "--block", "4K")
        self.content = bytearray(SIZE)
        client = connect(host.serve("disk"))
        self._write(client, 0, b"\1" * 64 * BLOCK)
        host.cli("refpoint", "create", "disk", "--name", "before")
        self._write(client, 2 * MIB, b"\2" * 16 * BLOCK)
        host.cli("checkpoint", "create", "disk", "--name", "kept")
        self.kept = bytes(self.content)
        self._write(client, 0, b"\3" * 32 * BLOCK)  # what was there is held
        self._write(client, 10 * MIB, b"\4" * 16 * BLOCK)
        client.shutdown()
        self.close()
        self.changed = blocks_of([(0, 32 * BLOCK), (2 * MIB, 16 * BLOCK), (10 * MIB, 16 * BLOCK)], BLOCK)

    def _write(self, client, offset, data):
        client.pwrite(data, offset)
        self.content[offset:offset + len(data)] = data

    def close(self):
        """Ends its keeper, closing it cleanly."""
        self.host.run("volume", "unserve", "disk")
        assert self.host.json("volume", "check", "disk")["errors"] == 0

    # --- Its files.

    def read(self, name, offset, length):
        with open(self.directory / name, "rb") as file:
            file.seek(offset)
            return file.read(length).ljust(length, b"\0")

    def damage(self, name, offset, data=b"\xa5" * 64):
        """Overwrites bytes; they have to be others than before."""
        assert self.read(name, offset, len(data)) != data
        with open(self.directory / name, "r+b") as file:
            file.seek(offset)
            file.write(data)

    def journal(self):
        """Offsets of the records that count, in order: the state first."""
        areas = []
        for start in (JOURNAL_A, JOURNAL_B):
            offsets, generation, at = [], None, start
            while True:
                head = self.read("map", at, 64)
                magic, record_generation, sequence, length = struct.unpack("<4s28xQQI12x", head)
                if magic != b"BJRN" or record_generation != (generation or record_generation) or sequence != len(offsets):
                    break
                generation = record_generation
                offsets.append(at)
                at += -(-length // SECTOR) * SECTOR
            if offsets:
                areas.append((generation, offsets))
        return max(areas)[1]

    def page_slots(self):
        """{page: {slot: sequence}} of the slots that were ever written."""
        found = {}
        for page in range(-(-SIZE // BLOCK // 1008)):
            for slot in (0, 1):
                magic, sequence = struct.unpack("<4s36xQ", self.read("map", self.slot_offset(page, slot), 48))
                if magic == b"BMPG":
                    found.setdefault(page, {})[slot] = sequence
        return found

    @staticmethod
    def slot_offset(page, slot):
        return PAGES + (2 * page + slot) * SECTOR

    def hold(self):
        """Its one hold's file, and how many slots that has."""
        (path,) = (self.directory / "holds").iterdir()
        return f"holds/{path.name}", (path.stat().st_size - SECTOR) // HOLD_SLOT

    # --- What must be true.

    def serves_its_content(self):
        uri = self.host.serve("disk")
        assert read_export(uri) == self.content
        return uri

    def takes_writes(self):
        """New writes are there and are reported, in the old way, from the next reference point on."""
        name = f"again{len(self.host.json('refpoint', 'list', 'disk')['refpoints'])}"
        self.host.cli("refpoint", "create", "disk", "--name", name)
        client = connect(self.host.serve("disk"))
        client.pwrite(b"\5" * BLOCK, 5 * MIB)
        client.shutdown()
        self.content[5 * MIB:5 * MIB + BLOCK] = b"\5" * BLOCK
        self.changed |= blocks_of([(5 * MIB, BLOCK)], BLOCK)
        assert self.host.changes("disk", name) == ([(5 * MIB, BLOCK)], True)

    def leaves_out_no_change(self, must_refuse=False):
        """The second rule; the message of a refusal, or None."""
        done = self.host.run("changes", "disk", "--since", "before", "-o", "json")
        if done.returncode == 0 and not must_refuse:
            assert self.changed <= blocks_of(self.host.changes("disk", "before")[0], BLOCK)
            return None
        return full_backup_required(done)

    def keeps_its_checkpoint(self):
        uri = self.host.serve("disk")
        assert self.host.json("checkpoint", "info", "disk@kept")["lost"] is False
        assert read_export(export_uri(uri, "disk@kept")) == self.kept

    def has_lost_its_checkpoint(self):
        assert self.host.json("checkpoint", "info", "disk@kept")["lost"] is True
        refused = self.host.refused("checkpoint", "export", "disk@kept", self.host.directory / "kept.raw")
        assert refused.returncode == 4 and "'kept'" in refused.stderr, refused.stderr
        assert not (self.host.directory / "kept.raw").exists()

    def does_not_open(self, *words):
        """Refused in one line that has the words, and says what helps."""
        refused = self.host.refused("volume", "serve", "disk")
        assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1, refused.stderr
        for word in ("disk", *words):
            assert word in refused.stderr, refused.stderr
        assert self.host.api("POST", "/v1/volumes/disk/listeners", {})[1]["error"]["kind"] == "corrupt"
        return refused.stderr

    def check(self, *options):
        done = self.host.run("volume", "check", "disk", *options)
        assert len(done.stderr.splitlines()) <= 1, done.stderr
        return done

    def check_finds(self, where):
        """A finding about that, as a person sees it."""
        done = self.check()
        assert where in done.stdout, done.stdout + done.stderr
        return done

    def is_mended_by_repair(self):
        assert self.check("--repair").returncode == 0
        report = self.host.json("volume", "check", "disk")
        assert report["sound"] is True and report["errors"] == 0, report


def full_backup_required(done):
    assert done.returncode == 4 and len(done.stderr.splitlines()) == 1, done.stdout + done.stderr
    assert "full backup" in done.stderr
    return done.stderr


@pytest.fixture(name="disk")
def _disk():
    """In memory: no power is lost here, and nobody has to wait for a disk."""
    with tempfile.TemporaryDirectory(prefix="berth-", dir="/dev/shm") as directory:
        with BerthHost(directory=directory) as host:
            yield Disk(host)


# --- The block map.

@pytest.mark.parametrize("copy", [0, 1])
def test_one_superblock_is_enough(disk, copy):
    disk.damage("map", copy * SECTOR)
    disk.serves_its_content()
    disk.keeps_its_checkpoint()
    assert disk.leaves_out_no_change() is None
    disk.host.cli("volume", "unserve", "disk")
    disk.check_finds("superblock")
    disk.is_mended_by_repair()
    disk.damage("map", (1 - copy) * SECTOR)  # the mended one is as good
    disk.serves_its_content()


def test_without_a_superblock_nothing_opens_and_nothing_is_lost(disk):
    whole = disk.read("map", 0, 2 * SECTOR)
    disk.damage("map", 0)
    disk.damage("map", SECTOR)
    disk.does_not_open("block map")
    assert disk.host.json("volume", "list")["volumes"][0]["state"] == "failed"
    assert disk.check_finds("superblock").returncode == 1
    assert disk.check("--repair").returncode == 1
    disk.damage("map", 0, whole)
    disk.serves_its_content()
    disk.keeps_its_checkpoint()


def test_a_record_in_the_middle_of_the_journal_is_missed(disk):
    records = disk.journal()
    assert len(records) > 3
    disk.damage("map", records[2])
    disk.does_not_open("journal", "--repair")
    assert disk.check_finds("journal").returncode == 1
    disk.is_mended_by_repair()
    disk.serves_its_content()
    disk.leaves_out_no_change()
    disk.takes_writes()
    if not disk.host.json("checkpoint", "info", "disk@kept")["lost"]:
        disk.keeps_its_checkpoint()


def test_a_journal_whose_last_record_was_cut_short_is_that_of_a_volume_that_was_not_closed(disk):
    disk.damage("map", disk.journal()[-1])
    disk.serves_its_content()
    disk.keeps_its_checkpoint()
    disk.leaves_out_no_change()
    disk.takes_writes()


def test_a_journal_that_is_gone_is_refused(disk):
    for start in (JOURNAL_A, JOURNAL_B):
        with open(disk.directory / "map", "r+b") as file:
            file.seek(start)
            file.write(bytes(MIB))
    disk.does_not_open("journal")
    assert disk.check_finds("journal").returncode == 1
    assert (disk.directory / "data").read_bytes() == disk.content  # the raw image is for everybody to read


@pytest.mark.parametrize("damaged", ["newer", "older"])
def test_a_map_page_with_one_slot_left_gives_no_false_answers(disk, damaged):
    """Of a volume that was closed, one slot that is not whole may have been the newer one."""
    page, slots = next((page, slots) for page, slots in disk.page_slots().items() if len(slots) == 2)
    newer = max(slots, key=slots.get)
    disk.damage("map", disk.slot_offset(page, newer if damaged == "newer" else 1 - newer), b"\0" * SECTOR)
    disk.check_finds(f"page {page}")
    disk.serves_its_content()
    disk.leaves_out_no_change()
    disk.takes_writes()


@pytest.mark.parametrize("damaged", ["newer", "older"])
def test_a_map_page_with_one_slot_left_is_mended(disk, damaged):
    page, slots = next((page, slots) for page, slots in disk.page_slots().items() if len(slots) == 2)
    newer = max(slots, key=slots.get)
    disk.damage("map", disk.slot_offset(page, newer if damaged == "newer" else 1 - newer))
    disk.check_finds(f"page {page}")
    disk.is_mended_by_repair()
    disk.serves_its_content()
    disk.leaves_out_no_change()
    disk.takes_writes()


def test_a_map_page_that_is_gone_is_mended_by_repair(disk):
    page, slots = next(iter(disk.page_slots().items()))
    for slot in slots:
        disk.damage("map", disk.slot_offset(page, slot))
    if len(slots) == 1:
        disk.damage("map", disk.slot_offset(page, 1 - next(iter(slots))))
    disk.does_not_open(f"page {page}", "--repair")
    assert disk.check_finds(f"page {page}").returncode == 1
    disk.is_mended_by_repair()
    disk.serves_its_content()
    disk.leaves_out_no_change()
    disk.takes_writes()


def test_a_map_that_ends_early_is_not_taken_for_one_without_changes(disk):
    os.truncate(disk.directory / "map", PAGES)
    disk.serves_its_content()
    disk.leaves_out_no_change()


# --- Holds.

@pytest.mark.parametrize("tail", ["cut within an entry", "garbage behind the last entry", "zeros behind the last entry"])
def test_a_hold_with_a_torn_tail_opens_and_its_checkpoint_is_whole(disk, tail):
    hold, slots = disk.hold()
    end = SECTOR + slots * HOLD_SLOT
    with open(disk.directory / hold, "r+b") as file:
        file.seek(end)
        if tail == "cut within an entry":  # one that was appended and not relied upon
            file.write(disk.read(hold, SECTOR, SECTOR + 100))
        else:
            file.write(bytes(HOLD_SLOT) if "zeros" in tail else os.urandom(HOLD_SLOT))
    disk.keeps_its_checkpoint()
    disk.serves_its_content()
    assert disk.leaves_out_no_change() is None
    client = connect(disk.host.serve("disk"))  # the torn slot is used again
    disk._write(client, 2 * MIB, b"\6" * BLOCK)
    client.shutdown()
    disk.keeps_its_checkpoint()


@pytest.mark.parametrize("damage", ["entries at the end", "an entry in the middle", "its content", "the header", "gone"])
def test_a_checkpoint_whose_hold_is_damaged_is_lost_and_the_disk_goes_on(disk, damage):
    hold, slots = disk.hold()
    assert slots == 48
    path = disk.directory / hold
    if damage == "entries at the end":
        os.truncate(path, SECTOR + 30 * HOLD_SLOT - 100)
    elif damage == "an entry in the middle":
        disk.damage(hold, SECTOR + 15 * HOLD_SLOT)
    elif damage == "its content":
        disk.damage(hold, SECTOR + 15 * HOLD_SLOT + SECTOR + 99)
    elif damage == "the header":
        disk.damage(hold, 0)
    else:
        path.unlink()
    assert disk.check_finds("hold").returncode == 1
    disk.is_mended_by_repair()
    disk.serves_its_content()
    if damage == "the header":
        disk.keeps_its_checkpoint()  # every entry is whole: it is written again
    else:
        disk.has_lost_its_checkpoint()
    disk.leaves_out_no_change()
    disk.takes_writes()
    disk.host.cli("checkpoint", "delete", "disk@kept")


@pytest.mark.parametrize("damage", ["the header", "missing"])
def test_a_hold_that_cannot_be_read_is_refused_with_the_way_out(disk, damage):
    hold, _ = disk.hold()
    if damage == "missing":
        os.rename(disk.directory / hold, disk.directory / "elsewhere")
        refused = disk.host.refused("volume", "serve", "disk")
        assert "--repair" in refused.stderr
        os.rename(disk.directory / "elsewhere", disk.directory / hold)
    else:
        header = disk.read(hold, 0, SECTOR)
        disk.damage(hold, 0)
        disk.does_not_open("hold", "--repair")
        disk.damage(hold, 0, header)
    disk.keeps_its_checkpoint()
    disk.serves_its_content()


@pytest.mark.parametrize("damage", ["the content of an entry", "entries at the end"])
def test_a_damaged_hold_gives_no_wrong_bytes_where_nobody_has_checked_it(disk, damage):
    hold, _ = disk.hold()
    if damage == "the content of an entry":
        disk.damage(hold, SECTOR + 15 * HOLD_SLOT + SECTOR + 99)
    else:
        os.truncate(disk.directory / hold, SECTOR + 30 * HOLD_SLOT - 100)
    disk.serves_its_content()
    export = disk.host.directory / "kept.raw"
    done = disk.host.run("checkpoint", "export", "disk@kept", export)
    assert done.returncode in (1, 4), "it gave bytes of which it cannot know any more that they are right"
    assert not export.exists() and "hold" in done.stderr, done.stderr


# --- The data file.

def _overwrite(path, content):
    with open(path, "r+b") as file:
        file.seek(6 * MIB)
        file.write(b"\7" * BLOCK)
    content[6 * MIB:6 * MIB + BLOCK] = b"\7" * BLOCK


def _touch(path, _content):
    os.utime(path)


def _copy(path, _content):
    shutil.copy2(path, path.with_name("copy"))
    os.rename(path.with_name("copy"), path)


def _lengthen(path, _content):
    os.truncate(path, SIZE + MIB)


@pytest.mark.parametrize("change", [_overwrite, _touch, _copy, _lengthen])
def test_old_reference_points_are_void_after_the_data_file_was_changed(disk, change):
    change(disk.directory / "data", disk.content)
    mark = disk.host.last_event()
    assert "data file" in disk.leaves_out_no_change(must_refuse=True)
    with disk.host.lines(f"/v1/events?since={mark}") as events:
        assert any(event["volume"] == "disk" and "data file was changed" in event["message"] for event in events)
    disk.serves_its_content()
    # The record is kept, so that it is clear which one it was that does not count.
    assert [point["name"] for point in disk.host.json("refpoint", "list", "disk")["refpoints"]] == ["before"]
    disk.takes_writes()
    disk.leaves_out_no_change(must_refuse=True)
    disk.close()
    disk.leaves_out_no_change(must_refuse=True)


def test_a_data_file_that_is_too_short_is_refused_until_it_is_back(disk):
    data = disk.directory / "data"
    shutil.copy2(data, data.with_name("whole"))
    os.truncate(data, SIZE - MIB)
    disk.does_not_open(str(SIZE - MIB), str(SIZE))
    os.rename(data.with_name("whole"), data)
    assert "data file" in disk.leaves_out_no_change(must_refuse=True)
    disk.serves_its_content()


def test_a_data_file_that_is_missing_is_refused_until_it_is_back(disk):
    data = disk.directory / "data"
    os.rename(data, data.with_name("elsewhere"))
    refused = disk.host.refused("volume", "serve", "disk")
    assert refused.returncode == 3 and str(data) in refused.stderr, refused.stderr
    os.rename(data.with_name("elsewhere"), data)
    disk.serves_its_content()
    assert disk.leaves_out_no_change() is None
    disk.keeps_its_checkpoint()
