"""The pages docs/formats/block-map.md and hold.md are enough to read a volume: the decoder in berth_formats.py, which
follows them, reads the golden files, the examples in the pages, and a volume that the program has made and used, in three
conditions: open (from the live map), as a power loss leaves it, and closed."""

import json
import os
import pathlib
import re
import time
import uuid
from types import SimpleNamespace as Struct

import pytest

from berth_formats import (ABSENT, BLOCK, GIB, KINDS, MIB, NIL, PRESENT, SECTOR, VERSION, ZERO, Volume, checksum, whole,
                           words_of)
from volume_tools import blocks_of, copy_tree, export_uri, read_export, run, scratch_host

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
GOLDEN = {path.name: path.read_bytes() for path in (ROOT / "tests" / "data" / "formats").iterdir()}

# --- The golden files, and what src/disk/formats_test.cc has put into them: values in the order of the fields.
VOLUME, NONCE, GROUP, SESSION, COPY = (str(uuid.UUID(digits)) for digits in (
    "00112233445546778899aabbccddeeff", "a0a1a2a3a4a546a7a8a9aaabacadaeaf", "b0b1b2b3b4b546b7b8b9babbbcbdbebf",
    "c0c1c2c3c4c546c788c9cacbcccdcecf", "d0d1d2d3d4d546d788d9dadbdcdddedf"))
MS, NS = 1_700_000_000_000, 1_700_000_000_123_456_789
RECORDS = [
    [COPY, 10 * GIB, "volume:base@golden", 8 * GIB, 7, SESSION, 41, True,
     [10 * GIB, 1234, 0x801, NS, "wwn-0x5000c500a1b2c3d4"], 77, 4, 2, 3, 4, [["nightly", 5, NONCE, 1, 9 * GIB, MS + 1, GROUP, True, False]],
     [["monday", 3, NONCE, 9 * GIB, MS + 2, NIL, False]], [[3, 5]], [10 * GIB, 9 * GIB, 6, False], ["nightly", False]],
    [5, NONCE, "nightly", "monday", 1, 3, MS + 1, GROUP], ["nightly"], ["nightly", "monday"], ["monday"], [GROUP, True],
    [1, 8, SESSION, 41, 7, 8, 3], [8, [GIB, 1234, 0x801, NS, ""], 77], [2 * GIB, GIB, 8, True], ["nightly", True],
    [["nightly", "hourly"]], [3, 5, True], [COPY, [GIB, 1234, 0x801, NS, ""], 8, 5, True]]
PAGE_WORDS = [(0, ABSENT), (1, PRESENT), (2, ZERO), (3, ABSENT), ((1 << 30) - 1, PRESENT)] + [(0, ABSENT)] * 1003
HELD = [VOLUME, 5, 9, 1000, 4 << 2 | PRESENT]
STRUCTURES = {  # file: structure, values behind the checksum
    "superblock": ("superblock", [VERSION, BLOCK, VOLUME, MS, 65536, 65536, 8, MIB, 64 * MIB, 63 * MIB, 128 * MIB]),
    "page": ("page", [VOLUME, 3, 5, PAGE_WORDS]),
    "intents": ("intents", [{0: 9, 7: 8, 1000: 9}, VOLUME, 42, 9]),
    "hold-header": ("hold", [VOLUME, 5, 1, BLOCK]),
    "hold-entry-data": ("entry", [1, *HELD, checksum(b"\x5a" * BLOCK)]),
    "hold-entry-zero": ("entry", [2, *HELD, 0]),
    "hold-entry-backing": ("entry", [3, *HELD, 0]),
    **{f"journal-{number}-{kind}": ("record", [kind, VERSION, VOLUME, 2, number, content])
       for number, (kind, content) in enumerate(zip(KINDS, RECORDS))},
}


def values_of(value):
    if isinstance(value, Struct):
        return [values_of(one) for name, one in vars(value).items() if name not in ("magic", "checksum", "length", "_")]
    return [values_of(one) for one in value] if isinstance(value, list) else value


def test_the_golden_files_are_these_and_the_checksum_is_xxh3():
    assert set(STRUCTURES) == set(GOLDEN) and checksum(b"") == 0x2d06800538d394c2


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_golden_file_has_the_values_that_were_put_into_it_and_no_flipped_bit_is_taken_for_whole(name):
    kind, values = STRUCTURES[name]
    data = GOLDEN[name].ljust(SECTOR, b"\0")
    assert values_of(whole(kind, data, volume=VOLUME)) == values
    for at in range(len(GOLDEN[name])):
        assert whole(kind, data[:at] + bytes([data[at] ^ 1]) + data[at + 1:], volume=VOLUME) is None


