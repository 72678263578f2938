"""Runs berth-nbd-fixture for tests: a server that is there when the test begins and gone when it ends."""

import contextlib
import os
import pathlib
import selectors
import signal
import socket
import struct
import subprocess
import time
import urllib.parse

START_SECONDS_MAX = 20
STOP_SECONDS_MAX = 20
COMMAND_SECONDS_MAX = 120

EXPORT_NAME, ABORT, LIST = 1, 2, 3
STARTTLS, INFO, GO = 5, 6, 7
STRUCTURED_REPLY, LIST_META_CONTEXT, SET_META_CONTEXT, EXTENDED_HEADERS = 8, 9, 10, 11
REP_ACK = 1
REP_ERR_UNSUP = (1 << 31) + 1
REP_ERR_POLICY = (1 << 31) + 2
REP_ERR_INVALID = (1 << 31) + 3
REP_ERR_TLS_REQD = (1 << 31) + 5
REP_ERR_UNKNOWN = (1 << 31) + 6
REP_ERR_TOO_BIG = (1 << 31) + 9


def program():
    """The fixture: BERTH_NBD_FIXTURE, or the one of the build directory that the tests run from."""
    path = os.environ.get("BERTH_NBD_FIXTURE")
    if not path and os.environ.get("BERTH_BUILD_DIR"):
        path = os.path.join(os.environ["BERTH_BUILD_DIR"], "berth-nbd-fixture")
    assert path and os.access(path, os.X_OK), "set BERTH_NBD_FIXTURE to the program berth-nbd-fixture"
    return path


def _read_line(pipe, seconds):
    """One line of a pipe, or an error when it does not come in time."""
    deadline = time.monotonic() + seconds
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            assert selector.select(max(0, deadline - time.monotonic())), "the server does not get ready"
            byte = os.read(pipe.fileno(), 1)
            assert byte, "the server ended at its start"
            line += byte
    return line.decode().strip()


class Server:
    """A running fixture. `flushes` is known once it has been stopped."""

    def __init__(self, *arguments, unix=None, tcp=None):
        self.unix = unix
        listen = ["--unix", str(unix)] if unix else ["--tcp", tcp]
        self.process = subprocess.Popen([program(), *listen, *map(str, arguments)], stdout=subprocess.PIPE,
                                        stdin=subprocess.DEVNULL)
        try:
            self.port = int(_read_line(self.process.stdout, START_SECONDS_MAX).split()[1])
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.flushes = None

    def uri(self, export="disk"):
        return f"nbd+unix:///{urllib.parse.quote(export)}?socket={self.unix}"

    def connect(self):
        """A plain socket to it."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(COMMAND_SECONDS_MAX)
        connection.connect(str(self.unix))
        return connection

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def wait_for_open_files(self, count):
        """Until the server has no more descriptors than that: what it had for its clients is gone."""
        deadline = time.monotonic() + COMMAND_SECONDS_MAX
        while self.open_files() > count:
            assert time.monotonic() < deadline, "the server keeps descriptors of clients that have gone"
            time.sleep(0.01)

    def stop(self):
        if self.process.returncode is not None:
            return
        os.kill(self.process.pid, signal.SIGTERM)
        try:
            output, _ = self.process.communicate(timeout=STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        if self.unix:
            pathlib.Path(self.unix).unlink(missing_ok=True)
        assert self.process.returncode == 0
        self.flushes = int(output.decode().split()[1])


@contextlib.contextmanager
def running(*arguments, unix=None, tcp=None):
    server = Server(*arguments, unix=unix, tcp=tcp)
    try:
        yield server
    finally:
        server.stop()


def run(*command, check=True, **options):
    """A client program to its end, within the limit; its completed process, with its output as text."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          timeout=COMMAND_SECONDS_MAX, check=False, **options)
    if check:
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done


class RawClient:
    """Speaks the handshake byte by byte, for what no library would say."""

    def __init__(self, connection, flags=3):
        self.connection = connection
        assert self.receive(18)[:16] == b"NBDMAGICIHAVEOPT"
        self.send(struct.pack(">I", flags))

    def send(self, data):
        self.connection.sendall(data)

    def receive(self, length):
        data = b""
        while len(data) < length:
            part = self.connection.recv(length - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def option(self, number, data=b""):
        """The answers to an option: [(type, data)], the final one last."""
        self.send(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
        answers = []
        while True:
            magic, echoed, kind, length = struct.unpack(">QIII", self.receive(20))
            assert (magic, echoed) == (0x3E889045565A9, number)
            answers.append((kind, self.receive(length)))
            if kind == REP_ACK or kind >> 31:
                return answers

    def go(self, name="disk"):
        encoded = name.encode()
        answers = self.option(GO, struct.pack(">I", len(encoded)) + encoded + struct.pack(">H", 0))
        assert answers[-1][0] == REP_ACK

    def request(self, kind, offset=0, length=0, flags=0, cookie=1, payload=b""):
        self.send(struct.pack(">IHHQQI", 0x25609513, flags, kind, cookie, offset, length) + payload)

    def is_closed(self):
        """Whether the server ends the connection, whatever it says before."""
        try:
            while self.connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
        return True

    def close(self):
        self.connection.close()
