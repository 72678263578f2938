"""A machine's life, as an administrator has it: made from a vm.toml, started, looked at, given and deprived of disks,
suspended, stopped; its keeper and its daemon killed under it. Every statement of the file is tried on a real guest."""

import os
import re
import signal
import socket
import stat
import subprocess
import time

import pytest

import guest
from berth_host import program, wait_for_exit
from machine_host import Machine, guest_toml
from volume_tools import wait_until


@pytest.fixture(scope="module", name="web")
def _web(shared_host):
    machine = Machine.create(shared_host, "web")
    machine.start(wait=False)
    assert machine.info()["agent"] is False  # it boots
    machine.wait_for_agent()
    return machine


def test_a_machine_is_shown_as_it_is(shared_host, web):
    info = web.info()
    assert info["state"] == "running" and info["agent"]
    assert [(disk["name"], disk["volume"], disk["own"]) for disk in info["disks"]] == [("root", "web.root", True)]
    assert info["accelerator"] in ("kvm", "tcg")
    assert os.path.exists(f"/proc/{info['pid']}")
    assert "web" in shared_host.cli("vm", "list") and "running" in shared_host.cli("vm", "list")
    assert "answers" in shared_host.cli("vm", "info", "web")


def test_qemu_runs_as_a_user_of_its_own_without_privileges(web):
    pid = web.info()["pid"]
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{pid}/status", encoding="ascii").read().splitlines() if ":\t" in line)
    if os.geteuid() == 0:
        uid = int(status["Uid"].split()[0])
        assert uid != 0 and set(status["Uid"].split()) == {str(uid)}
        assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1" and status["Seccomp"] == "2"
    assert "sandbox" in open(f"/proc/{pid}/cmdline", encoding="ascii").read()


def test_its_directory_holds_the_whole_machine(web):
    directory = web.directory()
    assert (directory / "machine.json").exists() and (directory / "disks/root/data").exists()
    link = web.host.state_dir / "volumes/web.root"
    assert link.is_symlink() and link.resolve() == (directory / "disks/root").resolve()


def test_a_disk_comes_and_goes_while_it_runs(shared_host, web):
    shared_host.create("extra", "64M")
    shared_host.cli("vm", "attach", "web", "extra", "--as", "data")
    script = "for i in $(seq 100); do [ -e /dev/vdb ] && break; sleep 0.1; done; printf berth | dd of=/dev/vdb conv=fsync 2>&1; cat /sys/block/vdb/serial"
    code, output, errors = web.agent().run(script)
    assert code == 0 and "data" in output, output + errors
    refused = shared_host.refused("volume", "delete", "extra")
    assert "machine 'web'" in refused.stderr
    shared_host.cli("vm", "detach", "web", "data", timeout_s=60)
    assert web.agent().run("[ ! -e /dev/vdb ]")[0] == 0
    assert [disk["name"] for disk in web.info()["disks"]] == ["root"]
    uri = shared_host.serve("extra")
    assert subprocess.run(["nbdcopy", uri, "-"], capture_output=True, check=True).stdout.startswith(b"berth")
    shared_host.cli("volume", "unserve", "extra")
    shared_host.cli("volume", "delete", "extra")


def test_its_own_disk_cannot_be_taken_away(shared_host, web):
    assert "made with the machine" in shared_host.refused("vm", "detach", "web", "root").stderr
    assert "machine 'web'" in shared_host.refused("volume", "delete", "web.root").stderr
    assert "running" in shared_host.refused("vm", "delete", "web").stderr


def test_suspended_it_stands_still(web):
    web.host.cli("vm", "suspend", "web")
    assert web.state == "suspended"
    with pytest.raises(guest.GuestError):
        web.agent().ping(timeout_s=1)
    web.host.cli("vm", "resume", "web")
    web.wait_for_agent(10)
    assert web.state == "running"


