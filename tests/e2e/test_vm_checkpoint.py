"""Checkpoints of a machine with a database under load: what they are and what they claim to be, the guest's time that
they cost, going back with memory and without, reference points, and a machine that moves with them."""

import os
import signal
import subprocess

from berth_host import BerthHost, program, wait_for_exit
from machine_host import Machine


def _export(shared_host, point, directory, *options):
    return shared_host.json("checkpoint", "export", point, directory, *options, timeout_s=180)


def test_a_checkpoint_says_what_it_is_and_the_load_goes_on(db):
    """Whether that is true, test_vm_database.py says."""
    made = db.checkpoint("app")
    assert made["consistency"] == "application" and made["reason"] == ""
    assert 0 < made["frozen_us"] < 10_000_000
    db.wait_for_commits(db.commits() + 20)
    made = db.checkpoint("crash", "--no-quiesce")
    assert made["consistency"] == "crash" and made["frozen_us"] == 0
    db.wait_for_commits(db.commits() + 20)


def test_a_hook_that_refuses_makes_it_filesystem_and_says_so(shared_host, db):
    agent = db.agent()
    agent.run("mv /etc/qemu/fsfreeze-hook /etc/qemu/kept; printf '#!/bin/sh\\n[ \"$1\" != freeze ]\\n' >/etc/qemu/fsfreeze-hook; chmod +x /etc/qemu/fsfreeze-hook")
    try:
        made = db.checkpoint("refused")
        assert made["consistency"] == "filesystem" and "did not quiesce" in made["reason"], made
        assert db.agent().call("guest-fsfreeze-status") == "thawed"
        wanted = shared_host.refused("checkpoint", "create", "db", "--name", "wanted", "--require-application")
        assert "would be 'filesystem'" in wanted.stderr and "wanted" not in db.checkpoints()
    finally:
        db.agent().run("mv /etc/qemu/kept /etc/qemu/fsfreeze-hook")
    shared_host.cli("checkpoint", "delete", "db@refused")


def test_a_machine_goes_on_from_its_memory_where_it_was(shared_host, db):
    db.agent().run("echo before >/run/mark")
    boot = db.agent().read_file("/proc/sys/kernel/random/boot_id")
    made = db.checkpoint("here", "--memory")
    assert made["memory"] and made["stopped_us"] > 0
    print("stopped for", made["stopped_us"], "us")
    db.agent().run("echo after >/run/mark; rm -rf /var/noise; sync")
    later = db.wait_for_commits(db.commits() + 20)
    assert "force" in shared_host.refused("checkpoint", "revert", "db@here").stderr
    shared_host.cli("checkpoint", "revert", "db@here", "--force", timeout_s=120)
    db.wait_for_agent(30)
    assert db.agent().read_file("/run/mark") == b"before\n"
    assert db.agent().read_file("/proc/sys/kernel/random/boot_id") == boot, "it has booted"
    serial = db.commits()
    assert serial < later, "the database was not taken back with it"
    db.wait_for_commits(serial + 20)
    assert db.agent().run("ls /var/noise | head -1")[1]


def test_checkpoints_form_a_tree(shared_host, db):
    db.checkpoint("child", "--no-quiesce")
    found = db.checkpoints()
    assert found["child"]["parent"] == "here" and found["here"]["parent"] == "crash" and found["crash"]["parent"] == "app"
    assert [name for name, point in found.items() if point["current"]] == ["child"]
    tree = shared_host.cli("checkpoint", "list", "db", "--tree").splitlines()
    assert [len(line) - len(line.lstrip()) for line in tree] == [0, 2, 4, 6]
    shared_host.cli("checkpoint", "delete", "db@crash")
    assert db.checkpoints()["here"]["parent"] == "app"
    shared_host.cli("checkpoint", "delete", "db@child")
    assert db.checkpoints()["here"]["current"]


def test_names_and_states_that_do_not_fit_are_refused(shared_host, db):
    assert "already" in shared_host.refused("checkpoint", "create", "db", "--name", "app").stderr
    assert shared_host.refused("checkpoint", "revert", "db@nothing").returncode == 3
    shared_host.cli("checkpoint", "create", "db.root", "--name", "mine")
    refused = shared_host.refused("checkpoint", "create", "db", "--name", "mine")
    assert "of its own" in refused.stderr and "mine" not in db.checkpoints()
    shared_host.cli("checkpoint", "delete", "db.root@mine")


