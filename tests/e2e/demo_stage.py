"""What stands behind scripts/demo: its lines on the terminal, its directories, its processes, its limits.

    with Stage() as stage:                          # a daemon with directories of its own, and a guest
        stage.make_directories()
        with stage.step("boot the guest") as step:
            ...
            step.done("the guest has booted")       # printed, with the time that the step took

Whatever ends the block (its end, an error, Ctrl-C), the guest, the daemon and the keepers are ended by process id and
the directories removed. An error is reported while the logs are still there, and goes no further: see `exit_code`.
For the main thread.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import berth_host
import guest

# The whole demo, once the image of the guest is there.
_TIME_LIMIT_S = 240
# The first run's image comes from Debian's mirrors.
_IMAGE_TIME_LIMIT_S = 1200
# The guest's disk, the full export, the restored disk and the verifier's copy of it, and some room for growth.
_STATE_BYTES_NEEDED = 4 << 30
_CHUNK_BYTES = 1 << 20
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
_LOG_LINES_SHOWN = 12


class DemoError(Exception):
    """Something did not turn out as it has to; the text says what."""


class Interrupted(BaseException):
    """Somebody has asked us to end."""

    def __init__(self, number):
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


def size(count):
    """A number of bytes, for people."""
    for unit, suffix in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.1f} {suffix}"
    return f"{count} B"


def duration(seconds):
    """A time, for people."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.0f} ms" if seconds >= 1e-3 else f"{seconds * 1e3:.3f} ms"


def check(condition, message):
    if not condition:
        raise DemoError(message)


class Step:
    """One line of the demo."""

    def __init__(self, doing):
        self.doing = doing
        self.said = doing
        self.seconds = 0.0

    def done(self, text):
        """What is to be printed about it, in place of what it set out to do."""
        self.said = text


