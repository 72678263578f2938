"""Daemon and keepers as processes: who outlives whom, who finds whom again, who ends when."""

import contextlib
import grp
import json
import os
import re
import signal
import socket
import sqlite3
import stat
import subprocess
import uuid

import nbd
import pytest
from berth_host import BerthHost, program, wait_for_exit


class KeeperControl:
    """A client of a keeper's control socket, as a daemon is one."""

    def __init__(self, host, volume):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(30)
        self._socket.connect(str(host.run_dir / "keepers" / volume / "control"))
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._id = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lines.close()
        self._socket.close()

    def call(self, method, **params):
        self._id += 1
        self._socket.sendall(json.dumps({"id": self._id, "method": method, "params": params}).encode() + b"\n")
        while True:
            reply = json.loads(self._lines.readline())
            if reply.get("id") == self._id:
                assert "result" in reply, reply
                return reply["result"]


def state_of(host, volume):
    return next(entry["state"] for entry in host.json("volume", "list")["volumes"] if entry["name"] == volume)


def test_without_a_daemon_the_message_says_how_to_start_one():
    with BerthHost(start=False) as host:
        refused = host.refused("volume", "list")
        assert refused.returncode == 1
        assert f"berth daemon --state-dir {host.state_dir} --run-dir {host.run_dir}" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_one_daemon_per_state_directory(host):
    refused = host.refused("daemon")
    assert refused.returncode == 4 and "another daemon" in refused.stderr
    refused = host.refused("daemon", "--state-dir", host.directory / "other")
    assert refused.returncode == 4 and "another daemon answers" in refused.stderr
    assert host.json("host", "info")["pid"] == host.daemon.pid


def test_the_socket_is_for_root_and_the_group(host):
    status = (host.run_dir / "api.sock").stat()
    assert stat.S_IMODE(status.st_mode) == 0o660
    with contextlib.suppress(KeyError):
        assert status.st_gid == grp.getgrnam("berth").gr_gid


@pytest.mark.parametrize("kill", [False, True])
def test_a_keeper_outlives_the_daemon_and_its_client_notices_nothing(host, kill):
    host.create("disk1")
    uri = host.serve("disk1")
    pid = host.keeper_pid("disk1")
    client = nbd.NBD()
    client.connect_uri(uri)
    client.pwrite(b"before" + bytes(506), 0)
    host.restart(kill=kill)
    assert state_of(host, "disk1") == "served"
    client.pwrite(b"after!" + bytes(506), 512)
    assert client.pread(6, 0) == b"before" and client.pread(6, 512) == b"after!"
    client.shutdown()
    assert host.keeper_pid("disk1") == pid
    assert [listener["uri"] for listener in host.json("volume", "info", "disk1")["listeners"]] == [uri]


def test_a_keeper_that_dies_serving_is_started_again_at_the_same_socket(host):
    host.create("disk1")
    path_uri = host.serve("disk1")
    port_uri = host.serve("disk1", "--nbd", "127.0.0.1:0")
    pid = host.keeper_pid("disk1")
    for _ in range(3):
        mark = host.last_event()
        host.kill_keeper("disk1", pid)
        # The listening sockets have never gone: whoever connects now waits for the next keeper, and is served by it.
        for uri in (path_uri, port_uri):
            client = nbd.NBD()
            client.connect_uri(uri)
            assert client.get_size() == 64 << 20
            client.shutdown()
        host.wait_for_event("keeper_started", "disk1", since=mark)
        new_pid = host.keeper_pid("disk1")
        assert new_pid != pid
        pid = new_pid
    assert {listener["uri"] for listener in host.json("volume", "info", "disk1")["listeners"]} == {path_uri, port_uri}


def test_the_listening_socket_outlives_a_keeper_that_an_earlier_daemon_started(host):
    host.create("disk1")
    uri = host.serve("disk1")
    pid = host.keeper_pid("disk1")
    host.restart(kill=True)
    host.kill_keeper("disk1", pid)
    client = nbd.NBD()
    client.connect_uri(uri)
    client.shutdown()


def test_a_keeper_that_died_while_no_daemon_ran_is_started_with_the_daemon(host):
    host.create("disk1")
    uri = host.serve("disk1")
    pid = host.keeper_pid("disk1")
    host.stop()
    host.kill_keeper("disk1", pid)
    host.start()
    client = nbd.NBD()
    client.connect_uri(uri)
    client.shutdown()
    assert state_of(host, "disk1") == "served"


def test_a_keeper_that_dies_without_serving_is_started_when_it_is_needed(host):
    host.create("disk1")
    pid = host.keeper_pid("disk1")
    mark = host.last_event()
    host.kill_keeper("disk1", pid)
    ended = host.wait_for_event("keeper_ended", "disk1", since=mark)
    assert "signal 9" in ended["message"]
    assert state_of(host, "disk1") == "closed"
    assert host.keeper_pid("disk1") not in (0, pid)


