"""Real microVMs that are parked and go on: clones, and those with memory of their own. What is compared is the memory as the
machine sees it, before and after, while it stands still, and sums that the guest makes of its files in memory."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import page_file
import pytest

from memory_fixture.machine import fixture
from memory_fixture.micro_vm import BootFiles, CloneMicroVm, OwnMicroVm, checksum

MIB = 1 << 20

_MEMORY_MIB = 256
_SUM = "sha256sum /tmp/a /tmp/b"


@pytest.fixture(scope="module", name="files")
def _files():
    with BootFiles() as files:
        yield files


@pytest.fixture(scope="module", name="template")
def _template(files):
    place = pathlib.Path(tempfile.mkdtemp(prefix="berth-test-", dir="/dev/shm"))
    place.chmod(0o711)
    try:
        with OwnMicroVm(files, _MEMORY_MIB) as machine:
            machine.agent.shell("dd if=/dev/urandom of=/tmp/a bs=1M count=16 2>/dev/null")
            template = machine.become_template(place)
        before = checksum(template.memory)
        yield template
        assert checksum(template.memory) == before, "a parked clone has changed its template"
    finally:
        shutil.rmtree(place)


@pytest.fixture(name="place")
def _place():
    with tempfile.TemporaryDirectory(prefix="berth-test-", dir="/var/tmp") as place:
        os.chmod(place, 0o711)
        yield pathlib.Path(place)


@pytest.fixture(name="machine", params=["clone", "own"])
def _machine(request):
    if request.param == "clone":
        with CloneMicroVm(request.getfixturevalue("template")) as machine:
            yield machine
    else:
        with OwnMicroVm(request.getfixturevalue("files"), _MEMORY_MIB) as machine:
            machine.agent.shell("dd if=/dev/urandom of=/tmp/a bs=1M count=16 2>/dev/null")
            yield machine


def _fill(machine, mib):
    machine.agent.shell(f"dd if=/dev/urandom of=/tmp/b bs=1M count={mib} 2>/dev/null")


def _park(machine, path):
    """Stops it; the report, and the memory as it was before, in a file that is compared with what it is afterwards."""
    dumps = [path.with_suffix(suffix) for suffix in (".before", ".after")]
    machine.stop()
    machine.parking("dump", dumps[0])
    report = machine.parking("park", path)
    machine.parking("dump", dumps[1])
    assert subprocess.run(["cmp", *dumps], check=False).returncode == 0, "the memory is another one"
    dumps[1].unlink()
    return report, dumps[0]


def test_the_memory_comes_back_as_it_was(machine, place):
    _fill(machine, 32)
    sums = machine.agent.shell(_SUM)
    report, _ = _park(machine, place / "1")
    assert report["before"]["guest"] > 32 * MIB
    assert report["after"]["guest"] == 0
    machine.resume()
    assert machine.agent.shell(_SUM) == sums
    assert machine.parking("mapped", place / "1")["mapped"]


def test_a_page_file_is_the_memory(machine, place):
    _fill(machine, 8)
    report, before = _park(machine, place / "1")
    held = page_file.held(place / "1")
    assert sum(length for _, length in held) == report["mapped"] > 8 * MIB
    with open(place / "1", "rb") as pages, open(before, "rb") as memory:
        for offset, length in held:
            pages.seek(offset)
            memory.seek(offset)
            assert pages.read(length) == memory.read(length), f"granule at {offset}"
    # No page of zeros takes space.
    assert (place / "1").stat().st_blocks * 512 <= report["written"] + 8192 + 65536
    machine.resume()
    machine.agent.shell("true")


def test_parked_again_it_writes_what_is_new(machine, place):
    _fill(machine, 64)
    first, _ = _park(machine, place / "1")
    machine.resume()
    machine.agent.shell("dd if=/dev/urandom of=/tmp/a bs=1M count=4 2>/dev/null")
    sums = machine.agent.shell(_SUM)
    second, _ = _park(machine, place / "2")
    assert second["written"] < first["written"] / 2
    assert second["after"]["guest"] == 0
    machine.resume()
    assert machine.agent.shell(_SUM) == sums
    for path in (place / "1", place / "2"):
        assert machine.parking("mapped", path)["mapped"]


def test_what_it_needs_first_is_read_ahead(machine, place):
    _fill(machine, 32)
    machine.stop()
    machine.parking("park", place / "1")
    machine.resume()
    machine.agent.shell("true")
    touched = machine.parking("working-set", place / "1")["bytes"]
    assert 0 < touched < 32 * MIB
    _park(machine, place / "2")
    assert machine.parking("prefetch", place / "1")["bytes"] == touched
    machine.resume()
    machine.agent.shell("true")


def test_a_full_disk_leaves_the_machine_running(machine, place):
    _fill(machine, 32)
    sums = machine.agent.shell(_SUM)
    machine.stop()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "none", place], check=True)
    try:
        with pytest.raises(AssertionError, match="no_space: .*No space left"):
            machine.parking("park", place / "1")
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", place], check=True)
    machine.resume()
    assert machine.agent.shell(_SUM) == sums
    report, _ = _park(machine, place / "1")
    assert report["after"]["guest"] == 0
    machine.resume()
    assert machine.agent.shell(_SUM) == sums


def test_whoever_parks_it_may_die_at_any_time(machine, place):
    _fill(machine, 16)
    sums = machine.agent.shell(_SUM)
    ended = 0
    for number in range(6):
        machine.stop()
        keeper = subprocess.Popen(machine.parking_command("park", place / str(number)), stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            keeper.wait(0.01 + 0.02 * number)
        keeper.kill()
        ended += keeper.wait() == 0
        machine.resume()
        assert machine.agent.shell(_SUM) == sums, f"killed the {number + 1}th time"
    assert ended < 6
    report, _ = _park(machine, place / "last")
    assert report["after"]["guest"] == 0
    machine.resume()
    assert machine.agent.shell(_SUM) == sums


def test_memory_of_its_own_is_tracked_again_once_it_is_back(files, place):
    with OwnMicroVm(files, _MEMORY_MIB) as machine:
        machine.agent.shell("dd if=/dev/urandom of=/tmp/a bs=1M count=16 2>/dev/null; cp /tmp/a /tmp/b")
        sums = machine.agent.shell(_SUM)
        _, before = _park(machine, place / "1")
        assert pathlib.Path(machine.memory).stat().st_blocks == 0
        machine.parking("restore")
        assert subprocess.run(["cmp", before, machine.memory], check=False).returncode == 0
        assert not machine.parking("mapped", place / "1")["mapped"]
        (place / "1").unlink()
        machine.resume()
        assert machine.agent.shell(_SUM) == sums
        fixture("checkpoint", "--pid", machine.pid, "--memory", machine.memory, "--qmp", machine.qmp_path, "--image",
                place / "image", "--state", place / "state", "--leave-stopped")
        assert fixture("difference", place / "image", machine.memory) == "none"


def test_figures(files, place):
    memory_place = pathlib.Path(tempfile.mkdtemp(prefix="berth-test-", dir="/dev/shm"))
    memory_place.chmod(0o711)
    try:
        with OwnMicroVm(files, 3 * _MEMORY_MIB) as machine:
            machine.agent.shell("true")
            template = machine.become_template(memory_place)
        for mib in (64, 256):
            with CloneMicroVm(template) as machine:
                _measure(machine, mib, place / str(mib))
    finally:
        shutil.rmtree(memory_place)


def _measure(machine, mib, place):
    def answer_ms():
        machine.resume()
        started = time.monotonic()
        machine.agent.shell("true")
        return 1000 * (time.monotonic() - started)

    place.mkdir()
    _fill(machine, mib)
    machine.stop()
    first = machine.parking("park", place / "1")
    first_ms = answer_ms()
    machine.parking("working-set", place / "1")
    back_ms = machine.parking("read")["ms"]
    before, after = first["before"], first["after"]
    assert after["guest"] == 0
    print(f"\n{before['guest'] / MIB:.0f} MiB private: parked in {first['ms']:.0f} ms, {first['written'] / MIB:.0f} MiB written, "
          f"{first['mappings']} mappings; QEMU's own {before['process'] / MIB:.0f} to {after['process'] / MIB:.0f} MiB; "
          f"an answer {first_ms:.0f} ms after resume; all read in {back_ms:.0f} ms")
    machine.stop()
    again = machine.parking("park", place / "2")
    ahead = machine.parking("prefetch", place / "1")["bytes"]
    print(f"parked again in {again['ms']:.0f} ms, {again['written'] / MIB:.1f} MiB written; {ahead / MIB:.1f} MiB read ahead, "
          f"then an answer {answer_ms():.0f} ms after resume")
