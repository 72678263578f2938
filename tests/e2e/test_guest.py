"""The guest and its verifier, without Berth: that it runs on an NBD disk, that a disk cut under load passes, and that
disks with something missing, changed or stale do not. Everything that later tests conclude from guest_verify rests
on the second half."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import tempfile
import time

import pytest

import guest
import guest_verify

_BLOCK_BYTES = 64 << 10


class NbdServer:
    """qemu-nbd with a raw file on a unix socket, in the place of Berth."""

    def __init__(self, disk, socket):
        self.disk, self.socket = disk, socket
        self._process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()

    def start(self):
        command = ["setpriv", "--pdeathsig", "KILL", "qemu-nbd", "--format=raw", "--persistent", "--shared=4", "--discard=unmap",
                   f"--socket={self.socket}", "--export-name=root", self.disk]
        self._process = subprocess.Popen(command)
        deadline = time.monotonic() + 10
        probe = ["nbdinfo", "--size", self.uri]
        while subprocess.run(probe, capture_output=True, check=False).returncode != 0:
            assert time.monotonic() < deadline and self._process.poll() is None, "qemu-nbd does not serve"

    def kill(self):
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)

    @property
    def uri(self):
        return f"nbd+unix:///root?socket={self.socket}"

    def copy_to(self, target):
        subprocess.run(["nbdcopy", self.uri, target], check=True)


@pytest.fixture(scope="module", name="directory")
def _directory():
    with tempfile.TemporaryDirectory(prefix="berth-test-", dir="/var/tmp") as path:
        yield pathlib.Path(path)


@pytest.fixture(scope="module", name="cuts")
def _cuts(directory):
    """Two copies of a guest's disk, each made while the guest stood still between two instructions, under load."""
    disk = guest.copy_disk(directory / "disk.raw")
    cuts = []
    with NbdServer(disk, directory / "nbd.sock") as server, guest.Guest(nbd=server.socket, export="root") as machine:
        machine.wait_for_agent()
        for name in ("first.raw", "second.raw"):
            already = cuts[-1]["committed"] if cuts else 0
            before = machine.wait_for_commits(already + 100)
            _, payload, _ = machine.agent.run(
                f"psql -XAtq -U postgres -d berth -c 'SELECT payload FROM ledger WHERE serial = {before}'")
            machine.pause()
            server.copy_to(directory / name)
            machine.resume()
            after = machine.wait_for_commits(before + 1)
            cuts.append({"disk": directory / name, "committed": before, "after": after, "payload": payload.strip().encode()})
    os.unlink(disk)
    return cuts


def _copy(source, target):
    subprocess.run(["cp", "--sparse=always", source, target], check=True)
    return target


def test_the_image_is_built_once():
    first = guest.image()
    built_at = os.stat(first["disk"]).st_mtime_ns
    assert guest.image() == first
    assert os.stat(first["disk"]).st_mtime_ns == built_at


def test_the_command_line_stops_the_guest_on_disk_errors_and_serves_its_sockets(directory):
    boot = [guest.SCRIPTS / "guest-boot", "--run-dir", directory, "--nbd", "/run/disk.sock", "--export", "root", "--print"]
    command = subprocess.run(boot, stdout=subprocess.PIPE, text=True, check=True).stdout
    words = shlex.split(command)
    assert "virtio-blk-pci,drive=root,rerror=stop,werror=stop" in words
    assert any("server.path=/run/disk.sock,export=root,reconnect-delay=60" in word for word in words)
    for name in ("agent", "console", "qmp"):
        assert any(f"path={directory}/{name}.sock,server=on,wait=off" in word for word in words)


def test_nothing_is_acknowledged_before_it_is_committed_and_nothing_is_left_behind(directory):
    disk = guest.copy_disk(directory / "clean.raw")
    with guest.Guest(raw=disk) as machine:
        machine.wait_for_agent()
        for _ in range(5):
            acknowledged = machine.wait_for_commits(1)
            _, last, _ = machine.agent.run("psql -XAtq -U postgres -d berth -c 'SELECT max(serial) FROM ledger'")
            assert int(last) >= acknowledged
        with machine.console() as console:
            reported = console.committed()
        assert machine.committed() >= reported > 0
        sockets, pid = machine.directory, machine.pid
        # The root cannot become read-only before the last writer is gone; the guest waits for that.
        machine.agent.run("(exec 3>/var/held; sleep 3) </dev/null >/dev/null 2>&1 &")
        machine.power_off()
    assert not sockets.exists()
    assert not os.path.exists(f"/proc/{pid}")
    # Shut down in order: no journal to replay, no log to recover.
    assert guest_verify.check_file_system(disk) == {"journal": "clean", "file_system": "clean"}
    os.unlink(disk)


