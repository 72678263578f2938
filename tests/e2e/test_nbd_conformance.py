"""The NBD server against the protocol's corner cases, through libnbd and through a socket.

Every wait has a limit; every server is ended by its process id.
"""

import errno
import random
import struct

import nbd
import pytest

from nbd_fixture import process
from nbd_fixture.process import RawClient, running

MIB = 1 << 20
DISK_SIZE = 64 * MIB
READ, WRITE, DISCONNECT, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)


@pytest.fixture
def server(tmp_path):
    with running(unix=tmp_path / "nbd.sock") as started:
        yield started


def connect(server, export="disk", *, contexts=(), structured=True, strict=False):
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    for context in contexts:
        handle.add_meta_context(context)
    handle.connect_uri(server.uri(export))
    if not strict:
        handle.set_strict_mode(0)  # what is wrong is for the server to find out
    return handle


def error_of(call, *arguments):
    """The error that a call of libnbd ends with, as a name such as 'EINVAL'."""
    with pytest.raises(nbd.Error) as caught:
        call(*arguments)
    return errno.errorcode[caught.value.errnum]


def extents_of(handle, context, offset=0, length=DISK_SIZE, flags=0):
    found = []

    def take(name, _offset, entries, _error):
        if name == context:
            found.extend(zip(entries[::2], entries[1::2]))

    handle.block_status(length, offset, take, flags)
    return found


def pattern(seed, length):
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("structured", [True, False])
def test_reads_give_what_was_written(server, structured):
    handle = connect(server, structured=structured)
    assert handle.get_structured_replies_negotiated() == structured
    for offset, length in [(0, 1), (1, 511), (4095, 4098), (65535, 65538), (MIB - 7, 3 * MIB + 9)]:
        data = pattern(offset, length)
        handle.pwrite(data, offset)
        assert handle.pread(length, offset) == data
        assert handle.pread(length + 2, max(0, offset - 1))[min(1, offset):][:length] == data


def test_zero_length_requests_succeed_and_change_nothing(server):
    handle = connect(server, contexts=["base:allocation"])
    handle.pwrite(b"x" * 4096, 0)
    for offset in (0, 100, DISK_SIZE):
        assert handle.pread(0, offset) == b""
        handle.pwrite(b"", offset)
        handle.zero(0, offset)
        handle.trim(0, offset)
    assert error_of(handle.block_status, 0, 0, lambda *_: 0) == "EINVAL"
    assert handle.pread(4096, 0) == b"x" * 4096


def test_requests_beyond_the_end_are_refused(server):
    for structured in (True, False):
        handle = connect(server, structured=structured)
        for offset, length in [(DISK_SIZE - 1, 2), (DISK_SIZE, 1), (DISK_SIZE + 1, 1), (2**63 - 512, 512)]:
            assert error_of(handle.pread, length, offset) == "EINVAL"
            assert error_of(handle.pwrite, b"x" * length, offset) == "ENOSPC"
            assert error_of(handle.zero, length, offset) == "ENOSPC"
            assert error_of(handle.trim, length, offset) == "EINVAL"
        assert handle.pread(1, DISK_SIZE - 1) == b"\0"


def test_unaligned_requests_are_refused_where_a_minimum_is_advertised(server):
    handle = connect(server, "blocks")
    assert handle.get_block_size(nbd.SIZE_MINIMUM) == 4096
    assert error_of(handle.pread, 512, 0) == "EINVAL"
    assert error_of(handle.pwrite, b"x" * 4096, 512) == "EINVAL"
    assert error_of(handle.zero, 4097, 4096) == "EINVAL"
    handle.pwrite(b"x" * 8192, 4096)
    assert handle.pread(8192, 4096) == b"x" * 8192


def test_an_export_of_odd_size_is_served_to_its_last_byte(server):
    handle = connect(server, "odd")
    assert handle.get_size() == 1_000_003
    handle.pwrite(b"end", 1_000_000)
    assert handle.pread(5, 999_998) == b"\0\0end"


def test_fua_makes_a_write_durable_before_it_is_acknowledged(tmp_path):
    with running(unix=tmp_path / "nbd.sock") as server:
        handle = connect(server)
        assert handle.can_fua() and handle.can_flush()
        handle.pwrite(b"x", 0)
        handle.pwrite(b"x", 0, nbd.CMD_FLAG_FUA)
        handle.zero(65536, 0, nbd.CMD_FLAG_FUA)
        handle.trim(65536, 0, nbd.CMD_FLAG_FUA)
        handle.flush()
        handle.shutdown()
    assert server.flushes == 4


