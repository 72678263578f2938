"""The agent that is PID 1 of microVMs (docs/formats/container-agent.md), in real guests."""

import hashlib
import io
import os
import signal
import struct
import subprocess
import tarfile
import time

import pytest
from agent_client import MAIN, AgentError, AgentTimeout, Connection, Incoming, frame
from agent_machine import MicroVm

MIB = 1 << 20


@pytest.fixture(scope="module")
def machine():
    with MicroVm() as started:
        try:
            assert "boot_error" not in started.agent.greet()
        except (AgentTimeout, AssertionError) as error:
            raise AssertionError(f"{error}\n{started.agent.welcome}\n{started.console()}") from error
        print(f"QEMU's start to the welcome: {time.monotonic() - started.started_at:.2f} s")
        yield started


@pytest.fixture
def agent(machine):
    yield machine.agent
    running = [number for number, process in machine.agent.list().items() if not process.keys() & {"exit_code", "exit_signal"}]
    for number in running:
        machine.agent.call("signal", process=number, signal=signal.SIGKILL)
    assert running == [], "a test has left processes"


def test_output_and_errors_are_apart_and_the_exit_code_is_the_programs(agent):
    assert agent.run("sh", "-c", "echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")
    for code in (0, 1, 127, 255):
        assert agent.run("sh", "-c", f"exit {code}")[0] == code


def test_a_signal_is_told_from_an_exit_code(agent):
    assert agent.run("sh", "-c", "kill -KILL $$")[0] == -signal.SIGKILL
    process = agent.start("sleep", "1000")
    process.signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    with pytest.raises(AgentError) as refused:
        process.signal(signal.SIGTERM)
    assert refused.value.kind == "precondition"
    process.forget()


def test_a_signal_to_the_group_reaches_children(agent):
    process = agent.start("sh", "-c", "sleep 1000 | sleep 1000; echo unreached")
    process.signal(signal.SIGTERM, scope=1)
    assert process.wait() == -signal.SIGTERM
    assert process.output() == b""  # nobody has it open any more


def test_input_comes_to_its_end(agent):
    process = agent.start("sha256sum", has_input=True)
    data = os.urandom(MIB)
    process.send(data, end=True)
    assert process.output().split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert process.wait() == 0


def test_a_program_that_reads_no_input_does_not_stop_its_host(agent):
    process = agent.start("sh", "-c", "exec <&-; echo closed; sleep 0.2", has_input=True)
    process.wait_for_output(b"closed")
    process.send(bytes(MIB), end=True)
    assert agent.outgoing[process.input]["stopped"]
    assert process.wait() == 0


def test_without_an_input_there_is_none(agent):
    assert agent.run("cat") == (0, b"", b"")


def test_a_slow_reader_stops_nobody_else(agent):
    slow = agent.start("sh", "-c", "dd if=/dev/zero bs=1M count=64 2>/dev/null", read=False)
    assert agent.shell("echo at once", timeout_s=10) == "at once\n"
    stream = agent.incoming[slow.outputs[0]]
    agent.grant(slow.outputs[0], 1000)
    agent.wait_until(lambda: stream.received == 1000)
    started = time.monotonic()
    assert agent.shell("echo at once", timeout_s=10) == "at once\n"
    print(f"a process beside a full stream: {1000 * (time.monotonic() - started):.0f} ms")
    stream.is_read = agent.incoming[slow.outputs[1]].is_read = True
    agent.grant(slow.outputs[0])
    agent.grant(slow.outputs[1])
    started = time.monotonic()
    assert slow.output(120) == bytes(64 * MIB)
    print(f"64 MiB of output: {64 / (time.monotonic() - started):.0f} MiB/s")
    assert slow.wait() == 0
    slow.forget()


def test_a_terminal_is_one(agent):
    process = agent.start("sh", "-c", "tty; stty size; read line; stty size; echo got $line; exec sleep 1000",
                          terminal=True, rows=30, columns=100)
    assert process.wait_for_output(b"30 100").startswith(b"/dev/pts/")
    agent.call("resize", process=process.number, rows=50, columns=132)
    process.send(b"typed\r")
    process.wait_for_output(b"50 132")
    process.wait_for_output(b"got typed")
    process.send(b"\x03")
    assert process.wait() == -signal.SIGINT
    process.output()


def test_a_resize_reaches_the_program(agent):
    process = agent.start("sh", "-c", "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done", terminal=True)
    process.wait_for_output(b"ready")
    agent.call("resize", process=process.number, rows=50, columns=132)
    process.wait_for_output(b"50 132")
    assert process.wait() == 0


def test_environment_and_directory(agent):
    status, output, _ = agent.run("sh", "-c", "pwd; echo $A; echo $HOME; echo $PATH", environment=["A=b c"],
                                  working_directory="/var/www")
    assert (status, output) == (0, b"/var/www\nb c\n/root\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n")
    with pytest.raises(AgentError) as refused:
        agent.run("true", working_directory="/missing")
    assert (refused.value.kind, refused.value.shell_status) == ("not_found", 125)


@pytest.mark.parametrize(("user", "expected"), [
    ("", "uid=0(root) gid=0(root)"),
    ("web", "uid=33(web) gid=34(www) groups=34(www),40(logs)"),
    ("33:40", "uid=33(web) gid=40(logs)"),
    ("4711:4712", "uid=4711 gid=4712"),
])
def test_users(agent, user, expected):
    output = agent.shell("id; echo again >/dev/stdout", user=user)
    assert output.startswith(expected) and output.endswith("again\n")


