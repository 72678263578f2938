"""A distribution's cloud image (scripts/cloud-image: Debian's packages, laid out as Debian's own image) as it is: booted by
BIOS, set up by cloud-init from the machine's vm.toml, with the agent, the hooks and the shutdown that its packages bring."""

import pathlib
import socket
import subprocess
import time

import pytest

import guest
from machine_host import Machine

BOOT_S = 300  # an emulated CPU, which others use as well
HOOK = "/etc/qemu/fsfreeze-hook.d/database"


def _free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def _toml(key, port):
    return f"""
name = "cloud"
memory = "512M"
cpus = 2

[[disk]]
name = "root"
image = "{guest.cloud_image()}"
size = "3G"

[[network]]
forward = ["{port}:22"]

[cloud_init]
user_data = '''
#cloud-config
hostname: sunny
ssh_genkeytypes: [ed25519]
ssh_authorized_keys: ["{key}"]
write_files:
  - path: /etc/written
    content: by cloud-init
runcmd:
  - echo ran >>/var/lib/ran
'''
"""


@pytest.fixture(scope="module", name="key")
def _key(tmp_path_factory):
    path = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="module", name="port")
def _port():
    return _free_port()


@pytest.fixture(scope="module", name="cloud")
def _cloud(shared_host, key, port):
    machine = Machine.create(shared_host, "cloud", toml=_toml(pathlib.Path(f"{key}.pub").read_text().strip(), port))
    started = time.monotonic()
    machine.start(wait=False)
    machine.wait_for_agent(BOOT_S)
    print(f"the agent answers {time.monotonic() - started:.0f} s after the start")
    return machine


def _run(machine, script, timeout_s=120):
    code, output, errors = machine.agent().run(script, timeout_s)
    assert code == 0, f"{script}: {code}\n{output}{errors}\n{machine.console_text()[-2000:]}"
    return output.strip()


def _restart_agent(machine):
    """A new agent, with what is in its file of options now."""
    pid = _run(machine, "echo $PPID")
    machine.agent().call("guest-exec", expect_answer=False, path="/usr/bin/systemctl",
                         arg=["restart", "--no-block", "qemu-guest-agent"])
    deadline = time.monotonic() + 60
    while True:
        machine.wait_for_agent(60)
        try:
            if machine.agent().run("echo $PPID")[1].strip() not in ("", pid):
                return
        except guest.GuestError:
            pass  # the old one, as it ended
        assert time.monotonic() < deadline, "the guest's agent does not restart"
        time.sleep(0.2)


