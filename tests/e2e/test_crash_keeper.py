"""A keeper that dies under load takes nothing with it: SIGKILL, fifty times, with requests in flight.

After every death the next keeper goes on with the live map: what was acknowledged is there, what was not is old or
new sector by sector, `berth changes` is exactly what was written, checkpoints read the same bytes. How long clients
waited is printed; that is a report, not a claim."""

import collections
import hashlib
import json
import os
import random
import signal
import time

import pytest

import berth_host
import volume_tools
from volume_tools import BLOCK, SECTOR, RecordingClient, check_cut, child, connect, export_uri, read_export, run

_SIZE = 24 << 20
_KILLS = 50
_SEED = 20


@pytest.fixture(name="host", scope="module")
def _host():
    with volume_tools.scratch_host() as host:
        yield host


def _keeper_pid(host, volume):
    status, answer = host.api("GET", f"/v1/volumes/{volume}")
    assert status == 200, answer
    return answer["keeper_pid"]


class _Crasher:
    """One volume under load, and all that must stay true of it."""

    def __init__(self, host, volume, seed):
        self.host, self.volume = host, volume
        self.random = random.Random(seed)
        host.create(volume, str(_SIZE))
        self.uri = host.serve(volume)
        self.client = RecordingClient(self.uri, _SIZE, seed)
        self.refpoints = {}                              # name: Cut
        self.checkpoints = collections.OrderedDict()     # name: digest of its bytes
        self.restart_ms = []
        self.counts = collections.Counter()

    def berth(self, *arguments):
        return self.client.run_beside([berth_host.program(), *arguments, "-o", "json"], env=self.host.environment)

    def make_refpoint(self, name):
        with self.client.cut() as cut:
            done = self.berth("refpoint", "create", self.volume, "--name", name)
        assert done.returncode == 0, done.stderr
        self.refpoints[name] = cut

    def make_checkpoint(self, name, *options):
        with self.client.cut() as cut:
            done = self.berth("checkpoint", "create", self.volume, "--name", name, *options)
        assert done.returncode == 0, done.stderr
        self.client.drain()
        found = read_export(export_uri(self.uri, f"{self.volume}@{name}"))
        inside, outside = check_cut([(cut, found)])
        self.counts.update(raced_inside=inside, raced_outside=outside)
        self.checkpoints[name] = hashlib.sha256(found).digest()

    def kill(self, racing=None):
        """SIGKILL while requests are in flight, `racing` (a command of berth's) among them."""
        pid = _keeper_pid(self.host, self.volume)
        self.client.run(self.random.uniform(0.05, 0.25))
        process = None
        if racing:
            process = volume_tools.subprocess.Popen(
                [berth_host.program(), *racing], env=self.host.environment, stdin=volume_tools.subprocess.DEVNULL,
                stdout=volume_tools.subprocess.DEVNULL, stderr=volume_tools.subprocess.DEVNULL)
            self.client.run(self.random.uniform(0.0, 0.06))
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self.restart_ms.append((self.client.reconnect() - killed) * 1000)
        self.counts.update(in_flight=len(self.client.unsettled))
        return process.wait(volume_tools.LIMIT_S) if process else None

    def check(self):
        self.counts.update(landed_sectors=self.client.verify())
        for name, cut in self.refpoints.items():
            extents, exact = self.host.changes(self.volume, name)
            assert exact, "the death of a process must not make answers inexact"
            self.counts.update(changed_blocks=self.client.check_changes(extents, cut))
        for name, digest in self.checkpoints.items():
            found = read_export(export_uri(self.uri, f"{self.volume}@{name}"))
            assert hashlib.sha256(found).digest() == digest, f"the checkpoint {name} reads other bytes than before"

    def names(self, what):
        return set(self.host.points(what, self.volume))


def test_fifty_keepers_are_killed_under_load_and_nothing_is_lost(host, capsys, record_property):
    crasher = _Crasher(host, "disk", _SEED)
    crasher.client.run(0.2)
    crasher.make_refpoint("first")
    for cycle in range(_KILLS):
        crasher.client.run(0.1)
        if cycle % 2 == 0:
            crasher.make_refpoint("latest")
        if cycle % 5 == 1:
            crasher.make_checkpoint(f"c{cycle}", *(["--volatile"] if cycle % 10 == 1 else []))
        # Every fourth time, a cut is under way as well.
        raced = f"r{cycle}"
        code = None
        if cycle % 4 == 3:
            with crasher.client.cut() as cut:
                code = crasher.kill(("refpoint", "create", "disk", "--name", raced))
        else:
            crasher.kill()
        crasher.check()
        if code is not None:
            there = raced in crasher.names("refpoint")
            assert there or code != 0, "a reference point was acknowledged and is gone"
            crasher.counts.update(raced_refpoints=there)
            if there:
                extents, exact = host.changes("disk", raced)
                assert exact
                crasher.client.check_changes(extents, cut)
                host.cli("refpoint", "delete", f"disk@{raced}")
        if cycle % 2 == 1:
            host.cli("refpoint", "delete", "disk@latest")
            del crasher.refpoints["latest"]
        if len(crasher.checkpoints) > 2:
            name, _ = crasher.checkpoints.popitem(last=False)
            host.cli("checkpoint", "delete", f"disk@{name}")
            assert crasher.names("checkpoint") == set(crasher.checkpoints)
    crasher.client.close()
    host.cli("volume", "unserve", "disk")

    assert crasher.counts["in_flight"] > _KILLS, "the keepers were not killed under load"
    assert crasher.counts["raced_inside"] > 0 and crasher.counts["raced_outside"] > 0, "no write has raced a cut"
    least, median, most_of_them, longest = volume_tools.quantiles(crasher.restart_ms)
    record_property("restart_ms", json.dumps([round(value, 1) for value in crasher.restart_ms]))
    with capsys.disabled():
        print(f"\n{_KILLS} kills, first answer after {least:.0f} ms at least, {median:.0f} in the median, "
              f"{most_of_them:.0f} for nine of ten, {longest:.0f} at most; {dict(crasher.counts)}")


