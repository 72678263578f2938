"""The demo: that it proves what it says it proves, and that nothing of it stays behind, however it ends."""

import os
import pathlib
import re
import signal
import subprocess
import time
import uuid

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class Demo:
    """scripts/demo as a process. What it starts inherits a mark, by which it can be found."""

    def __init__(self, **environment):
        self.mark = f"BERTH_DEMO_TEST={uuid.uuid4()}"
        name, value = self.mark.split("=")
        # A group of its own, as a shell makes for a job: Ctrl-C goes to all of it.
        self.process = subprocess.Popen([ROOT / "scripts" / "demo"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, start_new_session=True,
                                        env={**os.environ, **environment, name: value})
        self.output = self.errors = ""

    def read_until(self, text):
        """Reads the output up to a line with the text."""
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"ended without '{text}':\n{self.output}\n{self.process.stderr.read()}")

    def wait(self, timeout_s=270):
        """The exit code. A demo that takes too long is asked to end, so that it leaves nothing either."""
        try:
            output, self.errors = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            output, self.errors = self.process.communicate(timeout=60)
        self.output += output
        return self.process.returncode

    def left_behind(self):
        """Directories of this run that are there, and processes."""
        said = re.search(r"^Volumes in (\S+), sockets in (\S+); ", self.output, re.MULTILINE)
        assert said, self.output
        found = [path for path in said.groups() if os.path.exists(path)]
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                pass  # gone, or not ours
        return found

    def words(self):
        """All that it said, for a failure's text."""
        return f"{self.output}\n{self.errors}"


def test_the_demo_restores_a_checkpoint_with_every_transaction_and_leaves_nothing():
    demo = Demo()
    assert demo.wait() == 0, demo.words()
    assert demo.errors == ""

    assert re.search(r"^restored = checkpoint: SHA-256 [0-9a-f]{64}$", demo.output, re.MULTILINE), demo.words()
    assert "equal, byte for byte" in demo.output, demo.words()
    numbers = re.search(r"^database: (\d+) transactions were committed before the cut, all are there; "
                        r"the last on the disk is (\d+), and (\d+) were committed after the cut$", demo.output, re.MULTILINE)
    assert numbers, demo.words()
    before, last, after = map(int, numbers.groups())
    assert 0 < before <= last <= after + 1
    assert "SIGKILL to the keeper: a new one serves, the guest goes on" in demo.output, demo.words()
    assert re.search(r"changed from sunday to monday: .*; exact$", demo.output, re.MULTILINE), demo.words()
    assert "\033" not in demo.output, "escape sequences where there is no terminal"
    assert demo.left_behind() == []


def test_a_demo_that_is_interrupted_leaves_nothing():
    demo = Demo()
    demo.read_until("transactions committed so far")
    os.killpg(demo.process.pid, signal.SIGINT)
    interrupted_at = time.monotonic()
    assert demo.wait(90) == 128 + signal.SIGINT, demo.words()
    assert time.monotonic() - interrupted_at < 60
    assert "ended by SIGINT" in demo.errors, demo.words()
    assert demo.left_behind() == []


def test_a_demo_that_fails_says_where_and_leaves_nothing():
    demo = Demo(BERTH_BIN="/bin/false")
    assert demo.wait(90) == 1, demo.words()
    assert "this step failed: start berth daemon" in demo.errors, demo.words()
    assert "SHA-256" not in demo.output
    assert demo.left_behind() == []
