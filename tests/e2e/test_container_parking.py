"""Containers that nobody uses are paused by the daemon, as berth.toml says; what uses them, and what brings them back."""

import contextlib
import itertools
import mmap
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import page_file
import pytest
from berth_host import BerthError, program
from test_container import LIMIT_S, ContainerHost

SLEEPS = ("/bin/sh", "-c", "nc -ll -p 7 -e cat & sleep 100000")
FREEZE_S, PARK_S = 3, 6
SETTLED_S = PARK_S + 5  # an idle one would be parked by then


class ParkingHost(ContainerHost):
    """Its berth.toml is `configuration`."""

    def __init__(self, configuration):
        self._configuration = configuration
        super().__init__()

    def start(self):
        path = self.directory / "berth.toml"
        path.write_text(self._configuration)
        self.daemon_options = ["--config", str(path)]
        super().start()

    def state(self, name):
        return self.inspect(name)["state"]

    def port(self, name):
        return self.inspect(name)["ports"][0]["host_port"]

    def ask(self, name):
        """The container's service answers."""
        with socket.create_connection(("127.0.0.1", self.port(name)), timeout=LIMIT_S) as client:
            client.settimeout(LIMIT_S)
            client.sendall(b"hello")
            assert client.recv(5) == b"hello"

    def serving(self, *options):
        """One with a service, which answers."""
        return self.container("-p", "127.0.0.1:0:7", *options, "busybox:1", *SLEEPS)

    def wait_until_it_serves(self, name):
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                return self.ask(name)
            except (OSError, AssertionError):
                assert time.monotonic() < deadline, "the service does not answer"
                time.sleep(0.1)

    def wait_until_idle(self, name, seconds):
        deadline = time.monotonic() + LIMIT_S
        while (now := self.inspect(name))["idle_s"] < seconds:
            assert time.monotonic() < deadline, now
            time.sleep(0.2)

    def watch_states(self, name, seconds):
        """Those that it was in."""
        states, deadline = [], time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not states or self.state(name) != states[-1]:
                states.append(self.state(name))
            time.sleep(0.1)
        return states


@pytest.fixture(scope="module", name="host")
def _host():
    with ParkingHost(f"[parking.after_idle]\nfrozen = '{FREEZE_S}s'\nparked = '{PARK_S}s'\n") as made:
        yield made


def test_an_idle_one_is_hibernated_and_a_connection_starts_its_clock_again():
    with ParkingHost("[parking.after_idle]\nfrozen = '1s'\nhibernated = '3s'\n") as host:
        with host.serving() as name:
            host.wait_until_it_serves(name)
            for _ in range(2):
                assert host.wait_for_state(name, "hibernated")["pid"] is None
                host.ask(name)
                assert host.state(name) != "hibernated"


def test_an_idle_one_is_frozen_and_then_parked_and_a_request_starts_its_clock_again(host):
    with host.serving() as name:
        host.wait_until_it_serves(name)
        frozen = host.wait_for_state(name, "frozen")
        assert frozen["idle_s"] >= FREEZE_S
        parked = host.wait_for_state(name, "parked")
        assert parked["idle_s"] >= PARK_S and parked["idle_since"] == frozen["idle_since"]
        assert parked["pause"]["after"]["memory"] == 0
        host.ask(name)
        shown = host.inspect(name)
        assert shown["state"] == "running" and shown["idle_s"] < FREEZE_S
        assert shown["idle_since"] > parked["idle_since"]
        [listed] = host.json("container", "ps")["containers"]
        assert listed["idle_s"] < FREEZE_S
        host.wait_for_state(name, "frozen")
        host.wait_for_state(name, "parked")
        assert host.berth("exec", name, "/bin/echo", "there") == (0, "there\n", "")


def chatter(host, name, stop):
    """A byte and its answer every now and then, on one connection."""
    with socket.create_connection(("127.0.0.1", host.port(name)), timeout=LIMIT_S) as client:
        while not stop.wait(0.5):
            client.sendall(b"x")
            assert client.recv(1) == b"x"