def _log_in(key, port, command):
    options = [word for option in ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR",
                                   "ConnectTimeout=60", f"Port={port}") for word in ("-o", option)]
    done = subprocess.run(["ssh", "-F", "none", "-i", key, *options, "debian@127.0.0.1", command], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_cloud_init_does_what_the_vm_toml_says(cloud):
    assert _run(cloud, "cloud-init status --wait", BOOT_S).endswith("status: done")
    assert _run(cloud, "cat /proc/sys/kernel/hostname") == "sunny"
    assert _run(cloud, "cat /etc/written") == "by cloud-init"
    assert _run(cloud, "cat /var/lib/ran") == "ran"
    assert _run(cloud, "systemctl --failed --plain --no-legend") == ""


def test_the_root_has_grown_to_the_disk(cloud):
    assert int(_run(cloud, "df --output=size -B 1M / | tail -n 1")) > 2800


def test_vm_info_shows_the_addresses_that_dhcp_gave(shared_host, cloud):
    assert "10.0.2.15" in [address["address"] for address in cloud.info()["addresses"]]
    assert "10.0.2.15" in shared_host.cli("vm", "info", "cloud")


def test_a_port_of_the_host_leads_to_a_login_with_the_key(cloud, key, port):
    assert _log_in(key, port, "hostname; sudo id -u").splitlines() == ["sunny", "0"]


def test_its_disk_is_tracked(shared_host, cloud, tmp_path):
    cloud.checkpoint("sunday")
    shared_host.cli("checkpoint", "export", "cloud@sunday", tmp_path / "backup", timeout_s=180)
    shared_host.cli("checkpoint", "convert", "cloud@sunday")
    _run(cloud, "head -c 5000000 /dev/urandom >/var/lib/monday; sync")
    cloud.checkpoint("monday")
    changed = sum(length for _, length in shared_host.changes("cloud.root", "sunday", "--until", "monday")[0])
    assert 5_000_000 < changed < 200_000_000
    shared_host.cli("checkpoint", "export", "cloud@monday", tmp_path / "backup", "--since", "sunday", timeout_s=180)
    shared_host.cli("checkpoint", "export", "cloud@monday", tmp_path / "whole", timeout_s=180)
    assert subprocess.run(["cmp", tmp_path / "backup/root.raw", tmp_path / "whole/root.raw"], check=False).returncode == 0
    shared_host.cli("checkpoint", "delete", "cloud@monday")


def test_debians_agent_has_file_systems_frozen_and_hears_no_application(shared_host, cloud):
    made = cloud.checkpoint("frozen")
    assert (made["consistency"], made["reason"]) == ("filesystem", "the guest's agent runs without --fsfreeze-hook"), made
    shared_host.cli("checkpoint", "delete", "cloud@frozen")
    refused = shared_host.refused("checkpoint", "create", "cloud", "--name", "wanted", "--require-application", timeout_s=60)
    assert "would be 'filesystem'" in refused.stderr


def test_debians_dispatcher_without_hooks_says_nothing_of_applications(shared_host, cloud):
    _run(cloud, "printf '[general]\\nfsfreeze-hook=/etc/qemu/fsfreeze-hook\\n' >/etc/qemu/qemu-ga.conf")
    _restart_agent(cloud)
    _run(cloud, f"printf '#!/bin/sh\\n' >{HOOK}.sample; chmod +x {HOOK}.sample")
    made = cloud.checkpoint("none")
    assert made["consistency"] == "filesystem" and "no hooks in /etc/qemu/fsfreeze-hook.d" in made["reason"], made
    shared_host.cli("checkpoint", "delete", "cloud@none")


def test_a_hook_under_debians_dispatcher_is_heard(shared_host, cloud):
    _run(cloud, f"printf '#!/bin/sh\\necho $1 >>/var/lib/heard\\n[ ! -e /run/refuse ]\\n' >{HOOK}; chmod +x {HOOK}")
    made = shared_host.json("checkpoint", "create", "cloud", "--name", "heard", "--require-application", timeout_s=60)
    assert (made["consistency"], made["reason"]) == ("application", ""), made
    assert _run(cloud, "cat /var/lib/heard").split() == ["freeze", "thaw"]
    shared_host.cli("checkpoint", "delete", "cloud@heard")


def test_a_hook_that_fails_there_is_not_taken_for_an_application_at_rest(shared_host, cloud):
    _run(cloud, "touch /run/refuse")
    made = cloud.checkpoint("failed")
    assert made["consistency"] == "filesystem", made
    assert made["reason"] == f"a hook of the guest's failed: {HOOK} status=1", made
    shared_host.cli("checkpoint", "delete", "cloud@failed")
    refused = shared_host.refused("checkpoint", "create", "cloud", "--name", "wanted", "--require-application", timeout_s=60)
    assert "would be 'filesystem'" in refused.stderr and refused.returncode == 4
    assert cloud.checkpoints() == {} and shared_host.points("checkpoint", "cloud.root") == {}
    _run(cloud, "rm /run/refuse")
    assert cloud.checkpoint("again")["consistency"] == "application"
    shared_host.cli("checkpoint", "delete", "cloud@again")


def test_it_powers_off_when_asked_by_acpi_alone(cloud):
    cloud.agent().call("guest-exec", expect_answer=False, path="/usr/bin/systemctl", arg=["stop", "qemu-guest-agent"])
    deadline = time.monotonic() + 60
    while cloud.info()["agent"]:
        assert time.monotonic() < deadline, "the agent does not end"
    started = time.monotonic()
    cloud.stop()
    print(f"off after {time.monotonic() - started:.0f} s")
    assert cloud.state == "stopped" and cloud.info()["last_end"] == "stopped, as asked"


def test_off_it_is_at_rest(shared_host, cloud):
    made = shared_host.json("checkpoint", "create", "cloud", "--name", "off", "--require-application")
    assert made["consistency"] == "application"
    shared_host.cli("checkpoint", "delete", "cloud@off")


def test_started_again_it_is_the_same_instance(cloud, key, port):
    cloud.start(wait=False)
    cloud.wait_for_agent(BOOT_S)
    assert _run(cloud, "cloud-init status --wait", BOOT_S).endswith("status: done")
    assert _run(cloud, "cat /var/lib/ran") == "ran", "what is for the first boot alone ran again"
    assert _run(cloud, "cat /proc/sys/kernel/hostname; cat /etc/written") == "sunny\nby cloud-init"
    assert _run(cloud, "stat -c %s /var/lib/monday") == "5000000"
    assert _log_in(key, port, "id -un") == "debian"


def test_it_powers_off_though_its_agent_answers_late(cloud):
    """Systemd waits for the agent, and the agent (QEMU 7.2) for as long as nobody takes what it says."""
    _run(cloud, "printf '#!/bin/sh\\ntrap : TERM\\nsleep 3; sleep 3\\nexit 1\\n' >/root/late; chmod +x /root/late; "
                "ln -sf /root/late /sbin/shutdown")
    cloud.stop()
    assert cloud.info()["last_end"] == "stopped, as asked"


def test_ended_by_force_it_is_not_at_rest(shared_host, cloud):
    cloud.start(wait=False)
    cloud.stop("--force")
    refused = shared_host.refused("checkpoint", "create", "cloud", "--name", "wanted", "--require-application")
    assert "would be 'crash'" in refused.stderr and cloud.checkpoints() == {}
    shared_host.cli("vm", "delete", "cloud")