def test_an_unknown_user_is_not_found(agent):
    with pytest.raises(AgentError, match="no user 'nobody'") as refused:
        agent.run("true", user="nobody")
    assert refused.value.kind == "not_found"


@pytest.mark.parametrize(("program", "status"), [
    ("missing", 127), ("/bin/missing", 127), ("/etc/data", 126), ("no-program", 126), ("/etc", 126)])
def test_what_cannot_be_run_is_said_as_a_shell_says_it(agent, program, status):
    with pytest.raises(AgentError, match=f"cannot run '{program}'") as refused:
        agent.run(program)
    assert refused.value.shell_status == status


def test_numbers_are_used_once(agent):
    process = agent.start("true")
    process.wait()
    for number, kind in ((process.number, "already_exists"), (0, "invalid_argument"), (1 << 24, "invalid_argument")):
        with pytest.raises(AgentError) as refused:
            agent.answer(agent.request("start", [("process", number), ("argument", "true")]))
        assert refused.value.kind == kind
    process.forget()


def test_orphans_are_reaped(agent):
    agent.list()
    before = agent.orphans_reaped
    agent.shell("for i in 1 2 3 4 5; do (sleep 0.1 &) ; done")
    deadline = time.monotonic() + 10
    while agent.orphans_reaped < before + 5:
        agent.list()
        assert time.monotonic() < deadline
    assert "Z" not in agent.shell("cat /proc/[0-9]*/stat 2>/dev/null | cut -d' ' -f3")


def test_a_process_outlives_its_host(machine):
    process = machine.agent.start("sh", "-c", "echo first; read line; echo $line; yes | head -c 1000000; exit 7", has_input=True)
    process.wait_for_output(b"first\n")
    number = process.number
    old = machine.agent.incoming[process.outputs[0]].received
    # Cut in the middle of a frame.
    machine.agent.send_raw(frame(6, process.input, struct.pack("<Q", 0) + bytes(1000))[:500])
    agent = machine.reconnect()
    assert number in agent.list()
    process = agent.adopt(number)
    assert agent.incoming[process.outputs[0]].received <= old
    process.send(b"second\n", end=True)
    assert process.wait() == 7
    assert process.output().removeprefix(b"first\n") == b"second\n" + b"y\n" * 500000
    process.forget()


def test_a_host_in_the_middle_of_output_is_replaced(machine):
    process = machine.agent.start("sh", "-c", "i=0; while [ $i -lt 60000 ]; do echo $i; i=$((i + 1)); done", read=False)
    stream = process.outputs[0]
    agent, read, position = machine.agent, b"", 0
    for _ in range(5):
        agent.incoming[stream] = Incoming(position)
        agent.incoming[stream].is_read = False
        agent.grant(stream, 30000)
        agent.wait_until(lambda: len(agent.incoming[stream].data) >= 20000)
        read += agent.incoming[stream].data
        position = agent.incoming[stream].received
        agent = machine.reconnect()
    agent.incoming[stream] = Incoming(position)
    agent.grant(stream)
    agent.wait_until(lambda: agent.incoming[stream].is_at_end)
    read += agent.incoming[stream].data
    assert read == "".join(f"{i}\n" for i in range(60000)).encode()
    assert agent.list()[process.number]["exit_code"] == 0
    agent.call("forget", process=process.number)


def test_an_end_that_nobody_heard_is_in_the_list(machine):
    process = machine.agent.start("sh", "-c", "read line; exit 9", has_input=True)
    process.send(b"x\n")
    agent = machine.reconnect()
    process = agent.adopt(process.number)
    assert process.wait() == 9
    assert process.output() == b""
    process.forget()


def test_garbage_is_survived(machine):
    agent = machine.agent
    for garbage in (os.urandom(300_000), b"\xbe\x27\x4a\xc1" * 10_000, frame(3, 1, b"\xff\xff"),
                    frame(3, 1, b"\1\0\3\0\xff\xff\xff\xff"), frame(6, 4, b""), frame(7, 1 << 31, bytes(16)),
                    frame(2, 0, bytes(100)), frame(9, 0xFFFFFFFF)):
        agent.send_raw(garbage)
        agent = machine.reconnect()
        assert agent.shell("echo alive") == "alive\n"


def test_unknown_operations_and_fields_are_refused(agent):
    agent.send_raw(frame(3, 1_000_000, struct.pack("<H", 999)))
    with pytest.raises(AgentError) as refused:
        agent.answer(1_000_000)
    assert refused.value.kind == "unsupported"
    agent.send_raw(frame(3, 1_000_001, struct.pack("<HHI", 4, 999, 0)))
    with pytest.raises(AgentError) as refused:
        agent.answer(1_000_001)
    assert refused.value.kind == "unsupported"
    agent.send_raw(frame(3, 1_000_002, struct.pack("<HHI", 11, 0x8000 | 999, 0)))
    agent.answer(1_000_002)


def test_the_overlay_takes_writes_and_the_image_none(machine):
    before = hashlib.sha256(machine.image.read_bytes()).digest()
    script = "cat /etc/data; echo new >/etc/data; rm /bin/no-program; mkdir /fresh; sync; cat /etc/data; ls /bin/no-program || :"
    assert machine.agent.shell(script) == "of the image\nnew\n"
    assert hashlib.sha256(machine.image.read_bytes()).digest() == before


def test_what_a_container_expects_is_there(agent):
    agent.shell("ls -d /dev/null /dev/pts /dev/shm /dev/fd/0 /proc/self /sys/class /run && ip addr show lo | grep 'inet 127'")
    script = "echo $$ >/dev/shm/x && cat /proc/self/oom_score_adj && ulimit -n && cat /proc/1/comm"
    assert agent.shell(script) == "0\n1024\ninit\n"
    assert agent.shell("ls -d /modules /init || :") == ""


