"""A client of the agent of microVMs, written from docs/formats/container-agent.md.

    agent = AgentClient(socket_path)
    agent.greet()
    process = agent.start("cat", has_input=True)
    process.send(b"hello", end=True)
    assert process.output() == b"hello" and process.wait() == 0

Everything happens in the calls: nothing is read between them. Every wait has a limit, and AgentTimeout is raised after it.
"""

import os
import socket
import struct
import time

MARK, END_MARK = bytes.fromhex("be274ac1"), bytes.fromhex("41d8b53e")
RESYNCHRONIZATION = bytes(131092)
HELLO, WELCOME, REQUEST, ANSWER, EVENT, DATA, CREDIT, END, STOP = range(1, 10)
OPERATIONS = {name: number for number, name in enumerate(
    """start signal resize list forget write_file read_file set_clock set_identity configure sync power_off connect close_stream
    mount freeze thaw become_clone archive_read archive_write rehearse""".split(), 1)}
TAGS = {name: number for number, name in enumerate(
    """error_kind error_message process argument environment working_directory user flags rows columns signal scope exit_code
    exit_signal shell_status path offset length content mode owner group size hostname machine_id entropy time_ns hosts resolver
    address gateway hardware_address interface linger_ms kernel boot_error boot_id guest_pid input_received input_limit stream
    output_kept_from output_produced orphans_reaped grace_ms port timeout_ms serial file_system connection transfer frozen hook
    hook_output""".split(), 1)}
NAMES = {number: name for name, number in TAGS.items()}
TEXTS = {"error_kind", "error_message", "kernel", "boot_error", "boot_id", "address", "path", "hook"}
FIRST_FREE_STREAM = 1 << 31
TERMINAL, MAIN, WITH_INPUT = 1, 2, 4
DATA_MAX = 16384
WINDOW = 131072


class AgentError(Exception):
    """An answer that is an error."""

    def __init__(self, fields):
        self.all, fields = fields, dict(fields)
        super().__init__(fields["error_message"])
        self.kind = fields["error_kind"]
        self.shell_status = fields.get("shell_status")


class AgentTimeout(Exception):
    """The agent did not do in time what it should have done."""


def encode_fields(fields):
    """Of (name, number or text or bytes) pairs."""
    encoded = b""
    for name, value in fields:
        if isinstance(value, int):
            value = struct.pack("<Q", value)
        elif isinstance(value, str):
            value = value.encode()
        encoded += struct.pack("<HI", TAGS[name], len(value)) + value
    return encoded


def decode_fields(payload):
    """(name, value) pairs."""
    fields = []
    while payload:
        tag, length = struct.unpack_from("<HI", payload)
        value, payload = payload[6:6 + length], payload[6 + length:]
        name = NAMES[tag]
        if name in TEXTS:
            value = value.decode()
        elif name not in ("content", "hook_output"):
            (value,) = struct.unpack("<Q", value)
        fields.append((name, value))
    return fields


def frame(kind, channel, payload=b""):
    return MARK + struct.pack("<BxxxII", kind, channel, len(payload)) + payload + END_MARK


class Incoming:
    """A stream that we receive."""

    def __init__(self, position=0):
        self.received, self.limit, self.data, self.length = position, 0, bytearray(), None
        self.is_read = True  # else no more is granted

    @property
    def is_at_end(self):
        return self.length is not None


