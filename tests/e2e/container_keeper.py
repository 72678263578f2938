"""A container's keeper without a daemon: its record is written by hand, its sockets are spoken to by the pages alone
(docs/formats/containers.md).

    with KeptContainer(image, arguments=["/bin/sh", "-c", "echo hello"]) as container:
        container.start()
        client = container.attach()
        client.rest()    # {1: b"hello\n", 2: b""}, and the exit code

On leaving the block the keeper and QEMU are killed, and nothing may be left.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
import uuid

import agent_machine
import guest
from berth_host import program

INPUT, OUTPUT, ERRORS, SIZE, SIGNAL, EXIT, FAILED = range(7)
LIMIT_S = 60
NAME = "c"


class KeeperError(Exception):
    def __init__(self, error):
        super().__init__(f"{error['kind']}: {error['message']}")
        self.kind, self.shell_status = error["kind"], error.get("shell_status")


class Image:
    """What all containers of a test file start with."""

    def __init__(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="berth-image-"))
        self.image = agent_machine.make_image(self.directory)
        self.initrd = agent_machine.make_initramfs(self.directory / "initrd")
        self.kernel = guest.built("guest-kernel")["kernel"]
        self.unpacked_kernel = agent_machine.unpack_kernel(self.directory / "vmlinux")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.directory, ignore_errors=True)


def connect(path):
    """To a socket that is there soon."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(LIMIT_S)
        try:
            stream.connect(str(path))
            return stream
        except OSError:
            stream.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def dial(port):
    """A connection to a service that is there soon."""
    deadline = time.monotonic() + 20
    while True:
        client = socket.create_connection(("127.0.0.1", port), timeout=20)
        client.settimeout(20)
        client.sendall(b"?")
        with contextlib.suppress(OSError):
            if client.recv(1) == b"?":
                return client
        client.close()
        assert time.monotonic() < deadline, "the service does not answer"
        time.sleep(0.05)


class Control:
    def __init__(self, path):
        self._stream = connect(path)
        self._lines = self._stream.makefile("r")
        self._number = 0
        self.events = []

    def send(self, method, **params):
        self._number += 1
        self._stream.sendall(json.dumps({"id": self._number, "method": method, "params": params}).encode() + b"\n")

    def call(self, method, **params):
        self.send(method, **params)
        while True:
            reply = json.loads(self._lines.readline() or "null")
            if reply is None:
                raise KeeperError({"kind": "disconnected", "message": "the keeper has hung up"})
            if "event" in reply:
                self.events.append((reply["event"], reply["message"]))
            elif reply.get("id") == self._number:
                if "error" in reply:
                    raise KeeperError(reply["error"])
                return reply["result"]

    def close(self):
        self._lines.close()
        self._stream.close()


class Attached:
    """A client of the attach socket, or of a connection that leads there."""

    def __init__(self, to, request):
        """to: the socket's path, or the connection. request: None if it has been sent."""
        self._stream = to if isinstance(to, socket.socket) else connect(to)
        self._bytes = b""
        if request is not None:
            self._stream.sendall(json.dumps(request).encode() + b"\n")
        while b"\n" not in self._bytes:
            self._receive()
        line, self._bytes = self._bytes.split(b"\n", 1)
        answer = json.loads(line)
        if "error" in answer:
            self._stream.close()
            raise KeeperError(answer["error"])
        self.has_terminal = answer["ok"]["terminal"]

    def _receive(self):
        piece = self._stream.recv(65536)
        if not piece:
            raise EOFError("the keeper has hung up")
        self._bytes += piece

    def send(self, kind, payload=b""):
        self._stream.sendall(struct.pack("<BI", kind, len(payload)) + payload)

    def write(self, data):
        for start in range(0, len(data), 65536):
            self.send(INPUT, data[start:start + 65536])

    def frame(self):
        while len(self._bytes) < 5 or len(self._bytes) < 5 + struct.unpack_from("<I", self._bytes, 1)[0]:
            self._receive()
        kind, length = struct.unpack_from("<BI", self._bytes)
        payload, self._bytes = self._bytes[5:5 + length], self._bytes[5 + length:]
        return kind, payload

    def read_until(self, words):
        got, deadline = b"", time.monotonic() + LIMIT_S
        while words not in got:
            assert time.monotonic() < deadline, got[-1000:]
            kind, payload = self.frame()
            assert kind in (OUTPUT, ERRORS), (kind, payload, got)
            got += payload
        return got

    def rest(self):
        """Output, errors, and the end: an exit code, or (code, signal)."""
        got = {OUTPUT: b"", ERRORS: b""}
        while True:
            kind, payload = self.frame()
            if kind == EXIT:
                code, number = payload
                return got[OUTPUT], got[ERRORS], (code, number) if number else code
            if kind == FAILED:
                return got[OUTPUT], got[ERRORS], payload.decode()
            got[kind] += payload

    def close(self):
        self._stream.close()


