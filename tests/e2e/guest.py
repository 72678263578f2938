"""The guest of the demo and of the end-to-end tests, as Python sees it.

    with Guest(nbd="/run/disk.sock", export="root") as guest:     # or raw="disk.raw"
        guest.wait_for_agent()
        serial = guest.wait_for_commits(100)     # transactions 1..serial were committed before this returned
        guest.power_off()

Guest boots a machine of its own (scripts/guest-boot) and leaves nothing behind: on leaving the block QEMU is killed,
by the process id of our own child, and the directory with its sockets goes. QEMU also dies with the thread that
started it. For a machine that somebody else started (a keeper), Agent, Qmp and Console take the sockets that its QEMU
serves; each serves one client at a time, so ask for one that nobody holds.

Every wait has a limit. What goes wrong raises GuestError, whose text holds the end of the guest's console.
"""

import base64
import collections
import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import time

SCRIPTS = pathlib.Path(__file__).resolve().parent.parent.parent / "scripts"

# Bounds what a guest can make us keep in memory.
_LINE_BYTES_MAX = 64 << 20


# Ends with 0 when a sweep has begun and ended. Before there is a report, SIGUSR1 would find the memory half filled.
_SWEEP = """
sweeps() {{ sed -n 's/^sweeps //p' /run/berth/dirty; }}
end=$(($(date +%s) + {seconds}))
until [ -e /run/berth/dirty ]; do [ "$(date +%s)" -lt "$end" ] || exit 1; sleep 0.05; done
before=$(sweeps)
kill -USR1 "$(pidof dirty-memory)" || exit 1
until [ "$(sweeps)" -gt "$before" ]; do [ "$(date +%s)" -lt "$end" ] || exit 1; sleep 0.05; done
"""


class GuestError(Exception):
    """A guest did not do in time what it was asked for."""


def built(script):
    """What a script of scripts/ says of what it has built, by key."""
    result = subprocess.run([SCRIPTS / script], stdout=subprocess.PIPE, text=True, check=True)
    return dict(word.split("=", 1) for line in result.stdout.splitlines() for word in shlex.split(line))


def image():
    """Paths of the guest's kernel, initrd and disk, and its cmdline; builds them when they are not cached."""
    return built("guest-image")


def cloud_image():
    """Path of a qcow2 such as distributions publish; builds it when it is not cached."""
    return built("cloud-image")["image"]


def copy_disk(target):
    """Makes `target` a sparse, writable copy of the guest's root disk."""
    target = pathlib.Path(target)
    copy = ["cp", "--reflink=auto", "--sparse=always", "--no-preserve=mode", image()["disk"], target]
    subprocess.run(copy, check=True)
    return target


class _LineSocket:
    """A unix socket read line by line, under a deadline. Not for two threads at once."""

    def __init__(self, path, timeout_s):
        self._no_answer = f"{path}: no answer"
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise GuestError(f"cannot connect to {path}: {error}") from error

    def close(self):
        self._socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data, descriptors=()):
        try:
            if descriptors:
                socket.send_fds(self._socket, [data], descriptors)
            else:
                self._socket.sendall(data)
        except OSError as error:
            raise GuestError(f"{self._no_answer}: {error}") from error

    def line(self, deadline):
        """The next line, without its end. `deadline` is of time.monotonic()."""
        while b"\n" not in self._received:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(65536)
            except OSError as error:
                raise GuestError(f"{self._no_answer}: {error}") from error
            if not data:
                raise GuestError(f"{self._no_answer}: closed by QEMU")
            self._received += data
            if len(self._received) > _LINE_BYTES_MAX:
                raise GuestError(f"{self._no_answer}: a line without an end")
        line, self._received = self._received.split(b"\n", 1)
        return line.strip(b"\r")