def test_fua_is_accepted_with_every_command(server):
    handle = connect(server, contexts=["base:allocation"])
    assert handle.can_meta_context("base:allocation")
    client = RawClient(server.connect())
    client.go()
    for kind, length in [(READ, 0), (FLUSH, 0), (TRIM, 512), (WRITE_ZEROES, 512)]:
        client.request(kind, length=length, flags=1)
        assert struct.unpack(">IIQ", client.receive(16)) == (0x67446698, 0, 1)
    client.close()


def test_fast_zero_succeeds_or_fails_at_once_and_never_half(server):
    handle = connect(server)
    assert handle.can_fast_zero()
    handle.pwrite(b"x" * 131072, 0)
    assert error_of(handle.zero, 70000, 0, nbd.CMD_FLAG_FAST_ZERO) == "ENOTSUP"
    assert handle.pread(131072, 0) == b"x" * 131072
    handle.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)
    handle.zero(100, 65536)
    assert handle.pread(65636, 0) == bytes(65636)
    assert handle.pread(10, 65636) == b"x" * 10


def test_write_zeroes_without_a_hole_keeps_the_space(server):
    handle = connect(server, contexts=["base:allocation"])
    handle.zero(65536, 0, nbd.CMD_FLAG_NO_HOLE)
    assert extents_of(handle, "base:allocation", 0, 131072) == [(65536, 0), (65536, 3)]
    handle.zero(65536, 0)
    assert extents_of(handle, "base:allocation", 0, 131072) == [(131072, 3)]


def test_trim_gives_space_back(server):
    handle = connect(server, contexts=["base:allocation"])
    handle.pwrite(b"x" * 262144, 0)
    handle.trim(131072, 65536)
    assert extents_of(handle, "base:allocation", 0, 262144) == [(65536, 0), (131072, 3), (65536, 0)]


def test_trim_and_zero_take_any_length(server):
    handle = connect(server, "large")
    for call in (handle.trim, handle.zero):
        call((1 << 32) - 4096, 1 << 40)


@pytest.mark.parametrize("structured", [True, False])
def test_32_mib_is_the_largest_payload(server, structured):
    handle = connect(server, structured=structured)
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB
    data = pattern(1, 32 * MIB)
    handle.pwrite(data, 0)
    assert handle.pread(32 * MIB, 0) == data
    assert error_of(handle.pwrite, bytes(32 * MIB + 1), 0) == "EINVAL"
    assert error_of(handle.pread, 32 * MIB + 1, 0) == ("EOVERFLOW" if structured else "EINVAL")
    assert handle.pread(4096, MIB) == data[MIB : MIB + 4096]


def test_a_read_only_export_refuses_all_changes(server):
    handle = connect(server, "read-only")
    assert handle.is_read_only()
    for call, argument in [(handle.pwrite, b"x"), (handle.zero, 1), (handle.trim, 1)]:
        assert error_of(call, argument, 0) == "EPERM"
    assert handle.pread(MIB, 0) == b"\x5a" * MIB
    handle.flush()


def test_a_full_export_says_so_and_goes_on(server):
    handle = connect(server, "full")
    handle.pwrite(b"x" * MIB, 0)
    assert error_of(handle.pwrite, b"x" * 65536, MIB) == "ENOSPC"
    handle.trim(65536, 0)
    handle.pwrite(b"y" * 65536, MIB)
    assert handle.pread(65536, MIB) == b"y" * 65536


def test_unknown_options_are_refused_and_negotiation_goes_on(server):
    client = RawClient(server.connect())
    for number in (0, 4, process.EXTENDED_HEADERS, 12, 0xFFFFFFFF):
        assert client.option(number, b"some data")[-1][0] == process.REP_ERR_UNSUP
    assert client.option(process.STARTTLS)[-1][0] == process.REP_ERR_POLICY
    assert client.option(process.LIST, b"data")[-1][0] == process.REP_ERR_INVALID
    assert client.option(process.INFO, b"short")[-1][0] == process.REP_ERR_INVALID
    assert client.option(process.INFO, bytes(1 << 20))[-1][0] == process.REP_ERR_TOO_BIG
    unknown = struct.pack(">I", 7) + b"nowhere" + struct.pack(">H", 0)
    assert client.option(process.GO, unknown)[-1][0] == process.REP_ERR_UNKNOWN
    client.go()
    client.request(READ, length=3)
    assert client.receive(19) == struct.pack(">IIQ", 0x67446698, 0, 1) + bytes(3)
    client.close()


def test_abort_is_acknowledged(server):
    client = RawClient(server.connect())
    assert client.option(process.ABORT) == [(process.REP_ACK, b"")]
    assert client.is_closed()


