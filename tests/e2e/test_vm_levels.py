"""Machines that are suspended, deeper and deeper: frozen, trimmed, parked, hibernated; and what goes on from each. The guest
writes its memory all the while and compares what it reads with what it wrote; from the host, all of it is summed before
and after every move, while the machine stands still."""

import contextlib
import hashlib
import itertools
import os
import pathlib
import random
import re
import signal
import subprocess
import time

import pytest

from berth_host import BerthHost, program, wait_for_exit
from machine_host import Machine
from volume_tools import log_on_failure, wait_until

MIB = 1 << 20
MEMORY = 160 * MIB
WORDS = "berth.load=off berth.dirty=16:32"  # MiB a second, MiB in all


@pytest.fixture(scope="module", name="host")
def _host():
    with BerthHost(start=False) as host:
        host.environment["BERTH_FAULT_POINTS"] = str(host.directory / "fault")
        host.start()
        yield host


@pytest.fixture(scope="module", name="web")
def _web(host):
    machine = Sleeper.create(host, "web", words=WORDS, memory="160M")
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
        self.wait_for_state("running")
        assert self.info()["pause"] is None
        self.wait_for_agent(30)
        swept = self.agent().sweep_memory(30)
        assert swept["mismatches"] == 0, swept

    def time_off(self):
        """Its clock's, in seconds."""
        return abs(float(self.agent().run("date +%s.%N")[1]) - time.time())

    def qemu_pid(self):
        return next((pid for pid, words in self.host.processes().items() if words.startswith("qemu") or "/qemu-system" in words.split()[0]), None)

    def assert_files_alone(self):
        """Neither process nor memory nor open disk is left of it; all that it goes on from is there."""
        wait_until(lambda: not any(f"machines/{self.name}" in words or f"--machine {self.name} " in words or f"{self.name}.root" in words
                                   for words in self.host.processes().values()), "the end of its processes")
        assert not list(self.host.memory_dir.glob("*/*"))
        names = {path.name for path in self.directory().iterdir()}
        assert {"hibernation.json", "hibernated-devices"} <= names and len(self.pages()) == 1, names

    def settle(self):
        """After a process has died: somebody knows what it is doing."""
        wait_until(lambda: self.state in ("running", "suspended", "hibernated"), "its having a state")

    def come_back(self):
        if self.state != "running":
            self.resume()

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
    assert pause["before"]["memory"] > 32 * MIB and pause["after"]["memory"] == 0 and pause["page_file_bytes"] > 32 * MIB
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
            wait_until(lambda: machine.resident() > 64 << 10, "the firmware's having written something")
            rest = tmp_path / "rest"
            subprocess.run(["dd", "if=/dev/zero", f"of={rest}", "bs=1M"], capture_output=True, check=False)
            for state, level in itertools.product(("running", "suspended"), ("parked", "hibernated")):
                if state == "suspended":
                    machine.suspend()
                refused = host.refused("vm", "suspend", "small", "--level", level)
                assert "No space left" in refused.stderr, refused.stderr
                assert machine.state == state and machine.pages() == [] and not list(machine.directory().glob("hibernat*"))
            rest.unlink()
            assert machine.suspend("parked")["pause"]["level"] == "parked"
            assert machine.suspend("hibernated")["pause"]["level"] == "hibernated"
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


# --- Hibernated.

def test_hibernated_it_is_files_alone_and_goes_on_as_it_was(host, web):
    written = web.agent().run("head -c 8000000 /dev/urandom >/var/written; sha256sum /var/written")[1]
    web.suspend()
    before, _ = web.memory()
    info = web.suspend("hibernated")
    assert info["state"] == "hibernated" and info["pid"] is None and info["pause"]["level"] == "hibernated"
    assert info["pause"]["page_file_bytes"] > 32 * MIB
    assert host.json("vm", "list")["machines"][0]["level"] == "hibernated"
    web.assert_files_alone()
    host.restart(kill=True)
    web.suspend("hibernated")  # it is
    assert "hibernated already" in host.refused("vm", "suspend", "web").stderr
    assert web.state == "hibernated"
    host.cli("vm", "start", "web", "--suspended")
    assert web.info()["pause"]["level"] == "parked" and web.memory()[0] == before
    assert not (web.directory() / "hibernation.json").exists()
    web.suspend("hibernated")
    web.assert_files_alone()
    begun = time.monotonic()
    web.resume()
    web.agent().ping()
    print("went on and answered after", round((time.monotonic() - begun) * 1000), "ms")
    wait_until(lambda: web.time_off() < 1, "the guest's clock's being right")
    web.check()
    # What it had not written out is, and its disk is the one that it remembers.
    assert web.agent().run("sync; echo 3 >/proc/sys/vm/drop_caches; sha256sum /var/written")[1] == written
    web.checkpoint("after", "--memory")
    host.cli("checkpoint", "delete", "web@after")
    web.check()


