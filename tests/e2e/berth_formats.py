"""A decoder of a volume's files that follows docs/formats/block-map.md and hold.md, and nothing else."""

import os
import pathlib
import struct
import uuid
from types import SimpleNamespace as Struct

import xxhash

SECTOR, BLOCK, REGION, MIB, GIB = 4096, 64 << 10, 4 << 20, 1 << 20, 1 << 30
VERSION = 3  # of the block map
ABSENT, PRESENT, ZERO = range(3)
NIL = str(uuid.UUID(int=0))
checksum = xxhash.xxh3_64_intdigest

# --- Structures: `name:type`, where a number is so many bytes.
KINDS = "state cut release convert delete-refpoint settle open close resize revert lost layer identity".split()
NUMBERS = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i64": 8}
TYPES = {
    "superblock": "magic:8 checksum:u64 version:u32 block_size:u32 volume:id created_ms:i64 intent_ring:u64 "
                  "intent_slot_size:u64 intent_slots:u64 journal_a:u64 journal_b:u64 journal_size:u64 pages:u64",
    "page": "magic:4 _:4 checksum:u64 volume:id page:u64 sequence:u64 _:16",
    "intents": "magic:4 regions:u32 checksum:u64 volume:id sequence:u64 epoch:u32 _:20",
    "record": "magic:4 kind:u16 version:u16 checksum:u64 volume:id generation:u64 sequence:u64 length:u32 _:12",
    "state": "volume:id size:u64 backing:text backing_limit:u64 epoch:u32 session:id intents_before:u64 clean:flag data:identity "
             "page_versions:u64 recovered:u32 vouched_since:u32 void_reason:u8 next_layer:u64 "
             "checkpoints:list-checkpoint refpoints:list-refpoint layers:list-recorded-layer "
             "pending_resize:optional-resize pending_revert:optional-revert",
    "identity": "size:u64 inode:u64 device:u64 modified_ns:i64 device_id:text",
    "checkpoint": "name:text epoch:u32 nonce:id durability:u8 size:u64 created_ms:i64 group:id provisional:flag lost:flag",
    "refpoint": "name:text epoch:u32 nonce:id size:u64 created_ms:i64 group:id provisional:flag",
    "recorded-layer": "layer:u64 epoch:u32",
    "cut": "epoch:u32 nonce:id checkpoint:text refpoint:text durability:u8 layer:u64 created_ms:i64 group:id",
    "release": "checkpoint:text", "convert": "checkpoint:text refpoint:text", "delete-refpoint": "refpoint:text",
    "settle": "group:id committed:flag",
    "open": "how:u8 epoch:u32 session:id intents_before:u64 recovered:u32 vouched_since:u32 void_reason:u8",
    "close": "epoch:u32 data:identity page_versions:u64",
    "resize": "size:u64 old_size:u64 epoch:u32 finished:flag",
    "revert": "checkpoint:text finished:flag", "lost": "checkpoints:list-text", "layer": "layer:u64 epoch:u32 present:flag",
    "identity-event": "volume:id data:identity vouched_since:u32 void_reason:u8 lost:flag",
    "live": "magic:8 boot_id:48 volume:id session:id block_size:u32 epoch:u32 pages:u64 successor:u64",
    "live-page": "sequence:u64 epoch_max:u32 dirt:u8 _:3",
    "hold": "magic:8 checksum:u64 volume:id layer:u64 version:u32 block_size:u32 _:8",
    "entry": "magic:4 kind:u32 checksum:u64 volume:id layer:u64 slot:u64 block:u64 word:u32 _:4 data_checksum:u64",
}
SEALED = {  # magic, and how many bytes are hashed
    "superblock": (b"BRTHMAP\0", lambda head: 4096), "page": (b"BMPG", lambda head: 4096),
    "intents": (b"BINT", lambda head: 64 + 8 * head.regions), "record": (b"BJRN", lambda head: head.length),
    "hold": (b"BRTHHLD\0", lambda head: 56), "entry": (b"BHEN", lambda head: 72),
}