def test_files_go_in_and_out(agent):
    data = os.urandom(150_000)
    for offset in range(0, len(data), 65536):
        agent.call("write_file", path="/root/data", offset=offset, content=data[offset:offset + 65536], flags=int(offset == 0),
                   mode=0o4750, owner=33, group=34)
    assert agent.shell("sha256sum </root/data").split()[0] == hashlib.sha256(data).hexdigest()
    assert agent.shell("stat -c '%a %u %g' /root/data") == "4750 33 34\n"
    read = b""
    while len(read) < len(data):
        piece = agent.call("read_file", path="/root/data", offset=len(read))
        assert (piece["size"], piece["mode"], piece["owner"]) == (len(data), 0o4750, 33)
        read += piece["content"]
    assert read == data
    agent.shell("mkfifo /root/fifo")
    for path, kind in (("/root/missing", "not_found"), ("/root/fifo", "precondition"), ("/root", "precondition"),
                       ("relative", "invalid_argument")):
        with pytest.raises(AgentError) as refused:
            agent.call("read_file", path=path)
        assert refused.value.kind == kind, path


@pytest.fixture
def service(agent):
    """A service of the guest: service(port, program...) listens until the test is over."""
    started = []

    def start(port, *program):
        started.append(agent.start("nc", "-ll", "-p", str(port), "-e", *program))
        agent.shell(f"until netstat -ltn | grep -q ':{port} '; do sleep 0.05; done")

    yield start
    for process in started:
        process.signal(signal.SIGKILL)
        process.wait()
        process.forget()
    agent.list()
    for stream in agent.other_streams:
        agent.call("close_stream", stream=stream)


def test_a_connection_carries_bytes_to_a_service_and_back(agent, service):
    service(7000, "cat")
    data = os.urandom(MIB)
    connection = agent.connect_to(7000)
    connection.send(data, end=True)
    assert connection.output() == data
    connection.wait_until_gone()
    with pytest.raises(AgentError) as refused:
        connection.close()
    assert refused.value.kind == "not_found"


def test_connections_half_close_both_ways(agent, service):
    service(7001, "sh", "-c", "echo first; cat >/dev/null; echo last")
    connection = agent.connect_to(7001, address="127.0.0.1")
    connection.wait_for_output(b"first\n")
    connection.send(b"x", end=True)
    connection.wait_for_output(b"last\n")
    connection.wait_until_gone()
    service(7002, "sh", "-c", "exec >&-; cat >/tmp/late")
    connection = agent.connect_to(7002, read=False)
    connection.send(b"after their end", end=True)
    agent.shell("until grep -q 'after their end' /tmp/late; do sleep 0.05; done")
    agent.grant(connection.number)
    agent.incoming[connection.number].is_read = True
    assert connection.output() == b""
    connection.wait_until_gone()


def test_a_connection_that_is_refused_or_makes_no_sense_is_said_so(agent, service):
    service(7003, "cat")
    taken = agent.connect_to(7003)
    free = agent.open_stream()
    for fields, kind in (({"port": 9}, "disconnected"), ({"port": 9, "address": "::1"}, "disconnected"),
                         ({"port": 9, "address": "localhost"}, "invalid_argument"), ({"port": 0}, "invalid_argument"),
                         ({"port": 65536}, "invalid_argument"), ({"port": 9, "stream": 4}, "invalid_argument"),
                         ({"port": 9, "stream": 1 << 32}, "invalid_argument"), ({}, "invalid_argument"),
                         ({"port": 7003, "stream": taken.number}, "already_exists")):
        with pytest.raises(AgentError) as refused:
            agent.call("connect", **{"stream": free, **fields})
        assert refused.value.kind == kind, fields
    taken.send(b"still there", end=True)
    assert taken.output() == b"still there"
    taken.wait_until_gone()
    agent.list()
    assert agent.other_streams == {}


def test_a_connection_to_nowhere_ends_in_time(agent):
    # A neighbour that is not there.
    agent.shell("ip link set eth0 up && ip addr add 10.9.9.1/24 dev eth0")
    try:
        stream = agent.open_stream()
        with pytest.raises(AgentError) as refused:
            agent.call("connect", stream=stream, port=80, address="10.9.9.2", timeout_ms=200)
        assert refused.value.kind == "timed_out"
        request = agent.request("connect", [("stream", stream), ("port", 80), ("address", "10.9.9.2")])
        agent.call("close_stream", stream=stream)
        with pytest.raises(AgentError) as refused:
            agent.answer(request)
        assert refused.value.kind == "cancelled"
    finally:
        agent.shell("ip addr del 10.9.9.1/24 dev eth0")


def test_a_service_that_resets_is_told_from_one_that_ends(agent, service):
    service(7004, "sh", "-c", "read line; exit 0")
    connection = agent.connect_to(7004)
    connection.send(b"line\n" + bytes(200_000))  # what it has not read
    connection.output()
    assert agent.failed[connection.number] == "disconnected"
    assert agent.outgoing[connection.number]["stopped"]
    connection.wait_until_gone()


def test_a_slow_reader_of_a_connection_stops_nobody_else(agent, service):
    service(7005, "sh", "-c", "yes | head -c 5000000")
    service(7006, "cat")
    slow, other = agent.connect_to(7005, read=False), agent.connect_to(7006)
    agent.grant(slow.number, 1000)
    agent.wait_until(lambda: agent.incoming[slow.number].received == 1000)
    other.send(b"at once", end=True)
    assert other.output(10) == b"at once"
    agent.incoming[slow.number].is_read = True
    agent.grant(slow.number)
    assert slow.output() == b"y\n" * 2_500_000


