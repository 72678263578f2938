"""A throw-away Berth host: a daemon with directories of its own, its command line, its API.

    with BerthHost() as host:
        host.cli("volume", "create", "disk1", "--size", "64M")
        uri = host.serve("disk1")                       # NBD URI, for nbdcopy, qemu-io, fio, QEMU
        cut = host.json("checkpoint", "create", "disk1", "--name", "before")
        refused = host.refused("volume", "delete", "disk1")
        assert refused.returncode == 4 and "served" in refused.stderr
        status, answer = host.api("GET", "/v1/volumes/disk1")
        host.kill_keeper("disk1")                       # SIGKILL, returns when the process is gone
        host.wait_for_event("keeper_started", volume="disk1", since=mark)

Leaving the block ends the daemon and every keeper, checks that no process and no socket of theirs is left, and
removes the directories. Standard library only; every wait has a limit.

BERTH_BIN names the program; build/dev/berth when it is not set.
"""

import contextlib
import http.client
import json
import os
import pathlib
import select
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TIMEOUT_S = 30


class BerthError(AssertionError):
    """Berth did not do what it was asked for; the text says what it did."""


def program():
    """Path of the program under test."""
    return os.environ.get("BERTH_BIN") or str(ROOT / "build" / "dev" / "berth")


def wait_for_exit(pid, timeout_s=TIMEOUT_S):
    """Waits until the process is gone (a zombie is); returns at once if there is none."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            raise BerthError(f"process {pid} does not end within {timeout_s} s")
    finally:
        os.close(pidfd)


class _UnixConnection(http.client.HTTPConnection):
    """http.client over a UNIX socket."""

    def __init__(self, path, timeout_s):
        super().__init__("berth", timeout=timeout_s)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Daemon:
    """One `berth daemon` process, ready for requests when the constructor returns."""

    def __init__(self, arguments, log_path, environment):
        notify_path = str(log_path) + ".ready"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as ready, open(log_path, "ab") as log:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(notify_path)
            ready.bind(notify_path)
            self._process = subprocess.Popen(
                [program(), "daemon", *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**environment, "NOTIFY_SOCKET": notify_path})
            self.pid = self._process.pid
            try:
                self._wait_ready(ready, log_path)
            except BaseException:
                self.kill()
                raise
            finally:
                os.unlink(notify_path)

    def _wait_ready(self, ready, log_path):
        pidfd = os.pidfd_open(self.pid)
        try:
            poller = select.poll()
            poller.register(ready, select.POLLIN)
            poller.register(pidfd, select.POLLIN)
            happened = [fd for fd, _ in poller.poll(TIMEOUT_S * 1000)]
        finally:
            os.close(pidfd)
        if ready.fileno() not in happened:
            what = "ended" if happened else f"is not ready within {TIMEOUT_S} s"
            raise BerthError(f"the daemon {what}:\n{pathlib.Path(log_path).read_text(errors='replace')}")

    @property
    def running(self):
        return self._process.poll() is None

    def _end(self, number):
        if self.running:
            self._process.send_signal(number)
        try:
            return self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise BerthError(f"the daemon did not end within {TIMEOUT_S} s of signal {number}") from None

    def stop(self):
        """SIGTERM; the exit code. Keepers go on."""
        return self._end(signal.SIGTERM)

    def kill(self):
        """SIGKILL. Keepers go on."""
        return self._end(signal.SIGKILL)

    def wait(self):
        """Waits for an end that somebody else asked for; the exit code."""
        try:
            return self._process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise BerthError(f"the daemon does not end within {TIMEOUT_S} s") from None


class BerthHost:
    """See the module's text. `directory` is where everything lies (a new one below /tmp when left out: paths of UNIX
    sockets must be short); `state_dir` may lie elsewhere, such as on a disk; `daemon_options` are further ones of
    `berth daemon`; without `start` no daemon runs at first."""

    def __init__(self, directory=None, state_dir=None, daemon_options=(), start=True):
        self._own_directory = directory is None
        self.directory = pathlib.Path(directory or tempfile.mkdtemp(prefix="berth-", dir="/tmp"))
        # QEMU runs as a user of its own and has to get through; paths of memory objects cannot be guessed.
        if self._own_directory:
            self.directory.chmod(0o711)
        self.memory_dir = pathlib.Path(tempfile.mkdtemp(prefix="berth-memory-", dir="/dev/shm"))
        self.memory_dir.chmod(0o711)
        self._own_state = state_dir is None
        self.state_dir = pathlib.Path(state_dir) if state_dir else self.directory / "s"
        self.run_dir = self.directory / "r"
        self.log_path = self.directory / "daemon.log"
        self.daemon_options = list(daemon_options)
        self.environment = {**os.environ, "BERTH_STATE_DIR": str(self.state_dir), "BERTH_RUN_DIR": str(self.run_dir),
                            "BERTH_MEMORY_DIR": str(self.memory_dir)}
        self.environment.pop("BERTH_SOCKET", None)
        self.daemon = None
        if start:
            try:
                self.start()
            except BaseException:
                self._remove()
                raise

    def __enter__(self):
        return self

    def __exit__(self, kind, value, traceback):
        try:
            self.close(check=kind is None)
        except BaseException:
            if kind is None:
                raise  # what the test itself has met matters more

    # --- The daemon.

    def start(self):
        """Starts the daemon, again if there was one before."""
        if self.daemon is not None and self.daemon.running:
            raise BerthError("the daemon is running already")
        self.daemon = Daemon(self.daemon_options, self.log_path, self.environment)

    def stop(self):
        """Ends the daemon cleanly; keepers go on."""
        code = self.daemon.stop()
        if code != 0:
            raise BerthError(f"the daemon ended with {code}:\n{self.log()}")

    def restart(self, kill=False):
        """Ends the daemon (kill: as a crash would) and starts it again."""
        if kill:
            self.daemon.kill()
        else:
            self.stop()
        self.start()

    def log(self):
        """What daemon and keepers wrote to their logs."""
        parts = []
        for path in [self.log_path, *sorted(self.run_dir.glob("*/*/log"))]:
            if path.exists():
                parts.append(f"--- {path}\n{path.read_text(errors='replace')}")
        return "\n".join(parts)

    # --- The command line.

    def run(self, *arguments, timeout_s=TIMEOUT_S, **options):
        """`berth ARGUMENTS`, whatever becomes of it: a CompletedProcess with text."""
        command = [program(), *map(str, arguments)]
        return subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=timeout_s, check=False, **options)

    def cli(self, *arguments, **options):
        """`berth ARGUMENTS`, which has to succeed; its standard output."""
        done = self.run(*arguments, **options)
        if done.returncode != 0:
            raise BerthError(f"berth {' '.join(map(str, arguments))}: exit code {done.returncode}\n{done.stderr}\n{self.log()}")
        return done.stdout

    def json(self, *arguments, **options):
        """`berth ARGUMENTS -o json`, which has to succeed; what it prints, parsed."""
        return json.loads(self.cli(*arguments, "-o", "json", **options))

    def refused(self, *arguments, **options):
        """`berth ARGUMENTS`, which has to fail; the CompletedProcess."""
        done = self.run(*arguments, **options)
        if done.returncode == 0:
            raise BerthError(f"berth {' '.join(map(str, arguments))} should have failed:\n{done.stdout}")
        return done

    # --- The API.

    def api_text(self, method, path, body=None, timeout_s=TIMEOUT_S):
        """One request; status, headers and the answer as bytes. `body` is sent as JSON, or as it is if it is bytes."""
        connection = _UnixConnection(str(self.run_dir / "api.sock"), timeout_s)
        try:
            headers = {}
            if body is not None:
                headers["Content-Type"] = "application/json"
                body = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def api(self, method, path, body=None, timeout_s=TIMEOUT_S):
        """One request; status and the answer, parsed."""
        status, _, text = self.api_text(method, path, body, timeout_s)
        return status, json.loads(text)

    @contextlib.contextmanager
    def lines(self, path, timeout_s=TIMEOUT_S):
        """A stream of the API: an iterator of parsed lines, each of which comes within the limit."""
        connection = _UnixConnection(str(self.run_dir / "api.sock"), timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status != 200:
                raise BerthError(f"GET {path}: status {response.status}: {response.read()}")
            yield (json.loads(line) for line in response)
        finally:
            connection.close()

    def last_event(self):
        """Number of the youngest event: a mark for wait_for_event()."""
        return self.api("GET", "/v1/host")[1]["last_event"]

    def wait_for_event(self, kind, volume=None, since=0, timeout_s=TIMEOUT_S):
        """The first event of that kind (and volume) after number `since`."""
        deadline = time.monotonic() + timeout_s
        with self.lines(f"/v1/events?since={since}", timeout_s=timeout_s) as events:
            for event in events:
                if event["kind"] == kind and volume in (None, event["volume"]):
                    return event
                if time.monotonic() > deadline:
                    break
        raise BerthError(f"no event {kind} of {volume} within {timeout_s} s\n{self.log()}")

    def wait_for_job(self, job, timeout_s=TIMEOUT_S):
        """Follows a job to its end and returns it."""
        last = None
        with self.lines(f"/v1/jobs/{job}/watch", timeout_s=timeout_s) as lines:
            for last in lines:
                pass
        return last

    # --- Short forms.

    def create(self, name, size="64M", *options):
        """Makes a volume."""
        return self.json("volume", "create", name, "--size", size, *options)

    def serve(self, name, *options):
        """Serves a volume; the NBD URI."""
        return self.cli("volume", "serve", name, *options).strip()

    def points(self, noun, of):
        """The checkpoints ("checkpoint") or reference points ("refpoint") of a volume or a machine, by name."""
        return {point["name"]: point for point in self.json(noun, "list", of)[f"{noun}s"]}

    def changes(self, name, since, *options):
        """[(offset, length), …], and whether they are exact."""
        answer = self.json("changes", name, "--since", since, *options)
        return [tuple(extent) for extent in answer["extents"]], answer["exact"]

    # --- Keepers.

    def keeper_pid(self, volume):
        """Process id of the volume's keeper; opens the volume if need be."""
        return self.json("volume", "info", volume)["keeper_pid"]

    def kill_keeper(self, volume, pid=None):
        """SIGKILL to the volume's keeper; returns its process id when it is gone."""
        pid = pid or self.keeper_pid(volume)
        os.kill(pid, signal.SIGKILL)
        wait_for_exit(pid)
        return pid

    # --- The end.

    def processes(self):
        """Processes of this host that are there, as {pid: command line}."""
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                environment = (entry / "environ").read_bytes().split(b"\0")
                is_berth = os.path.basename(words[0]) == os.path.basename(program()).encode()
                mine = str(self.run_dir).encode()
                is_qemu = words[0].endswith(b"qemu-system-x86_64") and any(mine + b"/" in word for word in words)
                if is_qemu or is_berth and (mine in words or b"BERTH_RUN_DIR=" + mine in environment):
                    found[int(entry.name)] = b" ".join(words).decode(errors="replace")
        return found

    def sockets(self):
        """UNIX sockets that lie in this host's directories."""
        found = []
        for root, _, names in os.walk(self.directory):
            for name in names:
                path = pathlib.Path(root) / name
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISSOCK(path.lstat().st_mode):
                        found.append(str(path))
        return found

    def close(self, check=True):
        """Ends everything. With `check`, raises if the end was not clean or left something behind."""
        problems = []
        try:
            stopped = self.run("daemon", "--stop-keepers", timeout_s=2 * TIMEOUT_S)
            if stopped.returncode != 0:
                problems.append(f"berth daemon --stop-keepers: exit code {stopped.returncode}\n{stopped.stderr}")
            if self.daemon is not None and self.daemon.wait() not in (0, -signal.SIGKILL, -signal.SIGTERM):
                problems.append("the daemon did not end cleanly")
        except (BerthError, subprocess.TimeoutExpired) as error:
            problems.append(str(error))
        for pid, words in self.processes().items():
            problems.append(f"process {pid} is left: {words}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                wait_for_exit(pid)
        problems += [f"a socket is left: {path}" for path in self.sockets()]
        problems += [line for line in self.log().splitlines() if "CHECK failed" in line]
        problems += [f"memory is left: {path}" for path in self.memory_dir.glob("*/*")]
        text = "\n".join(problems + [self.log()]) if problems else ""
        self._remove()
        if check and problems:
            raise BerthError(text)

    def _remove(self):
        if self._own_state:
            shutil.rmtree(self.state_dir, ignore_errors=True)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        shutil.rmtree(self.memory_dir, ignore_errors=True)
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)