def test_unknown_commands_and_flags_are_refused(server):
    client = RawClient(server.connect())
    client.go()
    for kind, flags in [(8, 0), (CACHE, 0), (0xFFFF, 0), (READ, 1 << 5), (TRIM, 1 << 2), (WRITE_ZEROES, 1 << 3)]:
        client.request(kind, length=512, flags=flags)
        assert struct.unpack(">IIQ", client.receive(16)) == (0x67446698, 22, 1)
    client.request(WRITE, length=5, flags=1 << 5, payload=b"hello")
    assert struct.unpack(">IIQ", client.receive(16)) == (0x67446698, 22, 1)
    client.request(FLUSH)
    assert struct.unpack(">IIQ", client.receive(16)) == (0x67446698, 0, 1)
    client.close()


@pytest.mark.parametrize("flags", [0, nbd.HANDSHAKE_FLAG_NO_ZEROES, nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE])
def test_clients_of_every_age_are_served(server, flags):
    handle = nbd.NBD()
    handle.set_handshake_flags(flags)
    handle.connect_uri(server.uri())
    assert handle.get_size() == DISK_SIZE
    handle.pwrite(b"old", 5)
    assert handle.pread(3, 5) == b"old"


def test_exports_are_listed_and_described(server):
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.set_full_info(True)
    handle.connect_uri(server.uri("nowhere"))
    listed = []
    handle.opt_list(lambda name, description: listed.append((name, description)))
    assert [name for name, _ in listed] == ["disk", "read-only", "blocks", "odd", "large", "full"]
    assert listed[0][1] == "64 MiB of memory"
    assert error_of(handle.opt_info) == "ENOENT"
    handle.set_export_name("")
    handle.opt_info()
    assert handle.get_canonical_export_name() == "disk"
    assert handle.get_export_description() == "64 MiB of memory"
    handle.opt_go()
    assert handle.can_multi_conn() and handle.can_df()
    handle.shutdown()


def test_contexts_are_listed_by_namespace_and_selected_by_name(server):
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(server.uri())

    def listed(*queries):
        handle.clear_meta_contexts()
        for query in queries:
            handle.add_meta_context(query)
        names = []
        handle.opt_list_meta_context(names.append)
        return names

    everything = ["base:allocation", "berth:changed:start"]
    assert listed() == everything
    assert listed("base:") == ["base:allocation"]
    assert listed("berth:", "base:") == everything
    assert listed("qemu:", "x-other:thing", "base:other") == []
    listed("berth:changed:start", "base:")  # a wildcard selects nothing
    handle.opt_go()
    assert handle.can_meta_context("berth:changed:start")
    assert not handle.can_meta_context("base:allocation")
    handle.shutdown()


def test_block_status_shows_every_context(server):
    handle = connect(server, contexts=["base:allocation", "berth:changed:start"])
    handle.pwrite(b"x", 65536)
    handle.pwrite(b"x", 3 * 65536)
    assert extents_of(handle, "base:allocation", 0, 262144) == [(65536, 3), (65536, 0), (65536, 3), (65536, 0)]
    assert extents_of(handle, "berth:changed:start", 0, 262144) == [(65536, 0), (65536, 1), (65536, 0), (65536, 1)]
    assert extents_of(handle, "base:allocation", 100, 262144, nbd.CMD_FLAG_REQ_ONE) == [(65436, 3)]
    assert extents_of(handle, "base:allocation", 70000, 10) == [(10, 0)]


def test_a_selection_that_is_refused_leaves_no_context_of_the_one_before(server):
    def selection(*queries):
        strings = [b"disk", *queries]
        counted = [struct.pack(">I", len(string)) + string for string in strings]
        return counted[0] + struct.pack(">I", len(queries)) + b"".join(counted[1:])

    for too_much in ([b"x-other:" + bytes([65 + i]) * 4000 for i in range(20)], [b"x-other:"] * 257):
        client = RawClient(server.connect())
        assert client.option(process.STRUCTURED_REPLY)[-1][0] == process.REP_ACK
        assert len(client.option(process.SET_META_CONTEXT, selection(b"base:allocation"))) == 2
        assert client.option(process.SET_META_CONTEXT, selection(*too_much))[-1][0] == process.REP_ERR_TOO_BIG
        client.go()
        client.request(BLOCK_STATUS, length=512)
        _, _, kind, _, _, error = struct.unpack(">IHHQII", client.receive(24))
        assert (kind, error) == ((1 << 15) + 1, errno.EINVAL)
        client.close()


def test_block_status_needs_a_context(server):
    handle = connect(server)
    assert error_of(handle.block_status, 65536, 0, lambda *_: 0) in ("EINVAL", "ENOTSUP")
    client = RawClient(server.connect())
    assert client.option(process.STRUCTURED_REPLY)[-1][0] == process.REP_ACK
    client.go()
    client.request(BLOCK_STATUS, length=512)
    magic, flags, kind, _, length, error = struct.unpack(">IHHQII", client.receive(24))
    assert (magic, flags, kind, error) == (0x668E33EF, 1, (1 << 15) + 1, errno.EINVAL)
    assert len(client.receive(length - 4)) == length - 4
    client.close()


