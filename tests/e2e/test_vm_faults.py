"""The daemon and the keepers die, once, at every step of making, deleting, converting and reverting a checkpoint of a machine
(base/fault_point.h). The points are those that the sources have: one that no step comes to is a failure. After each:

1. the guest answers, and its database commits: nothing stays frozen, stopped or slowed; it is the same QEMU, unless the
   machine was to go back to its memory;
2. a checkpoint, or reference point, is there as a whole, in the machine and in all of its volumes, or not at all;
3. no file of a hold or of a memory is left, no socket and no process;
4. the next command does what it says."""

import contextlib
import os
import pathlib
import re
import signal

import pytest

from berth_host import ROOT, BerthHost, wait_for_exit
from machine_host import Machine, guest_toml
from volume_tools import log_on_failure, wait_until

DATA_DISK = '[[disk]]\nname = "data"\nsize = "64M"\n'
SMALL = 'name = "small"\nmemory = "128M"\ndisk = [{name = "root", size = "16M"}]\n'


def fault_points():
    """Every point of volumes and machines in the sources, once; test_image_death.py has those of images, and
    test_vm_levels.py those of machines that are suspended."""
    found = []
    for path in sorted((ROOT / "src").rglob("*.cc")):
        if not path.name.endswith("_test.cc") and path.parent.name != "container":
            found += re.findall(r'fault_point\("([^"]*)"\)', path.read_text())
    return [point for point in found if point.split(".")[0] not in ("suspending", "returning", "waking")]


POINTS = fault_points()


class Faults:
    """A host whose processes die where they are asked to, and a machine in it whose guest writes."""

    def __init__(self, host):
        self.host = host
        self.armed = host.directory / "fault"
        self.machine = Machine.create(host, "db", guest_toml("db", words="", extra=DATA_DISK))
        self.small = Machine.create(host, "small", SMALL)
        self.machine.start()
        self.machine.wait_for_commits(5)

    def run_and_die(self, point, *command):
        """Runs the command while a process is to die at the point; whether it was done all the same. A daemon that died
        runs again afterwards."""
        self.armed.write_text(point)
        done = self.host.run(*command, timeout_s=120)
        victim = wait_until(lambda: self._victim(point), f"a death at {point}: `{' '.join(command)}` says {done.stderr}")
        if victim == self.host.log_path:
            self.host.daemon.wait()
            self.host.start()
        assert not self.armed.exists()
        return done.returncode == 0, victim == self.host.log_path

    def _victim(self, point):
        """The log of the process that died there."""
        logs = [self.host.log_path, *self.host.run_dir.glob("*/*/log")]
        return next((path for path in logs if f"fault point {point}:" in path.read_text(errors="replace")), None)

    def check(self, machine):
        """What is true between commands, whatever happened before: 2 and 3."""
        points = {}
        for noun in ("checkpoint", "refpoint"):
            points[noun] = self.host.points(noun, machine.name)
            for volume in machine.info()["disks"]:
                name = volume["volume"]
                assert set(self.host.points(noun, name)) == set(points[noun]), f"the {noun}s of {name} and of the machine"
        files = {}
        for directory in (machine.directory() / "checkpoints").glob("*"):
            files[directory.name] = {path.name for path in directory.iterdir()}
        assert files == {name: {"checkpoint.json"} | ({"memory", "devices"} if each["memory"] else set())
                         for name, each in points["checkpoint"].items()}
        assert {path.stem for path in (machine.directory() / "refpoints").glob("*")} == set(points["refpoint"])
        if not points["checkpoint"]:
            wait_until(lambda: not list(machine.directory().glob("disks/*/holds/*")), "the end of all holds")
        return points

    def check_guest(self, qemu):
        """1 and 3, of a machine that runs as before."""
        self.machine.wait_for_state("running")
        self.machine.wait_for_agent(30)
        self.machine.wait_for_commits(self.machine.commits() + 3, timeout_s=30)
        assert self.machine.agent().call("guest-fsfreeze-status") == "thawed"
        assert self.machine.info()["pid"] == qemu
        run = self.host.run_dir / "machines/db"
        wait_until(lambda: not any("watchdog" in words for words in self.host.processes().values()), "the watchdog's end")
        wait_until(lambda: not (run / "frozen").exists(), "the end of the mark of a freeze")
        assert {path.name for path in (run / "q").iterdir() if path.is_socket()} == {"agent.sock", "console.sock", "memory.sock", "qmp.sock"}

    def check_next(self, machine):
        """4."""
        self.host.cli("checkpoint", "create", machine.name, "--name", "next", "--no-quiesce", timeout_s=60)
        assert "next" in self.check(machine)["checkpoint"]
        self.host.cli("checkpoint", "delete", f"{machine.name}@next")
        assert "next" not in self.check(machine)["checkpoint"]

    @contextlib.contextmanager
    def forgotten_on_failure(self):
        """What a test that fails leaves behind would have all that come after it fail too."""
        try:
            yield
        except BaseException:
            self.armed.unlink(missing_ok=True)
            for machine in (self.machine, self.small):
                for noun in ("checkpoint", "refpoint"):
                    for name in reversed(self.host.points(noun, machine.name)):
                        self.host.run(noun, "delete", f"{machine.name}@{name}")
            raise

    def delete(self, machine, *names):
        for name in names:
            self.host.cli("checkpoint", "delete", f"{machine.name}@{name}")