def test_while_it_is_hibernated_nothing_changes_under_it(host, web, tmp_path):
    web.checkpoint("before", "--no-quiesce")
    host.create("other", "16M")
    web.suspend("hibernated")
    for command in (["delete", "web"], ["set", "web", "--memory", "256M"], ["set", "web", "--cpus", "2"], ["attach", "web", "other"],
                    ["detach", "web", "root"]):
        refused = host.refused("vm", *command)
        assert refused.returncode == 4 and "hibernated: resume it first" in refused.stderr, (command, refused.stderr)
    assert "hibernated" in host.refused("vm", "export", "web", tmp_path / "export").stderr
    assert "hibernated" in host.refused("checkpoint", "revert", "web@before").stderr
    assert "hibernated" in host.refused("checkpoint", "create", "web", "--name", "memory", "--memory").stderr
    for command in (["volume", "serve", "web.root"], ["volume", "resize", "web.root", "--size", "2G"], ["checkpoint", "revert", "web.root@before"],
                    ["volume", "check", "web.root", "--repair"], ["volume", "delete", "web.root"]):
        refused = host.refused(*command)
        assert "machine 'web'" in refused.stderr, (command, refused.stderr)
    web.checkpoint("meanwhile")  # the disks alone, which stay as they are
    host.cli("vm", "set", "web", "--autostart", "on")
    web.assert_files_alone()
    web.resume()
    web.check()
    for name in ("before", "meanwhile"):
        host.cli("checkpoint", "delete", f"web@{name}")
    host.cli("volume", "delete", "other")


def test_what_cannot_go_on_stays_hibernated_and_says_why(host, web):
    web.suspend("hibernated")
    record = web.directory() / "hibernation.json"
    devices = web.directory() / "hibernated-devices"
    pages = web.directory() / web.pages()[0]
    text = record.read_text()
    whole = devices.read_bytes()

    def refused(words):
        for verb in ("resume", "start"):
            says = host.refused("vm", verb, "web")
            assert words in says.stderr, says.stderr
            assert web.state == "hibernated"
        web.assert_files_alone()

    record.write_text(re.sub(r'"qemu": "[^"]*"', '"qemu": "1.2.3"', text, count=1))
    refused("of QEMU 1.2.3")
    record.write_text(re.sub(r'"accelerator": "[^"]*"', '"accelerator": "none"', text))
    refused("(none)")
    record.write_text(text.replace('"root"', '"boot"').replace("disk-root", "disk-boot").replace("web.root", "web.boot"))
    refused("disks are another now")
    record.write_text("{")
    refused("cannot be read")
    record.write_text(text)
    devices.write_bytes(whole[:-1] + b"?")
    refused("is not what was written to it")
    devices.write_bytes(whole)
    pages.rename(pages.with_suffix(".away"))
    refused("pages-")
    pages.with_suffix(".away").rename(pages)
    web.resume()
    web.check()


@pytest.mark.parametrize("point", ["suspending.pages-saved", "suspending.devices-saved", "suspending.recorded", "waking.loaded",
                                   "waking.about-to-run"])
def test_a_keeper_dies_while_it_hibernates_or_wakes_it(host, web, point):
    with log_on_failure(host):
        if point.startswith("waking"):
            web.suspend("hibernated")
        (host.directory / "fault").write_text(point)
        host.run("vm", *(["suspend", "web", "--level", "hibernated"] if point.startswith("suspending") else ["resume", "web"]), timeout_s=60)
        assert not (host.directory / "fault").exists()
        web.settle()
        hibernated = (web.directory() / "hibernation.json").exists()
        assert hibernated == (point in ("suspending.recorded", "waking.loaded"))
        web.come_back()
        web.check()


def test_processes_die_at_any_moment_of_it(host, web):
    chance = random.Random(14)
    with log_on_failure(host):
        for victim in ("keeper", "daemon", "qemu", "keeper"):
            # QEMU's death while it runs is a crash; when it is saved, or while it is brought back, it is none.
            verb = "resume" if victim == "qemu" else chance.choice(["suspend", "resume"])
            if verb == "resume":
                web.suspend("hibernated")
            arguments = ["vm", verb, "web"] + (["--level", "hibernated"] if verb == "suspend" else [])
            running = subprocess.Popen([program(), *arguments], env=host.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                if victim == "qemu":
                    pid = wait_until(lambda: running.poll() is not None or web.qemu_pid(), "QEMU")
                    pid = web.qemu_pid() if (web.directory() / "hibernation.json").exists() else None
                else:
                    time.sleep(chance.uniform(0.02, 0.6))
                    pid = web.keeper_pid()
                if victim == "daemon":
                    host.restart(kill=True)
                elif pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    wait_for_exit(pid)
            finally:
                running.wait(60)
            web.settle()
            web.come_back()
            web.check()


def test_it_is_stopped_from_any_level_and_nothing_is_left(host, web):
    web.suspend("parked")
    os.kill(web.info()["pid"], signal.SIGKILL)  # its on_crash: it is started again, and stands still
    wait_until(lambda: (web.info().get("pause") or {}).get("level") == "frozen", "the next QEMU")
    assert web.pages() == []
    web.resume()
    web.wait_for_agent()
    web.suspend("hibernated")
    web.stop()  # it goes on, to shut down
    info = web.info()
    assert info["state"] == "stopped" and web.pages() == []
    web.start(wait=False)
    web.suspend("hibernated")
    web.stop("--force")
    assert web.state == "stopped" and "it was hibernated" in web.info()["last_end"]
    assert web.pages() == [] and not list(web.directory().glob("hibernat*"))
    host.cli("vm", "delete", "web")
    assert not list((host.state_dir / "machines").iterdir())
