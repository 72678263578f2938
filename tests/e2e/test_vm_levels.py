"""Machines that are suspended, deeper and deeper: frozen, trimmed, parked; and what goes on from each level. The guest
writes its memory all the while and compares what it reads with what it wrote; from the host, all of it is summed before
and after every move, while the machine stands still."""

import hashlib
import os
import pathlib
import signal
import subprocess
import time

import pytest

from berth_host import BerthHost, wait_for_exit
from machine_host import Machine
from volume_tools import log_on_failure, wait_until

MIB = 1 << 20
MEMORY = 256 * MIB
WORDS = "berth.load=off berth.dirty=16:48"  # MiB a second, MiB in all


@pytest.fixture(scope="module", name="host")
def _host():
    with BerthHost(start=False) as host:
        host.environment["BERTH_FAULT_POINTS"] = str(host.directory / "fault")
        host.start()
        yield host


@pytest.fixture(scope="module", name="web")
def _web(host):
    machine = Sleeper.create(host, "web", words=WORDS)
    machine.start()
    wait_until(machine.agent().dirty, "the guest's writing its memory")
    return machine


class Sleeper(Machine):
    def suspend(self, level="frozen", **options):
        return self.host.json("vm", "suspend", self.name, "--level", level, **options)

    def resume(self):
        self.host.cli("vm", "resume", self.name)

    def pages(self):
        return sorted(path.name for path in self.directory().glob("pages-*"))

    def resident(self):
        return sum(path.stat().st_blocks * 512 for path in self.host.memory_dir.glob("*/ram"))

    def memory(self):
        """Of QEMU's own mappings, as its guest sees it; (sum, how much of it is the memory object's)."""
        pid = self.info()["pid"]
        shared = 0
        begin = None
        for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
            addresses, permissions, offset, _, _, *path = line.split(maxsplit=5)
            first, last = (int(word, 16) for word in addresses.split("-"))
            if path and str(self.host.memory_dir) in path[0]:
                begin = begin if begin is not None else first - int(offset, 16)
                shared += last - first if permissions.endswith("s") else 0
            elif path and f"/machines/{self.name}/pages-" in path[0]:
                begin = begin if begin is not None else first - int(offset, 16)
        total = hashlib.sha256()
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            memory.seek(begin)
            for _ in range(MEMORY // (4 * MIB)):
                part = b""
                while len(part) < 4 * MIB:
                    part += memory.read(4 * MIB - len(part))
                total.update(part)
        return total.hexdigest(), shared

    def check(self):
        """It runs, it writes, and what it reads is what it wrote."""
        info = self.info()
        assert info["state"] == "running" and info["pause"] is None
        self.wait_for_agent(30)
        swept = self.agent().sweep_memory(30)
        assert swept["mismatches"] == 0, swept

    def time_off(self):
        """Its clock's, in seconds."""
        return abs(float(self.agent().run("date +%s.%N")[1]) - time.time())

    def kill_keeper(self):
        mark = self.host.last_event()
        pid = self.keeper_pid()
        os.kill(pid, signal.SIGKILL)
        wait_for_exit(pid)
        self.host.wait_for_event("keeper_started", since=mark)


def test_frozen_is_what_suspend_does_and_its_clock_is_set(host, web):
    info = web.suspend()
    assert info["state"] == "suspended" and info["pause"]["level"] == "frozen" and info["pause"]["before"] is None
    assert "suspended (frozen)" in host.cli("vm", "list") and "suspended (frozen)" in host.cli("vm", "info", "web")
    assert host.json("vm", "list")["machines"][0]["level"] == "frozen"
    before, shared = web.memory()
    assert shared == MEMORY
    time.sleep(3)
    assert web.memory()[0] == before and web.pages() == []
    web.suspend()  # it is
    web.resume()
    wait_until(lambda: web.time_off() < 1, "the guest's clock's being right")
    web.check()


def test_trimmed_it_needs_swap(host, web):
    swap = host.json("host", "swap")
    if not swap["areas"]:
        refused = host.refused("vm", "suspend", "web", "--level", "trimmed")
        assert refused.returncode == 4 and "berth host swap" in refused.stderr
        web.check()
    if not swap["has_zram"] or any(area["ours"] for area in swap["areas"]):
        pytest.skip("this host has no zram, or swap of Berth's, which is not for tests")
    try:
        host.cli("host", "swap", "--zram", "384M")
        web.suspend()
        before, _ = web.memory()
        pause = web.suspend("trimmed")["pause"]
        assert pause["after"]["memory"] < pause["before"]["memory"] / 4
        assert web.memory()[0] == before
        web.resume()
        web.check()
    finally:
        host.cli("host", "swap", "--undo")


def test_parked_its_memory_is_on_the_disk_and_comes_back_as_it_was(host, web):
    web.suspend()
    before, _ = web.memory()
    info = web.suspend("parked")
    pause = info["pause"]
    assert info["state"] == "suspended" and pause["level"] == "parked"
    assert pause["before"]["memory"] > 48 * MIB and pause["after"]["memory"] == 0 and pause["page_file_bytes"] > 48 * MIB
    assert web.pages() == ["pages-1"]
    assert web.resident() == 0
    assert web.memory()[0] == before
    refused = host.refused("vm", "suspend", "web", "--level", "frozen")
    assert refused.returncode == 4 and "parked already" in refused.stderr
    begun = time.monotonic()
    web.resume()
    web.agent().ping()
    print("resumed and answered after", round((time.monotonic() - begun) * 1000), "ms")
    web.check()
    # Again, and what is new goes to another file.
    again = web.suspend("parked")["pause"]
    assert again["after"]["memory"] == 0 and "pages-2" in web.pages()
    web.resume()
    web.check()


def test_a_keeper_that_dies_leaves_a_parked_machine_parked(host, web):
    parked = web.suspend("parked")["pause"]
    before, _ = web.memory()
    web.kill_keeper()
    assert web.info()["pause"] == parked
    host.restart(kill=True)
    assert web.info()["pause"] == parked and web.memory()[0] == before
    web.resume()
    web.check()


def test_a_checkpoint_with_memory_has_all_of_it_and_it_is_tracked_again(host, web):
    assert web.pages()
    assert web.memory()[1] < MEMORY
    made = web.checkpoint("runs", "--memory")
    assert made["memory"] and web.pages() == [] and web.memory()[1] == MEMORY
    web.check()
    web.suspend("parked")
    before, _ = web.memory()
    web.checkpoint("parked", "--memory")
    info = web.info()
    assert info["state"] == "suspended" and info["pause"]["level"] == "frozen" and web.pages() == []
    assert web.memory() == (before, MEMORY)
    web.resume()
    web.check()
    web.agent().write_file("/run/later", b"")
    host.cli("checkpoint", "revert", "web@parked", "--force", timeout_s=120)
    assert web.state == "suspended" and web.memory()[0] == before
    web.resume()
    web.check()
    assert web.agent().run("test -e /run/later")[0] == 1
    for name in ("runs", "parked"):
        host.cli("checkpoint", "delete", f"web@{name}")


SMALL = 'name = "small"\nmemory = "128M"\ndisk = [{name = "root", size = "16M"}]\n'


def test_a_full_disk_leaves_it_as_it_was(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64M", "none", tmp_path], check=True)
    try:
        with BerthHost(state_dir=tmp_path / "state") as host:
            machine = Sleeper.create(host, "small", toml=SMALL)
            machine.start(wait=False)
            wait_until(lambda: machine.resident() > 2 * MIB, "the firmware's having written something")
            rest = tmp_path / "rest"
            subprocess.run(["dd", "if=/dev/zero", f"of={rest}", "bs=1M"], capture_output=True, check=False)
            for state in ("running", "suspended"):
                if state == "suspended":
                    machine.suspend()
                refused = host.refused("vm", "suspend", "small", "--level", "parked")
                assert "No space left" in refused.stderr, refused.stderr
                assert machine.state == state and machine.pages() == []
            rest.unlink()
            assert machine.suspend("parked")["pause"]["level"] == "parked"
            machine.stop("--force")
            assert machine.pages() == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("point", ["suspending.stands", "suspending.moved", "returning.stands", "returning.piece"])
def test_a_keeper_dies_at(host, web, point):
    with log_on_failure(host):
        if point.startswith("returning"):
            web.suspend("parked")
            web.resume()
        mark = host.last_event()
        (host.directory / "fault").write_text(point)
        command = ["vm", "suspend", "web", "--level", "parked"] if point.startswith("suspending") else ["checkpoint", "create", "web", "--name", "torn", "--memory"]
        assert host.run(*command, timeout_s=60).returncode != 0
        host.wait_for_event("keeper_started", since=mark)
        if point.startswith("suspending"):
            assert web.info()["pause"]["level"] == "frozen"
            web.suspend("parked")
            web.resume()
        web.check()
        web.checkpoint("next", "--memory")
        host.cli("checkpoint", "delete", "web@next")
        assert web.pages() == []
        web.check()


def test_it_is_stopped_from_any_level_and_nothing_is_left(host, web):
    web.suspend("parked")
    web.stop()
    assert web.state == "stopped" and web.pages() == []
    web.start()
    web.suspend("parked")
    os.kill(web.info()["pid"], signal.SIGKILL)
    web.wait_for_state("suspended")  # its on_crash: it is started again, and stands still
    wait_until(lambda: web.info().get("pause") and web.info()["pause"]["level"] == "frozen", "the next QEMU")
    assert web.pages() == []
    web.stop("--force")
    host.cli("vm", "delete", "web")
    assert not list((host.state_dir / "machines").iterdir())