@pytest.fixture(scope="module", name="faults")
def _faults():
    with BerthHost(start=False) as host:
        host.environment["BERTH_FAULT_POINTS"] = str(host.directory / "fault")
        host.start()
        yield Faults(host)


def check_made(faults, machine, done, daemon_died, tmp_path):
    """After a creation of "torn" that was cut short: there as a whole, where it can be; else gone."""
    found = faults.check(machine)["checkpoint"]
    assert list(found) in ([], ["torn"])
    if done:
        assert found, "it was made, and is not there"
    elif not daemon_died:
        assert not found, "it could not be made, and is there"
    if found:
        faults.host.json("checkpoint", "export", f"{machine.name}@torn", tmp_path / "export", timeout_s=120)
        faults.delete(machine, "torn")
    faults.check_next(machine)


def make(faults, point, tmp_path):
    machine = faults.machine
    qemu = machine.info()["pid"]
    options = ["--memory"] if "memory" in point else []
    done, daemon_died = faults.run_and_die(point, "checkpoint", "create", "db", "--name", "torn", *options)
    faults.check_guest(qemu)
    check_made(faults, machine, done, daemon_died, tmp_path)


def make_of_one_volume(faults, point, tmp_path):
    done, daemon_died = faults.run_and_die(point, "checkpoint", "create", "small", "--name", "torn")
    check_made(faults, faults.small, done, daemon_died, tmp_path)


def delete(faults, point, tmp_path):
    machine = faults.machine
    qemu = machine.info()["pid"]
    for name in ("before", "torn", "after"):
        machine.checkpoint(name, "--no-quiesce")
    doomed = "torn" if point == "deleting.child" else "after"
    if point == "deleting.child":
        assert machine.checkpoints()["after"]["parent"] == doomed
    faults.run_and_die(point, "checkpoint", "delete", f"db@{doomed}")
    faults.check_guest(qemu)
    left = faults.check(machine)["checkpoint"]
    assert set(left) - {doomed} == {"before", "torn", "after"} - {doomed}
    assert all(each["parent"] is None or each["parent"] in left for each in left.values())
    current = "after" if "after" in left else "torn"
    assert [name for name, each in left.items() if each["current"]] == [current]
    faults.host.json("checkpoint", "export", f"db@{current}", tmp_path / "export", timeout_s=120)
    faults.delete(machine, *left)
    faults.check_next(machine)


