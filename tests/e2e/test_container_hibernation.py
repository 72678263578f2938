"""Containers that are hibernated, by the keeper alone: QEMU ends, files are left, and another keeper goes on from them."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import time

import page_file
import pytest
from container_keeper import LIMIT_S, KeeperError, KeptContainer, dial
from test_container_pause import MIB, PORT, SCRIPT, _template, fill, image, shell, sums  # noqa: F401 (two are fixtures)

FILES = {"container.json", "state.json", "hibernation.json", "hibernated-devices", "log"}


class Sleeper(KeptContainer):
    """One that can be hibernated and woken."""

    source = ""  # the memory object of the template that it is a clone of

    def begin(self, **params):
        self.source = params.get("memory", "")
        self.port = self.start(**params)["ports"][0]["host_port"]
        dial(self.port).close()

    def hibernate(self):
        self.call("pause", level="hibernated")
        self.gone()

    def gone(self):
        assert self.wait_for_keeper() == 0
        self.control.close()
        self._pid = None
        assert self.leftovers() == []
        assert self.files() >= FILES and len(self.pages()) == 1
        return json.loads((self.place / "hibernation.json").read_text())

    def files(self):
        return {path.name for path in self.place.iterdir()} - set(self.pages())

    def pages(self):
        return sorted(path.name for path in self.place.glob("pages-*"))

    def wake(self, **params):
        self.start_keeper()
        return self.wake_in(**params)

    def wake_in(self, **params):
        self._pid = None
        answer = self.control.call("container.start", wake=True, memory=self.source, **params)
        self._pid = answer["pid"]
        return answer

    def come_back(self):
        """Of a keeper that was started after another one's death."""
        if self.hello["over"]:
            self.gone()
            self.wake()
        elif self.is_hibernated():
            self.wake_in()
        elif self.call("info")["pause"]:
            self.call("resume")
        self.wait_for_state("running")

    def is_hibernated(self):
        return (self.place / "hibernation.json").exists()


@pytest.fixture(params=["own", "clone"])
def container(request, image):
    params = request.getfixturevalue("template") if request.param == "clone" else {}
    with Sleeper(image, arguments=["/bin/sh", "-c", SCRIPT], ports=[PORT]) as made:
        made.begin(**params)
        yield made


@pytest.fixture
def chance():
    """BERTH_SEED=N has a run begin again with the same choices."""
    seed = int(os.environ.get("BERTH_SEED", "0")) or random.randrange(1 << 30)
    print("BERTH_SEED", seed)
    return random.Random(seed)


def end(container):
    container.call("stop", timeout_ms=0)
    assert container.ended()["exit_code"] == 137
    assert container.leftovers() == []
    assert container.pages() == [] and not container.is_hibernated()
    assert not (container.place / "hibernated-devices").exists()


def uptime(container):
    return float(shell(container, "cat /proc/uptime").split()[0])


def test_one_that_is_hibernated_is_files_and_goes_on_with_its_memory_and_the_right_time(container):
    before = fill(container, 32)
    up = uptime(container)
    container.hibernate()
    record = json.loads((container.place / "hibernation.json").read_text())
    assert record["pause"]["before"]["memory"] + record["pause"]["before"]["swapped"] > 32 * MIB
    assert record["pause"]["after"]["memory"] == 0
    assert record["pause"]["page_file_bytes"] > 32_000_000
    lines = len(container.log())
    time.sleep(1)
    answer = container.wake()
    assert answer["state"] == "running" and answer["pause"] is None
    assert answer["ports"][0]["host_port"] == container.port
    assert not container.is_hibernated()
    assert sums(container) == before
    assert up < uptime(container) < up + 60
    output, _, _ = container.execute("/bin/date", "+%s").rest()
    assert abs(int(output) - time.time()) < 2
    container.attach(start="now").read_until(b"line")
    assert len(container.log()) > lines
    with dial(container.port) as client:
        client.sendall(b"words")
        assert client.recv(100) == b"words"
    end(container)


def test_the_log_goes_on_without_a_gap_or_a_line_twice(container):
    for _ in range(3):
        container.hibernate()
        container.wake()
        container.attach(start="now").read_until(b"line")
    counted = [text for stream, text in container.log() if stream == "stdout" and text.startswith("line")]
    first = int(counted[0].split()[1])
    assert counted == [f"line {number}" for number in range(first, first + len(counted))]
    end(container)


@pytest.mark.parametrize("lighter", ["frozen", "parked"])
def test_from_a_lighter_level(container, lighter):
    before = fill(container, 8)
    container.call("pause", level=lighter)
    started = time.monotonic()
    container.hibernate()
    assert time.monotonic() - started < LIMIT_S
    container.wake()
    assert sums(container) == before
    # And what was woken can be parked, and hibernated again, with what is new.
    shell(container, "echo again >/data/c")
    container.call("pause", level="parked")
    container.call("resume")
    assert sums(container) == before
    container.hibernate()
    container.wake()
    assert sums(container) == before
    assert shell(container, "cat /data/c") == b"again\n"
    end(container)


def working_set(container):
    """How many granules are read ahead."""
    return len(page_file.working_set(container.place / container.pages()[0]))


