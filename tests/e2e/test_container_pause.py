"""Containers that are paused, by the keeper alone: frozen, trimmed, parked in page files; and what goes on from each of them."""

import hashlib
import os
import pathlib
import signal
import struct
import threading
import time

import pytest
from container_keeper import LIMIT_S, NAME, SIZE, Attached, Image, KeeperError, KeptContainer, dial

MIB = 1 << 20
PORT = {"host_address": "127.0.0.1", "guest_port": 7}
SCRIPT = """
mkdir -p /data
head -c 16000000 /dev/urandom >/data/a
nc -ll -p 7 -e cat &
i=0; while true; do i=$((i+1)); echo line $i; sleep 0.05; done
"""


@pytest.fixture(scope="module")
def image():
    with Image() as made:
        yield made


def checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.fixture(scope="module", name="template")
def _template(image, tmp_path_factory):
    devices = tmp_path_factory.mktemp("template") / "devices"
    with KeptContainer(image, arguments=["/bin/sh", "-c", SCRIPT], keeps_memory=True) as container:
        container.start()
        container.attach().read_until(b"line 5\n")
        memory = pathlib.Path(container.call("become_template", devices=str(devices))["memory"])
        container.ended()
        before = checksum(memory)
        yield {"memory": str(memory), "devices": str(devices)}
        assert checksum(memory) == before, "a paused clone has changed its template"
        memory.unlink()
        memory.parent.rmdir()


@pytest.fixture(params=["own", "clone"])
def container(request, image):
    """It runs, has 16 MB in a file, counts, and echoes at its port."""
    params = request.getfixturevalue("template") if request.param == "clone" else {}
    with KeptContainer(image, arguments=["/bin/sh", "-c", SCRIPT], ports=[PORT]) as made:
        made.port = made.start(**params)["ports"][0]["host_port"]
        dial(made.port).close()
        yield made


def page_files(container):
    return sorted(path.name for path in container.place.glob("pages-*"))


def shell(container, script):
    output, _, end = container.execute("/bin/sh", "-c", script).rest()
    assert end == 0, output
    return output


def fill(container, megabytes):
    """What is private to a clone too; its sum, with that of what it has from before."""
    return shell(container, f"head -c {megabytes}000000 /dev/urandom >/data/b; sha256sum /data/a /data/b")


def sums(container):
    return shell(container, "sha256sum /data/a /data/b")


def end(container):
    container.call("stop", timeout_ms=0)
    assert container.ended()["exit_code"] == 137
    assert container.leftovers() == [] and page_files(container) == []


def test_a_parked_container_has_its_memory_in_a_file_and_goes_on_with_the_right_time(container):
    before = fill(container, 32)
    paused = container.call("pause", level="parked")
    assert paused["state"] == "parked"
    report = paused["pause"]
    assert report["before"]["memory"] > 32 * MIB and report["after"]["memory"] == 0
    assert report["page_file_bytes"] > 32_000_000 and page_files(container) == ["pages-1"]
    assert container.call("info")["pause"] == report
    lines = len(container.log())
    time.sleep(2)
    assert len(container.log()) == lines
    container.call("resume")
    assert container.call("info")["pause"] is None
    assert sums(container) == before
    output, _, _ = container.execute("/bin/date", "+%s").rest()
    assert abs(int(output) - time.time()) < 2
    container.attach(start="now").read_until(b"line")
    end(container)


def test_parked_again_it_keeps_the_files_it_needs(container):
    before = fill(container, 24)
    first = container.call("pause", level="parked")["pause"]["page_file_bytes"]
    for number in range(2, 5):
        container.call("resume")
        shell(container, f"echo {number} >/data/c")
        again = container.call("pause", level="parked")["pause"]
        assert again["after"]["memory"] == 0
        assert again["page_file_bytes"] < 2 * first
    # All of its memory is new: nothing is left of the first ones but what still is in use.
    assert f"pages-{number}" in page_files(container)
    container.call("resume")
    assert sums(container) == before
    assert shell(container, "cat /data/c") == b"4\n"
    end(container)