def test_limits_change_while_it_runs(shared_host, web):
    shared_host.cli("vm", "set", "web", "--limit-cpus", "0.5", "--autostart", "off")
    assert web.info()["specification"]["limits"]["cpus"] == 0.5
    shared_host.cli("vm", "set", "web", "--limit-cpus", "0")
    assert "number of CPUs" in shared_host.refused("vm", "set", "web", "--limit-cpus", "many").stderr


def test_the_console_is_there(shared_host, web):
    web.agent().run("for i in $(seq 40); do echo hello from the guest >/dev/ttyS0; sleep 0.2; done >/dev/null 2>&1 &")
    said = subprocess.run([program(), "vm", "console", "web"], env=shared_host.environment, input=b"\n", capture_output=True,
                          timeout=30, check=True).stdout
    assert b"hello from the guest" in said


def test_what_a_guest_says_on_its_console_does_not_fill_the_memory(web):
    path = web.qemu_directory / "console.log"
    with open(path, "ab") as log:
        log.write(b"a line of a guest that never stops\n" * 150_000)
    wait_until(lambda: path.stat().st_size < 2 << 20, "the log's being shortened")
    web.agent().run("echo and on it goes >/dev/ttyS0")
    wait_until(lambda: "and on it goes" in web.console_text(), "the guest's next line")


def test_a_daemon_that_dies_disturbs_nobody(shared_host, web):
    pid = web.info()["pid"]
    shared_host.restart(kill=True)
    assert web.info()["pid"] == pid and web.state == "running"
    web.agent().ping()


def test_a_keeper_that_dies_is_replaced_and_qemu_goes_on(shared_host, web):
    pid, keeper = web.info()["pid"], web.keeper_pid()
    mark = shared_host.last_event()
    os.kill(keeper, signal.SIGKILL)
    wait_for_exit(keeper)
    shared_host.wait_for_event("keeper_started", since=mark)
    info = web.info()
    assert info["pid"] == pid and info["state"] == "running" and info["agent"]
    assert web.keeper_pid() != keeper


def test_a_qemu_that_dies_is_reported_and_started_again(shared_host, web):
    pid = web.info()["pid"]
    mark = shared_host.last_event()
    os.kill(pid, signal.SIGKILL)
    assert "ended by itself" in shared_host.wait_for_event("machine_crashed", since=mark)["message"]
    shared_host.wait_for_event("machine_restarted", since=mark)
    web.wait_for_agent()
    assert web.info()["pid"] != pid


def test_with_on_crash_preserve_it_stays_ended(shared_host, web):
    shared_host.cli("vm", "set", "web", "--on-crash", "preserve")
    mark = shared_host.last_event()
    os.kill(web.info()["pid"], signal.SIGKILL)
    shared_host.wait_for_event("machine_stopped", since=mark)
    web.wait_for_state("crashed")
    assert "signal 9" in web.info()["last_end"]
    web.start()


def test_a_guest_that_shuts_down_ends_the_machine(shared_host, web):
    mark = shared_host.last_event()
    web.agent().shutdown()
    assert shared_host.wait_for_event("machine_stopped", since=mark, timeout_s=60)["message"] == "the guest shut down"
    web.wait_for_state("stopped")
    # Its disks are let go of a moment after it has ended.
    deadline = time.monotonic() + 20
    while left := [path for path in (shared_host.run_dir / "machines/web").rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)
    assert "not running" in shared_host.refused("vm", "stop", "web").stderr


def test_stop_shuts_the_guest_down_and_force_does_not_wait(shared_host, web):
    web.start()
    web.stop()
    assert web.state == "stopped" and "asked" in web.info()["last_end"] or "shut down" in web.info()["last_end"]
    web.start(wait=False)
    web.stop("--force")
    assert "force" in web.info()["last_end"]


