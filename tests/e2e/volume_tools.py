"""What tests of served volumes share: a client that knows what a disk may hold, and the checks that follow from it.

    client = RecordingClient(uri, size, seed=1)
    client.run(0.5)                       # random writes, zeroes, reads and flushes, many at once
    with client.cut() as cut:             # writes go on while a checkpoint is made
        client.run_beside(["berth", …])
    os.kill(keeper, signal.SIGKILL)
    client.reconnect()                    # seconds until the first answer
    client.verify()                       # what was acknowledged is there; what was not is old or new, by sectors
    client.check_changes(extents, cut)    # exactly what was written since
    check_cut([(cut, read_export(checkpoint_uri))])
    client.flush()                        # what has been acknowledged before it must be there after any power loss
    client.disconnected(); client.attach(); client.verify_after_power_loss()

The client keeps a copy of the disk. What was submitted and not acknowledged when the connection died is known too,
so every byte of the disk is either one value or one of a few. No wait is without a limit.
"""

import contextlib
import ctypes
import os
import pathlib
import random
import select
import shutil
import subprocess
import tempfile
import time

import nbd

import berth_host

SECTOR = 512
PAGE = 4096
BLOCK = 64 << 10
LIMIT_S = 30
_POOL_BYTES = 4 << 20
_CLONE_NEWNS = 0x00020000


# --- Hosts and processes.

@contextlib.contextmanager
def scratch_host(state_dir=None, **options):
    """A BerthHost whose run directory, with the live maps, is on a tmpfs as on a real machine, and whose state is on
    a disk. Leaves nothing behind."""
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(tempfile.TemporaryDirectory(prefix="berth-", dir="/dev/shm"))
        if state_dir is None:
            state_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="berth-test-", dir="/var/tmp"))
        yield stack.enter_context(berth_host.BerthHost(directory=run, state_dir=state_dir, **options))


@contextlib.contextmanager
def log_on_failure(host, lines_max=200):
    """Prints the end of the host's logs if the block fails."""
    try:
        yield
    except BaseException:
        print("\n".join(host.log().splitlines()[-lines_max:]))
        raise


def run(*command, timeout_s=LIMIT_S, check=True, **options):
    """A command of somebody else's, its output as text; what it said is in the failure."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=timeout_s, check=False, **options)
    assert not check or done.returncode == 0, \
        f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@contextlib.contextmanager
def child(*command, **options):
    """A process that ends with the block, or with this process, at the latest."""
    options.setdefault("stdin", subprocess.DEVNULL)
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *map(str, command)], **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(condition, what, timeout_s=LIMIT_S, step_s=0.01):
    """Asks until the condition holds; its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(step_s)


def export_uri(uri, name):
    """The URI of another export at the same socket."""
    socket = uri.partition("?")[2]
    return f"nbd+unix:///{name}?{socket}"