@contextlib.contextmanager
def with_traffic(host, name):
    stop = threading.Event()
    talker = threading.Thread(target=chatter, args=(host, name, stop))
    talker.start()
    try:
        yield
    finally:
        stop.set()
        talker.join(LIMIT_S)


@contextlib.contextmanager
def with_a_process(host, name):
    with subprocess.Popen([program(), "container", "exec", name, "/bin/sleep", "1000"], env=host.environment,
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        try:
            yield
        finally:
            client.send_signal(signal.SIGTERM)
            client.wait(LIMIT_S)


@contextlib.contextmanager
def with_someone_attached(host, name):
    with subprocess.Popen([program(), "container", "attach", name], env=host.environment, stdin=subprocess.PIPE,
                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as client:
        try:
            yield
        finally:
            client.kill()
            client.wait(LIMIT_S)


@contextlib.contextmanager
def with_nothing(_host, _name):
    yield


COMPUTES = ("/bin/sh", "-c", "while true; do :; done")
COMPUTES_LITTLE = ("/bin/sh", "-c", "while true; do i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; sleep 0.3; done")
USES = {"traffic": (with_traffic, (), SLEEPS), "exec": (with_a_process, (), SLEEPS),
        "attached": (with_someone_attached, ("-i",), SLEEPS), "cpu": (with_nothing, ("--cpus", "0.2"), COMPUTES),
        "some cpu": (with_nothing, (), COMPUTES_LITTLE), "opted out": (with_nothing, ("--park-after", "never"), SLEEPS)}


@pytest.mark.parametrize("use", USES)
def test_one_that_is_in_use_is_never_paused(host, use):
    """Beside one that is parked meanwhile."""
    using, options, command = USES[use]
    with host.container("-p", "127.0.0.1:0:7", *options, "busybox:1", *command) as name, \
            host.container("busybox:1", "/bin/sleep", "100000") as other:
        if command is SLEEPS:
            host.wait_until_it_serves(name)
        with using(host, name):
            host.wait_for_state(other, "parked")
            assert host.watch_states(name, SETTLED_S) == ["running"]
        if use in ("traffic", "exec", "attached"):
            # Where it could not be paused at first it is tried again after a minute.
            host.wait_for_state(name, "parked", 2 * LIMIT_S)


def test_who_only_looks_on_does_not_use_it(host):
    with host.container("busybox:1", "/bin/sleep", "100000") as name:
        with subprocess.Popen([program(), "container", "logs", "-f", name], env=host.environment, stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL) as client:
            try:
                host.wait_for_state(name, "parked")
            finally:
                client.kill()
                client.wait(LIMIT_S)


def test_one_may_have_a_time_of_its_own(host):
    with host.container("--park-after", "1s", "busybox:1", "/bin/sleep", "100000") as name:
        shown = host.wait_for_state(name, "parked")
        assert shown["idle_s"] < FREEZE_S + 1 and shown["specification"]["park_after"] == "1s"
    code, _, said = host.berth("run", "--park-after", "soon", "busybox:1", "/bin/true")
    assert code == 125 and "park_after: expected never, or a duration" in said


@pytest.mark.parametrize("kill", [False, True])
def test_the_next_daemon_goes_on_with_it(host, kill):
    with host.serving() as name:
        host.wait_until_it_serves(name)
        since = host.wait_for_state(name, "frozen")["idle_since"]
        host.restart(kill=kill)
        assert host.wait_for_state(name, "parked")["idle_since"] == since
        host.ask(name)
        host.wait_for_state(name, "parked")


def test_a_request_needs_no_daemon(host):
    with host.serving() as name:
        host.wait_until_it_serves(name)
        port = host.port(name)
        host.wait_for_state(name, "parked")
        host.stop()
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
                client.sendall(b"hello")
                assert client.recv(5) == b"hello"
        finally:
            host.start()


# --- What it needs first.

def page_files(host, name):
    return sorted((host.state_dir / "containers" / name).glob("pages-*"))


def is_cached(path, offset, length):
    """Whether the host has all of that in memory."""
    with open(path, "rb", buffering=0) as file:
        for at in range(offset, offset + length, mmap.PAGESIZE):
            try:
                os.preadv(file.fileno(), [bytearray(mmap.PAGESIZE)], at, os.RWF_NOWAIT)
            except BlockingIOError:
                return False
    return True


def test_what_a_parked_one_needs_first_stays_in_the_page_cache(host):
    with host.serving("--park-after", "never") as name:
        host.wait_until_it_serves(name)
        host.cli("container", "pause", "--level", "parked", name)
        [first] = page_files(host, name)
        held = page_file.held(first)
        if sum(is_cached(first, *granule) for granule in held) > len(held) / 2:
            pytest.skip("the state directory lies in memory")
        host.ask(name)
        deadline = time.monotonic() + LIMIT_S
        while not page_file.working_set(first):
            assert time.monotonic() < deadline, "it is not noted what it came to"
            time.sleep(0.1)
        host.cli("container", "pause", "--level", "parked", name)
        wanted = [(path, *granule) for path in page_files(host, name) for granule in page_file.working_set(path)]
        assert wanted
        while missing := [granule for granule in wanted if not is_cached(*granule)]:
            assert time.monotonic() < deadline, missing
            time.sleep(0.1)


# --- Without times, and with pressure.

def pressure_line(percent):
    return f"some avg10={percent:.2f} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"


def test_by_default_nothing_is_paused():
    with ContainerHost() as host, host.container("busybox:1", "/bin/sleep", "100000") as name:
        deadline = time.monotonic() + 12
        while time.monotonic() < deadline:
            shown = host.inspect(name)
            assert shown["state"] == "running"
            time.sleep(0.3)
        assert shown["idle_s"] >= 9


def test_under_pressure_the_longest_idle_is_parked_first_and_one_at_a_time(tmp_path):
    pressure = pathlib.Path(tmp_path) / "memory"
    pressure.write_text(pressure_line(0))
    configuration = f"[parking]\npressure = 20\npressure_interval = '4s'\npressure_file = '{pressure}'\n"
    has_swap = len(pathlib.Path("/proc/swaps").read_text().splitlines()) > 1
    with ParkingHost(configuration) as host, contextlib.ExitStack() as stack:
        def another(*options):
            return stack.enter_context(host.container(*options, "busybox:1", "/bin/sleep", "100000"))

        out, first, second = another("--park-after", "never"), another(), another()
        host.wait_until_idle(second, 4)  # for longer than the first one, from now on
        assert host.berth("exec", first, "/bin/true")[0] == 0
        host.wait_until_idle(first, 12)
        assert [host.state(name) for name in (out, first, second)] == ["running"] * 3
        since = host.last_event()
        pressure.write_text(pressure_line(35))
        host.wait_for_state(first, "parked")
        host.wait_for_state(second, "parked")
        assert host.state(out) == "running"
        with host.lines(f"/v1/events?since={since}") as events:
            kinds = (event for event in events if event["kind"] == "container_paused")
            paused = list(itertools.islice(kinds, 4 if has_swap else 2))
        assert [event["container"] for event in paused] == ([second] * 2 + [first] * 2 if has_swap else [second, first])
        pressure.write_text(pressure_line(0))
        assert host.berth("exec", first, "/bin/true")[0] == 0
        assert host.watch_states(first, 15) == ["running"]


# --- Configurations that are wrong.

def test_a_configuration_with_a_mistake_is_refused_with_its_line():
    with pytest.raises(BerthError, match=r"berth\.toml:2: parking\.after_idel: not known here"):
        with ParkingHost("[parking]\nafter_idel = '5m'\n"):
            pass


def test_one_that_is_named_has_to_be_there(tmp_path):
    done = subprocess.run([program(), "daemon", "--state-dir", tmp_path / "s", "--run-dir", tmp_path / "r"],
                          env={**os.environ, "BERTH_CONFIG": str(tmp_path / "none.toml")}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 3 and "none.toml" in done.stderr