def test_what_is_zero_and_is_zeroed_may_be_left_out_and_its_neighbour_may_not(host):
    """The load meets this by chance: one zeroing over parts of a block that was zeroed before and of one that has data."""
    crasher = _Crasher(host, "zeros", _SEED + 2)
    crasher.client.zero(BLOCK, BLOCK)
    crasher.client.write(2 * BLOCK, b"x" * BLOCK)
    with crasher.client.cut() as crasher.refpoints["first"]:  # and no load beside it
        host.cli("refpoint", "create", "zeros", "--name", "first")
    crasher.client.zero(2 * BLOCK - SECTOR, 2 * SECTOR)
    crasher.check()
    extents, exact = host.changes("zeros", "first")
    assert exact and volume_tools.blocks_of(extents) == {2}
    crasher.client.close()
    host.cli("volume", "unserve", "zeros")


def test_a_keeper_that_is_killed_again_while_it_starts_loses_nothing(host):
    crasher = _Crasher(host, "again", _SEED + 1)
    crasher.client.run(0.2)
    crasher.make_refpoint("first")
    crasher.make_checkpoint("kept")
    crasher.client.run(0.2)
    for pause_s in (0.0, 0.01, 0.02, 0.04, 0.08):
        pid = _keeper_pid(host, "again")
        crasher.client.run(0.1)
        mark = host.last_event()
        os.kill(pid, signal.SIGKILL)
        # Its successor, as soon as there is one: while it opens the volume, or just after.
        second = volume_tools.wait_until(lambda pid=pid: _keeper_processes(host, "again") - {pid}, "a new keeper").pop()
        time.sleep(pause_s)
        os.kill(second, signal.SIGKILL)
        crasher.client.reconnect()
        crasher.check()
        assert host.wait_for_event("keeper_started", volume="again", since=mark)
    crasher.client.close()
    host.cli("volume", "unserve", "again")


def _keeper_processes(host, volume):
    return {pid for pid, words in host.processes().items() if " keeper " in words and words.rstrip().endswith(f"--volume {volume}")
            or f"--volume {volume} " in words}


def test_fio_verifies_through_a_reconnecting_qemu_while_keepers_are_killed(host, tmp_path):
    """QEMU's own NBD client reconnects and sends again what was not answered; fio sees a disk that stalls."""
    host.create("fio", "64M")
    uri = host.serve("fio")
    host.cli("refpoint", "create", "fio", "--name", "start")
    path = host.json("volume", "info", "fio")["listeners"][0]["address"]
    socket = tmp_path / "qsd.sock"
    storage_daemon = ["qemu-storage-daemon",
                      "--blockdev", f"driver=nbd,node-name=disk,server.type=unix,server.path={path},export=fio,reconnect-delay=20",
                      "--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=4",
                      "--export", "type=nbd,id=out,node-name=disk,name=disk,writable=on"]
    fio = ["fio", "--name=crash", "--ioengine=nbd", f"--uri=nbd+unix:///disk?socket={socket}", "--rw=randwrite", "--bsrange=4k-64k",
           "--bs_unaligned=0", "--iodepth=16", "--io_size=48M", "--size=64M", "--rate=10m", "--verify=crc32c", "--do_verify=1",
           "--verify_fatal=1", "--randseed=7", "--group_reporting", f"--write_iolog={tmp_path / 'iolog'}"]
    kills = 0
    with child(*storage_daemon):
        volume_tools.wait_until(socket.exists, "QEMU's storage daemon")
        with child(*fio, stdout=volume_tools.subprocess.PIPE, stderr=volume_tools.subprocess.STDOUT, text=True) as writer:
            deadline = time.monotonic() + 60
            while writer.poll() is None:
                assert time.monotonic() < deadline, "fio does not end"
                time.sleep(0.25)
                if writer.poll() is None and kills < 12:
                    host.kill_keeper("fio")
                    kills += 1
            output = writer.communicate(timeout=volume_tools.LIMIT_S)[0]
            assert writer.returncode == 0, output
    assert kills >= 5, f"fio was done after {kills} kills"

    # fio wrote where its log says so, and nothing is zero that it wrote: three accounts of the same blocks.
    logged = set()
    for line in (tmp_path / "iolog").read_text().splitlines():
        words = line.split()
        if len(words) >= 5 and words[2] == "write" or len(words) == 4 and words[1] == "write":
            offset, length = map(int, words[-2:])
            logged |= volume_tools.blocks_of([(offset, length)])
    extents, exact = host.changes("fio", "start")
    content = read_export(uri)
    differing = {offset // volume_tools.BLOCK for offset in volume_tools.differing(content, bytes(len(content)), volume_tools.BLOCK)}
    assert exact and volume_tools.blocks_of(extents) == differing == logged
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, _copy(uri, tmp_path / "copy.raw"))
    host.cli("volume", "unserve", "fio")


def _copy(uri, path):
    run("nbdcopy", uri, path)
    return path


def test_a_client_that_waits_in_the_queue_is_served_by_the_next_keeper(host):
    """The daemon holds the listening socket: who connects while no keeper lives waits, and is not refused."""
    host.create("queue", "16M")
    uri = host.serve("queue")
    for _ in range(3):
        host.kill_keeper("queue")
        handle = connect(uri)  # within the first connect(2): nothing is tried twice below
        assert handle.get_size() == 16 << 20
        handle.shutdown()
    host.cli("volume", "unserve", "queue")