class AgentClient:
    def __init__(self, path, timeout_s=60, first_process=1):
        self.path, self.timeout_s, self.next_process = path, timeout_s, first_process
        self.incoming, self.outgoing, self.answers, self.ended, self.failed = {}, {}, {}, {}, {}
        self.next_stream = FIRST_FREE_STREAM
        self._buffer, self._request = b"", 0
        self._token = self.welcome = self._socket = None
        self._is_greeted = False
        self.orphans_reaped = 0
        self.connect()

    def connect(self):
        """To the socket that QEMU serves, as soon as it does."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            self._socket = socket.socket(socket.AF_UNIX)
            try:
                self._socket.connect(str(self.path))
                return
            except OSError:
                self._socket.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.005)

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send_raw(self, data):
        self._socket.settimeout(self.timeout_s)
        self._socket.sendall(data)

    def greet(self, timeout_s=None):
        """The welcome's fields."""
        self._token = int.from_bytes(os.urandom(8), "little")
        self.welcome, self._buffer, self._is_greeted = None, b"", False
        hello = struct.pack("<QII", self._token, 1, 0)
        self.send_raw(RESYNCHRONIZATION + frame(HELLO, self._token & 0xFFFFFFFF, hello))
        self.wait_until(lambda: self.welcome is not None, timeout_s)
        return self.welcome

    def wait_until(self, condition, timeout_s=None):
        deadline = time.monotonic() + (timeout_s or self.timeout_s)
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                raise AgentTimeout("the agent is silent")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise AgentTimeout("the agent is silent") from None
            if not data:
                raise AgentTimeout("QEMU has closed the port")
            self._buffer += data
            self._take_frames()

    def _take_frames(self):
        if not self._is_greeted:
            wanted = MARK + struct.pack("<BxxxI", WELCOME, self._token & 0xFFFFFFFF)
            found = self._buffer.find(wanted)
            self._buffer = self._buffer[found:] if found >= 0 else self._buffer[-len(wanted) + 1:]
            if found < 0:
                return
        taken = 0
        while len(self._buffer) - taken >= 20:
            assert self._buffer[taken:taken + 4] == MARK, "not a frame"
            kind, channel, length = struct.unpack_from("<BxxxII", self._buffer, taken + 4)
            if len(self._buffer) - taken < 20 + length:
                break
            payload = self._buffer[taken + 16:taken + 16 + length]
            assert self._buffer[taken + 16 + length:taken + 20 + length] == END_MARK, "a frame without its end"
            taken += 20 + length
            self._take(kind, channel, payload)
        self._buffer = self._buffer[taken:]

    def _take(self, kind, channel, payload):
        if kind == WELCOME:
            token, version, _ = struct.unpack_from("<QII", payload)
            assert token == self._token and version == 1
            self.welcome, self._is_greeted = dict(decode_fields(payload[16:])), True
        elif kind == ANSWER:
            self.answers[channel] = decode_fields(payload)
        elif kind == EVENT:
            fields = dict(decode_fields(payload[2:]))
            if payload[:2] == b"\2\0":
                self.failed[channel] = fields["error_kind"]
                return
            assert payload[:2] == b"\1\0"
            self.ended[channel] = fields.get("exit_code", -fields.get("exit_signal", 0))
        elif kind == DATA and channel in self.incoming:
            stream = self.incoming[channel]
            (position,) = struct.unpack_from("<Q", payload)
            data = payload[8:]
            assert position >= stream.received and position + len(data) <= stream.limit, "data that was not asked for"
            stream.data += data
            stream.received = position + len(data)
            if stream.is_read and stream.limit - stream.received < WINDOW // 2:
                self.grant(channel)
        elif kind == END and channel in self.incoming:
            (self.incoming[channel].length,) = struct.unpack("<Q", payload)
            assert self.incoming[channel].length == self.incoming[channel].received
            if self.incoming[channel].is_read:
                self.grant(channel)
        elif kind == CREDIT and channel in self.outgoing:
            _, self.outgoing[channel]["limit"] = struct.unpack("<QQ", payload)
        elif kind == STOP and channel in self.outgoing:
            self.outgoing[channel]["stopped"] = True

    def grant(self, stream, window=WINDOW):
        """Acknowledges what has come, and takes so much more."""
        incoming = self.incoming[stream]
        incoming.limit = incoming.received + window
        self.send_raw(frame(CREDIT, stream, struct.pack("<QQ", incoming.received, incoming.limit)))

    def request(self, operation, fields):
        self._request += 1
        self.send_raw(frame(REQUEST, self._request, struct.pack("<H", OPERATIONS[operation]) + encode_fields(fields)))
        return self._request

    def answer(self, request, timeout_s=None):
        self.wait_until(lambda: request in self.answers, timeout_s)
        fields = self.answers.pop(request)
        if "error_kind" in dict(fields):
            raise AgentError(fields)
        return fields

    def call(self, operation, timeout_s=None, **fields):
        """The answer's fields."""
        return dict(self.answer(self.request(operation, fields.items()), timeout_s))

    def list(self):
        """By number: a process's fields, with its streams' by number. The same of connections and transfers: other_streams."""
        processes, self.other_streams = {}, {}
        where = total = {}
        for name, value in self.answer(self.request("list", [])):
            if name == "process":
                owner = where = processes[value] = {"streams": {}}
            elif name in ("connection", "transfer"):
                owner = where = self.other_streams[value] = {"kind": name, "streams": {}}
            elif name == "stream":
                where = owner["streams"][value] = {}
            else:
                where[name] = value
        self.orphans_reaped, self.is_frozen = total["orphans_reaped"], total.get("frozen")
        return processes

    def open_stream(self):
        """The number of a stream that nobody has, as if it were open both ways."""
        number = self.next_stream
        self.next_stream += 1
        self.outgoing[number] = {"position": 0, "limit": 65536, "stopped": False}
        self.incoming[number] = Incoming()
        return number

    def connect_to(self, port, read=True, **more):
        """A Connection to a service of the guest."""
        connection = Connection(self, self.open_stream())
        self.answer(self.request("connect", [("stream", connection.number), ("port", port), *more.items()]))
        self.incoming[connection.number].is_read = read
        if read:
            self.grant(connection.number)
        return connection

    def pull(self, path, timeout_s=None):
        """The tar of a path."""
        stream = self.open_stream()
        request = self.request("archive_read", [("stream", stream), ("path", path)])
        self.grant(stream)
        self.answer(request, timeout_s)
        return Connection(self, stream).output(timeout_s)

    def push(self, path, tar, flags=0, timeout_s=None):
        """Unpacks a tar in a directory."""
        stream = Connection(self, self.open_stream())
        request = self.request("archive_write", [("stream", stream.number), ("path", path), ("flags", flags)])
        stream.send(tar, end=True, unless=lambda: request in self.answers)
        return self.answer(request, timeout_s)

    def start(self, *arguments, flags=0, has_input=False, terminal=False, environment=(), read=True, **more):
        """A Process that runs, with nothing of its output granted unless `read`."""
        number = self.next_process
        self.next_process += 1
        flags |= (WITH_INPUT if has_input else 0) | (TERMINAL if terminal else 0)
        fields = [("process", number), ("flags", flags), *(("argument", argument) for argument in arguments),
                  *(("environment", entry) for entry in environment), *more.items()]
        started = dict(self.answer(self.request("start", fields)))
        process = Process(self, number, terminal, started["guest_pid"])
        if has_input or terminal:
            self.outgoing[4 * number] = {"position": 0, "limit": 65536, "stopped": False}
        for stream in process.outputs:
            self.incoming[stream] = Incoming()
            self.incoming[stream].is_read = read
            if read:
                self.grant(stream)
        return process

    def adopt(self, number):
        """A Process that another client has started, as list() tells of it. Its output goes on from what is kept."""
        known = self.list()[number]
        process = Process(self, number, bool(known["flags"] & TERMINAL), known["guest_pid"])
        if "exit_code" in known or "exit_signal" in known:
            self.ended[number] = known.get("exit_code", -known.get("exit_signal", 0))
        for stream, positions in known["streams"].items():
            if "input_received" in positions:
                self.outgoing[stream] = {"position": positions["input_received"], "limit": positions["input_limit"],
                                         "stopped": False}
            if "output_produced" in positions:
                self.incoming[stream] = Incoming(positions["output_kept_from"])
                self.grant(stream)
        return process

    def run(self, *arguments, timeout_s=None, **options):
        """(exit code or minus the signal, output, errors) of a process, which is then forgotten."""
        process = self.start(*arguments, **options)
        result = (process.wait(timeout_s), process.output(timeout_s), process.errors(timeout_s))
        process.forget()
        return result

    def shell(self, script, **options):
        """The output of a script that has to succeed."""
        status, output, errors = self.run("sh", "-c", script, **options)
        assert status == 0, f"{status}: {script}: {output} {errors}"
        return output.decode()