class KeptContainer:
    def __init__(self, image, keeps_memory=False, room=None, **specification):
        """keeps_memory: it becomes a template, whose memory object stays. room: of the disk that its directory is on, bytes."""
        self.image, self.keeps_memory, self._room = image, keeps_memory, room
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="berth-c-", dir="/dev/shm"))
        self.state, self.run = self.directory / "state", self.directory / "run"
        self.memory = self.directory / "memory"
        for path in (self.run, self.memory):
            path.mkdir()
        for path in (self.directory, self.run):
            path.chmod(0o711)
        self.place = self.state / "containers" / NAME
        self.place.mkdir(parents=True)
        if room is not None:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "none", self.place], check=True)
        self.id = str(uuid.uuid4())
        record = {"format": "berth-container", "version": 1, "id": self.id, "uid": 1900065536,
                  "created_at": "2026-11-27T00:00:00Z",
                  "specification": {"name": NAME, "image": "sha256:0", "image_name": "test", "hostname": NAME,
                                    "environment": ["PATH=/bin"], "memory": 192 << 20, **specification}}
        (self.place / "container.json").write_text(json.dumps(record))
        self._keeper = self.control = self._pid = None
        try:
            self.start_keeper()
        except BaseException:
            self.close(check=False)
            raise

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            for name in ("keeper.log", "run/containers/c/qemu.log"):
                with contextlib.suppress(OSError):
                    print(f"--- {name}\n{(self.directory / name).read_text()}")
            for console in self.run.glob("microvms/*/console.log"):
                print(f"--- console\n{console.read_text(errors='replace')}")
        self.close(check=kind is None)

    def start_keeper(self):
        self._spawn_keeper()
        self.control = self.new_control()

    def _spawn_keeper(self):
        with open(self.directory / "keeper.log", "ab") as log:
            self._keeper = subprocess.Popen([program(), "keeper", "--state-dir", self.state, "--run-dir", self.run,
                                             "--memory-dir", self.memory, "--container", NAME,
                                             "--preload", agent_machine.BUILD / "libberth-preload.so"], stderr=log)

    def new_control(self):
        """A client that has said hello. The socket of a keeper that was killed may take one more, and then hang up."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            control = Control(self.run / "containers" / NAME / "control")
            try:
                self.hello = control.call("hello")
                if self.hello["open"] or self.hello["over"]:
                    return control
            except (OSError, KeeperError):
                if time.monotonic() > deadline:
                    raise
            control.close()
            # A child of the last one, on its way to becoming QEMU, may have its lock for an instant. The daemon tries again, too.
            if self._keeper.poll() is not None and "another keeper has" in (self.directory / "keeper.log").read_text()[-300:]:
                self._spawn_keeper()
            time.sleep(0.01)

    def make_room(self, room):
        subprocess.run(["mount", "-o", f"remount,size={room}", self.place], check=True)

    def kill_keeper(self):
        self._keeper.kill()
        self._keeper.wait()
        self.control.close()

    def end_keeper(self):
        """As an upgrade does it: QEMU runs on."""
        self._keeper.send_signal(signal.SIGTERM)
        assert self.wait_for_keeper() == 0
        self.control.close()

    def _start_params(self, params):
        return {"image": str(self.image.image), "kernel": self.image.kernel,
                "unpacked_kernel": str(self.image.unpacked_kernel), "initrd": str(self.image.initrd), **params}

    def start(self, **params):
        result = self.control.call("container.start", **self._start_params(params))
        self._pid = result["pid"]
        return result

    def send_start(self, **params):
        """Does not wait for the answer."""
        self.control.send("container.start", **self._start_params(params))

    def call(self, method, **params):
        return self.control.call(f"container.{method}", **params)

    def attach(self, start="start", **params):
        return Attached(self.run / "containers" / NAME / "attach", {"attach": {"from": start, **params}})

    def execute(self, *arguments, **params):
        return Attached(self.run / "containers" / NAME / "attach", {"exec": {"arguments": arguments, **params}})

    def wait_for_state(self, state):
        deadline = time.monotonic() + LIMIT_S
        while (now := self.call("info"))["state"] != state:
            assert time.monotonic() < deadline, now
            time.sleep(0.02)
        self._pid = now["pid"]

    def wait_for_keeper(self):
        return self._keeper.wait(LIMIT_S)

    def qemu(self):
        """Its process id while it runs, or None; also of one whose start was not answered."""
        mark = f"{self.run}/microvms/".encode()
        known = [self._pid] if self._pid is not None else [int(path.name) for path in pathlib.Path("/proc").glob("[0-9]*")]
        for pid in known:
            with contextlib.suppress(OSError):
                words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                if mark in words and b"qemu-system" in words.split(b"\0")[0]:
                    return pid
        return None

    def ended(self):
        """state.json, when the container has ended and its keeper with it."""
        assert self.wait_for_keeper() == 0
        return json.loads((self.place / "state.json").read_text())

    def log(self):
        """What the log has: (stream, text) of each line, pieces put together."""
        lines, partial = [], {}
        for name in ("log.old", "log"):
            with contextlib.suppress(FileNotFoundError):
                for entry in (self.place / name).read_bytes().splitlines():
                    _, stream, tag, text = entry.split(b" ", 3)
                    partial[stream] = partial.get(stream, b"") + text
                    if tag == b"F":
                        lines.append((stream.decode(), partial.pop(stream).decode()))
        return lines

    def leftovers(self):
        """Everything of a container's run that should go with it."""
        found = [] if self.keeps_memory else [str(path) for path in self.memory.iterdir()]
        found += [str(path) for path in (self.run / "microvms").glob("*")]
        if self.qemu() is not None:
            found.append(f"QEMU {self.qemu()}")
        return found + [str(group) for group in self._control_groups()]

    def _control_groups(self):
        return list(pathlib.Path("/sys/fs/cgroup").glob(f"**/berth/container-{self.id[:8]}-*"))

    def close(self, check=True):
        if self._keeper is not None:
            self._keeper.kill()
            self._keeper.wait()
        if self.control is not None:
            self.control.close()
        left = self.leftovers() if check and self.qemu() is None else []
        if (pid := self.qemu()) is not None:
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + LIMIT_S
            while self._control_groups() and time.monotonic() < deadline:
                for group in self._control_groups():
                    with contextlib.suppress(OSError):  # while it is on its way out
                        group.rmdir()
                time.sleep(0.01)
        if self._room is not None:
            subprocess.run(["umount", "--lazy", self.place], check=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        assert left == [], left