def quantiles(values):
    """Minimum, median, 90 % and maximum."""
    ordered = sorted(values)
    return ordered[0], ordered[len(ordered) // 2], ordered[len(ordered) * 9 // 10], ordered[-1]


# --- Plain access to an export.

def connect(uri, *contexts, timeout_s=LIMIT_S):
    """A connected libnbd handle, within the limit even if nobody answers; tries again while it is refused."""
    deadline = time.monotonic() + timeout_s
    while True:
        handle = nbd.NBD()
        for context in contexts:
            handle.add_meta_context(context)
        with contextlib.suppress(nbd.Error):
            handle.aio_connect_uri(uri)
            while handle.aio_is_connecting() and time.monotonic() < deadline:
                handle.poll(100)
            if handle.aio_is_ready():
                return handle
        assert time.monotonic() < deadline, f"no connection to {uri} within {timeout_s} s"
        time.sleep(0.001)


def read_export(uri, step=1 << 20):
    """All bytes of an export."""
    handle = connect(uri)
    size = handle.get_size()
    content = bytearray(size)
    for offset in range(0, size, step):
        content[offset:offset + step] = handle.pread(min(step, size - offset), offset)
    handle.shutdown()
    return content


def differing(left, right, unit=SECTOR):
    """Offsets of units that differ, found coarsely first."""
    assert len(left) == len(right)
    found = []
    left, right = memoryview(left), memoryview(right)
    coarse = 256 << 10
    for start in range(0, len(left), coarse):
        if left[start:start + coarse] == right[start:start + coarse]:
            continue
        for offset in range(start, min(start + coarse, len(left)), unit):
            if left[offset:offset + unit] != right[offset:offset + unit]:
                found.append(offset)
    return found


def blocks_of(extents, block=BLOCK):
    """Numbers of the blocks in [(offset, length), …]."""
    return {number for offset, length in extents for number in range(offset // block, -(-(offset + length) // block))}


# --- What was written, and when.

class Write:
    """One write or zeroing. `ended` is None until it has been acknowledged; `forced` if it was to be durable then."""

    __slots__ = ("offset", "data", "forced", "submitted", "ended")

    def __init__(self, offset, data, forced=False):
        self.offset, self.data, self.forced = offset, data, forced
        self.submitted, self.ended = time.monotonic(), None

    @property
    def end(self):
        return self.offset + len(self.data)

    def over(self, offset, sector):
        """The sector at `offset` as it is with this write done to it."""
        begin, end = max(offset, self.offset), min(offset + len(sector), self.end)
        with_it = bytearray(sector)
        with_it[begin - offset:end - offset] = self.data[begin - self.offset:end - self.offset]
        return bytes(with_it)

    def sectors(self):
        return range(self.offset // SECTOR * SECTOR, self.end, SECTOR)

    def blocks(self):
        return range(self.offset // BLOCK, (self.end - 1) // BLOCK + 1)

    def changes(self, block, content):
        """Whether `content`, the whole disk's, is another in this block once the write is done."""
        begin, end = max(self.offset, block * BLOCK), min(self.end, (block + 1) * BLOCK)
        return content[begin:end] != self.data[begin - self.offset:end - self.offset]


class Cut:
    """A cut that somebody makes between `began` and `ended`, or a flush: what the disk held before, and every write
    that may lie on either side of it."""

    def __init__(self, base, writes):
        self.began, self.ended = time.monotonic(), None
        self.base, self.writes = base, writes


def _versions(cut):
    """{sector: [base, with the first write, …]}, {sector: [the writes]}"""
    contents, writers = {}, {}
    for write in cut.writes:
        for sector in write.sectors():
            versions = contents.setdefault(sector, [bytes(cut.base[sector:sector + SECTOR])])
            versions.append(write.over(sector, versions[-1]))
            writers.setdefault(sector, []).append(write)
    return contents, writers


def check_cut(parts):
    """[(cut, bytes of its checkpoint), …], of one or of several volumes that were cut at once: every sector is one that
    the disk has held at the cut, what a write did to one block is in it or not, and nothing is in it that was submitted
    after something had been acknowledged that is not. How many writes that raced it were in, at least in part, and how
    many were not, at least in part: one that touches several blocks may be both."""
    inside, outside = {}, {}
    for cut, found in parts:
        contents, writers = _versions(cut)
        for sector in differing(found, cut.base):
            assert sector in contents, f"the sector at {sector} is not what it was at the cut"
        seen = {}
        for sector, versions in contents.items():
            value = bytes(found[sector:sector + SECTOR])
            assert value in versions, f"the sector at {sector} is nothing that was ever there"
            if versions.count(value) > 1:
                continue  # zeroed twice: it tells nothing
            at = versions.index(value)
            for number, write in enumerate(writers[sector], start=1):
                seen.setdefault((id(write), sector // BLOCK), (write, set()))[1].add(at >= number)
        for (key, block), (write, where) in seen.items():
            assert len(where) == 1, f"of {len(write.data)} bytes written at {write.offset}, block {block} has a part"
            (inside if where == {True} else outside)[key] = write
    last = max((write.submitted for write in inside.values()), default=float("-inf"))
    for write in outside.values():
        assert write.ended is None or write.ended >= last, \
            f"a write at {write.offset} had been acknowledged {last - write.ended:.6f} s before another was submitted " \
            "that is in the checkpoint, and is not in it"
    return len(inside), len(outside)


# --- The client.

class RecordingClient:
    """A client of one export that keeps many requests in flight and a copy of what the disk must hold. The disk, which
    is new, reads as zeros. The load writes to the first `space` bytes of it. No two requests that are in flight touch
    the same page."""

    def __init__(self, uri, size, seed, depth=32, connections=2, space=None):
        self.uri, self.size, self.depth, self.connections = uri, size, depth, connections
        self.space = space or size
        self.random = random.Random(seed)
        self.content = bytearray(size)
        self.unsettled = []  # in flight when the connection died: may be there or not, sector by sector
        self.errors_expected = False  # the disk below is failing: a request that fails is as one without an answer
        self._acked_submitted = [float("-inf")] * -(-size // BLOCK)  # of the last write that changed a block for certain
        self._possible_until = [float("-inf")] * -(-size // BLOCK)   # the last moment at which a write may have
        self._pool = self.random.randbytes(_POOL_BYTES)
        self._busy = bytearray(-(-size // PAGE))
        self._in_flight = {}
        self._cuts = []
        self._handles = []
        self._failures = []
        self._numbers = 0
        self._flushed = self._begin_cut()
        self.attach()

    # --- Connections.

    def attach(self):
        """Makes the connections."""
        self._handles = [connect(self.uri) for _ in range(self.connections)]

    @property
    def connected(self):
        return bool(self._handles) and not any(handle.aio_is_dead() or handle.aio_is_closed() for handle in self._handles)

    def disconnected(self, timeout_s=LIMIT_S):
        """After the server's death: takes what it has still answered, and waits for the end of the connections."""
        deadline = time.monotonic() + timeout_s
        while any(not (handle.aio_is_dead() or handle.aio_is_closed()) for handle in self._handles):
            assert time.monotonic() < deadline, "the server is dead, and the connection is not"
            self._step(100)
        self._check_failures()
        self.unsettled += [write for write in self._in_flight.values() if write is not None]
        self._in_flight.clear()
        self._busy = bytearray(len(self._busy))
        self._handles = []

    def reconnect(self, timeout_s=LIMIT_S):
        """After the server's death: connects again and reads a page. When (by time.monotonic) that was answered."""
        self.disconnected(timeout_s)
        first = connect(self.uri, timeout_s=timeout_s)
        first.pread(PAGE, 0)
        answered = time.monotonic()
        first.shutdown()
        self.attach()
        return answered

    def close(self):
        """Waits for what is in flight, and goes."""
        self.drain()
        for handle in self._handles:
            handle.shutdown()
        self._handles = []

    # --- Load.

    def run(self, seconds):
        """Keeps `depth` requests in flight for so long, or until the connection dies."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.connected:
            self._fill()
            self._step(10)
        self._check_failures()

    def run_until(self, condition, timeout_s=LIMIT_S):
        """Goes on until the condition holds or the connection dies."""
        deadline = time.monotonic() + timeout_s
        while self.connected and not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s} s"
            self._fill()
            self._step(10)
        self._check_failures()

    def run_beside(self, command, timeout_s=LIMIT_S, **options):
        """Runs a command while the load goes on; a CompletedProcess with text."""
        process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, **options)
        try:
            self.run_until(lambda: process.poll() is not None, timeout_s)
            output, errors = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
            process.wait()
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def drain(self, timeout_s=LIMIT_S):
        """Waits until all that was submitted has been answered."""
        deadline = time.monotonic() + timeout_s
        while self._in_flight and self.connected:
            assert time.monotonic() < deadline, f"{len(self._in_flight)} requests are not answered within {timeout_s} s"
            self._step(100)
        self._check_failures()

    def write(self, offset, data):
        """One write, alone and answered."""
        self.drain()
        self._submit_write(self._handles[0], offset, bytes(data), 0)
        self.drain()

    def zero(self, offset, length):
        """One zeroing, alone and answered."""
        self.drain()
        self._submit_zero(self._handles[0], offset, length)
        self.drain()

    def flush(self):
        """A flush beside whatever is in flight: what had been acknowledged before is durable from then on. False if
        the connection died instead."""
        cut = self._begin_cut()
        answer = []
        self._handles[0].aio_flush(lambda error: answer.append(error.value) or 1)
        deadline = time.monotonic() + LIMIT_S
        while not answer and self.connected:
            assert time.monotonic() < deadline, f"a flush is not answered within {LIMIT_S} s"
            self._step(100)
        done = answer == [0]
        assert done or not self.connected or self.errors_expected, f"a flush failed: {os.strerror(answer[0])}"
        self._cuts.remove(self._flushed if done else cut)
        if done:
            self._flushed = cut
        return done

    def _fill(self):
        # One by one and not all at once: in between others' answers are taken.
        while len(self._in_flight) < self.depth and self.connected:
            if not self._submit():
                return

    def _submit(self):
        random_ = self.random
        handle = random_.choice(self._handles)
        kind = random_.random()
        if kind < 0.01:
            number = self._number()
            self._in_flight[number] = None
            handle.aio_flush(self._callback(number, "flush"))
            return True
        length = random_.choice((PAGE, PAGE, PAGE, PAGE, 2 * PAGE, 16 << 10, BLOCK, 100 << 10, SECTOR, 3 * SECTOR, 1000))
        # Half of it goes to an eighth of the space.
        space = self.space // 8 if random_.random() < 0.5 else self.space
        grain = PAGE if length % PAGE == 0 else SECTOR if length % SECTOR == 0 else 1
        offset = random_.randrange(0, space - length, grain)
        if any(self._busy[offset // PAGE:-(-(offset + length) // PAGE)]):
            return len(self._in_flight) < self.depth // 2  # a full disk of busy pages must not spin
        if kind < 0.06:
            self._submit_read(handle, offset, length)
        elif kind < 0.11:
            self._submit_zero(handle, offset, length)
        else:
            start = random_.randrange(len(self._pool) - length)
            flags = nbd.CMD_FLAG_FUA if kind < 0.13 else 0
            self._submit_write(handle, offset, self._pool[start:start + length], flags)
        return True

    def _number(self):
        self._numbers += 1
        return self._numbers

    def _submit_write(self, handle, offset, data, flags):
        write = Write(offset, data, flags & nbd.CMD_FLAG_FUA != 0)
        callback = self._begin(write, "write")
        handle.aio_pwrite(data, offset, callback, flags)

    def _submit_zero(self, handle, offset, length):
        write = Write(offset, bytes(length))
        callback = self._begin(write, "zero")
        handle.aio_zero(length, offset, callback)

    def _begin(self, write, what):
        number = self._number()
        self._mark(write.offset, len(write.data), 1)
        self._in_flight[number] = write
        for cut in self._cuts:
            cut.writes.append(write)
        return self._callback(number, what)

    def _submit_read(self, handle, offset, length):
        number = self._number()
        self._mark(offset, length, 1)
        self._in_flight[number] = None
        buffer = nbd.Buffer(length)

        def ended(error):
            if error.value == 0 and buffer.to_bytearray() != self.content[offset:offset + length]:
                self._failures.append(f"a read of {length} bytes at {offset} is not what was written")
            self._mark(offset, length, 0)
            return self._ended(number, "read", error)

        handle.aio_pread(buffer, offset, ended)

    def _callback(self, number, what):
        return lambda error: self._ended(number, what, error)

    def _mark(self, offset, length, value):
        first, end = offset // PAGE, -(-(offset + length) // PAGE)
        self._busy[first:end] = bytes([value]) * (end - first)

    def _ended(self, number, what, error):
        """A request's answer. Exceptions would be lost in the library: they are kept for later."""
        write = self._in_flight[number]
        if error.value != 0:
            # An answer that says so, or the end of the connection? Only the state tells, later.
            self._failures.append((what, error.value))
            return 1
        del self._in_flight[number]
        if write is not None:
            write.ended = time.monotonic()
            self._mark(write.offset, len(write.data), 0)
            self._apply(write)
        return 1

    def _check_failures(self):
        failures, self._failures = self._failures, []
        for failure in failures:
            if isinstance(failure, str):
                raise AssertionError(failure)
            assert self.errors_expected or not self.connected, f"a {failure[0]} failed: {os.strerror(failure[1])}"

    def _step(self, timeout_ms):
        poller = select.poll()
        by_fd = {}
        for handle in self._handles:
            if handle.aio_is_dead() or handle.aio_is_closed():
                continue
            direction = handle.aio_get_direction()
            events = (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | \
                     (select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0)
            fd = handle.aio_get_fd()
            by_fd[fd] = handle
            poller.register(fd, events)
        for fd, event in poller.poll(timeout_ms) if by_fd else ():
            handle = by_fd[fd]
            with contextlib.suppress(nbd.Error):
                if event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    handle.aio_notify_read()
                elif event & select.POLLOUT:
                    handle.aio_notify_write()

    # --- What is known.

    def _apply(self, write):
        # Of a zeroing of zeros the server may or may not say that something changed: block by block, since the rest of
        # the same request may have changed its own.
        changed = [block for block in write.blocks() if write.changes(block, self.content)]
        self.content[write.offset:write.end] = write.data
        self._note(write, changed)

    def _note(self, write, certain):
        until = write.ended or time.monotonic()
        for block in write.blocks():
            self._possible_until[block] = max(self._possible_until[block], until)
        for block in certain:
            self._acked_submitted[block] = max(self._acked_submitted[block], write.submitted)

    def _begin_cut(self):
        cut = Cut(bytes(self.content), [write for write in self._in_flight.values() if write is not None])
        self._cuts.append(cut)
        return cut

    @contextlib.contextmanager
    def cut(self):
        """A cut is being made by somebody while the block runs."""
        cut = self._begin_cut()
        try:
            yield cut
        finally:
            self._cuts.remove(cut)
            cut.ended = time.monotonic()

    def settle(self, found):
        """Takes what was found on the disk for what it holds: every sector is the last one that was acknowledged, or
        one that was in flight when the connection died. How many of the latter have come through."""
        landed = 0
        known = {}
        for write in self.unsettled:
            for sector in write.sectors():
                known.setdefault(sector, []).append(write)
        for sector in differing(found, self.content):
            value = bytes(found[sector:sector + SECTOR])
            writes = known.get(sector, [])
            old = bytes(self.content[sector:sector + SECTOR])
            by = [write for write in writes if write.over(sector, old) == value]
            assert by, f"the sector at {sector} is not what was acknowledged" + \
                (", and is not what was in flight either" if writes else "")
            for write in by:
                self._note(write, {sector // BLOCK})
            landed += 1
        for write in self.unsettled:
            self._note(write, ())
        self.unsettled = []
        self.content[:] = found
        return landed

    def verify(self):
        """Reads the whole disk and compares."""
        self.drain()
        return self.settle(read_export(self.uri))

    def verify_after_power_loss(self):
        """Reads the whole disk: every sector is as it was when a flush that was acknowledged began, or as a later
        write left it; one that was acknowledged and forced is there. How many sectors have lost a write."""
        found = read_export(self.uri)
        contents, writers = _versions(self._flushed)
        for sector in differing(found, self._flushed.base):
            assert sector in contents, f"the sector at {sector} is not what was flushed, and was not written since"
        lost = 0
        for sector, versions in contents.items():
            value = bytes(found[sector:sector + SECTOR])
            forced = max((number for number, write in enumerate(writers[sector], start=1)
                          if write.forced and write.ended is not None), default=0)
            assert value in versions[forced:], f"the sector at {sector} is older than what was flushed, or never was so"
            lost += value != versions[-1]
        for write in self.unsettled:
            self._note(write, ())
        self.unsettled = []
        self.content[:] = found
        self._cuts = []
        self._flushed = self._begin_cut()
        return lost

    def check_changes(self, extents, cut):
        """`extents` are what the server says has changed since `cut`: no block is missing that was written since, and
        none is there that was not."""
        assert not self._in_flight and not self.unsettled, "writes are in flight"
        reported = blocks_of(extents)
        for block in range(len(self._acked_submitted)):
            if self._acked_submitted[block] > cut.ended:
                assert block in reported, f"block {block} has been written since, and is not among the changes"
            elif self._possible_until[block] < cut.began:
                assert block not in reported, f"block {block} has not been written since, and is among the changes"
        return len(reported)


# --- Things that tests stand on.

def take_private_mounts():
    """From here on mounts are those of this process and its children alone, and go with it; False where that may not
    be."""
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        return False
    run("mount", "--make-rprivate", "/")
    return True


def certificates(directory, name="localhost"):
    """A certificate authority, and what server and client need, under the names that NBD programs look for."""
    directory = pathlib.Path(directory)
    directory.mkdir()
    for role, extra in (("ca", "cn = test authority\nca\ncert_signing_key\n"),
                        ("server", f"cn = {name}\ndns_name = {name}\nip_address = 127.0.0.1\ntls_www_server\nsigning_key\nencryption_key\n"),
                        ("client", "cn = test client\ntls_www_client\nsigning_key\nencryption_key\n")):
        template = directory / f"{role}.info"
        template.write_text(extra + "expiration_days = 2\n")
        key, certificate = directory / f"{role}-key.pem", directory / f"{role}-cert.pem"
        run("certtool", "--generate-privkey", "--key-type", "ecdsa", "--outfile", key)
        if role == "ca":
            run("certtool", "--generate-self-signed", "--load-privkey", key, "--template", template, "--outfile", certificate)
        else:
            run("certtool", "--generate-certificate", "--load-privkey", key, "--load-ca-certificate", directory / "ca-cert.pem",
                "--load-ca-privkey", directory / "ca-key.pem", "--template", template, "--outfile", certificate)
        template.unlink()
    return directory


def copy_tree(source, target):
    """A copy of a volume's directory, as sparse as it was."""
    run("cp", "-a", "--sparse=always", source, target)
    return pathlib.Path(target)


def remove_tree(path):
    shutil.rmtree(path, ignore_errors=True)