def test_an_idle_keeper_ends_and_a_serving_one_stays():
    with BerthHost(daemon_options=["--keeper-idle", "0.2"]) as host:
        host.create("idle")
        host.create("served")
        host.serve("served")
        host.cli("checkpoint", "create", "idle", "--name", "kept")
        host.cli("checkpoint", "create", "idle", "--name", "volatile", "--volatile")
        pid = host.keeper_pid("idle")
        host.wait_for_event("keeper_ended", "idle")
        wait_for_exit(pid)
        assert state_of(host, "idle") == "closed" and state_of(host, "served") == "served"
        names = [point["name"] for point in host.json("checkpoint", "list", "idle")["checkpoints"] if not point["lost"]]
        assert names == ["kept", "volatile"]


def test_an_idle_keeper_that_a_clone_stands_on_stays():
    with BerthHost(daemon_options=["--keeper-idle", "0.2"]) as host:
        host.create("golden")
        host.cli("checkpoint", "create", "golden", "--name", "base")
        host.cli("volume", "create", "clone", "--backing", "volume:golden@base")
        uri = host.serve("clone")
        host.create("other")
        host.keeper_pid("other")
        host.wait_for_event("keeper_ended", "other")
        assert state_of(host, "golden") == "open"
        client = nbd.NBD()
        client.connect_uri(uri)
        assert client.pread(512, 0) == bytes(512)
        client.shutdown()


def test_stopping_keepers_closes_every_volume(host):
    for name in ("a", "b"):
        host.create(name)
        host.serve(name)
    pids = [host.keeper_pid(name) for name in ("a", "b")]
    assert host.json("daemon", "--stop-keepers") == {"keepers_stopped": 2, "machines_stopped": 0}
    assert host.daemon.wait() == 0
    for pid in pids:
        wait_for_exit(pid, timeout_s=1)
    assert host.sockets() == []
    host.start()
    assert host.json("volume", "info", "a")["hot_regions"] == 0


def test_keepers_are_stopped_without_a_daemon_too(host):
    host.create("golden")
    host.cli("checkpoint", "create", "golden", "--name", "base")
    host.cli("volume", "create", "clone", "--backing", "volume:golden@base")
    host.serve("clone")
    host.daemon.kill()
    assert host.json("daemon", "--stop-keepers") == {"keepers_stopped": 2, "machines_stopped": 0}
    assert host.processes() == {}
    assert host.sockets() == []


def test_stopping_the_daemon_leaves_the_keepers(host):
    host.create("disk1")
    pid = host.keeper_pid("disk1")
    assert host.json("daemon", "--stop") == {"keepers_stopped": 0, "machines_stopped": 0}
    assert host.daemon.wait() == 0
    assert list(host.processes()) == [pid]


def test_a_job_that_ran_when_the_daemon_died_has_failed(host):
    source = host.directory / "source.raw"
    with open(source, "wb") as file:
        file.truncate(8 << 30)
        for offset in range(0, 8 << 30, 64 << 20):
            file.seek(offset)
            file.write(b"x")
    job = host.json("volume", "create", "copy", "--import", source, "--detach")
    host.daemon.kill()
    host.start()
    ended = host.json("job", "info", job["id"])
    assert ended["state"] in ("failed", "done")
    if ended["state"] == "failed":
        assert ended["error"]["kind"] == "disconnected"
        assert host.json("volume", "list") == {"volumes": []}


def provisional_cut(host, volumes, group):
    """What a daemon leaves that dies after the second phase: volumes that have advanced, and nothing decided."""
    controls = [KeeperControl(host, volume) for volume in volumes]
    try:
        tickets = [control.call("cut.begin", checkpoint="night", refpoint="night", durability="durable", group=group,
                                lease_ms=20000)["ticket"] for control in controls]
        for control, ticket in zip(controls, tickets):
            control.call("cut.commit", ticket=ticket)
    finally:
        for control in controls:
            control.__exit__()


@pytest.mark.parametrize("decided", [False, True])
@pytest.mark.parametrize("keepers_die", [False, True])
def test_a_cut_that_the_daemon_left_open_is_settled_by_the_next_one(host, decided, keepers_die):
    volumes = ["a", "b"]
    for name in volumes:
        host.create(name)
    pids = [host.keeper_pid(name) for name in volumes]
    host.daemon.kill()
    group = str(uuid.uuid4())
    provisional_cut(host, volumes, group)
    with sqlite3.connect(host.state_dir / "catalogue.sqlite") as catalogue:
        catalogue.execute("INSERT INTO groups (id, state) VALUES (?, ?)", (group, "committed" if decided else "prepared"))
        catalogue.executemany("INSERT INTO group_members (group_id, volume) VALUES (?, ?)", [(group, name) for name in volumes])
    catalogue.close()
    if keepers_die:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            wait_for_exit(pid)
    host.start()
    listed = host.json("checkpoint", "list")["checkpoints"] + host.json("refpoint", "list")["refpoints"]
    assert len(listed) == (4 if decided else 0)
    # Decided or not, the volumes go on: the name is taken, or free.
    again = host.run("checkpoint", "create", *volumes, "--name", "night")
    assert again.returncode == (4 if decided else 0), again.stderr