def test_there_are_only_so_many_connections_and_processes_are_none_of_them(agent, service):
    service(7007, "cat")
    agent.shell("ip link set eth0 up && ip addr add 10.9.8.1/24 dev eth0")
    streams = [agent.open_stream() for _ in range(257)]
    requests = [agent.request("connect", [("stream", stream), ("port", 80), ("address", "10.9.8.2"), ("timeout_ms", 60_000)])
                for stream in streams]
    with pytest.raises(AgentError) as refused:
        agent.answer(requests[-1])
    assert refused.value.kind == "limit"
    assert agent.shell("echo a process", timeout_s=10) == "a process\n"
    for stream in streams[:-1]:
        agent.call("close_stream", stream=stream)
    connection = agent.connect_to(7007)
    connection.close()
    agent.shell("ip addr del 10.9.8.1/24 dev eth0")


def test_a_connection_outlives_its_host_and_the_next_one_decides(machine):
    agent = machine.agent
    listener = agent.start("nc", "-ll", "-p", "7008", "-e", "sh", "-c", "trap 'echo closed >>/tmp/closed' EXIT; cat")
    agent.shell("until netstat -ltn | grep -q ':7008 '; do sleep 0.05; done")
    connection = agent.connect_to(7008)
    connection.send(b"from the first host\n")
    connection.wait_for_output(b"host\n")
    agent = machine.reconnect()
    agent.list()
    known = agent.other_streams[connection.number]
    assert (known["kind"], known["address"], known["port"]) == ("connection", "127.0.0.1", 7008)
    assert known["streams"][connection.number]["input_received"] == len(b"from the first host\n")
    assert agent.shell("cat /tmp/closed 2>/dev/null || :") == ""
    agent.call("close_stream", stream=connection.number)
    agent.shell("until grep -q closed /tmp/closed; do sleep 0.05; done")
    agent.list()
    assert agent.other_streams == {}
    agent.call("signal", process=listener.number, signal=signal.SIGKILL)