def test_each_level_leads_to_the_deeper_ones_alone(container):
    before = fill(container, 4)
    assert container.call("pause")["state"] == "frozen"
    assert container.call("pause", level="frozen")["pause"]["after"] is None
    assert container.call("pause", level="parked")["state"] == "parked"
    for level in ("frozen", "trimmed"):
        with pytest.raises(KeeperError, match="precondition: .*parked already"):
            container.call("pause", level=level)
    with pytest.raises(KeeperError, match="invalid_argument: level"):
        container.call("pause", level="running")
    container.call("resume")
    assert sums(container) == before
    with pytest.raises(KeeperError, match="is not paused"):
        container.call("resume")
    end(container)


def test_connections_live_through_it(container):
    with dial(container.port) as client:
        client.sendall(b"before")
        assert client.recv(100) == b"before"
        for number in range(3):
            container.call("pause", level="parked")
            container.call("resume")
            words = f"after {number}".encode()
            client.sendall(words)
            assert client.recv(100) == words
    end(container)


def resume_unless_asked(container):
    """What comes over a connection may have resumed it already."""
    try:
        container.call("resume")
    except KeeperError as error:
        assert "is not paused" in str(error), error


def test_a_busy_connection_loses_nothing(container):
    """Bytes are on their way in both directions whenever it is parked."""
    data = os.urandom(6 * MIB)
    with dial(container.port) as client:
        client.settimeout(LIMIT_S)
        feeder = threading.Thread(target=client.sendall, args=(data,))
        feeder.start()
        got, parked = bytearray(), 0
        while len(got) < len(data):
            if len(got) > (parked + 1) * MIB and parked < 4:
                container.call("pause", level="parked")
                resume_unless_asked(container)
                parked += 1
            piece = client.recv(65536)
            assert piece, (len(got), parked)
            got += piece
        feeder.join()
    assert parked == 4 and got == data
    end(container)


# --- A request resumes it.

def by_connection(container):
    dial(container.port).close()


def by_exec(container):
    assert shell(container, "echo there") == b"there\n"


def by_copy(container):
    client = Attached(container.run / "containers" / NAME / "attach", {"copy_out": {"path": "/data/a"}})
    output, _, end = client.rest()
    assert end == 0 and len(output) > 16_000_000


def by_input(container):
    client = container.attach(start="now", input=True)
    client.write(b"hello\n")
    client.read_until(b"got hello\n")
    client.close()


def by_signal(container):
    client = container.attach(start="now")
    container.call("kill", signal=signal.SIGUSR1)
    client.read_until(b"signalled\n")
    client.close()


REQUESTS = [by_connection, by_exec, by_copy, by_input, by_signal]


@pytest.mark.parametrize("with_keeper", [True, False])
def test_who_wants_something_of_it_resumes_it(image, with_keeper):
    script = SCRIPT.replace("i=0;", "trap 'echo signalled' USR1; exec 3<&0; (while read l; do echo got $l; done) <&3 & i=0;")
    with KeptContainer(image, arguments=["/bin/sh", "-c", script], ports=[PORT], input=True) as container:
        container.port = container.start()["ports"][0]["host_port"]
        dial(container.port).close()
        for number, request in enumerate(REQUESTS):
            container.call("pause", level="frozen" if number % 2 else "parked")
            if not with_keeper:
                container.kill_keeper()
                container.start_keeper()
            request(container)
            assert container.call("info")["state"] == "running", request
        container.call("pause", level="parked")
        end(container)


def test_data_on_an_open_connection_resumes_it_and_so_does_a_request_while_it_is_being_paused(container):
    with dial(container.port) as client:
        for number in range(8):
            container.control.send("container.pause", level="parked")
            container.call("info")  # answered at once: it is under way, or has been asked for
            if number % 2:
                time.sleep(0.02 * number)
            words = f"words {number}".encode()
            client.sendall(words)
            assert client.recv(100) == words
            container.wait_for_state("running")
    end(container)


@pytest.mark.parametrize("is_done", [True, False])
def test_one_that_is_ended_by_force_is_not_brought_back_for_that(container, is_done):
    fill(container, 32)
    if is_done:
        container.call("pause", level="parked")
    else:
        container.control.send("container.pause", level="parked")
    end(container)
    assert "container_resumed" not in (container.directory / "keeper.log").read_text()