class Channel:
    """What has an input and outputs."""

    def __init__(self, agent, stream_in, outputs):
        self.agent, self.input, self.outputs = agent, stream_in, outputs

    def send(self, data, end=False, unless=lambda: False):
        """Waits for credit where there is none. Nothing more is sent once the condition is true."""
        stream = self.agent.outgoing[self.input]
        while data and not stream["stopped"]:
            self.agent.wait_until(lambda: stream["stopped"] or stream["limit"] > stream["position"] or unless())
            if unless():
                return
            piece = data[:min(DATA_MAX, stream["limit"] - stream["position"])]
            self.agent.send_raw(frame(DATA, self.input, struct.pack("<Q", stream["position"]) + piece))
            stream["position"] += len(piece)
            data = data[len(piece):]
        if end:
            self.agent.send_raw(frame(END, self.input, struct.pack("<Q", stream["position"])))

    def _whole(self, stream, timeout_s):
        incoming = self.agent.incoming[stream]
        self.agent.wait_until(lambda: incoming.is_at_end, timeout_s)
        return bytes(incoming.data)

    def output(self, timeout_s=None):
        """All of it, to its end."""
        return self._whole(self.outputs[0], timeout_s)

    def wait_for_output(self, text, timeout_s=None):
        """Until this has come; takes it and what was before it away."""
        data = self.agent.incoming[self.outputs[0]].data
        self.agent.wait_until(lambda: text in data, timeout_s)
        before = bytes(data[:data.index(text)])
        del data[:data.index(text) + len(text)]
        return before


class Process(Channel):
    def __init__(self, agent, number, terminal, guest_pid):
        super().__init__(agent, 4 * number, [4 * number] if terminal else [4 * number + 1, 4 * number + 2])
        self.number, self.guest_pid = number, guest_pid

    def errors(self, timeout_s=None):
        return self._whole(self.outputs[-1], timeout_s)

    def wait(self, timeout_s=None):
        """The exit code, or minus the signal."""
        self.agent.wait_until(lambda: self.number in self.agent.ended, timeout_s)
        return self.agent.ended[self.number]

    def signal(self, number, scope=0):
        self.agent.call("signal", process=self.number, signal=number, scope=scope)

    def forget(self):
        self.agent.call("forget", process=self.number)
        for stream in (self.input, *self.outputs):
            self.agent.incoming.pop(stream, None)
            self.agent.outgoing.pop(stream, None)


class Connection(Channel):
    """A stream that is its own input and output."""

    def __init__(self, agent, number):
        super().__init__(agent, number, [number])
        self.number = number

    def close(self):
        self.agent.call("close_stream", stream=self.number)

    def wait_until_gone(self, timeout_s=10):
        deadline = time.monotonic() + timeout_s
        while self.agent.list() is not None and self.number in self.agent.other_streams:
            if time.monotonic() > deadline:
                raise AgentTimeout("the stream stays")