def tar_of(*entries):
    """Of (name, content or None for a directory, attributes) triples."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content, attributes in entries:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.mode = 0o755 if content is None else 0o644
            info.size = len(content or b"")
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            tar.addfile(info, io.BytesIO(content or b""))
    return made.getvalue()


def members_of(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {member.name: (member, tar.extractfile(member).read() if member.isreg() else None) for member in tar}


def test_a_tree_comes_out_as_a_tar(agent):
    agent.shell("""rm -rf /tmp/out; mkdir -p /tmp/out/tree/deep; cd /tmp/out/tree; head -c 3000000 /dev/urandom >data
        ln data deep/again; ln -s ../data deep/link; mkfifo fifo; mknod device c 1 3; echo x >'na\u00efve'; chown 33:34 deep/again
        chmod 4711 data; touch -d @1234567890 deep; dd if=/dev/zero of=sparse bs=1 count=1 seek=1000000 2>/dev/null
        n=$(head -c 150 /dev/zero | tr '\\0' n); echo long >$n""")
    members = members_of(agent.pull("/tmp/out/tree"))
    long_name = "n" * 150
    assert members.keys() == {"tree", *(f"tree/{name}" for name in (
        "data", "deep", "deep/again", "deep/link", "fifo", "device", "na\u00efve", "sparse", long_name))}
    first, second = members["tree/data"], members["tree/deep/again"]
    whole, link = (first, second) if first[0].isreg() else (second, first)
    assert link[0].islnk() and link[0].linkname == whole[0].name
    assert hashlib.sha256(whole[1]).hexdigest() == agent.shell("sha256sum </tmp/out/tree/data").split()[0]
    assert (whole[0].mode, whole[0].uid, whole[0].gid) == (0o4711, 33, 34)
    assert members["tree/deep"][0].mtime == 1234567890 and members["tree/deep"][0].isdir()
    assert members["tree/deep/link"][0].linkname == "../data"
    assert members["tree/fifo"][0].isfifo() and members["tree/device"][0].ischr()
    assert members["tree/sparse"][1] == bytes(1_000_001)
    assert members[f"tree/{long_name}"][1] == b"long\n"
    assert members_of(agent.pull("/tmp/out/tree/deep/link")).keys() == {"link"}
    assert members_of(agent.pull("/etc/passwd"))["passwd"][1].startswith(b"root:")
    assert "./tree" in members_of(agent.pull("/tmp/out/."))
    # What was taken is what comes back.
    agent.shell("mkdir /tmp/out/copy")
    agent.push("/tmp/out/copy", agent.pull("/tmp/out/tree"), flags=1)
    listing = ("cd {} && find . | sort | xargs stat -c '%n %a %u %g %h %F %s' && find . -type f | sort | xargs sha256sum && "
               "stat -c %Y deep")
    assert agent.shell(listing.format("/tmp/out/copy/tree")) == agent.shell(listing.format("/tmp/out/tree"))
    Connection(agent, agent.next_stream - 1).wait_until_gone()
    agent.list()
    assert agent.other_streams == {}


def test_a_tar_is_unpacked_and_never_outside_of_its_directory(agent):
    agent.shell("rm -rf /tmp/in /tmp/outside; mkdir -p /tmp/in /tmp/outside; ln -s /tmp/outside /tmp/in/out; echo old >/tmp/in/old")
    agent.push("/tmp/in", tar_of(("new", None, {"mode": 0o2750}), ("new/file", b"content", {"uid": 33, "mtime": 1234567890}),
                                 ("implied/file", b"", {}), ("old", b"replaced", {}), ("na\u00efve" * 40, b"named", {}),
                                 ("absolute", b"", {"type": tarfile.SYMTYPE, "linkname": "/tmp/outside/x"})))
    shown = agent.shell("cd /tmp/in; stat -c '%a %u' new new/file implied; stat -c %Y new/file; cat new/file old; "
                        "readlink absolute")
    assert shown == "2750 0\n644 0\n755 0\n1234567890\ncontentreplaced/tmp/outside/x\n"
    assert agent.call("read_file", path="/tmp/in/" + "na\u00efve" * 40)["content"] == b"named"
    agent.push("/tmp/in", tar_of(("mine", b"", {"uid": 33, "gid": 34})), flags=1)
    assert agent.shell("stat -c '%u %g' /tmp/in/mine") == "33 34\n"
    link = ("way", b"", {"type": tarfile.SYMTYPE, "linkname": "/tmp/outside"})
    for entries in ([("/tmp/outside/a", b"x", {})], [("../outside/b", b"x", {})], [("out/c", b"x", {})],
                    [link, ("way/d", b"x", {})], [("new/../../outside/e", b"x", {})]):
        with pytest.raises(AgentError) as refused:
            agent.push("/tmp/in", tar_of(*entries))
        assert refused.value.kind == "invalid_argument", (entries, refused.value)
    with pytest.raises(AgentError):
        agent.push("/tmp/in", tar_of(("hard", b"", {"type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"})))
    # It takes the place of a link, and does not go through it.
    agent.push("/tmp/in", tar_of(("absolute", b"a file", {})))
    assert agent.shell("cat /tmp/in/absolute; ls /tmp/outside") == "a file"


def test_archives_that_cannot_be_are_said_so(agent):
    good = tar_of(("file", bytes(MIB), {}))
    agent.shell("mkdir -p /tmp/in; ln -sf / /tmp/rootlink")
    for path, data, kind in (("/missing", good, "not_found"), ("/etc/passwd", good, "precondition"),
                             ("relative", good, "invalid_argument"),
                             ("/tmp/in", os.urandom(MIB), "corrupt"), ("/tmp/in", good[:700_000], "corrupt"),
                             ("/proc", good, "not_found")):
        with pytest.raises(AgentError) as refused:
            agent.push(path, data)
        assert refused.value.kind == kind, (path, refused.value)
    for path, kind in (("/missing", "not_found"), ("/missing/x", "not_found"), ("relative", "invalid_argument"),
                       ("/tmp/..", "invalid_argument")):
        with pytest.raises(AgentError) as refused:
            agent.pull(path)
        assert refused.value.kind == kind, (path, refused.value)
    agent.list()
    assert agent.other_streams == {}


def test_an_archive_that_nobody_takes_stops_nothing_and_can_be_closed(agent):
    agent.shell("mkdir -p /tmp/big; head -c 5000000 /dev/zero >/tmp/big/zeros")
    requests = []
    for _ in range(16):
        stream = agent.open_stream()
        requests.append((stream, agent.request("archive_read", [("stream", stream), ("path", "/tmp/big")])))
    with pytest.raises(AgentError) as refused:
        agent.pull("/tmp/big")
    assert refused.value.kind == "limit"
    # Nobody has got hold of what others wait for to end.
    process = agent.start("cat", has_input=True)
    process.send(b"x", end=True)
    assert process.output(10) == b"x" and process.wait(10) == 0
    process.forget()
    agent.list()
    listed = [(stream, entry["kind"]) for stream, entry in agent.other_streams.items()]
    assert listed == [(stream, "transfer") for stream, _ in requests]
    for stream, request in requests:
        agent.call("close_stream", stream=stream)
        with pytest.raises(AgentError) as refused:
            agent.answer(request)
        assert refused.value.kind == "cancelled"
    agent.list()
    assert agent.other_streams == {}


def test_identity(agent):
    machine_id = os.urandom(16).hex()
    agent.call("set_identity", entropy=os.urandom(256), time_ns=2_000_000_000 * 10**9, hostname="clone-7", machine_id=machine_id)
    shown = agent.shell("hostname; cat /etc/hostname /etc/machine-id; date +%s")
    assert shown.startswith(f"clone-7\nclone-7\n{machine_id}\n20000000")
    agent.call("set_clock", time_ns=time.time_ns())
    for wrong in ({"machine_id": "short"}, {"entropy": bytes(1000)}):
        with pytest.raises(AgentError):
            agent.call("set_identity", **wrong)


def test_network(agent):
    agent.call("configure", hosts="127.0.0.1 localhost\n10.0.2.15 me\n", resolver="nameserver 10.0.2.3\n", interface="eth0",
               hardware_address="52:54:00:aa:bb:cc", address="10.0.2.15/24", gateway="10.0.2.2")
    shown = agent.shell("cat /etc/hosts /etc/resolv.conf; ip addr show eth0; ip route")
    for expected in ("10.0.2.15 me", "nameserver 10.0.2.3", "52:54:00:aa:bb:cc", "inet 10.0.2.15/24", "default via 10.0.2.2"):
        assert expected in shown, shown
    agent.shell("ping -c 1 -W 10 10.0.2.2")
    with pytest.raises(AgentError):
        agent.call("configure", interface="eth0", address="10.0.2/24")
    again = {"interface": "eth0", "hardware_address": "52:54:00:aa:bb:cc", "address": "10.0.2.15/24"}
    for gateway in ("10.0.2.2", "10.0.2.3", "10.0.2.3", "10.0.2.2"):
        agent.call("configure", gateway=gateway, **again)
        assert agent.shell("ip route | grep default") == f"default via {gateway} dev eth0 \n"
    with pytest.raises(AgentError):
        agent.call("configure", gateway="192.0.2.1", **again)
    assert "default via 10.0.2.2" in agent.shell("ip route")


TICKS = "while :; do echo -n x >>/dev/shm/ticks; sleep 0.01; done"


@pytest.fixture
def ticking(agent):
    """A workload whose /dev/shm/ticks grows while it runs."""
    agent.shell("rm -f /dev/shm/ticks; mkdir -p /etc/berth/clone.d")
    process = agent.start("sh", "-c", TICKS)
    wait_for_ticks(agent, 0)
    yield process
    agent.call("thaw")
    process.signal(signal.SIGKILL)
    process.wait()
    process.forget()
    agent.shell("rm -rf /etc/berth")


def ticks(agent):
    try:
        return agent.call("read_file", path="/dev/shm/ticks", length=0)["size"]
    except AgentError:
        return 0


def wait_for_ticks(agent, more_than):
    deadline = time.monotonic() + 20
    while ticks(agent) <= more_than:
        assert time.monotonic() < deadline, "the workload does not run"


def assert_stands_still(agent):
    """That nothing happens can only be seen in time that passes: that of thirty ticks."""
    before = ticks(agent)
    time.sleep(0.3)
    assert ticks(agent) == before
    agent.list()
    assert agent.is_frozen == 1


def write_hook(agent, name, script, mode=0o755):
    agent.call("write_file", path=f"/etc/berth/clone.d/{name}", content=f"#!/bin/sh\n{script}\n".encode(), flags=1, mode=mode)


def hooks_of(fields):
    """(name, how it ended, output) of each."""
    values = [value for name, value in fields if name in ("hook", "exit_code", "exit_signal", "hook_output")]
    return list(zip(values[::3], values[1::3], values[2::3], strict=True))


def test_a_frozen_workload_stands_still_until_it_is_thawed(agent, ticking):
    for _ in range(2):
        agent.call("freeze")
        assert_stands_still(agent)
        agent.call("freeze")
        with pytest.raises(AgentError) as refused:
            agent.run("true")
        assert refused.value.kind == "precondition"
        agent.call("thaw")
        wait_for_ticks(agent, ticks(agent))
        agent.call("thaw")
        assert agent.shell("echo runs") == "runs\n"
        agent.list()
        assert agent.is_frozen == 0


def test_archives_go_in_and_out_of_a_frozen_workload(agent, ticking):
    agent.call("freeze")
    agent.push("/tmp", tar_of(("while-frozen", b"content", {})))
    assert members_of(agent.pull("/tmp/while-frozen"))["while-frozen"][1] == b"content"
    assert_stands_still(agent)


def test_a_frozen_process_can_be_killed(agent, ticking):
    process = agent.start("sleep", "1000")
    agent.call("freeze")
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.forget()


def test_a_clone_is_another_before_its_workload_runs(agent, ticking):
    write_hook(agent, "10-first", "echo $BERTH_CLONE_HOSTNAME $BERTH_CLONE_MACHINE_ID\n"
                                  "wc -c </dev/shm/ticks; sleep 0.3; wc -c </dev/shm/ticks")
    write_hook(agent, "20-leaves", "cat /proc/self/cgroup; sleep 1000 & echo $! >/dev/shm/left")
    write_hook(agent, "30-none", "exit 9", mode=0o644)
    write_hook(agent, ".40-none", "exit 9")
    write_hook(agent, "50-long", "yes | head -c 500000; echo the end >&2")
    machine_id = os.urandom(16).hex()
    identity = {"entropy": os.urandom(64), "time_ns": time.time_ns(), "hostname": "clone-9", "machine_id": machine_id,
                "interface": "eth0", "hardware_address": "52:54:00:aa:bb:dd", "address": "10.0.2.16/24", "gateway": "10.0.2.2",
                "hosts": "10.0.2.16 clone-9\n", "resolver": "nameserver 10.0.2.3\n"}
    for begins_frozen in (True, False, True):  # said again it is the same
        if begins_frozen:
            agent.call("freeze")
        first, leaves, long = hooks_of(agent.answer(agent.request("become_clone", identity.items())))
        name, before, after = first[2].decode().splitlines()
        assert first[:2] == ("10-first", 0) and name == f"clone-9 {machine_id}" and before == after
        assert leaves == ("20-leaves", 0, b"0::/clone-hooks\n")
        assert long[:2] == ("50-long", 0) and len(long[2]) == 2048 and b"the end\n" in long[2]
        wait_for_ticks(agent, ticks(agent))
        shown = agent.shell("cat /etc/hostname /etc/machine-id /etc/hosts /etc/resolv.conf; ip addr show eth0; ip route")
        for expected in (f"clone-9\n{machine_id}\n10.0.2.16 clone-9\nnameserver 10.0.2.3\n", "52:54:00:aa:bb:dd",
                         "inet 10.0.2.16/24", "default via 10.0.2.2"):
            assert expected in shown, shown
        assert agent.shell("cat /proc/$(cat /dev/shm/left)/cgroup; kill $(cat /dev/shm/left)") == "0::/container\n"


@pytest.mark.parametrize("change, kept", [
    ("true", ""), ("echo much longer than it was before >hostname", ""), ("rm hostname", ""), ("chmod 600 hostname", ""),
    ("chown 5 hostname", ""), ("echo theirs >new; mv new hostname", ""), ("ln hostname kept", "own\n"),
    ("mv hostname kept", "own\n"), ("echo theirs >kept; ln -sf kept hostname", "theirs\n"),
    ("rm hostname; mkdir hostname; rmdir hostname", "")])
def test_the_files_of_a_clone_are_its_own_whatever_was_done_to_them(agent, change, kept):
    """They are written in place only where they are what the agent has made."""
    agent.shell("rm -f /etc/kept")
    agent.call("set_identity", hostname="own")
    agent.shell(f"cd /etc; {change}")
    agent.call("become_clone", hostname="another-one")
    shown = agent.shell("cd /etc; cat hostname; stat -c '%F %a %u %h' hostname; ls hostname*; cat kept 2>/dev/null || true")
    assert shown == f"another-one\nregular file 644 0 1\nhostname\n{kept}"
    agent.call("become_clone", hostname="short")
    assert agent.shell("cat /etc/hostname") == "short\n"


def test_a_hook_that_fails_leaves_the_workload_frozen(agent, ticking):
    write_hook(agent, "10-good", "true")
    for script, kind, ended in (("echo why >&2; exit 3", "precondition", 3), ("kill -9 $$", "precondition", 9),
                                ("echo begun; sleep 1000 & sleep 1000", "timed_out", 9)):
        write_hook(agent, "20-bad", script)
        with pytest.raises(AgentError, match="20-bad") as refused:
            agent.answer(agent.request("become_clone", [("timeout_ms", 1000)]))
        assert refused.value.kind == kind
        assert [hook[:2] for hook in hooks_of(refused.value.all)] == [("10-good", 0), ("20-bad", ended)]
        assert_stands_still(agent)
    agent.call("write_file", path="/etc/berth/clone.d/20-bad", content=b"#!/missing\n", flags=1)
    for fields, kind in (({}, "not_found"), ({"machine_id": "short"}, "invalid_argument"),
                         ({"timeout_ms": "x"}, "invalid_argument")):
        with pytest.raises(AgentError) as refused:
            agent.call("become_clone", **fields)
        assert refused.value.kind == kind
        assert_stands_still(agent)
    write_hook(agent, "20-bad", "exit 0")
    agent.call("become_clone")
    wait_for_ticks(agent, ticks(agent))
    assert agent.shell("pidof sleep | wc -w").strip() in ("0", "1")  # that of the ticks, and none of a hook


def test_a_rehearsal_leaves_the_workload_frozen_and_nothing_behind(agent, ticking):
    with pytest.raises(AgentError) as refused:
        agent.call("rehearse")
    assert refused.value.kind == "precondition"
    agent.call("freeze")
    write_hook(agent, "10-no", "echo ran >/dev/shm/hook-ran")
    ports = set()
    agent.list()
    ended = agent.orphans_reaped
    for turn in range(3):
        port = agent.call("rehearse", hostname=f"rehearsal-{turn}", hosts="127.0.0.1 localhost\n")["port"]
        connection = agent.connect_to(port)
        connection.send(b"GET /\r\n\r\n")
        connection.wait_for_output(b"127.0.0.1 localhost\n")
        agent.call("close_stream", stream=connection.number)
        ports.add(port)
        # Who stands in for the workload has ended when the count says so: that is what a clone waits for.
        deadline = time.monotonic() + 10
        while agent.list() is not None and agent.orphans_reaped == ended:
            assert time.monotonic() < deadline
        ended += 1
        assert agent.orphans_reaped == ended
        assert_stands_still(agent)
    agent.call("thaw")
    wait_for_ticks(agent, ticks(agent))
    assert agent.shell("hostname; cat /dev/shm/hook-ran 2>/dev/null || echo none") == "rehearsal-2\nnone\n"
    assert agent.shell("cat /etc/hostname /etc/hosts") == "rehearsal-2\n127.0.0.1 localhost\n"
    assert agent.shell("cat /sys/fs/cgroup/clone-rehearsal/cgroup.procs") == ""
    # No port is taken by what has been, not for a minute either.
    left = agent.shell("netstat -tan")
    assert all(f":{port} " not in left for port in ports), left


def test_who_rehearses_alone_ends_by_itself(agent, ticking):
    agent.call("freeze")
    agent.call("rehearse")
    agent.call("thaw")
    agent.shell("test -n \"$(cat /sys/fs/cgroup/clone-rehearsal/cgroup.procs)\"")
    agent.shell("until ! grep -q . /sys/fs/cgroup/clone-rehearsal/cgroup.procs; do sleep 0.2; done", timeout_s=30)


def test_a_clone_is_made_once_at_a_time(agent, ticking):
    write_hook(agent, "10-slow", "sleep 1")
    request = agent.request("become_clone", [])
    for operation in ("become_clone", "freeze", "thaw"):
        with pytest.raises(AgentError) as refused:
            agent.call(operation)
        assert refused.value.kind == "in_use"
    agent.answer(request)


def test_power_off_ends_what_runs_and_the_guest(machine):
    """The last of this machine."""
    agent = machine.agent
    stubborn = agent.start("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    stubborn.wait_for_output(b"ready")
    polite = agent.start("sh", "-c", "trap 'echo bye; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    polite.wait_for_output(b"ready")
    agent.call("power_off", grace_ms=1000)
    assert polite.wait() == 5
    assert machine.wait_for_end() == 0


def test_a_guest_without_an_image_says_so():
    with MicroVm(image=False) as machine:
        assert "berth-image" in machine.agent.greet()["boot_error"]
        with pytest.raises(AgentError) as refused:
            machine.agent.run("true")
        assert refused.value.kind == "precondition"
        machine.agent.call("power_off")
        assert machine.wait_for_end() == 0


def test_entropy_of_the_host_tells_clones_apart(tmp_path):
    state = tmp_path / "state"
    with MicroVm() as template:
        template.agent.greet()
        template.agent.shell("head -c 16 /dev/urandom | od -An -tx1")
        template.save(state)

        def random_bytes(**identity):
            with MicroVm(template=template, state=state) as clone:
                clone.agent.greet()
                if identity:
                    clone.agent.call("set_identity", **identity)
                return clone.agent.shell("head -c 16 /dev/urandom | od -An -tx1")

        plain = [random_bytes() for _ in range(2)]
        print(f"without entropy, clones had {'the same' if plain[0] == plain[1] else 'different'} random numbers")
        seeded = [random_bytes(entropy=os.urandom(64)) for _ in range(2)]
        assert len({*plain, *seeded}) >= 3 and seeded[0] != seeded[1]


def test_a_frozen_template_becomes_clones(tmp_path):
    state = tmp_path / "state"
    with MicroVm() as template:
        agent = template.agent
        agent.greet()
        process = agent.start("sh", "-c", TICKS)
        wait_for_ticks(agent, 0)
        agent.call("freeze")
        template.save(state)
        for name in ("one", "two"):
            with MicroVm(template=template, state=state) as clone:
                agent = clone.agent
                agent.greet()
                agent.next_process = process.number + 1
                assert_stands_still(agent)
                assert process.number in agent.list()
                agent.call("become_clone", hostname=name, entropy=os.urandom(64), machine_id=os.urandom(16).hex())
                wait_for_ticks(agent, ticks(agent))
                assert agent.run("hostname")[1] == f"{name}\n".encode()
        with MicroVm(template=template, state=state) as clone:  # one that is given up
            clone.agent.greet()
            clone.agent.call("power_off", grace_ms=600_000)
            assert clone.wait_for_end() == 0


def test_a_disk_as_overlay_is_kept_and_left_clean(tmp_path):
    disk = tmp_path / "overlay.raw"
    subprocess.run(["/usr/sbin/mke2fs", "-q", "-t", "ext4", disk, "64M"], check=True)
    for boot in (1, 2):
        with MicroVm(overlay=disk) as machine:
            machine.agent.greet()
            machine.agent.shell("echo x >>/root/kept")
            machine.agent.call("power_off")
            assert machine.wait_for_end() == 0
        subprocess.run(["/usr/sbin/e2fsck", "-fn", disk], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        features = subprocess.run(["/usr/sbin/dumpe2fs", "-h", disk], check=True, capture_output=True, text=True).stdout
        assert "needs_recovery" not in features
        kept = subprocess.run(["/usr/sbin/debugfs", "-R", "cat /upper/root/kept", disk], check=True, capture_output=True).stdout
        assert kept == b"x\n" * boot


def test_disks_are_mounted_by_their_serial_numbers(tmp_path):
    disks = {serial: tmp_path / serial for serial in ("volume-a", "volume-b", "not-formatted")}
    for path in disks.values():
        subprocess.run(["truncate", "-s", "16M", path], check=True)
    for serial in ("volume-a", "volume-b"):
        subprocess.run(["/usr/sbin/mke2fs", "-q", "-t", "ext4", disks[serial]], check=True)
    with MicroVm(disks=disks) as machine:
        agent = machine.agent
        agent.greet()
        agent.call("mount", serial="volume-a", path="/var/new/data", mode=0o2770, owner=33, group=34)
        agent.call("mount", serial="volume-b", path="/root", flags=1)
        agent.shell("echo x >/var/new/data/kept")
        assert agent.shell("stat -c '%a %u %g' /var/new/data; stat -c %a /var/new") == "2770 33 34\n755\n"
        assert "Read-only" in agent.run("sh", "-c", "echo x >/root/y")[2].decode()
        for fields, kind in (({"serial": "volume-c"}, "not_found"), ({"serial": ""}, "not_found"),
                             ({"path": "/"}, "invalid_argument"),
                             ({"path": "relative"}, "invalid_argument"), ({"path": "/etc/passwd/x"}, "io_error"),
                             ({"flags": 2}, "invalid_argument"), ({"file_system": "none-such"}, "unsupported"),
                             ({"serial": "not-formatted"}, "invalid_argument"), ({"path": "/var/new/data"}, "in_use")):
            with pytest.raises(AgentError) as refused:
                agent.call("mount", **{"serial": "volume-a", "path": "/mnt", **fields})
            assert refused.value.kind == kind, (fields, refused.value)
        agent.call("power_off")
        assert machine.wait_for_end() == 0
    features = subprocess.run(["/usr/sbin/dumpe2fs", "-h", disks["volume-a"]], check=True, capture_output=True, text=True).stdout
    assert "needs_recovery" not in features
    kept = subprocess.run(["/usr/sbin/debugfs", "-R", "cat /kept", disks["volume-a"]], check=True, capture_output=True).stdout
    assert kept == b"x\n"


def test_the_guest_ends_some_time_after_its_main_process():
    with MicroVm() as machine:
        machine.agent.greet()
        process = machine.agent.start("sh", "-c", "exit 4", flags=MAIN, linger_ms=1000)
        assert process.wait() == 4
        agent = machine.reconnect()
        assert agent.list()[process.number]["exit_code"] == 4
        agent.close()
        assert machine.wait_for_end() == 0
