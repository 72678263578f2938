"""The daemon dies, at any moment, while guests write through keepers. Then:

1. no guest's request fails, and none waits longer than for the moment of a cut;
2. the next daemon finds the keepers, and shows what is true: of volumes, of checkpoints, of jobs;
3. a cut over several volumes has been made in all of them or in none, and no gate stays closed;
4. what a dead daemon has left keeps no other one from starting."""

import contextlib
import json
import os
import random
import socket
import subprocess
import tempfile
import time

import pytest
from berth_host import BerthHost, program, wait_for_exit
from volume_tools import RecordingClient, check_cut, child, connect, export_uri, read_export, wait_until

MIB = 1 << 20
SIZE = 16 * MIB
ROUNDS = 20
STALL_S_MAX = 2  # the cut itself; not its lease, as whoever began it is known to be dead
LIMIT_S = 30


@pytest.fixture(name="host")
def _host():
    """In memory: no power is lost here, and nobody has to wait for a disk."""
    with tempfile.TemporaryDirectory(prefix="berth-", dir="/dev/shm") as directory:
        with BerthHost(directory=directory) as host:
            yield host


def state_of(host, volume):
    return next(entry["state"] for entry in host.json("volume", "list")["volumes"] if entry["name"] == volume)


@contextlib.contextmanager
def fio(uri, directory, seconds):
    """A guest that writes for so long, verifies what it wrote, and takes note of the longest wait."""
    command = ["fio", "--name=guest", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k", "--iodepth=8",
               f"--size={SIZE}", "--rate_iops=1000", f"--io_size={int(seconds * 1000) * 4096}", "--verify=crc32c",
               "--do_verify=1", "--verify_fatal=1", "--output-format=json"]
    with child(*command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        output, errors = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, output + errors
    job = json.loads(output[output.index("{"):])["jobs"][0]
    assert job["error"] == 0 and job["write"]["total_ios"] > 100 and job["read"]["total_ios"] > 100
    assert job["write"]["clat_ns"]["max"] / 1e9 < 2, "a guest's write has waited for the daemon"


def test_a_guest_writes_on_while_daemons_die_and_come_back(host, tmp_path):
    host.create("disk", str(SIZE))
    uri = host.serve("disk")
    host.cli("refpoint", "create", "disk", "--name", "start")
    keeper = host.keeper_pid("disk")
    listeners = host.json("volume", "info", "disk")["listeners"]
    with fio(uri, tmp_path, 3) as writer:
        for kill in (True, False, True, True):
            wait_until(lambda: host.json("volume", "info", "disk")["listeners"][0]["connections"] > 0, "fio's connection")
            assert writer.poll() is None
            host.restart(kill=kill)
            assert state_of(host, "disk") == "served"
            host.wait_for_event("keeper_found", "disk")
            info = host.json("volume", "info", "disk")
            assert info["keeper_pid"] == keeper and info["failed"] is False
            assert [listener["uri"] for listener in info["listeners"]] == [listener["uri"] for listener in listeners]
            host.cli("checkpoint", "create", "disk", "--name", f"after-{time.monotonic_ns()}")
    assert host.changes("disk", "start")[1] is True
    assert len(host.json("checkpoint", "list", "disk")["checkpoints"]) == 4


def test_the_daemon_finds_again_what_it_did_not_see(host):
    """While no daemon runs one keeper is killed that serves, and one that does not."""
    for name in ("served", "killed", "idle", "closed"):
        host.create(name, "4M")
    uris = {name: host.serve(name) for name in ("served", "killed")}
    pids = {name: host.keeper_pid(name) for name in ("served", "killed", "idle")}
    host.daemon.kill()
    for name in ("killed", "idle"):
        os.kill(pids[name], 9)
        wait_for_exit(pids[name])
    host.start()
    states = {entry["name"]: entry["state"] for entry in host.json("volume", "list")["volumes"]}
    assert states == {"served": "served", "killed": "served", "idle": "closed", "closed": "closed"}
    assert host.keeper_pid("served") == pids["served"] and host.keeper_pid("killed") != pids["killed"]
    for uri in uris.values():
        connect(uri).shutdown()
    host.keeper_pid("idle")  # the files of the dead one's sockets go with this one


# --- Jobs.

def test_jobs_are_reported_as_they_really_ended(host):
    source = host.directory / "source.raw"
    with open(source, "wb") as file:
        for offset in range(0, 64 * MIB, MIB):
            file.seek(offset)
            file.write(os.urandom(4096))
        file.truncate(64 * MIB)
    host.cli("volume", "create", "clone", "--backing", source)
    host.create("small", "1M")
    host.cli("checkpoint", "create", "small", "--name", "one")
    done = host.json("checkpoint", "export", "small@one", host.directory / "one.raw", "--detach")
    assert host.wait_for_job(done["id"])["state"] == "done"
    running = host.json("volume", "populate", "clone", "--rate", "1M", "--detach")
    wait_until(lambda: host.json("job", "info", running["id"])["bytes_done"] > 0, "the job's beginning")
    with child(program(), "job", "watch", running["id"], env=host.environment, stdout=subprocess.DEVNULL,
               stderr=subprocess.PIPE, text=True) as watcher:
        host.daemon.kill()
        said = watcher.communicate(timeout=LIMIT_S)[1]
        assert watcher.returncode not in (0, None) and len(said.splitlines()) == 1, said
    host.start()
    jobs = {job["id"]: job for job in host.json("job", "list")["jobs"]}
    assert jobs[done["id"]]["state"] == "done"
    ended = jobs[running["id"]]
    assert ended["state"] == "failed" and ended["error"]["kind"] == "disconnected" and ended["ended_at"]
    assert "start it again" in ended["error"]["message"]
    # It has ended in the keeper as well: it can be started again, and goes on from there.
    populate = ["volume", "populate", "clone", "-o", "json"]
    again = wait_until(lambda: host.run(*populate).stdout, "the job's end in the keeper")
    assert 0 < json.loads(again)["copied"] < 64 * MIB
    assert read_export(host.serve("clone")) == source.read_bytes()


def test_a_daemon_that_is_stopped_ends_its_jobs_as_cancelled(host):
    source = host.directory / "source.raw"
    source.write_bytes(os.urandom(MIB) * 32)
    host.cli("volume", "create", "clone", "--backing", source)
    running = host.json("volume", "populate", "clone", "--rate", "1M", "--detach")
    wait_until(lambda: host.json("job", "info", running["id"])["bytes_done"] > 0, "the job's beginning")
    host.restart()
    assert host.json("job", "info", running["id"])["state"] == "cancelled"
    assert host.json("volume", "populate", "clone")["copied"] > 0


# --- What is left behind.

def test_the_socket_of_a_dead_daemon_is_in_nobodys_way(host):
    path = host.run_dir / "api.sock"
    host.create("disk", "4M")
    host.keeper_pid("disk")
    host.daemon.kill()
    assert path.exists()
    refused = host.refused("volume", "list")
    assert refused.returncode == 1 and "berth daemon" in refused.stderr and len(refused.stderr.splitlines()) == 1
    host.start()  # over the dead one's
    assert state_of(host, "disk") == "open"
    host.daemon.kill()
    assert host.json("daemon", "--stop-keepers") == {"keepers_stopped": 1, "machines_stopped": 0}
    assert not path.exists()
    host.start()
    host.stop()
    assert not path.exists()
    path.write_text("somebody's")  # no socket: it is not ours to remove
    done = host.run("daemon")
    assert done.returncode == 4 and str(path) in done.stderr, done.stderr
    assert host.json("daemon", "--stop-keepers") == {"keepers_stopped": 0, "machines_stopped": 0}
    assert path.read_text() == "somebody's"
    path.unlink()
    host.start()


def test_stopping_keepers_is_refused_for_none_and_leaves_no_listener(host):
    uris = []
    for name in ("a", "b"):
        host.create(name, "4M")
        uris.append(host.serve(name))
    client = connect(uris[0])
    client.pwrite(b"\1" * 4096, 0)
    host.daemon.kill()
    assert host.json("daemon", "--stop-keepers") == {"keepers_stopped": 2, "machines_stopped": 0}
    assert host.processes() == {} and host.sockets() == []
    with pytest.raises(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(uris[0].partition("socket=")[2])
    host.start()
    assert bytes(connect(host.serve("a")).pread(4096, 0)) == b"\1" * 4096


# --- Cuts over two volumes.

class Pair:
    """Two volumes, a guest that writes to both all the time, and a daemon that is killed in the middle of cuts."""

    def __init__(self, host):
        self.host = host
        self.chance = random.Random(11)
        self.clients = []
        for seed, name in enumerate(("a", "b")):
            host.create(name, str(SIZE))
            self.clients.append(RecordingClient(host.serve(name), SIZE, seed, depth=4, connections=1))
        self.pids = [host.keeper_pid(name) for name in ("a", "b")]

    def begin_cut(self, name):
        command = [program(), "checkpoint", "create", "a", "b", "--name", name, "--refpoint", f"r-{name}"]
        return subprocess.Popen(command, env=self.host.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def run_for(self, seconds):
        for client in self.clients:
            client.run(seconds / 2)

    def write_to_both(self):
        """A write to each completes; the longest that one took."""
        longest = 0.0
        for client in self.clients:
            began = time.monotonic()
            client.write(self.chance.randrange(SIZE // 4096) * 4096, b"\x5a" * 4096)
            longest = max(longest, time.monotonic() - began)
        return longest

    def points(self):
        """{name of a checkpoint or reference point: the volumes that show it}"""
        found = {}
        for noun in ("checkpoint", "refpoint"):
            for point in self.host.json(noun, "list")[f"{noun}s"]:
                found.setdefault(point["name"], []).append(point["volume"])
        return found


def test_a_daemon_that_is_killed_in_the_middle_of_cuts_leaves_all_or_nothing_and_no_gate_closed(host):
    pair = Pair(host)
    made = 0
    for number in range(ROUNDS):
        name = f"night-{number}"
        with contextlib.ExitStack() as stack:
            cuts = [stack.enter_context(client.cut()) for client in pair.clients]
            with pair.begin_cut(name) as cli:
                pair.run_for(0.004 + 0.012 * number / ROUNDS)  # the command line itself takes a few milliseconds
                host.daemon.kill()
                cli.wait(LIMIT_S)
            assert pair.write_to_both() < STALL_S_MAX
            host.start()
            assert pair.write_to_both() < STALL_S_MAX
        points = pair.points()
        assert all(sorted(volumes) == ["a", "b"] for volumes in points.values()), points
        assert (name in points) == (f"r-{name}" in points)
        if name in points:
            made += 1
            check_cut([(cut, read_export(export_uri(client.uri, f"{volume}@{name}")))
                       for cut, client, volume in zip(cuts, pair.clients, "ab")])
        else:
            assert cli.returncode != 0
        # The next one works, under the same name if that was not made.
        again = name if name not in points else f"again-{number}"
        cli = host.json("checkpoint", "create", "a", "b", "--name", again)
        assert len(cli["volumes"]) == 2
        for volume in "ab":
            host.cli("checkpoint", "delete", f"{volume}@{again}")
    print(f"{made} of {ROUNDS} cuts were made")
    for client in pair.clients:
        client.verify()
        client.close()
    assert [host.keeper_pid(name) for name in ("a", "b")] == pair.pids