def test_a_frozen_guest_commits_nothing_and_has_a_clean_database(directory):
    disk = guest.copy_disk(directory / "frozen.raw")
    with guest.Guest(raw=disk) as machine:
        machine.wait_for_agent()
        machine.wait_for_commits(20)
        assert machine.agent.freeze() == 1
        frozen = _copy(disk, directory / "frozen-copy.raw")
        machine.agent.thaw()
        resumed = machine.committed()
        machine.wait_for_commits(resumed + 20)
    # The freeze has made the journal empty, and CHECKPOINT has written every row to its table.
    assert guest_verify.check_file_system(frozen)["journal"] == "clean"
    os.unlink(disk)
    os.unlink(frozen)


def test_a_guest_loses_nothing_when_its_disk_server_dies_and_comes_back(directory):
    disk = guest.copy_disk(directory / "reconnect.raw")
    with NbdServer(disk, directory / "reconnect.sock") as server, guest.Guest(nbd=server.socket, export="root") as machine:
        machine.wait_for_agent()
        acknowledged = machine.wait_for_commits(50)
        server.kill()
        server.start()
        machine.wait_for_commits(acknowledged + 50)
        machine.power_off()
    assert guest_verify.check_file_system(disk) == {"journal": "clean", "file_system": "clean"}
    os.unlink(disk)


def test_memory_is_written_at_a_rate_and_a_page_that_changed_by_itself_is_found(directory):
    disk = guest.copy_disk(directory / "dirty.raw")
    with guest.Guest(raw=disk, snapshot=True, words="berth.dirty=8:16 berth.load=off") as machine:
        machine.wait_for_agent()
        before = machine.agent.sweep_memory()
        assert before["mismatches"] == 0 and before["pages"] == 4096
        assert before["compared"] == before["written"] + 4096
        machine.wait_for_dirty_pages(before["written"] + 2048)
        assert machine.agent.sweep_memory()["mismatches"] == 0
        # The largest mapping is the working set.
        status, _, errors = machine.agent.run(r"""
            pid=$(pidof dirty-memory)
            set -- $(sed -n 's/^\([0-9a-f]*\)-\([0-9a-f]*\) rw-p 00000000 00:00 0 $/\1 \2/p' "/proc/$pid/maps" |
              while read -r start end; do echo "$((0x$end - 0x$start)) $((0x$start + (8 << 20)))"; done | sort -n | tail -n 1)
            printf '\377\0\377' | dd of="/proc/$pid/mem" bs=1 seek="$2" conv=notrunc""")
        assert status == 0, errors
        assert machine.agent.sweep_memory()["mismatches"] == 1
    os.unlink(disk)