def test_reads_come_in_one_piece_for_who_asks(server):
    handle = connect(server)
    handle.pwrite(b"x" * 65536, 65536)
    chunks = []
    handle.pread_structured(262144, 0, lambda data, offset, status, _: chunks.append((offset, len(data), status)),
                            nbd.CMD_FLAG_DF)
    assert chunks == [(0, 262144, nbd.READ_DATA)]
    chunks.clear()
    handle.pread_structured(65536, 0, lambda _, offset, status, __: chunks.append((offset, status)))
    assert chunks == [(0, nbd.READ_HOLE)]


def wait_for_all(handles):
    for handle in handles:
        while handle.aio_in_flight() > 0:
            assert handle.poll(process.COMMAND_SECONDS_MAX * 1000) == 1


def test_sixteen_connections_work_on_one_disk(server):
    handles = [connect(server) for _ in range(16)]
    size = 65536
    data = [pattern(i, size) for i in range(256)]
    for i, block in enumerate(data):
        handles[i % 16].aio_pwrite(nbd.Buffer.from_bytearray(bytearray(block)), i * size)
    wait_for_all(handles)
    handles[0].flush()
    buffers = [nbd.Buffer(size) for _ in data]
    for i, buffer in enumerate(buffers):
        handles[(i * 7 + 3) % 16].aio_pread(buffer, i * size)
    wait_for_all(handles)
    assert [bytes(buffer.to_bytearray()) for buffer in buffers] == data
    for handle in handles:
        handle.shutdown()


def test_more_requests_than_a_client_may_have_are_all_answered(server):
    handle = connect(server)
    buffers = [nbd.Buffer(4096) for _ in range(5000)]
    for i, buffer in enumerate(buffers):
        handle.aio_pread(buffer, i * 4096)
    wait_for_all([handle])
    handle.shutdown()


def test_garbage_disconnects_its_sender_alone(server):
    good = connect(server)
    good.pread(1, 0)
    files = server.open_files()
    generator = random.Random(5)
    for stage in range(60):
        connection = server.connect()
        if stage % 3 == 0:
            connection.sendall(generator.randbytes(generator.randint(5, 5000)))
            client = None
        else:
            client = RawClient(connection)
            if stage % 3 == 2:
                client.go()
            client.send(generator.randbytes(generator.randint(40, 5000)))
        closer = client or RawClient.__new__(RawClient)
        closer.connection = connection
        assert closer.is_closed()
        connection.close()
        assert good.pread(1, 0) == b"\0"
    server.wait_for_open_files(files)


def test_clients_that_vanish_anywhere_leave_nothing_behind(server):
    handle = connect(server)
    handle.pread(1, 0)
    files = server.open_files()
    request = struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 100_000)
    for length in [0, 1, 27, 28, 29, 5000, 100_027, 100_028]:
        client = RawClient(server.connect())
        client.go()
        client.send((request + bytes(100_000))[:length])
        client.close()
    for length in range(0, 34, 3):
        connection = server.connect()
        connection.sendall((struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">IIIH", 7, 6, 0, 0))[:length])
        connection.close()
    client = RawClient(server.connect())  # asks for much and takes nothing
    client.go()
    for cookie in range(40):
        client.request(READ, length=8 * MIB, cookie=cookie)
    client.close()
    server.wait_for_open_files(files)
    assert handle.pread(1, 0) == b"\0"


def test_a_disconnect_waits_for_what_is_under_way(server):
    client = RawClient(server.connect())
    client.go()
    for cookie in range(100):
        client.request(WRITE, offset=cookie * 4096, length=4096, cookie=cookie, payload=bytes([cookie]) * 4096)
    client.request(DISCONNECT)
    cookies = [struct.unpack(">IIQ", client.receive(16))[2] for _ in range(100)]
    assert sorted(cookies) == list(range(100))
    assert client.is_closed()
    assert connect(server).pread(4096, 99 * 4096) == bytes([99]) * 4096


def test_the_server_ends_while_clients_are_connected(tmp_path):
    with running(unix=tmp_path / "nbd.sock") as server:
        handles = [connect(server) for _ in range(4)]
        silent = server.connect()
        half = RawClient(server.connect())
        half.go()
        half.request(WRITE, length=1000, payload=b"half")
    for handle in handles:
        with pytest.raises(nbd.Error):
            handle.pread(1, 0)
    silent.close()
    half.close()