class Agent:
    """qemu-guest-agent, behind the socket that QEMU serves. Connects for each call, so that others get a turn."""

    def __init__(self, path):
        self.path = path

    def call(self, command, timeout_s=10, expect_answer=True, **arguments):
        """One command of the agent; its `return`. Arguments are spelled with _ for -."""
        deadline = time.monotonic() + timeout_s
        with _LineSocket(self.path, timeout_s) as connection:
            # An earlier client may have left half a request and unread answers: guest-sync-delimited, by its
            # documentation, gets us past both.
            token = int.from_bytes(os.urandom(4), "big")
            sync = {"execute": "guest-sync-delimited", "arguments": {"id": token}}
            connection.send(b"\xff" + json.dumps(sync).encode() + b"\n")
            while True:
                line = connection.line(deadline).rpartition(b"\xff")[2]
                with contextlib.suppress(ValueError):
                    if json.loads(line) == {"return": token}:
                        break
            request = {"execute": command}
            if arguments:
                request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
            connection.send(json.dumps(request).encode() + b"\n")
            if not expect_answer:
                return None
            answer = json.loads(connection.line(deadline))
        if "error" in answer:
            raise GuestError(f"{command}: {answer['error'].get('desc')}")
        return answer["return"]

    def ping(self, timeout_s=5):
        self.call("guest-ping", timeout_s)

    def read_file(self, path):
        """The first 64 KiB of a file of the guest."""
        handle = self.call("guest-file-open", path=path)
        try:
            answer = self.call("guest-file-read", handle=handle, count=65536)
        finally:
            self.call("guest-file-close", handle=handle)
        return base64.b64decode(answer["buf-b64"])

    def write_file(self, path, data):
        """A file of the guest, of at most a few MiB."""
        handle = self.call("guest-file-open", path=path, mode="w")
        try:
            self.call("guest-file-write", handle=handle, buf_b64=base64.b64encode(data).decode())
        finally:
            self.call("guest-file-close", handle=handle)

    def run(self, script, timeout_s=30):
        """Runs a script in the guest's /bin/sh; (exit status, standard output, standard error)."""
        deadline = time.monotonic() + timeout_s
        started = self.call("guest-exec", path="/bin/sh", arg=["-c", script], capture_output=True)
        interval_s = 0.02
        while True:
            status = self.call("guest-exec-status", pid=started["pid"])
            if status["exited"]:
                break
            if time.monotonic() > deadline:
                raise GuestError(f"still running in the guest after {timeout_s} s: {script}")
            time.sleep(interval_s)
            interval_s = min(interval_s * 1.5, 0.5)
        output, errors = (base64.b64decode(status.get(name, "")).decode(errors="replace") for name in ("out-data", "err-data"))
        return status.get("exitcode", -status.get("signal", 1)), output, errors

    def committed(self):
        """The last serial number whose transaction had been committed before this returned; None before the first."""
        try:
            return int(self.read_file("/run/berth/committed"))
        except (GuestError, ValueError):
            self.ping()
            return None

    def dirty(self):
        """What the guest knows about the memory that it writes (berth.dirty=, scripts/dirty-memory.c): `written`,
        `compared`, `mismatches`, `sweeps`, `pages`, `late`. None while it fills that memory."""
        try:
            text = self.read_file("/run/berth/dirty").decode()
        except GuestError:
            self.ping()
            return None
        return {name: int(number) for name, number in (line.split() for line in text.splitlines())}

    def sweep_memory(self, timeout_s=60):
        """Has every page of that memory compared; what dirty() says afterwards. Nothing is right unless mismatches is 0."""
        status, _, errors = self.run(_SWEEP.format(seconds=timeout_s), timeout_s + 10)
        if status != 0:
            raise GuestError(f"no sweep over the guest's memory in {timeout_s} s: {errors}")
        return self.dirty()

    def freeze(self):
        """Stops the load, has the database make a checkpoint, freezes the file systems; how many."""
        return self.call("guest-fsfreeze-freeze", timeout_s=30)

    def thaw(self):
        return self.call("guest-fsfreeze-thaw", timeout_s=30)

    def shutdown(self):
        """Asks the guest to power off; does not wait for it."""
        self.call("guest-shutdown", expect_answer=False, mode="powerdown")


class Qmp:
    """QEMU's control socket. Use as a context: it serves one client at a time."""

    def __init__(self, path, timeout_s=10):
        self.events = collections.deque()  # that came while a command was answered, the oldest first
        self._connection = _LineSocket(path, timeout_s)
        try:
            self._connection.line(time.monotonic() + timeout_s)
            self.call("qmp_capabilities", timeout_s)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._connection.close()

    def call(self, command, timeout_s=10, descriptors=(), **arguments):
        """One command of QMP, with which file descriptors may go; its `return`. Arguments are spelled with _ for -."""
        request = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        self._connection.send(json.dumps(request).encode() + b"\n", descriptors)
        deadline = time.monotonic() + timeout_s
        while True:
            answer = json.loads(self._connection.line(deadline))
            if "event" in answer:
                self.events.append(answer)
            if "error" in answer:
                raise GuestError(f"{command}: {answer['error'].get('desc')}")
            if "return" in answer:
                return answer["return"]

    def wait_for_event(self, wanted, timeout_s):
        """All events up to the first that is wanted."""
        deadline = time.monotonic() + timeout_s
        seen = []
        while True:
            seen.append(self.events.popleft() if self.events else json.loads(self._connection.line(deadline)))
            if "event" in seen[-1] and wanted(seen[-1]):
                return seen