def test_a_daemon_that_dies_in_a_freeze_leaves_no_frozen_guest(shared_host, db):
    for victim in ("daemon", "keeper"):
        mark = shared_host.last_event()
        making = subprocess.Popen([program(), "checkpoint", "create", "db", "--name", "torn"], env=shared_host.environment,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        frozen = shared_host.run_dir / "machines/db/frozen"
        try:
            while making.poll() is None and not frozen.exists():
                pass
            if victim == "daemon":
                shared_host.restart(kill=True)
            else:
                pid = db.keeper_pid()
                os.kill(pid, signal.SIGKILL)
                wait_for_exit(pid)
                shared_host.wait_for_event("keeper_started", since=mark)
        finally:
            making.wait(60)
        db.wait_for_agent(30)
        serial = db.commits()
        db.wait_for_commits(serial + 5, timeout_s=30)  # it writes: nothing is frozen
        for name in db.checkpoints():
            if name == "torn":
                shared_host.cli("checkpoint", "delete", "db@torn")
        db.checkpoint("after")
        shared_host.cli("checkpoint", "delete", "db@after")
        assert db.state == "running"


def test_reference_points_give_exact_increments_and_travel(shared_host, db, tmp_path):
    _export(shared_host, "db@app", tmp_path / "full")
    point = shared_host.json("checkpoint", "convert", "db@app", "--name", "sunday")
    assert [disk["volume"] for disk in point["disks"]] == ["db.root"]
    assert "app" not in db.checkpoints()
    db.wait_for_commits(db.commits() + 30)
    db.checkpoint("monday")
    _export(shared_host, "db@monday", tmp_path / "full", "--since", "sunday")
    _export(shared_host, "db@monday", tmp_path / "again")
    assert subprocess.run(["cmp", tmp_path / "full/root.raw", tmp_path / "again/root.raw"]).returncode == 0
    shared_host.json("checkpoint", "convert", "db@monday")
    db.stop()
    assert db.info()["last_end"]

    db.checkpoint("off")
    assert db.checkpoints()["off"]["consistency"] == "application"
    shared_host.cli("vm", "export", "db", tmp_path / "exported", timeout_s=180)
    assert "--moved" in shared_host.refused("vm", "import", tmp_path / "exported").stderr
    with BerthHost() as other:
        other.cli("vm", "import", tmp_path / "exported", "--moved", timeout_s=180)
        moved = Machine(other, "db")
        assert moved.info()["id"] == db.info()["id"]
        changes = other.json("changes", "db.root", "--since", "monday")
        assert changes["exact"] and 0 < len(changes["extents"])
        _export(other, "db@off", tmp_path / "full", "--since", "monday")
        _export(shared_host, "db@off", tmp_path / "off")
        assert subprocess.run(["cmp", tmp_path / "full/root.raw", tmp_path / "off/root.raw"]).returncode == 0
        moved.start()
        moved.wait_for_commits(1)
        moved.stop("--force")

        other.cli("vm", "import", tmp_path / "exported", "--copied", "--name", "twin", timeout_s=180)
        twin = Machine(other, "twin")
        assert twin.info()["id"] != db.info()["id"]
        refused = other.refused("changes", "twin.root", "--since", "monday")
        assert refused.returncode == 4 and "a copy of" in refused.stderr, refused.stderr
        _export(other, "twin@off", tmp_path / "twin")
        assert subprocess.run(["cmp", tmp_path / "twin/root.raw", tmp_path / "off/root.raw"]).returncode == 0
        twin.checkpoint("new", "--no-quiesce")
        other.json("checkpoint", "convert", "twin@new")
        assert other.json("changes", "twin.root", "--since", "new")["extents"] == []


def test_a_plain_copy_of_the_directory_travels_too(shared_host, db, tmp_path):
    subprocess.run(["cp", "-a", db.directory(), tmp_path / "plain"], check=True)
    with BerthHost() as other:
        other.cli("vm", "import", tmp_path / "plain", "--moved", "--name", "plain", timeout_s=180)
        assert other.json("changes", "plain.root", "--since", "monday")["exact"]
        assert set(other.points("refpoint", "plain")) == {"sunday", "monday"}


def test_a_revert_of_the_disks_alone_boots(shared_host, db):
    shared_host.cli("checkpoint", "revert", "db@here", "--disks-only", timeout_s=120)
    assert db.state == "stopped"
    db.start()
    db.wait_for_commits(1)
    for name in db.checkpoints():
        shared_host.cli("checkpoint", "delete", f"db@{name}")
    shared_host.cli("vm", "stop", "db", "--force")
    shared_host.cli("vm", "delete", "db")
    assert not list((shared_host.state_dir / "machines").iterdir())