def test_a_provisional_point_is_not_shown_before_it_is_decided(host):
    host.create("a")
    host.keeper_pid("a")
    provisional_cut(host, ["a"], str(uuid.uuid4()))
    assert host.json("checkpoint", "list", "a") == {"checkpoints": []}
    assert host.json("refpoint", "list", "a") == {"refpoints": []}


def test_events_tell_what_happens(host):
    host.create("disk1")
    host.cli("checkpoint", "create", "disk1", "--name", "one")
    kinds = []
    with host.lines("/v1/events?since=0") as events:
        for event in events:
            kinds.append(event["kind"])
            if event["kind"] == "checkpoint_created":
                break
    assert kinds == ["job_started", "volume_created", "job_ended", "keeper_started", "checkpoint_created"]


def test_a_volume_whose_keeper_cannot_open_it_says_why(host):
    host.create("disk1")
    data = host.state_dir / "volumes" / "disk1" / "map"
    with open(data, "r+b") as file:
        file.write(b"not a map" + bytes(8192))
    refused = host.refused("volume", "info", "disk1")
    assert "cannot open volume 'disk1'" in refused.stderr and "corrupt" not in refused.stderr.split(":")[0]
    assert host.api("GET", "/v1/volumes/disk1")[1]["error"]["kind"] in ("corrupt", "unsupported")
    listed = host.json("volume", "list")["volumes"][0]
    assert listed["state"] == "failed" and listed["error"]
    host.cli("volume", "delete", "disk1")


def test_check_works_without_a_daemon_and_through_it(host):
    host.create("disk1")
    assert host.json("volume", "check", "disk1")["sound"] is True
    # Its keeper is open and idle: the daemon ends it for the check.
    pid = host.keeper_pid("disk1")
    assert host.json("volume", "check", "disk1")["errors"] == 0
    wait_for_exit(pid, timeout_s=1)
    host.serve("disk1")
    refused = host.refused("volume", "check", "disk1")
    assert refused.returncode == 4 and "unserve it first" in refused.stderr
    assert host.refused("volume", "check", "missing").returncode == 3
    host.cli("volume", "unserve", "disk1")
    host.cli("daemon", "--stop-keepers")
    assert host.json("volume", "check", host.state_dir / "volumes" / "disk1")["sound"] is True


# --- What is made from the list of commands.

def test_the_manual_page_is_current():
    from berth_host import ROOT
    made = subprocess.run([program(), "internal", "man"], check=True, timeout=30, text=True, stdout=subprocess.PIPE).stdout
    assert (ROOT / "docs" / "man" / "berth.1").read_text() == made, "make it anew: berth internal man"


def test_the_manual_page_is_one_that_man_can_show():
    groff = subprocess.run(["sh", "-c", "command -v groff"], check=False, stdout=subprocess.DEVNULL).returncode == 0
    if not groff:
        pytest.skip("groff is not installed")
    from berth_host import ROOT
    shown = subprocess.run(["groff", "-man", "-Tutf8", "-ww", "-K", "utf8", ROOT / "docs" / "man" / "berth.1"], check=True, timeout=30,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert shown.stderr == b""


def test_bash_completes_commands_and_names(host):
    host.create("disk1")
    host.create("disk2")
    script = host.cli("completion", "bash")
    commands = script + """
COMP_WORDS=(berth volume info d); COMP_CWORD=3; _berth; printf '%s\\n' "${COMPREPLY[@]}"
COMP_WORDS=(berth vol); COMP_CWORD=1; _berth; printf '%s\\n' "${COMPREPLY[@]}"
"""
    environment = {**host.environment, "PATH": f"{os.path.dirname(os.path.abspath(program()))}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", commands], env=environment, check=True, timeout=30, text=True, stdout=subprocess.PIPE)
    assert done.stdout.split() == ["disk1", "disk2", "volume"]
    for shell in ("zsh", "fish"):
        assert "berth internal complete" in host.cli("completion", shell)
    assert host.refused("completion", "tcsh").returncode == 2


def test_help_shows_examples_and_every_example_parses():
    text = subprocess.run([program(), "volume", "create", "--help"], check=True, timeout=30, text=True, stdout=subprocess.PIPE).stdout
    assert "Examples:" in text and re.search(r"--size SIZE", text)