def test_a_guest_with_a_network_card_has_an_address_and_answers(directory):
    disk = guest.copy_disk(directory / "network.raw")
    nic = ["-nic", "user,model=virtio-net-pci,restrict=on,hostfwd=tcp:127.0.0.1:0-:80"]
    with guest.Guest(raw=disk, snapshot=True, qemu_options=nic) as machine:
        machine.wait_for_agent()
        machine.wait_for_commits(1)
        with machine.qmp() as qmp:
            forwards = qmp.call("human-monitor-command", command_line="info usernet")
        port = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", forwards).group(1)
        # curl tries again until the guest has its address.
        curl = ["curl", "-sS", "--fail", "--max-time", "30", "--retry", "30", "--retry-delay", "1", "--retry-all-errors",
                f"http://127.0.0.1:{port}/committed"]
        answer = subprocess.run(curl, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, answer.stderr
        assert 1 <= int(answer.stdout) <= machine.committed()
    os.unlink(disk)


def test_a_disk_cut_under_load_passes(cuts):
    cut = cuts[1]
    facts = guest_verify.verify(cut["disk"], cut["committed"], cut["after"])
    assert facts["problems"] == []
    assert facts["ok"] and facts["last_serial"] >= cut["committed"]
    assert facts["journal"] == "replayed", "the cut was not under load"


def test_a_disk_without_the_last_commits_fails(cuts):
    facts = guest_verify.verify(cuts[0]["disk"], cuts[1]["committed"])
    assert not facts["ok"]
    assert cuts[0]["committed"] <= facts["last_serial"] <= cuts[0]["after"]
    assert facts["missing"][0] == facts["last_serial"] + 1
    assert facts["missing_count"] == cuts[1]["committed"] - facts["last_serial"]


def test_missing_and_changed_rows_fail(cuts, directory):
    disk = _copy(cuts[0]["disk"], directory / "tampered.raw")
    with guest.Guest(raw=disk, words="berth.load=off") as machine:
        machine.wait_for_agent()
        status, _, errors = machine.agent.run(
            "until pg_isready -q -U postgres; do sleep 0.1; done; psql -XAtq -v ON_ERROR_STOP=1 -U postgres -d berth -c '"
            "DELETE FROM ledger WHERE serial IN (7, 8); UPDATE ledger SET payload = reverse(payload) WHERE serial = 9'", 60)
        assert status == 0, errors
        machine.power_off()
    result = subprocess.run([guest_verify.__file__, disk, "--committed", str(cuts[0]["committed"])],
                            stdout=subprocess.PIPE, text=True, check=False)
    os.unlink(disk)
    assert result.returncode == 1
    facts = json.loads(result.stdout)
    assert facts["missing"] == [7, 8]
    assert facts["bad_checksums"] == [9]
    assert facts["wrong_balance_count"] > 0
    assert len(facts["problems"]) == 3


def test_a_disk_with_stale_blocks_fails(cuts, directory):
    """What an incremental backup would restore that missed the blocks of one row."""
    first, second = cuts
    disk = _copy(second["disk"], directory / "stale.raw")
    middle = len(second["payload"]) // 2  # a row may lie across two blocks; one half of it is then whole in one of them
    halves = second["payload"][:middle], second["payload"][middle:]
    stale = 0
    with open(first["disk"], "rb") as old, open(disk, "r+b") as new:
        while block := new.read(_BLOCK_BYTES):
            if any(half in block for half in halves):
                offset = new.tell() - len(block)
                old.seek(offset)
                new.seek(offset)
                new.write(old.read(_BLOCK_BYTES))
                stale += 1
    assert stale > 0
    facts = guest_verify.verify(disk, second["committed"])
    os.unlink(disk)
    assert not facts["ok"], facts


def test_a_damaged_file_system_fails(cuts, directory):
    disk = _copy(cuts[0]["disk"], directory / "damaged.raw")
    # The block bitmaps, inode bitmaps and inodes of the first group lie in its first MiB, after the superblock.
    with open(disk, "r+b") as file:
        file.seek(256 << 10)
        file.write(os.urandom(512 << 10))
    facts = guest_verify.check_file_system(disk)
    os.unlink(disk)
    assert facts["file_system"] != "clean"


def test_every_kind_of_problem_is_one():
    good = {"file_system": "clean", "database": "ok", "rows": 100, "last_serial": 100, "accounts": 100, "missing_count": 0,
            "missing": [], "bad_checksum_count": 0, "bad_checksums": [], "wrong_balance_count": 0, "bad_small_files": []}
    assert guest_verify.problems(good, 100) == []
    assert guest_verify.problems(good, 90, at_most=99) == []
    for bad in ({"file_system": "Inode 12 is in use"}, {"database": "does not start"}, {"rows": 101}, {"last_serial": 99},
                {"missing_count": 1, "rows": 99}, {"bad_checksum_count": 1}, {"wrong_balance_count": 2}, {"accounts": 99},
                {"bad_small_files": ["3-abc"]}):
        assert guest_verify.problems({**good, **bad}, 100) != [], bad
    assert guest_verify.problems(good, 90, at_most=98) != [], "a row from after the cut"
    assert guest_verify.problems({"file_system": "clean", "database": "ok"}, 0) != [], "nothing was looked at"