def convert(faults, point, tmp_path):
    machine = faults.machine
    qemu = machine.info()["pid"]
    machine.checkpoint("torn", "--no-quiesce")
    done, _ = faults.run_and_die(point, "checkpoint", "convert", "db@torn", "--name", "sunday")
    faults.check_guest(qemu)
    found = faults.check(machine)
    assert (list(found["checkpoint"]), list(found["refpoint"])) in ((["torn"], []), ([], ["sunday"]))
    if done:
        assert found["refpoint"]
    if found["checkpoint"]:
        faults.host.json("checkpoint", "convert", "db@torn", "--name", "sunday")
    machine.checkpoint("monday", "--no-quiesce")
    made = faults.host.json("checkpoint", "export", "db@monday", tmp_path / "export", "--since", "sunday")
    assert made["exact"] is True
    faults.delete(machine, "monday")
    faults.host.cli("refpoint", "delete", "db@sunday")
    faults.check_next(machine)


def forget(faults, point, tmp_path):
    machine = faults.machine
    qemu = machine.info()["pid"]
    machine.checkpoint("torn", "--no-quiesce")
    faults.host.json("checkpoint", "convert", "db@torn")
    faults.run_and_die(point, "refpoint", "delete", "db@torn")
    faults.check_guest(qemu)
    if faults.check(machine)["refpoint"]:
        faults.host.cli("refpoint", "delete", "db@torn")
    machine.checkpoint("torn", "--no-quiesce")
    faults.host.json("checkpoint", "convert", "db@torn")  # the name is free
    faults.host.cli("refpoint", "delete", "db@torn")
    faults.check_next(machine)


def revert(faults, point, tmp_path):
    machine = faults.machine
    machine.checkpoint("here", "--memory")
    machine.agent().write_file("/run/later", b"")
    faults.run_and_die(point, "checkpoint", "revert", "db@here", "--force")
    if machine.state != "running":
        wait_until(lambda: not any("qemu-system" in words for words in faults.host.processes().values()), "QEMU's end")
        wait_until(lambda: not list(faults.host.memory_dir.glob("*/*")), "the end of its memory")
        assert machine.state == "stopped"
        if (machine.directory() / "reverting").exists():
            refused = faults.host.refused("vm", "start", "db")
            assert refused.returncode == 4 and "do it again" in refused.stderr, refused.stderr
    faults.host.cli("checkpoint", "revert", "db@here", "--force", timeout_s=120)
    assert machine.agent().run("test -e /run/later")[0] == 1, "it has not gone back"
    faults.check_guest(machine.info()["pid"])
    assert faults.check(machine)["checkpoint"]["here"]["current"]
    faults.delete(machine, "here")
    faults.check_next(machine)


SCENARIOS = {"making": make, "freezing": make, "memory": make, "cutting": make, "one-volume": make_of_one_volume,
             "deleting": delete, "converting": convert, "forgetting": forget, "reverting": revert, "resuming": revert}


def test_every_point_is_known_by_one_name_and_belongs_to_something():
    assert len(POINTS) == len(set(POINTS)) and len(POINTS) > 40
    assert {point.split(".")[0] for point in POINTS} == set(SCENARIOS)


def test_a_machine_that_a_dead_keeper_had_slowed_is_as_fast_as_before(faults):
    """As a keeper slows one that writes its memory faster than it can be saved; how fast is a matter of luck here."""
    limits = [path for name in ("cpu.cfs_quota_us", "cpu.max") for path in pathlib.Path("/sys/fs/cgroup").rglob(f"berth/db-*/{name}")]
    if not limits:
        pytest.skip("this host has no control group for processors that Berth may use")
    for path in limits:
        path.write_text("50000")
    pid = faults.machine.keeper_pid()
    os.kill(pid, signal.SIGKILL)
    wait_for_exit(pid)
    wait_until(lambda: all(path.read_text().split()[0] in ("-1", "max") for path in limits), "the end of its being slow")
    faults.machine.wait_for_state("running")


@pytest.mark.parametrize("point", POINTS)
def test_a_process_dies_at(faults, tmp_path, point):
    with log_on_failure(faults.host), faults.forgotten_on_failure():
        SCENARIOS[point.split(".")[0]](faults, point, tmp_path)