def test_what_it_came_to_first_is_read_ahead_also_when_it_has_written_it_since(container):
    fill(container, 8)
    container.hibernate()
    assert working_set(container) == 0
    container.wake()
    with dial(container.port) as client:
        client.sendall(b"words")
        assert client.recv(100) == b"words"
    shell(container, "md5sum /data/* >/dev/null; cp /data/a /data/c")
    time.sleep(1)
    container.hibernate()
    first = working_set(container)
    assert first > 0
    container.wake()
    container.hibernate()  # at once
    assert working_set(container) >= first / 2
    container.wake()
    end(container)


def test_a_host_that_restarts_meanwhile_loses_nothing(container):
    """RUN_DIR and MEMORY_DIR are in memory: they are empty then, but for a template's memory, which is loaded again."""
    before = fill(container, 8)
    container.hibernate()
    shutil.rmtree(container.run)
    container.run.mkdir(mode=0o711)
    shutil.rmtree(container.memory)
    container.memory.mkdir()
    assert container.wake()["ports"][0]["host_port"] == container.port
    assert sums(container) == before
    container.attach(start="now").read_until(b"line")
    end(container)


def test_those_who_are_attached_hear_of_it(container):
    attached = container.attach(start="now")
    attached.read_until(b"line")
    running = container.execute("/bin/sleep", "1000")
    container.hibernate()
    with contextlib.suppress(EOFError, OSError):
        attached.rest()
    container.wake()
    # What was started for somebody who is gone goes with him.
    deadline = time.monotonic() + LIMIT_S
    while b"sleep 1000" in shell(container, "ps"):
        assert time.monotonic() < deadline
    running.close()
    end(container)


def test_nothing_starts_anew_what_is_hibernated(container):
    container.hibernate()
    container.start_keeper()
    with pytest.raises(KeeperError, match="precondition: .*is hibernated: resume it"):
        container.start()
    assert container.is_hibernated()
    container.kill_keeper()
    container.wake()
    end(container)


def test_a_keeper_may_die_at_any_time_while_it_hibernates(container, chance):
    before = fill(container, 16)
    hibernated = 0
    for _ in range(6):
        container.control.send("container.pause", level="hibernated")
        time.sleep(chance.random() * 0.4)
        container.kill_keeper()
        container.start_keeper()
        hibernated += container.is_hibernated()
        container.come_back()
        assert sums(container) == before
        assert not container.is_hibernated()
    print("hibernated", hibernated, "of 6")
    end(container)


def test_a_keeper_may_die_at_any_time_while_one_is_woken(container, chance):
    before = fill(container, 16)
    still = 0
    for _ in range(6):
        container.hibernate()
        container.start_keeper()
        container._pid = None
        container.control.send("container.start", wake=True, memory=container.source)
        time.sleep(chance.random() * 0.5)
        container.kill_keeper()
        container.start_keeper()
        still += container.is_hibernated()
        container.come_back()
        assert sums(container) == before
    print("still hibernated", still, "of 6")
    end(container)


def test_what_a_keeper_that_died_has_left_goes_with_the_run(container):
    """It had taken hibernation.json away, and not yet what it named."""
    (container.place / "hibernated-devices").write_bytes(b"of a run before")
    container.kill_keeper()
    container.start_keeper()
    container.wait_for_state("running")
    end(container)


def test_a_full_disk_leaves_it_running(image):
    with Sleeper(image, arguments=["/bin/sh", "-c", SCRIPT], ports=[PORT], room="24m") as container:
        container.begin()
        before = fill(container, 24)
        with pytest.raises(KeeperError, match="no_space: 'c' cannot be hibernated"):
            container.call("pause", level="hibernated")
        assert container.pages() == [] and not container.is_hibernated()
        assert container.call("info")["state"] == "running"
        assert sums(container) == before
        container.make_room("200m")
        container.hibernate()
        container.wake()
        assert sums(container) == before
        end(container)


def damage_json(container, **changes):
    path = container.place / "hibernation.json"
    record = json.loads(path.read_text())
    record.update(changes)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(("damage", "message"), [
    (lambda c: damage_json(c, qemu="6.2.0"), "precondition: .*it was saved by QEMU 6.2.0"),
    (lambda c: damage_json(c, accelerator="hvf"), "precondition: .*it was saved under hvf"),
    (lambda c: damage_json(c, version=2), "unsupported: "),
    (lambda c: damage_json(c, pages="../other"), "corrupt: .*pages"),
    (lambda c: (c.place / "hibernation.json").write_text("{"), "corrupt: "),
    (lambda c: (c.place / "hibernated-devices").write_bytes(b"QEVM and no more"), "corrupt: .*hibernated-devices"),
    (lambda c: (c.place / "hibernated-devices").unlink(), "corrupt: .*device state"),
    (lambda c: (c.place / c.pages()[0]).unlink(), "not_found|io_error|cannot"),
    (lambda c: subprocess.run(["truncate", "-s", "-4096", c.place / c.pages()[0]], check=True), "corrupt: "),
])
def test_what_cannot_be_woken_stays_hibernated_and_says_why(image, damage, message):
    with Sleeper(image, arguments=["/bin/sh", "-c", SCRIPT], ports=[PORT]) as container:
        container.begin()
        before = fill(container, 4)
        container.hibernate()
        kept = container.directory / "kept"
        shutil.copytree(container.place, kept)
        damage(container)
        container.start_keeper()
        with pytest.raises(KeeperError, match=message):
            container.wake_in()
        assert container.is_hibernated() and container.qemu() is None
        container.kill_keeper()
        assert container.leftovers() == []
        shutil.copytree(kept, container.place, dirs_exist_ok=True)
        container.wake()
        assert sums(container) == before
        end(container)