class Fields:
    """Fields one after the other."""

    def __init__(self, data, at=0):
        self.data, self.at = data, at

    def take(self, length):
        self.at += length
        assert self.at <= len(self.data), "the fields end too early"
        return self.data[self.at - length:self.at]

    def read(self, kind):
        if kind.isdigit():
            return self.take(int(kind))
        if kind in NUMBERS:
            return int.from_bytes(self.take(NUMBERS[kind]), "little", signed=kind == "i64")
        if kind == "id":
            return str(uuid.UUID(bytes=self.take(16)))
        if kind == "text":
            return self.take(self.read("u16")).decode()
        if kind == "flag":
            return self.read("u8") != 0
        if kind.startswith("list-"):
            return [self.read(kind[5:]) for _ in range(self.read("u32"))]
        if kind.startswith("optional-"):
            return self.read(kind[9:]) if self.read("flag") else None
        return Struct(**{name: self.read(type_) for name, type_ in (field.split(":") for field in TYPES[kind].split())})


def whole(kind, data, **expected):
    """The structure that the data begin with, or None if it is not whole."""
    head = Fields(data.ljust(128, b"\0")).read(kind)
    magic, hashed = SEALED[kind]
    length = hashed(head)
    right = length <= len(data) and head.checksum == checksum(data[:8] + bytes(8) + data[16:length])
    if head.magic != magic or not right or not expected.items() <= vars(head).items():
        return None
    body = Fields(data[:length], 64)
    if kind == "page":
        head.words = words_of(data[64:4096])
        return head if head.sequence != 0 and all(state <= ZERO for _, state in head.words) else None
    if kind == "intents":
        head.regions = {body.read("u32"): body.read("u32") for _ in range(head.regions)}
        return head if all(epoch <= head.epoch for epoch in head.regions.values()) else None
    if kind == "record":
        assert head.version == VERSION
        head.kind = KINDS[head.kind]
        head.content = body.read({"identity": "identity-event"}.get(head.kind, head.kind))
        assert body.at == length
    return head


def words_of(data):
    """[(epoch, state), …]"""
    return [(word >> 2, word & 3) for word in struct.unpack(f"<{len(data) // 4}I", data)]


def apply(state, kind, event):
    """What an event of the journal means."""
    checkpoint = next((point for point in state.checkpoints if point.name == getattr(event, "checkpoint", "")), None)
    if kind == "cut":
        point = {**vars(event), "size": state.size, "provisional": event.group != NIL, "lost": False}
        state.checkpoints += [Struct(**point, name=event.checkpoint)] if event.checkpoint else []
        state.refpoints += [Struct(**point, name=event.refpoint)] if event.refpoint else []
    if kind in ("cut", "open", "close", "resize"):
        state.epoch = max(state.epoch, event.epoch + (kind == "cut"))
    if kind in ("cut", "layer"):
        others = [layer for layer in state.layers if layer.layer != event.layer]
        if kind == "layer" and not event.present:
            state.layers = others
        elif event.layer != 0:
            state.next_layer = max(state.next_layer, event.layer + 1)
            state.layers += [Struct(layer=event.layer, epoch=event.epoch)] if others == state.layers else []
    elif kind in ("release", "convert"):
        state.checkpoints.remove(checkpoint)
        state.refpoints += [Struct(**{**vars(checkpoint), "name": event.refpoint})] if kind == "convert" else []
    elif kind == "delete-refpoint":
        state.refpoints = [point for point in state.refpoints if point.name != event.refpoint]
    elif kind == "settle":
        for points in (state.checkpoints, state.refpoints):
            points[:] = [point for point in points if event.committed or point.group != event.group or not point.provisional]
            for point in points:
                point.provisional &= point.group != event.group
    elif kind == "open":
        vars(state).update(clean=False, session=event.session, intents_before=event.intents_before,
                           recovered=max(state.recovered, event.recovered))
    elif kind == "close":
        vars(state).update(clean=True, data=event.data, page_versions=event.page_versions)
    elif kind in ("resize", "revert"):
        setattr(state, f"pending_{kind}", None if event.finished else event)
        if kind == "resize" and not event.finished:
            state.size, state.backing_limit = event.size, min(state.backing_limit, event.size)
        elif not event.finished:
            checkpoint.durability = 0
    if kind == "identity":
        vars(state).update(volume=event.volume, data=event.data)
    if kind in ("open", "identity") and event.vouched_since > state.vouched_since:
        vars(state).update(vouched_since=event.vouched_since, void_reason=event.void_reason)
    for point in state.checkpoints:
        if kind == "lost" and point.name in event.checkpoints or \
                kind == "open" and (event.how == 2 or event.how == 1 and point.durability == 1) or \
                kind == "identity" and event.lost:
            point.lost = True
            if state.pending_revert and state.pending_revert.checkpoint == point.name:
                state.pending_revert = None
    if kind in ("release", "convert", "settle", "open", "lost", "layer", "identity"):
        needed = min((point.epoch for point in state.checkpoints if not point.lost), default=1 << 30)
        state.layers = [layer for layer in state.layers if layer.epoch >= needed]


