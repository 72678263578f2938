"""Memory of a running QEMU, without the rest of Berth: that what is copied in rounds is the memory byte for byte, that
another QEMU goes on from it, and that what cannot be tracked does not run or is refused.

The guest writes all the time in three ways: stores of its own (guest_writer.c, which also looks at what it has
written), what its disk's data brings into it, which QEMU receives from a socket, and a database."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest

import guest
import guest_verify
from memory_fixture.machine import USER, MemoryMachine, fixture

_MEMORY_MIB = 256
_READER = "(while :; do echo 3 >/proc/sys/vm/drop_caches; cat /dev/vda >/dev/null; done) </dev/null >/dev/null 2>&1 &"


class DiskServer:
    """qemu-nbd, which QEMU reaches through a socket: as Berth's keeper serves disks."""

    def __init__(self, disk, socket):
        self.socket = socket
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "qemu-nbd", "--format=raw", "--persistent", "--shared=4", "--discard=unmap",
             f"--socket={socket}", "--export-name=root", disk])
        deadline = time.monotonic() + 10
        while subprocess.run(["nbdinfo", "--size", f"nbd+unix:///root?socket={socket}"], capture_output=True,
                             check=False).returncode != 0:
            assert time.monotonic() < deadline and self._process.poll() is None, "qemu-nbd does not serve"
        os.chown(socket, USER, USER)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module", name="directory")
def _directory():
    path = pathlib.Path(tempfile.mkdtemp(prefix="berth-test-", dir="/var/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path)


def _sectors_read(machine):
    _, output, _ = machine.guest.agent.run("cat /sys/block/vda/stat")
    return int(output.split()[2])


def _boot_id(machine):
    return machine.guest.agent.read_file("/proc/sys/kernel/random/boot_id")


def _take(machine, directory, name, *options):
    """A checkpoint that is compared with the memory while the machine still stands; says whether they are alike."""
    report = machine.checkpoint(directory, name, "--leave-stopped", *options)
    alike = fixture("difference", directory / f"{name}.ram", machine.memory) == "none"
    return report, alike


@pytest.fixture(scope="module", name="history")
def _history(directory):
    """A guest under load, of which checkpoints were made: what was seen."""
    disk = guest.copy_disk(directory / "disk.raw")
    seen = {"checkpoints": []}
    with DiskServer(disk, directory / "nbd.sock") as server, \
            MemoryMachine(memory_mib=_MEMORY_MIB, nbd=server.socket, export="root") as machine:
        machine.guest.wait_for_agent()
        machine.guest.wait_for_commits(20)
        seen["boot_id"] = _boot_id(machine)  # Linux draws it when it is first read
        machine.start_writer(64, 100)
        machine.wait_for_passes(2)
        machine.guest.agent.run(_READER)
        for number in range(3):
            sectors = _sectors_read(machine)
            # So that there is something to be missed: all of it was written since the last one.
            passes, _ = machine.wait_for_passes(machine.writer()[0] + 2)
            report, alike = _take(machine, directory, f"image-{number}")
            if number == 2:
                subprocess.run(["cp", "--sparse=always", disk, directory / "copy.raw"], check=True)
            machine.guest.resume()
            seen["checkpoints"].append({"report": report, "alike": alike, "passes": passes,
                                        "mib_read": (_sectors_read(machine) - sectors) / 2048})
        seen["committed"] = machine.guest.wait_for_commits(machine.guest.committed() + 5)
        seen["writer"] = machine.wait_for_passes(machine.writer()[0] + 2)
        _, seen["wrong_is_alike"] = _take(machine, directory, "wrong", "--forget-last-round")
    return seen


def test_copies_of_a_running_machine_are_its_memory_byte_for_byte(history):
    for checkpoint in history["checkpoints"]:
        assert checkpoint["alike"], checkpoint
        assert checkpoint["report"]["rounds"], "nothing was copied while it ran"
    assert sum(checkpoint["mib_read"] for checkpoint in history["checkpoints"]) > 64, "the disk's data did not take part"


def test_the_machine_goes_on_and_finds_its_memory_as_it_left_it(history):
    passes, bad = history["writer"]
    assert passes > history["checkpoints"][-1]["passes"]
    assert bad == 0


def test_a_copy_without_its_last_round_is_found_out(history):
    assert not history["wrong_is_alike"]


def test_another_qemu_goes_on_from_the_image_and_the_disk_of_the_same_instant(history, directory):
    disk = directory / "copy.raw"
    os.chown(disk, USER, USER)
    taken = history["checkpoints"][2]
    with MemoryMachine(memory_mib=_MEMORY_MIB, raw=disk, image=directory / "image-2.ram",
                       state=directory / "image-2.state") as machine:
        # It has not run yet: loading the devices' state has changed nothing.
        assert fixture("difference", directory / "image-2.ram", machine.memory) == "none"
        machine.guest.resume()
        machine.guest.wait_for_agent()
        assert _boot_id(machine) == history["boot_id"]
        # The writer looks at every page once a pass.
        passes, bad = machine.wait_for_passes(max(machine.writer()[0], taken["passes"]) + 3)
        assert bad == 0, f"{bad} pages of another instant after {passes} passes"
        machine.guest.wait_for_commits(machine.guest.committed() + 20)
        # It is tracked like the first one.
        _, alike = _take(machine, directory, "later")
        assert alike
        machine.guest.resume()
        committed = machine.guest.committed()
        machine.guest.power_off()
    facts = guest_verify.verify(disk, committed)
    assert facts["problems"] == [], facts


def test_a_machine_without_the_preload_is_refused(directory):
    disk = guest.copy_disk(directory / "untracked.raw")
    os.chown(disk, USER, USER)
    with MemoryMachine(memory_mib=_MEMORY_MIB, raw=disk, preload=False, words="berth.load=off") as machine:
        machine.guest.wait_for_agent()
        with pytest.raises(AssertionError, match="is not tracked"):
            machine.checkpoint(directory, "untracked")
        assert not (directory / "untracked.ram").exists()
        machine.guest.agent.ping()
    os.unlink(disk)


def test_qemu_does_not_run_when_its_memory_cannot_be_tracked(directory):
    disk = guest.copy_disk(directory / "private.raw")
    os.chown(disk, USER, USER)
    with pytest.raises(guest.GuestError, match="libberth-preload.so: the machine's memory cannot be tracked: .*share=on"):
        with MemoryMachine(memory_mib=_MEMORY_MIB, raw=disk, share="off") as machine:
            machine.guest.wait_for_agent()
    os.unlink(disk)
