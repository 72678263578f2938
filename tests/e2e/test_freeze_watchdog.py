"""The watchdog of a freeze, with the real agent in a real guest: `berth watchdog` as a keeper starts it."""

import os
import subprocess
import time

import pytest

import guest as guests
from berth_host import program

# The watchdog gives up after 60 s; a busy machine needs less than that for one thaw.
_THAW_S_MAX = 60


class Watchdog:
    """`berth watchdog`, and the end of its pipe that a keeper holds: a byte in it is the right to say who has thawed."""

    def __init__(self, socket, limit_s):
        self._reading, self._writing = os.pipe()
        os.write(self._writing, b"t")
        command = [program(), "watchdog", "--agent-socket", socket, "--fd", str(self._reading),
                   "--limit-ms", str(int(limit_s * 1000))]
        self._process = subprocess.Popen(command, pass_fds=[self._reading])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.leave()
        self._process.wait(_THAW_S_MAX)

    def dismiss(self):
        """Takes its turn back; whether it was still there."""
        os.set_blocking(self._reading, False)
        try:
            return os.read(self._reading, 1) == b"t"
        except BlockingIOError:
            return False

    def leave(self):
        """The pipe is closed, as that of a keeper that has ended."""
        for end in (self._reading, self._writing):
            if end >= 0:
                os.close(end)
        self._reading = self._writing = -1

    def end(self):
        """The exit code of the process that was started."""
        return self._process.wait(_THAW_S_MAX)


@pytest.fixture(scope="module", name="guest")
def _guest():
    with guests.Guest(raw=guests.image()["disk"], snapshot=True) as running:
        running.wait_for_agent()
        running.wait_for_commits(1)  # the hook of the freeze needs the database
        yield running


def is_frozen(guest):
    return guest.agent.call("guest-fsfreeze-status") == "frozen"


def wait_until_thawed(guest):
    """The seconds that it took."""
    started = time.monotonic()
    while is_frozen(guest):
        assert time.monotonic() < started + _THAW_S_MAX, "still frozen"
        time.sleep(0.05)
    return time.monotonic() - started


def test_a_keeper_that_is_gone_has_the_guest_thawed_at_once(guest):
    with Watchdog(guest.agent.path, limit_s=3600) as watchdog:
        assert guest.agent.freeze() > 0
        watchdog.leave()
        wait_until_thawed(guest)
        assert watchdog.end() == 0
    guest.wait_for_commits(guest.committed() + 1)  # the file systems take writes again


def test_a_freeze_that_lasts_too_long_is_ended(guest):
    assert guest.agent.freeze() > 0
    with Watchdog(guest.agent.path, limit_s=0.2) as watchdog:
        wait_until_thawed(guest)
        assert not watchdog.dismiss()
        assert watchdog.end() == 0
    guest.wait_for_commits(guest.committed() + 1)


def test_dismissed_in_time_it_leaves_the_guest_alone(guest):
    with Watchdog(guest.agent.path, limit_s=3600) as watchdog:
        assert guest.agent.freeze() > 0
        assert watchdog.dismiss()
        watchdog.leave()
        assert watchdog.end() == 0
        assert is_frozen(guest)
        guest.agent.thaw()


def test_a_client_that_stays_connected_is_waited_for(guest):
    assert guest.agent.freeze() > 0
    other = guests._LineSocket(guest.agent.path, 10)
    with Watchdog(guest.agent.path, limit_s=3600) as watchdog:
        watchdog.leave()
        assert watchdog.end() == 0  # decided; a child of it thaws
        other.send(b'\xff{"execute": "guest-fsfreeze-status"}\n')
        deadline = time.monotonic() + 10
        while b"frozen" not in (line := other.line(deadline)):
            assert b"error" in line  # what the byte 0xFF is to the agent's parser
        other.close()
        wait_until_thawed(guest)