@pytest.mark.parametrize("page, count", [("block-map", 5), ("hold", 2)])
def test_the_examples_in_a_page_are_golden_files(page, count):
    text = (ROOT / "docs" / "formats" / f"{page}.md").read_text(encoding="utf-8")
    examples = re.findall(r"^`tests/data/formats/(\S+)`:\n\n```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(examples) == count
    for name, lines in examples:
        shown = b""
        for line in lines.splitlines():
            assert int(line[:4], 16) == len(shown), f"{name}: {line}"
            shown += bytes.fromhex(line[6:53])
        assert shown.rstrip(b"\0") == GOLDEN[name]


# --- A volume of the program's.
SIZE, GROWN = 64 * MIB + SECTOR, 72 * MIB  # 1,025 blocks, the last one short; 1,152 blocks
WORDS = {3: (3, PRESENT), 16: (2, PRESENT), 17: (2, ZERO), 20: (2, PRESENT), 40: (2, PRESENT), 50: (4, PRESENT),
         1008: (1, PRESENT), 1024: (2, PRESENT), **{block: (4, ZERO) for block in range(1025, 1151)}, 1151: (4, PRESENT)}
HOLDS = [  # epoch, {block: (word, byte that was there, how many of it)}
    (1, {3: ((1, PRESENT), 1, BLOCK), 16: ((1, PRESENT), 2, BLOCK), 17: ((1, PRESENT), 2, BLOCK), 20: ((1, ZERO), 0, 0),
         40: ((0, ABSENT), 0, 0), 1024: ((1, PRESENT), 4, SECTOR)}),
    (2, {3: ((2, PRESENT), 5, BLOCK), 50: ((0, ABSENT), 0, 0)})]


@pytest.fixture(name="disk", scope="module")
def _disk():
    with scratch_host() as host:
        yield history(host, host.state_dir / "volumes" / "disk")


def history(host, path):
    """A volume with a history, decoded while it is open, as a power loss would leave it, and closed; and its copy from
    the power loss, after the program has gone on with it."""
    host.create("disk", SIZE)
    uri = host.serve("disk")

    def write(*commands):
        run("qemu-io", "-f", "raw", *(word for command in commands for word in ("-c", f"write {command}")), uri)

    def close(name):
        assert "sound: 0 errors (0 repaired), 0 warnings" in host.cli("volume", "check", name)  # ends the keeper first
        return Volume(path.parent / name)

    def points(name):
        return [point for kind in ("checkpoint", "refpoint")
                for point in sorted(host.json(kind, "list", name)[f"{kind}s"], key=lambda point: point["epoch"])]

    write("-P 1 192k 64k", "-P 2 1M 128k", "-z 1280k 64k", "-P 3 63M 64k", "-P 4 64M 4k")
    host.cli("checkpoint", "create", "disk", "--name", "one", "--refpoint", "since")
    write("-P 5 192k 64k", "-P 6 1M 4k", "-z 1088k 64k", "-P 7 1280k 64k", "-P 8 2560k 64k", "-P 9 64M 4k")
    host.cli("checkpoint", "create", "disk", "--name", "two", "--volatile")
    write("-P 10 192k 64k")
    host.cli("refpoint", "create", "disk", "--name", "later")
    host.cli("volume", "resize", "disk", "--size", GROWN)
    write("-P 11 3200k 64k", f"-P 12 {GROWN - BLOCK} 64k")
    facts = Struct(path=path, info=host.json("volume", "info", "disk"), points=points("disk"))
    facts.bytes = {name: read_export(export_uri(uri, f"disk@{name}")) for name in ("one", "two")} | {None: read_export(uri)}
    facts.changes = {(since, until): host.changes("disk", since, *(("--until", until) if until else ()))
                     for since, until in (("since", None), ("since", "two"), ("two", None), ("later", None))}
    facts.open = Volume(path, live=host.run_dir / "live" / "disk")
    facts.lost = Volume(copy_tree(path, path.parent / "copy"))
    host.cli("volume", "unserve", "disk")
    facts.closed = close("disk")

    facts.copy_changes = {since: host.changes("copy", since) for since in ("since", "later")}
    host.create("beside")
    host.cli("checkpoint", "create", "copy", "beside", "--name", "group", "--refpoint", "group")
    host.cli("checkpoint", "revert", "copy@one")
    host.cli("checkpoint", "delete", "copy@two")
    host.cli("refpoint", "delete", "copy@group")
    host.cli("refpoint", "convert", "copy@group")
    facts.copy_points, facts.copy = points("copy"), close("copy")
    return facts


def listed(volume):
    """The points of a decoded volume, as the command line lists them."""
    return [{**vars(point), "durability": ("durable", "volatile")[point.durability],
             "group": None if point.group == NIL else point.group,
             "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(point.created_ms // 1000))}
            for points in (volume.state.checkpoints, volume.state.refpoints)
            for point in sorted(points, key=lambda point: point.epoch)]


@pytest.mark.parametrize("name", ["disk", "copy"])
def test_cuts_and_what_became_of_them_are_what_the_program_lists(disk, name):
    volume, said = (disk.closed, disk.points) if name == "disk" else (disk.copy, disk.copy_points)
    for known, told in zip(listed(volume), said, strict=True):
        shared = set(known) & set(told)
        assert shared >= {"name", "epoch", "created_at", "group", "nonce" if "nonce" in told else "size"}
        assert {field: known[field] for field in shared} == {field: told[field] for field in shared}


def test_the_map_says_what_the_program_says_of_the_volume(disk):
    closed, status = disk.closed, os.stat(disk.path / "data")
    said = {"id": closed.id, "size": closed.state.size, "block_size": closed.superblock.block_size}
    assert said.items() <= disk.info.items() and said.items() <= json.loads((disk.path / "volume.json").read_text()).items()
    assert (closed.epoch, closed.state.clean, closed.state.next_layer) == (disk.info["epoch"], True, 3)
    assert values_of(closed.state.data) == [GROWN, status.st_ino, status.st_dev, status.st_mtime_ns, ""]
    assert closed.point("one").nonce == closed.point("since").nonce
    assert closed.events == "state open cut layer cut cut resize resize close".split()


@pytest.mark.parametrize("page", [0, 1])
def test_a_version_of_a_page_that_was_there_at_the_close_is_missed(disk, page):
    damaged = copy_tree(disk.path, disk.path.parent / f"damaged-{page}")
    newest = disk.closed.map_pages[page].sequence
    with open(damaged / "map", "r+b") as file:
        file.seek(disk.closed.superblock.pages + (2 * page + (newest - 1) % 2) * SECTOR)
        file.write(bytes(SECTOR))
    with pytest.raises(AssertionError, match="pages are missing"):
        Volume(damaged)


def test_exactly_the_blocks_that_were_written_have_their_epochs_and_states(disk):
    for volume in (disk.open, disk.closed):
        assert volume.epoch == 4 and volume.state.clean == (volume is disk.closed)
        assert {block: word for block, word in enumerate(volume.words) if word != (0, ABSENT)} == WORDS


def test_holds_have_the_old_content_of_what_was_overwritten(disk):
    found = [(epoch, {block: (*words_of(entry.word.to_bytes(4, "little")), entry.kind, content[0], content.rstrip(b"\0"))
                      for block, (entry, content) in held.items()}) for epoch, held in disk.closed.holds]
    assert found == [(epoch, {block: (word, 1 if byte else 2, byte, bytes([byte]) * length if byte else b"")
                              for block, (word, byte, length) in held.items()}) for epoch, held in HOLDS]


def test_disk_and_checkpoints_read_what_clients_read(disk):
    for name, content in disk.bytes.items():
        assert disk.closed.content(disk.closed.point(name)) == content, name


def test_changes_are_those_that_the_program_lists(disk):
    for (since, until), (extents, exact) in disk.changes.items():
        assert exact and disk.closed.changed(disk.closed.point(since), disk.closed.point(until)) == blocks_of(extents)


def test_after_a_power_loss_the_intents_add_what_the_program_adds(disk):
    for since, (extents, exact) in disk.copy_changes.items():
        changed = disk.lost.changed(disk.lost.point(since), None)
        assert not exact and changed == blocks_of(extents)
        assert changed > disk.closed.changed(disk.closed.point(since), None)


def test_what_the_program_did_after_it_is_understood_event_by_event(disk):
    assert disk.copy.events[7:] == "resize open layer cut settle revert revert release delete-refpoint convert close".split()
    assert disk.copy.state.recovered == 4 and disk.copy.state.pending_revert is None
    assert disk.copy.content(None) == bytes(disk.bytes["one"]).ljust(GROWN, b"\0")
