"""Templates and their clones, by the keeper alone: mapped, not started, and no two of them the same."""

import hashlib
import pathlib
import socket
import time

import pytest
from container_keeper import Image, KeeperError, KeptContainer

PORT = {"host_address": "127.0.0.1", "guest_port": 7}
SCRIPT = """
mkdir -p /etc/berth/clone.d /data
printf '#!/bin/sh\\necho "$BERTH_CLONE_HOSTNAME $BERTH_CLONE_MACHINE_ID" >/data/hook\\n' >/etc/berth/clone.d/10-note
chmod 755 /etc/berth/clone.d/10-note
nc -ll -p 7 -e cat &
i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done
"""


def checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Template:
    def __init__(self, container):
        self.container = container
        self.devices = container.directory / "devices"
        saved = container.call("become_template", devices=str(self.devices))
        self.memory = pathlib.Path(saved["memory"])
        self.state = container.ended()
        self.lines = len(container.log())
        self.checksum = checksum(self.memory)

    def clone(self, **params):
        return {"memory": str(self.memory), "devices": str(self.devices), **params}


@pytest.fixture(scope="module")
def image():
    with Image() as made:
        yield made


@pytest.fixture(scope="module")
def template(image):
    with KeptContainer(image, arguments=["/bin/sh", "-c", SCRIPT], keeps_memory=True) as container:
        container.start()
        container.attach().read_until(b"line 20\n")
        made = Template(container)
        yield made
        assert checksum(made.memory) == made.checksum, "a clone has changed its template"
        made.memory.unlink()
        made.memory.parent.rmdir()


def identity(clone):
    """What must not be the same in two machines."""
    script = "hostname; cat /etc/machine-id; head -c 32 /dev/urandom | sha256sum; cat /sys/class/net/eth0/address; cat /proc/sys/kernel/random/uuid"
    output, _, end = clone.execute("/bin/sh", "-c", script).rest()
    assert end == 0
    return output.decode().splitlines()


def test_a_template_has_ended_and_nothing_it_said_is_lost(template):
    assert (template.state["exit_code"], template.state["error"]) == (0, "")
    assert template.lines >= 20
    assert template.memory.stat().st_mode & 0o777 == 0o444
    assert template.container.qemu() is None


def test_a_clone_goes_on_where_its_template_was(image, template):
    with KeptContainer(image, arguments=["unused"], ports=[PORT]) as clone:
        begun = time.monotonic()
        info = clone.start(**template.clone())
        print(f"start of a clone: {time.monotonic() - begun:.3f} s")
        assert info["state"] == "running"
        with socket.create_connection(("127.0.0.1", info["ports"][0]["host_port"]), timeout=20) as client:
            client.sendall(b"served")
            assert client.recv(100) == b"served"
        first = clone.attach().read_until(b"\n").split(b"\n")[0]
        assert first == f"line {template.lines + 1}".encode()
        output, _, _ = clone.execute("/bin/date", "+%s").rest()
        assert abs(int(output) - time.time()) < 2
        clone.call("stop", timeout_ms=0)
        clone.ended()
        numbers = [int(text.split()[1]) for _, text in clone.log()]
        assert numbers == list(range(template.lines + 1, template.lines + 1 + len(numbers)))
        assert clone.leftovers() == []


def test_no_clone_is_a_twin_and_hooks_have_run_before_the_workload(image, template):
    seen = []
    for name in ("one", "two", "three"):
        with KeptContainer(image, arguments=["unused"], hostname=name) as clone:
            clone.start(**template.clone())
            found = identity(clone)
            assert found[0] == name
            assert found[1] == clone.id.replace("-", "")
            hook, _, _ = clone.execute("/bin/cat", "/data/hook").rest()
            assert hook.decode().split() == [name, found[1]]
            seen.append(found)
            clone.call("stop", timeout_ms=0)
            clone.ended()
    for values in zip(*seen):
        assert len(set(values)) == len(seen), values


def test_clones_at_once_write_each_for_itself(image, template):
    clones = [KeptContainer(image, arguments=["unused"], hostname=f"c{number}") for number in range(3)]
    try:
        for clone in clones:
            clone.start(**template.clone())
        for number, clone in enumerate(clones):
            script = f"head -c 8000000 /dev/urandom >/data/own; echo {number} >/data/number; sync; sha256sum /data/own"
            clone.sum = clone.execute("/bin/sh", "-c", script).rest()[0]
        for number, clone in enumerate(clones):
            assert clone.execute("/bin/sh", "-c", "sha256sum /data/own").rest()[0] == clone.sum
            assert clone.execute("/bin/cat", "/data/number").rest()[0] == f"{number}\n".encode()
        assert len({clone.sum for clone in clones}) == len(clones)
        clones[0].kill_keeper()
        clones[0].start_keeper()
        clones[0].wait_for_state("running")
        assert clones[0].execute("/bin/cat", "/data/number").rest()[0] == b"0\n"
        for clone in clones:
            clone.call("stop", timeout_ms=0)
            clone.ended()
            assert clone.leftovers() == []
    finally:
        for clone in clones:
            clone.close(check=False)


def test_a_keeper_that_dies_while_it_clones_is_no_harm(image, template):
    for pause in (0.02, 0.1, 0.2):
        with KeptContainer(image, arguments=["unused"], hostname="late") as clone:
            clone.send_start(**template.clone())
            time.sleep(pause)
            clone.kill_keeper()
            clone.start_keeper()
            if not clone.hello["on"]:
                # It had not come far, or its QEMU had not all that it needs.
                if clone.hello["over"]:
                    clone.ended()
                continue
            clone.wait_for_state("running")
            assert identity(clone)[:2] == ["late", clone.id.replace("-", "")]
            clone.call("stop", timeout_ms=0)
            clone.ended()


def test_a_hook_that_fails_ends_the_clone_with_its_words(image):
    script = SCRIPT.replace("#!/bin/sh\\n", "#!/bin/sh\\necho no luck; exit 3\\n")
    with KeptContainer(image, arguments=["/bin/sh", "-c", script], keeps_memory=True) as container:
        container.start()
        container.attach().read_until(b"line 1\n")
        template = Template(container)
        with KeptContainer(image, arguments=["unused"]) as clone:
            with pytest.raises(KeeperError, match="10-note.*no luck"):
                clone.start(**template.clone())
            state = clone.ended()
            assert state["exit_code"] == 255 and "no luck" in state["error"]
            assert clone.log() == [], "the workload has run"
            assert clone.leftovers() == []
        assert checksum(template.memory) == template.checksum
        template.memory.unlink()
        template.memory.parent.rmdir()


def test_what_cannot_become_a_template_runs_on(image):
    with KeptContainer(image, arguments=["/bin/sh", "-c", SCRIPT]) as container:
        container.start()
        client = container.execute("/bin/sleep", "100")
        with pytest.raises(KeeperError, match="processes besides its own"):
            container.call("become_template", devices=str(container.directory / "devices"))
        client.close()
        container.attach(start="now").read_until(b"line")
        container.call("stop", timeout_ms=0)
        container.ended()


def test_states_that_fit_nothing_are_refused(image, template):
    broken = template.container.directory / "broken"
    broken.write_bytes(b"\0" * 1000)
    for devices, words in ((broken, "Not a migration stream"), (broken.with_name("none"), "no device state")):
        with KeptContainer(image, arguments=["unused"]) as clone:
            with pytest.raises(KeeperError, match=words):
                clone.start(memory=str(template.memory), devices=str(devices))
            assert clone.ended()["exit_code"] == 255
            assert clone.leftovers() == []