class Stage:
    def __init__(self):
        self.host = None
        self.machine = None
        self.directory = None      # on a disk: the volumes, exports
        self.run_directory = None  # in memory, with a short path: sockets, live maps
        self.started = time.monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._step = None
        self._image_log = None
        self._keeper_run_directory = None
        self.exit_code = 0  # once the block has been left

    # --- Lines.

    def say(self, text="", end="\n"):
        print(text, end=end, flush=True)

    def bold(self, text):
        return f"\033[1m{text}\033[0m" if self._is_terminal else text

    @contextlib.contextmanager
    def step(self, doing):
        """A line when it is over: how long it took, and what it says itself. A terminal shows meanwhile what is going on."""
        self._step = step = Step(doing)
        if self._is_terminal:
            self.say(f"     ...   \033[2m{doing}\033[0m", end="")
        started = time.monotonic()
        yield step
        step.seconds = time.monotonic() - started
        self._step = None
        self._clear_line()
        self.say(f"{step.seconds:6.2f} s   {step.said}")

    def _clear_line(self):
        if self._is_terminal:
            self.say("\r\033[K", end="")

    # --- From the first directory to the last process.

    def __enter__(self):
        for number in _SIGNALS:
            signal.signal(number, self._interrupt)
        return self

    def _interrupt(self, number, _frame):
        # Once: what cleans up is not to be interrupted, nor are the programs that it starts.
        self._ignore_signals()
        if number == signal.SIGALRM:
            raise DemoError(f"the demo has not ended within {_TIME_LIMIT_S} s")
        raise Interrupted(number)

    @staticmethod
    def _ignore_signals():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def make_directories(self):
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="berth-demo-", dir=os.environ.get("TMPDIR", "/var/tmp")))
        free = shutil.disk_usage(self.directory).free
        check(free >= _STATE_BYTES_NEEDED, f"{self.directory.parent} has {size(free)} free, the demo needs "
                                           f"{size(_STATE_BYTES_NEEDED)}: set TMPDIR to another place")
        # Live maps must be in memory. Here they go with the directory; if it were on a disk, they would stay in /dev/shm.
        self.run_directory = pathlib.Path(tempfile.mkdtemp(prefix="berth-demo-", dir="/dev/shm"))
        # The guest's sockets go there too, the verifier's copy of a disk does not.
        tempfile.tempdir = str(self.run_directory)
        os.environ["TMPDIR"] = str(self.directory)
        self.host = berth_host.BerthHost(self.run_directory, self.directory / "state", start=False)
        self._keeper_run_directory = self.host.run_dir

    def __exit__(self, _kind, error, _traceback):
        self._ignore_signals()
        if error is not None:
            self.exit_code = self._report(error)
        for problem in self.close():
            print(f"berth demo: at the end: {problem}", file=sys.stderr)
            self.exit_code = self.exit_code or 1
        return True

    def close(self):
        """Ends everything that was started and removes the directories; what was not as it should be, in sentences."""
        self._ignore_signals()
        problems = []
        for end in (self._close_guest, self._close_host, self._kill_what_is_left, self._remove_directories):
            try:
                end()
            except Exception as error:  # the other ends have to be tried all the same
                problems.append(str(error))
        return problems

    def _close_guest(self):
        machine, self.machine = self.machine, None
        if machine is not None:
            machine.close()

    def _close_host(self):
        host, self.host = self.host, None
        if host is not None:
            # After an error, what was served is still served: that leaves sockets behind, as it should.
            host.close(check=self.exit_code == 0)

    def _kill_what_is_left(self):
        """Keepers in our run directory that nobody could talk to any more."""
        if self._keeper_run_directory is None:
            return
        ours = {b"keeper", os.fsencode(self._keeper_run_directory)}
        killed = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pidfd = os.pidfd_open(int(entry.name))  # first, so that what is looked at is what is killed
                try:
                    if ours <= set((entry / "cmdline").read_bytes().split(b"\0")):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        berth_host.wait_for_exit(int(entry.name))
                        killed.append(entry.name)
                finally:
                    os.close(pidfd)
        check(not killed, f"keepers were still there and are killed: {', '.join(killed)}")

    def _remove_directories(self):
        for directory in (self.directory, self.run_directory):
            if directory is not None:
                shutil.rmtree(directory)
        self.directory = self.run_directory = None

    # --- When it goes wrong.

    def _report(self, error):
        """Says on standard error which step failed, why, and the last words of those concerned; the exit code."""
        self._clear_line()
        sys.stdout.flush()
        if isinstance(error, Interrupted):
            print(f"berth demo: {error}", file=sys.stderr)
            return error.exit_code
        where = f"this step failed: {self._step.doing}" if self._step else "failed"
        print(f"berth demo: {where}\n{self._reason(error)}", file=sys.stderr)
        for name, text in self._logs():
            if name == "guest" and isinstance(error, guest.GuestError):
                continue  # its text has them
            if lines := text.splitlines()[-_LOG_LINES_SHOWN:]:
                print("\n".join([f"--- {name}, its last words:", *lines]), file=sys.stderr)
        return 1

    @staticmethod
    def _reason(error):
        if isinstance(error, subprocess.TimeoutExpired):
            return f"{' '.join(map(str, error.cmd))}: still running after {error.timeout} s"
        if isinstance(error, (DemoError, berth_host.BerthError, guest.GuestError, OSError)):
            return str(error)
        return "".join(traceback.format_exception(error))

    def _logs(self):
        """Names and texts of what the programs have written."""
        if self._image_log is not None:
            yield "guest-image", self._image_log.read_text(errors="replace")
        if self.host is not None and self.host.log_path.exists():
            yield "daemon", self.host.log_path.read_text(errors="replace")
            for path in sorted(self.host.run_dir.glob("keepers/*/log")):
                yield f"keeper of {path.parent.name}", path.read_text(errors="replace")
        if self.machine is not None and self.machine.directory is not None:
            yield "guest", self.machine.console_text()

    # --- Berth and the guest.

    def berth(self, *arguments, timeout_s=120):
        """`berth ARGUMENTS -o json`: what it answers."""
        done = self.host.run(*arguments, "-o", "json", timeout_s=timeout_s)
        words = " ".join(["berth", *map(str, arguments)])
        check(done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stderr.strip()}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def find_image(self):
        """Paths of the guest's kernel and disk, and whether they had to be built. From here on the time limit holds."""
        command = [guest.SCRIPTS / "guest-image"]
        self._image_log = self.directory / "guest-image.log"
        # A group of its own, so that the programs of a build that is interrupted can be ended with it.
        with open(self._image_log, "wb") as log, subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True) as build:
            try:
                status = build.wait(_IMAGE_TIME_LIMIT_S)
            except BaseException:
                os.killpg(build.pid, signal.SIGTERM)  # it cleans up after itself
                with contextlib.suppress(subprocess.TimeoutExpired):
                    build.wait(20)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(build.pid, signal.SIGKILL)
                raise
        check(status == 0, f"{command[0]}: status {status}")
        was_built = self._image_log.stat().st_size > 0
        self._image_log = None
        signal.alarm(_TIME_LIMIT_S)
        return guest.image(), was_built

    def boot(self, socket, export):
        """Starts a guest whose root disk is an export of the NBD server on a socket; how long until its agent answers."""
        self.machine = guest.Guest(nbd=socket, export=export)
        self.machine.start()
        return self.machine.wait_for_agent(120)

    def wait_until(self, what, condition, timeout_s=30):
        """Returns the first answer of `condition` that is true."""
        deadline = time.monotonic() + timeout_s
        while not (answer := condition()):
            check(time.monotonic() < deadline, f"not within {timeout_s} s: {what}")
            time.sleep(0.02)
        return answer