class Volume:
    """A volume without a backing, decoded. `live`: the directory of its live map, if that is to be believed."""

    def __init__(self, directory, live=None):
        self.directory = directory
        with open(directory / "map", "rb") as self.map:
            self.superblock = whole("superblock", self.at(0)) or whole("superblock", self.at(SECTOR))
            self.mark = self.superblock.volume
            assert (self.superblock.version, self.superblock.block_size) == (VERSION, BLOCK)
            areas = (self.read_area(offset) for offset in (self.superblock.journal_a, self.superblock.journal_b))
            _, self.events, self.state = max((area for area in areas if area), key=lambda area: area[0])
            self.id = self.state.volume
            self.blocks = -(-self.state.size // BLOCK)
            self.pages = -(-self.blocks // 1008)
            self.map_pages = [self.read_page(page) for page in range(self.pages)]
            self.words = [word for page in self.map_pages for word in page.words][:self.blocks]
            self.epoch = self.state.epoch
            if live:
                self.take_over((live / f"{self.id}.{self.pages}").read_bytes())
            elif self.state.clean:
                assert self.state.page_versions == sum(page.sequence for page in self.map_pages), "pages are missing"
            else:
                self.recover()
        self.holds = [(layer.epoch, self.read_hold(layer.layer)) for layer in self.state.layers if layer.epoch < self.epoch]
        self.data = (directory / "data").read_bytes()

    def at(self, offset, length=SECTOR):
        return os.pread(self.map.fileno(), length, offset).ljust(length, b"\0")

    def read_area(self, at):
        def read_record():
            length = Fields(self.at(at)).read("record").length
            return whole("record", self.at(at, length), volume=self.mark) if at + length <= end else None

        end = at + self.superblock.journal_size
        first = following = read_record()
        if first is None or (first.kind, first.sequence) != ("state", 0):
            return None
        events = []
        while following and (following.generation, following.sequence) == (first.generation, len(events)):
            if following is not first:
                apply(first.content, following.kind, following.content)
            events.append(following.kind)
            at += -(-following.length // SECTOR) * SECTOR
            following = read_record()
        for at in range(at + SECTOR, min(at + SECTOR + MIB, end), SECTOR):
            stray = read_record() if any(self.at(at)) else None
            assert not stray or stray.generation != first.generation or stray.sequence <= len(events), "a record is missing"
        return first.generation, events, first.content

    def read_page(self, page):
        slots = [self.at(self.superblock.pages + (2 * page + slot) * SECTOR) for slot in (0, 1)]
        found = [whole("page", slot, volume=self.mark, page=page) for slot in slots]
        found = [one if one and (one.sequence - 1) % 2 == slot else None for slot, one in enumerate(found)]
        assert any(found) or not all(any(slot) for slot in slots), f"page {page} is damaged"
        newest = max((one for one in found if one), key=lambda one: one.sequence, default=None)
        return Struct(sequence=newest.sequence if newest else 0, words=newest.words if newest else [(0, ABSENT)] * 1008)

    def recover(self):
        """From the intents, after a power loss."""
        ring, size = self.superblock.intent_ring, self.superblock.intent_slot_size
        slots = [whole("intents", self.at(ring + slot * size, size), volume=self.mark) for slot in range(8)]
        newest = max((record for slot, record in enumerate(slots) if record and record.sequence % 8 == slot),
                     key=lambda record: record.sequence)
        assert newest.sequence >= self.state.intents_before, "intents are missing"
        for older in range(max(1, newest.sequence - 6), newest.sequence):
            assert slots[older % 8], "intents may be missing"
        if newest.sequence > self.state.intents_before:
            for region, epoch in newest.regions.items():
                for block in range(region * REGION // BLOCK, min((region + 1) * REGION // BLOCK, self.blocks)):
                    self.words[block] = max(self.words[block][0], epoch), self.words[block][1]
            self.epoch = max(self.epoch, newest.epoch)
        self.epoch = 1 + max(self.epoch, *(epoch for epoch, _ in self.words))

    def take_over(self, data):
        """From the live map."""
        live = Fields(data).read("live")
        boot_id = pathlib.Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
        assert (live.magic, live.boot_id) == (b"BERTHLV1", boot_id.ljust(48, b"\0"))
        assert (live.volume, live.session, live.block_size, live.pages) == (self.id, self.state.session, BLOCK, self.pages)
        assert live.successor == 0
        begin = SECTOR * (1 + -(-16 * self.pages // SECTOR))
        assert len(data) == begin + -(-4032 * self.pages // SECTOR) * SECTOR
        self.epoch, self.words = live.epoch, words_of(data[begin:begin + 4 * self.blocks])
        table = Fields(data, SECTOR)
        for page, known in enumerate(self.map_pages):
            entry = table.read("live-page")
            assert entry.sequence == known.sequence
            assert entry.epoch_max >= max(epoch for epoch, _ in self.words[page * 1008:(page + 1) * 1008])

    def read_hold(self, layer):
        """{block: (entry, content)}"""
        data, step = (self.directory / "holds" / f"{layer:016x}").read_bytes(), SECTOR + BLOCK
        assert whole("hold", data, volume=self.mark, layer=layer, version=1, block_size=BLOCK)
        slots = -(-max(len(data) - SECTOR, 0) // step)
        found = {}
        for slot in range(slots):
            frame = data[SECTOR + slot * step:][:step]
            entry = whole("entry", frame[:SECTOR], volume=self.mark, layer=layer, slot=slot)
            if entry and (entry.kind != 1 or checksum(frame[SECTOR:]) == entry.data_checksum):
                found.setdefault(entry.block, (entry, frame[SECTOR:] if entry.kind == 1 else bytes(BLOCK)))
            else:
                assert slot >= slots - 512, f"slot {slot} is damaged"
        return found

    def as_of(self, checkpoint, block):
        """Epoch and content of a block, as of a checkpoint or (None) now."""
        for epoch, held in self.holds if checkpoint else ():
            if epoch >= checkpoint.epoch and block in held:
                return held[block][0].word >> 2, held[block][1]
        epoch, state = self.words[block]
        return epoch, bytes(BLOCK) if state == ZERO else self.data[block * BLOCK:(block + 1) * BLOCK].ljust(BLOCK, b"\0")

    def content(self, checkpoint):
        size = checkpoint.size if checkpoint else self.state.size
        return b"".join(self.as_of(checkpoint, block)[1] for block in range(-(-size // BLOCK)))[:size]

    def changed(self, since, until):
        blocks = -(-until.size // BLOCK) if until else self.blocks
        return {block for block in range(blocks) if self.as_of(until, block)[0] > since.epoch}

    def point(self, name):
        return next((point for point in self.state.checkpoints + self.state.refpoints if point.name == name), None)