def test_who_only_looks_on_leaves_it_paused(container):
    container.call("pause")
    client = container.attach(start="now", rows=20, columns=80)
    client.send(SIZE, struct.pack("<HH", 30, 90))
    time.sleep(0.3)
    assert container.call("info")["state"] == "frozen"
    client.close()
    with pytest.raises(KeeperError, match="is paused"):
        container.call("become_template", devices=str(container.directory / "devices"))
    assert container.call("info")["state"] == "frozen"
    container.call("resume")
    end(container)


# --- Deaths.

@pytest.mark.parametrize("level", ["frozen", "parked"])
def test_a_next_keeper_knows_how_deep_it_is(container, level):
    before = fill(container, 8)
    paused = container.call("pause", level=level)["pause"]
    container.kill_keeper()
    container.start_keeper()
    info = container.call("info")
    assert (info["state"], info["pause"]) == (level, paused)
    container.call("pause", level="parked")
    container.call("resume")
    assert sums(container) == before
    container.kill_keeper()
    container.start_keeper()
    container.wait_for_state("running")
    assert sums(container) == before, "page files that are in use are gone"
    end(container)


def test_a_keeper_may_die_at_any_time_while_it_parks(container):
    before = fill(container, 24)
    for number in range(6):
        container.control.send("container.pause", level="parked")
        time.sleep(0.02 + 0.04 * number)
        container.kill_keeper()
        container.start_keeper()
        if container.call("info")["state"] != "running":
            container.call("resume")
        container.wait_for_state("running")
        assert sums(container) == before, f"killed the {number + 1}th time"
    container.call("pause", level="parked")
    container.call("resume")
    assert sums(container) == before
    end(container)


@pytest.mark.parametrize("with_keeper", [True, False])
def test_when_its_qemu_dies_the_page_files_go(container, with_keeper):
    container.call("pause", level="parked")
    assert page_files(container)
    if not with_keeper:
        container.kill_keeper()
    os.kill(container.qemu(), signal.SIGKILL)
    if not with_keeper:
        container.start_keeper()
    assert container.ended()["exit_code"] == 255
    assert page_files(container) == [] and container.leftovers() == []


def test_a_full_disk_leaves_it_as_it_was(image):
    with KeptContainer(image, arguments=["/bin/sh", "-c", SCRIPT], room=16 * MIB) as container:
        container.start()
        container.attach().read_until(b"line 1\n")
        before = fill(container, 24)
        with pytest.raises(KeeperError, match="no_space: .*cannot be parked.*No space left"):
            container.call("pause", level="parked")
        assert page_files(container) == []
        assert container.call("info")["state"] == "running"
        assert sums(container) == before
        container.call("pause")
        with pytest.raises(KeeperError, match="no_space"):
            container.call("pause", level="parked")
        assert container.call("info")["state"] == "frozen"
        container.call("resume")
        assert sums(container) == before
        container.make_room(512 * MIB)
        assert container.call("pause", level="parked")["state"] == "parked"
        container.call("resume")
        assert sums(container) == before
        end(container)


def become_template(container, devices):
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            return pathlib.Path(container.call("become_template", devices=str(devices))["memory"])
        except KeeperError as error:
            # The keeper has yet to forget what was executed before.
            assert "processes besides its own" in str(error) and time.monotonic() < deadline, error
            time.sleep(0.05)


def test_one_that_was_parked_becomes_a_template(image, tmp_path):
    devices = tmp_path / "devices"
    with KeptContainer(image, arguments=["/bin/sh", "-c", SCRIPT], keeps_memory=True) as container:
        container.start()
        container.attach().read_until(b"line 5\n")
        before = fill(container, 8)
        container.call("pause", level="parked")
        container.call("resume")
        memory = become_template(container, devices)
        container.ended()
        assert page_files(container) == []
        with KeptContainer(image, arguments=["unused"], ports=[PORT]) as clone:
            clone.start(memory=str(memory), devices=str(devices))
            assert sums(clone) == before
            end(clone)
        memory.unlink()
        memory.parent.rmdir()