def follow_commits(machine, count, timeout_s=120):
    """Waits for so many transactions more; the longest time without a new one, as far as it can be seen from outside."""
    serial = machine.wait_for_commits(1)
    last = serial + count
    started = changed_at = time.monotonic()
    longest_s = 0.0
    while serial < last:
        found, now = machine.committed(), time.monotonic()
        longest_s = max(longest_s, now - changed_at)
        if found != serial:
            serial, changed_at = found, now
        elif now - started > timeout_s:
            raise machine.error(f"transaction {last} is not committed after {timeout_s} s, the last is {serial}")
        else:
            time.sleep(0.005)
    return longest_s


def apply_increment(increment, target, block_bytes):
    """Writes the extents that an incremental export lists over a full image. Returns how many blocks they have, how many
    of these differed, and how many were zeros over zeros (a database fills the space for its log with zeros)."""
    extents = json.loads(pathlib.Path(f"{increment}.extents.json").read_text())["extents"]
    blocks = differing = zeros = 0
    with open(increment, "rb") as source, open(target, "r+b") as disk:
        for offset, length in extents:
            for start in range(offset, offset + length, block_bytes):
                source.seek(start)
                disk.seek(start)
                new = source.read(min(block_bytes, offset + length - start))
                blocks += 1
                if disk.read(len(new)) != new:
                    differing += 1
                    disk.seek(start)
                    disk.write(new)
                elif not any(new):
                    zeros += 1
    return blocks, differing, zeros


def read_whole_disks(uris, timeout_s=180):
    """Reads every byte of whole disks through NBD, side by side; whether they are alike, and their SHA-256."""
    commands = [["nbdcopy", "--no-extents", uri, "-"] for uri in uris]
    digests = [hashlib.sha256() for _ in uris]
    alike = True
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE)) for command in commands]
        timer = threading.Timer(timeout_s, lambda: [reader.kill() for reader in readers])
        stack.callback(lambda: [reader.kill() for reader in readers])
        stack.callback(timer.cancel)
        timer.start()
        while any(chunks := [reader.stdout.read(_CHUNK_BYTES) for reader in readers]):
            alike = alike and all(chunk == chunks[0] for chunk in chunks)
            for digest, chunk in zip(digests, chunks):
                digest.update(chunk)
        for command, reader in zip(commands, readers):
            check(reader.wait() == 0, f"{' '.join(command)}: status {reader.returncode}")
    return alike, [digest.hexdigest() for digest in digests]
