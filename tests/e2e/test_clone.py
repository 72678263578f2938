"""Clones of a real microVM: many go on from one sealed memory and one state of devices, each with its own changes, and the
template stays what it was, byte for byte, whatever becomes of them."""

import contextlib
import pathlib
import shutil
import tempfile
import time

import guest
import pytest

from memory_fixture.micro_vm import BootFiles, CloneMicroVm, OwnMicroVm, checksum

MIB = 1 << 20
_WRITE = "dd if=/dev/urandom of=/tmp/random bs=1M count={mib} 2>/dev/null; echo {name} >/tmp/name; sha256sum </tmp/random"


@pytest.fixture(scope="module", name="template")
def _template():
    place = pathlib.Path(tempfile.mkdtemp(prefix="berth-test-", dir="/dev/shm"))
    place.chmod(0o711)
    try:
        with BootFiles() as files:
            with OwnMicroVm(files) as machine:
                machine.agent.shell("dd if=/dev/urandom of=/tmp/before bs=1M count=16 2>/dev/null; "
                                    "sha256sum </tmp/before >/tmp/before.sum")
                template = machine.become_template(place)
            yield template
    finally:
        shutil.rmtree(place)


@pytest.fixture(name="unchanged", autouse=True)
def _unchanged(template):
    before = checksum(template.memory)
    yield
    assert checksum(template.memory) == before, "a clone has changed its template"


def test_clones_answer_and_each_has_its_own_memory(template):
    assert len(template.state) < MIB, "the memory is in the state of the devices"
    with contextlib.ExitStack() as stack:
        clones = [stack.enter_context(CloneMicroVm(template)) for _ in range(3)]
        sums = [clone.agent.shell(_WRITE.format(mib=8, name=name)) for name, clone in enumerate(clones)]
        assert len(set(sums)) == len(clones)
        for name, clone in enumerate(clones):
            assert clone.agent.shell("cat /tmp/name; sha256sum </tmp/random") == f"{name}\n{sums[name]}"
            assert clone.agent.shell("sha256sum </tmp/before | cmp - /tmp/before.sum && echo alike") == "alike\n"


def test_a_clone_is_there_at_once(template):
    with CloneMicroVm(template) as clone:
        print(f"QEMU's start to the welcome of a clone: {1000 * (time.monotonic() - clone.started_at):.0f} ms")
        status = pathlib.Path(f"/proc/{clone.pid}/smaps_rollup").read_text()
        private = int(next(line for line in status.splitlines() if line.startswith("Anonymous:")).split()[1])
        print(f"private memory of it: {private / 1024:.0f} MiB")
        assert private < template.memory_mib * 1024 / 2


def test_a_balloon_takes_nothing_from_the_template(template):
    module = next(pathlib.Path(guest.built("guest-kernel")["modules"]).rglob("virtio_balloon.ko"))
    allocated = template.allocated()
    with CloneMicroVm(template) as clone, CloneMicroVm(template) as sibling:
        clone.agent.call("write_file", path="/tmp/balloon.ko", content=module.read_bytes(), mode=0o644)
        clone.agent.shell("insmod /tmp/balloon.ko")
        with clone.qmp() as qmp:
            qmp.call("balloon", value=(template.memory_mib - 32) * MIB)
            deadline = time.monotonic() + 60
            while qmp.call("query-balloon")["actual"] > (template.memory_mib - 32) * MIB:
                assert time.monotonic() < deadline, clone.console()
                time.sleep(0.05)
        assert "fallocate" in (clone.directory / "qemu.log").read_text(), "the balloon asked for nothing to be punched"
        for machine in (clone, sibling):
            assert machine.agent.shell("sha256sum </tmp/before | cmp - /tmp/before.sum && echo alike") == "alike\n"
    assert template.allocated() >= allocated


def test_the_end_of_a_clone_is_its_own(template):
    with CloneMicroVm(template) as clone, CloneMicroVm(template) as sibling:
        writer = clone.agent.start("sh", "-c", "while :; do dd if=/dev/urandom of=/tmp/random bs=1M count=8; done")
        sibling.agent.shell(_WRITE.format(mib=4, name="sibling"))
        assert writer.number not in clone.agent.ended
        clone.kill()
        assert sibling.agent.shell("cat /tmp/name") == "sibling\n"
    with CloneMicroVm(template) as later:
        assert later.agent.shell("ls /tmp") == "before\nbefore.sum\n"