def test_one_disk_has_one_machine_that_writes_it(shared_host, web):
    shared_host.create("shared", "64M")
    toml = guest_toml("one").replace("[[network]]", '[[disk]]\nname = "shared"\nvolume = "shared"\n\n[[network]]')
    Machine.create(shared_host, "one", toml=toml)
    Machine.create(shared_host, "two", toml=toml.replace('name = "one"', 'name = "two"'))
    shared_host.cli("vm", "start", "one")
    refused = shared_host.refused("vm", "start", "two")
    assert "in use by the machine 'one'" in refused.stderr
    shared_host.cli("vm", "stop", "one", "--force")
    for name in ("one", "two"):
        shared_host.cli("vm", "delete", name)
    shared_host.cli("volume", "delete", "shared")
    assert not list((shared_host.state_dir / "volumes").glob("one*"))


def _refusal(shared_host, toml, name="bad"):
    path = shared_host.directory / "bad.toml"
    path.write_text(toml)
    before = sorted(path.name for path in (shared_host.state_dir / "volumes").iterdir())
    refused = shared_host.refused("vm", "create", "-f", path)
    assert sorted(path.name for path in (shared_host.state_dir / "volumes").iterdir()) == before, "something was half made"
    assert [path.name for path in (shared_host.state_dir / "machines").iterdir() if name in path.name] == []
    return refused.stderr


def test_a_vm_toml_with_a_mistake_names_the_line_and_what_was_expected(shared_host):
    good = guest_toml("bad")
    assert re.search(r"bad.toml:\d+: .*memroy.*memory", _refusal(shared_host, good.replace("memory =", "memroy =")), re.S)
    assert re.search(r"bad.toml:\d+: .*cpus", _refusal(shared_host, good.replace("cpus = 1", 'cpus = "many"')))
    assert re.search(r"bad.toml:\d+: .*memory", _refusal(shared_host, good.replace('"256M"', '"lots"')))
    assert re.search(r"bad.toml:\d+", _refusal(shared_host, good + "\n[kernel\n"))


def test_what_is_not_there_is_said_and_nothing_is_half_made(shared_host):
    good = guest_toml("bad")
    kernel = guest.image()["kernel"]
    assert "the kernel '/nowhere/vmlinuz'" in _refusal(shared_host, good.replace(kernel, "/nowhere/vmlinuz"))
    assert "the disk image '/nowhere.raw'" in _refusal(shared_host, good.replace(guest.image()["disk"], "/nowhere.raw"))
    image = f'image = "{guest.image()["disk"]}"'
    assert "no volume 'gone'" in _refusal(shared_host, good.replace(image, 'volume = "gone"'))
    assert "web" in _refusal(shared_host, good.replace(image, 'volume = "web.root"'))


def test_a_port_in_use_and_too_much_memory_are_refused_before_anything_starts(shared_host):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        machine = Machine.create(shared_host, "ports", network=f'mode = "user"\nforward = ["{port}:22"]')
        assert f"127.0.0.1:{port}" in shared_host.refused("vm", "start", "ports").stderr
    shared_host.cli("vm", "set", "ports", "--memory", "3T")
    refused = shared_host.refused("vm", "start", "ports")
    assert "ports" in refused.stderr and "TiB" in refused.stderr
    shared_host.cli("vm", "set", "ports", "--memory", "256M", "--limit-memory", "64M")
    assert "QEMU needs about" in shared_host.refused("vm", "start", "ports").stderr
    assert machine.state == "stopped"
    shared_host.cli("vm", "delete", "ports")


def test_names_that_are_taken_are_refused(shared_host, web):
    path = shared_host.directory / "web.toml"
    assert "already" in shared_host.refused("vm", "create", "-f", path).stderr
    shared_host.create("occupied")
    refused = shared_host.refused("vm", "create", "-f", path, "--name", "occupied")
    assert "volume 'occupied'" in refused.stderr
    shared_host.cli("volume", "delete", "occupied")


def test_deleted_nothing_of_it_is_left(shared_host, web):
    shared_host.cli("vm", "delete", "web")
    assert shared_host.json("vm", "list") == {"machines": []}
    assert not list((shared_host.state_dir / "machines").iterdir()) and not list((shared_host.state_dir / "volumes").iterdir())
    assert shared_host.refused("vm", "info", "web").returncode == 3