class Console:
    """A serial console behind a socket. What the guest says while nobody is connected is lost."""

    def __init__(self, path, timeout_s=10):
        self._connection = _LineSocket(path, timeout_s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()

    def committed(self, timeout_s=10):
        """The next serial number that the guest reports (once a second): committed before this returned."""
        deadline = time.monotonic() + timeout_s
        while True:
            match = re.fullmatch(rb"committed (\d+)", self._connection.line(deadline))
            if match:
                return int(match[1])


class Guest:
    """A machine of our own. The arguments are those of scripts/guest-boot; `launch`, if given, makes the command that
    is really run out of the directory for the sockets and QEMU's command."""

    def __init__(self, *, raw=None, snapshot=False, nbd=None, export=None, words="", memory=None, cpus=None,
                 qemu_options=(), launch=None):
        self._options = []
        values = {"raw": raw, "nbd": nbd, "export": export, "words": words, "memory": memory, "cpus": cpus}
        for name, value in values.items():
            if value is not None and value != "":
                self._options += [f"--{name}", str(value)]
        if snapshot:
            self._options.append("--snapshot")
        self._options += ["--", *qemu_options]
        self._launch = launch
        self._process = None
        self.directory = None
        self.agent = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.close()

    def start(self):
        image()  # A build does not count as a guest that takes long to boot.
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="berth-guest-"))
        self.agent = Agent(self.directory / "agent.sock")
        try:
            command = ["setpriv", "--pdeathsig", "KILL", SCRIPTS / "guest-boot", "--run-dir", self.directory, *self._options]
            if self._launch is not None:
                boot = [SCRIPTS / "guest-boot", "--print", "--run-dir", self.directory, *self._options]
                printed = subprocess.run(boot, stdout=subprocess.PIPE, text=True, check=True).stdout
                command = self._launch(self.directory, shlex.split(printed))
            with open(self.directory / "qemu.log", "wb") as log:
                self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        except BaseException:
            self.close()
            raise

    def close(self):
        """Kills QEMU if it still runs, and takes away the directory with the sockets."""
        if self._process is not None:
            # Not reaped yet, so the process id is still its own.
            self._process.kill()
            self._process.wait()
            self._process = None
        if self.directory is not None:
            shutil.rmtree(self.directory)
            self.directory = None

    @property
    def pid(self):
        return self._process.pid

    def qmp(self):
        return Qmp(self.directory / "qmp.sock")

    def console(self):
        return Console(self.directory / "console.sock")

    def console_text(self):
        """All that the guest has said on its console so far."""
        with contextlib.suppress(FileNotFoundError):
            return (self.directory / "console.log").read_text(errors="replace")
        return ""

    def error(self, message):
        """A GuestError with the last words of QEMU and of the guest."""
        words = (self.directory / "qemu.log").read_text(errors="replace") + self.console_text()
        return GuestError("\n".join([message, *words.splitlines()[-15:]]))

    def is_running(self):
        return self._process.poll() is None

    def wait_for_agent(self, timeout_s=60):
        """Returns when the agent answers; how long that took, in seconds."""
        started = time.monotonic()
        last = None
        while self.is_running():
            if time.monotonic() - started > timeout_s:
                raise self.error(f"no answer from the agent after {timeout_s} s ({last})")
            try:
                self.agent.ping(timeout_s=1)
                return time.monotonic() - started
            except GuestError as error:
                last = error
            # The agent or the end of QEMU, whichever is first.
            self._wait_for_exit(0.05)
        raise self.error(f"QEMU ended with status {self._process.returncode} before the agent answered")

    def committed(self):
        """The last serial number whose transaction had been committed before this returned; None before the first."""
        return self.agent.committed()

    def wait_for_commits(self, serial, timeout_s=60):
        """Returns when at least `serial` is committed; the number read."""
        deadline = time.monotonic() + timeout_s
        while True:
            committed = self.committed()
            if committed is not None and committed >= serial:
                return committed
            if time.monotonic() > deadline:
                raise self.error(f"{committed} transactions after {timeout_s} s, wanted {serial}")
            if self._wait_for_exit(0.1):
                raise self.error(f"QEMU ended with status {self._process.returncode}")

    def wait_for_dirty_pages(self, written, timeout_s=60):
        """Returns when the guest has written so many pages of its memory (berth.dirty=); what Agent.dirty says."""
        deadline = time.monotonic() + timeout_s
        while True:
            dirty = self.agent.dirty()
            if dirty is not None and dirty["written"] >= written:
                return dirty
            if time.monotonic() > deadline:
                raise self.error(f"{dirty} after {timeout_s} s, wanted {written} pages written")
            if self._wait_for_exit(0.1):
                raise self.error(f"QEMU ended with status {self._process.returncode}")

    def pause(self):
        """Stops the virtual CPUs and waits for the disk's running requests (QMP stop)."""
        with self.qmp() as qmp:
            qmp.call("stop", timeout_s=30)

    def resume(self):
        with self.qmp() as qmp:
            qmp.call("cont", timeout_s=30)

    def power_off(self, timeout_s=60):
        """Shuts the guest down and waits for the end of QEMU."""
        self.agent.shutdown()
        if not self._wait_for_exit(timeout_s):
            raise self.error(f"not off after {timeout_s} s")
        if self._process.returncode != 0:
            raise self.error(f"QEMU ended with status {self._process.returncode}")

    def _wait_for_exit(self, timeout_s):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.returncode is not None
