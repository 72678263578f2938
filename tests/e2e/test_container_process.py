"""`berth container run --isolation process`: containers in the host's kernel, by runc, as a user meets them.

Nothing of them may be left when they are gone, whoever was killed meanwhile: the last test looks for it on the whole host."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import pytest
from berth_host import program, wait_for_exit
from test_container import COUNTING, FOREVER, LIMIT_S, ContainerHost, Terminal

OWN = ("--isolation", "process")
ECHO = "nc -ll -p 7 -e cat & while true; do sleep 0.1; done"


class ProcessHost(ContainerHost):
    """Containers on it are in its kernel; it has none for microVMs."""

    def __init__(self):
        super().__init__(kernel=False)

    def once(self, *arguments, data=""):
        return super().once(*OWN, *arguments, data=data)

    def container(self, *arguments):
        return super().container(*OWN, *arguments)

    def traces_of(self, name):
        try:
            found = super().traces_of(name)
        except FileNotFoundError:  # a control group of somebody else's went while it was looked through
            found = [f"{name}: not known yet"]
        found += [str(path) for path in (self.run_dir / "sandboxes").glob("*")]
        found += [line for line in pathlib.Path("/proc/mounts").read_text().splitlines() if str(self.directory) in line]
        return found + [path for path in images_on_loop_devices() if str(self.directory) in path]


def control_groups(identity):
    found = []
    for root, _, _ in os.walk("/sys/fs/cgroup"):  # passes over what goes meanwhile
        if f"berth/container-{identity}-" in root:
            found.append(root)
    return found


def images_on_loop_devices():
    found = []
    for path in pathlib.Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return found


@pytest.fixture(scope="module")
def host():
    with ProcessHost() as made:
        yield made
        made.run("daemon", "--stop-keepers", timeout_s=LIMIT_S)
        assert list((made.run_dir / "sandboxes").glob("*")) == []


@pytest.fixture(scope="module")
def shell(host):
    """A container that runs on."""
    options = ("--name", "shell", "-e", "WORD=of it", "-w", "/var/www", "-u", "web", "--memory", "128M")
    with host.container(*options, "busybox:1", "sh", "-c", FOREVER) as name:
        yield name


def answer(port, words=b"hello"):
    """What an echo service, which is there soon, makes of it."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client, contextlib.suppress(OSError):
            client.sendall(words)
            if got := client.recv(100):
                return got
        assert time.monotonic() < deadline, "the service does not answer"
        time.sleep(0.05)


# --- Running.


def test_it_is_what_the_image_and_the_command_line_say(host):
    assert host.once("busybox:1") == "the image\n/var\n"
    said = host.once("--hostname", "box", "-e", "WORD=x", "-w", "/tmp", "-u", "web", "busybox:1", "sh", "-c",
                     "hostname; echo $WORD; pwd; id -un; cat /etc/hostname")
    assert said == "box\nx\n/tmp\nweb\nbox\n"
    assert host.once("-i", "busybox:1", "cat", data="to it\n") == "to it\n"


@pytest.mark.parametrize("command, code", [(["sh", "-c", "exit 3"], 3), (["/bin/no-program"], 126), (["/bin/nowhere"], 127),
                                           (["sh", "-c", "kill -9 $$"], 137)])
def test_its_exit_code_is_that_of_its_command(host, command, code):
    assert host.berth("run", "--rm", *OWN, "busybox:1", *command)[0] == code


def test_output_and_errors_stay_apart(host):
    assert host.berth("run", "--rm", *OWN, "busybox:1", "sh", "-c", "echo out; echo err >&2") == (0, "out\n", "err\n")


def test_at_a_terminal(host):
    with Terminal(host, "run", "--rm", "-it", *OWN, "busybox:1", "sh", rows=30, columns=90) as terminal:
        terminal.type(b"stty size; tty\n")
        terminal.read_until(b"30 90")
        terminal.read_until(b"/dev/pts/")
        terminal.resized(40, 100)
        terminal.type(b"until [ \"$(stty size)\" = '40 100' ]; do sleep 0.1; done; echo re''sized; exit 5\n")
        terminal.read_until(b"resized")
        assert terminal.wait() == 5


def test_commands_in_one_that_runs(host, shell):
    assert host.berth("exec", shell, "sh", "-c", "echo $WORD; pwd; id -un; exit 9") == (9, "of it\n/var/www\nweb\n", "")
    assert host.berth("exec", "-i", "-u", "root", shell, "sh", "-c", "cat; id -u", data="in\n") == (0, "in\n0\n", "")
    assert host.berth("exec", shell, "sh", "-c", "kill -9 $$")[0] == 137
    assert host.berth("exec", shell, "nothing")[0] == 127
    script = "trap 'echo caught; exit 6' INT; echo rea''dy; while true; do sleep 0.1; done"
    with Terminal(host, "exec", "-it", shell, "sh", "-c", script) as terminal:
        terminal.read_until(b"ready")
        terminal.type(b"\x03")
        terminal.read_until(b"caught")
        assert terminal.wait() == 6


def test_its_life(host):
    polite = "trap 'exit 7' TERM; echo ready; while true; do sleep 0.05; done"
    host.cli("container", "run", "-d", *OWN, "--name", "life", "busybox:1", "sh", "-c", polite, timeout_s=LIMIT_S)
    host.wait_for_lines("life", 1)
    shown = host.inspect("life")
    assert shown["state"] == "running" and shown["accelerator"] is None and shown["kernel"] == os.uname().release
    assert shown["specification"]["isolation"] == "process" and shown["memory_used"] > 0
    assert "life" in host.cli("container", "ps")
    host.cli("container", "stop", "life", timeout_s=LIMIT_S)
    assert host.wait_for_state("life", "exited")["exit_code"] == 7
    host.cli("container", "start", "life", timeout_s=LIMIT_S)
    host.wait_for_lines("life", 2)
    host.cli("container", "kill", "-s", "KILL", "life")
    assert host.wait_for_state("life", "exited")["exit_code"] == 137
    host.cli("container", "rm", "life")
    assert host.refused("container", "inspect", "life").returncode == 3


def test_files_go_in_and_out(host, shell, tmp_path):
    (tmp_path / "in").write_text("a file\n")
    host.cli("container", "cp", str(tmp_path / "in"), f"{shell}:/tmp/it", timeout_s=LIMIT_S)
    assert host.berth("exec", shell, "cat", "/tmp/it") == (0, "a file\n", "")
    host.cli("container", "cp", f"{shell}:/etc/passwd", str(tmp_path / "out"), timeout_s=LIMIT_S)
    assert "web:x:33:34" in (tmp_path / "out").read_text()


@pytest.mark.parametrize("network", ["none", "user"])
def test_a_published_port_leads_into_it(host, network):
    with host.container("--net", network, "-p", "127.0.0.1:0:7", "busybox:1", "sh", "-c", ECHO) as name:
        assert answer(host.inspect(name)["ports"][0]["host_port"]) == b"hello"
        interfaces = host.berth("exec", name, "ls", "/sys/class/net")[1].split()
        assert interfaces == (["lo"] if network == "none" else ["eth0", "lo"])


def own_address():
    """One of this host's that is not its loopback; None where it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]
    return None


def test_with_a_network_it_gets_out_but_not_to_the_hosts_loopback(host):
    address = own_address()
    if address is None:
        pytest.skip("this host has no address")
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.settimeout(LIMIT_S)
        port = server.getsockname()[1]

        def serve():
            with contextlib.suppress(OSError), server.accept()[0] as client:
                client.sendall(b"outside\n")

        thread = threading.Thread(target=serve)
        thread.start()
        with host.container("busybox:1", "sh", "-c", FOREVER) as name:
            assert host.berth("exec", name, "nc", "-w", "5", "198.18.0.2", str(port))[0] != 0
            assert host.berth("exec", name, "nc", "-w", "5", address, str(port)) == (0, "outside\n", "")
        thread.join()


# --- What it may take, see and do.


def test_memory_has_a_limit(host):
    command = ("run", "--rm", *OWN, "-m", "64M", "busybox:1", "awk")
    assert host.berth(*command, 'BEGIN { s = "x"; while (length(s) < 10000000) s = s s }')[0] == 0
    assert host.berth(*command, 'BEGIN { s = "x"; while (length(s) < 500000000) s = s s }')[0] == 137


def test_what_it_writes_is_a_part_of_its_memory_and_goes_with_it(host):
    with host.container("-m", "64M", "busybox:1", "sh", "-c", FOREVER) as name:
        before = host.inspect(name)["memory_used"]
        assert host.berth("exec", name, "sh", "-c", "head -c 16000000 /dev/urandom >/tmp/f")[0] == 0
        assert host.inspect(name)["memory_used"] > before + 15_000_000
        assert host.berth("exec", name, "sh", "-c", "head -c 40000000 /dev/zero >/tmp/g")[0] == 1
        host.cli("container", "stop", "-t", "0", name, timeout_s=LIMIT_S)
        host.cli("container", "start", name, timeout_s=LIMIT_S)
        assert host.berth("exec", name, "ls", "/tmp")[1] == ""


def cpu_ns(host, name):
    """CPU time of all that runs in it."""
    identity = host.inspect(name)["id"][:8]
    [group] = [path for path in control_groups(identity) if "/cpuacct" in path]
    return int(pathlib.Path(group, "cpuacct.usage").read_text())


def has_cpuacct():
    return pathlib.Path("/sys/fs/cgroup/cpuacct").is_dir()


def test_cpu_time_has_a_limit(host):
    if not has_cpuacct():
        pytest.skip("this host has no cpuacct control groups")
    with host.container("--cpus", "0.2", "busybox:1", "sh", "-c", "while true; do :; done") as name:
        before, begun = cpu_ns(host, name), time.monotonic()
        time.sleep(2)
        share = (cpu_ns(host, name) - before) / 1e9 / (time.monotonic() - begun)
        assert 0.02 < share < 0.3


def test_its_root_is_nobody_and_may_little(host):
    said = host.once("busybox:1", "grep", "-E", "Cap(Prm|Eff|Bnd)|NoNewPrivs|Seccomp:", "/proc/self/status").split()
    assert said == ["CapPrm:", "00000000a80425fb", "CapEff:", "00000000a80425fb", "CapBnd:", "00000000a80425fb",
                    "NoNewPrivs:", "1", "Seccomp:", "2"]
    for forbidden in ("mount -t tmpfs none /mnt", "unshare -U true", "unshare -n true", "hostname x",
                      "echo 1 >/proc/sys/vm/drop_caches", "mknod /tmp/d b 7 0", "echo b >/proc/sysrq-trigger", "dmesg -c",
                      "if date -s 2020-01-01 2>&1 | grep permitted; then exit 1; fi", "chroot /proc/1/root/../.. ls /home",
                      "echo x >/dev/.berth-agent", "echo x >/sys/kernel/mm/ksm/run", "head -c1 /proc/kcore | grep ."):
        code, out, _ = host.berth("run", "--rm", *OWN, "busybox:1", "sh", "-c", f"mkdir -p /mnt; {forbidden}")
        assert code != 0, (forbidden, out)


def test_the_host_is_not_seen_from_within(host, shell):
    processes = host.berth("exec", shell, "ps")[1]
    assert "berth-agent" in processes and "daemon" not in processes and "keeper" not in processes
    assert str(host.directory) not in host.berth("exec", shell, "cat", "/proc/mounts")[1]
    assert str(host.state_dir) not in host.berth("exec", shell, "cat", "/proc/self/mountinfo")[1].replace("rootfs.erofs", "")
    assert host.berth("exec", shell, "ls", "/home")[0] != 0
    assert host.berth("exec", shell, "cat", "/proc/self/cgroup")[1].count("berth") == 0


def test_on_the_host_it_is_a_user_of_its_own(host, shell):
    pid = host.inspect(shell)["pid"]
    first = os.stat(f"/proc/{pid}").st_uid
    assert first >= 2_000_000_000 and first % 65536 == 0
    with host.container("busybox:1", "sh", "-c", FOREVER) as another:
        assert os.stat(f"/proc/{host.inspect(another)['pid']}").st_uid not in range(first, first + 65536)
    # Nor does it get more of its image than others have.
    script = "echo more >>/etc/passwd; chown web /etc/group; tail -n 1 /etc/passwd"
    assert host.berth("exec", "-u", "root", shell, "sh", "-c", script) == (0, "more\n", "")
    assert "more" not in host.once("busybox:1", "cat", "/etc/passwd")


def test_containers_of_one_image_share_it(host, shell):
    with host.container("busybox:1", "sh", "-c", FOREVER):
        ours = [path for path in images_on_loop_devices() if path.startswith(str(host.directory))]
        assert len(ours) == 1, shell


# --- Paused.


def test_frozen_it_takes_no_time_and_a_request_resumes_it(host):
    with host.container("-p", "127.0.0.1:0:7", "busybox:1", "sh", "-c", f"({COUNTING}) & {ECHO}") as name:
        port = host.inspect(name)["ports"][0]["host_port"]
        assert answer(port) == b"hello"
        host.wait_for_lines(name, 3)
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as open_before:
            open_before.sendall(b"a")
            assert open_before.recv(1) == b"a"
            host.cli("container", "pause", name)
            shown = host.inspect(name)
            assert shown["state"] == "frozen" and shown["pause"]["level"] == "frozen"
            lines, used = len(host.lines_of(name)), cpu_ns(host, name) if has_cpuacct() else 0
            time.sleep(1)
            assert len(host.lines_of(name)) == lines
            assert not has_cpuacct() or cpu_ns(host, name) - used < 5_000_000
            open_before.sendall(b"b")
            assert open_before.recv(1) == b"b"
        assert host.inspect(name)["state"] == "running"
        host.wait_for_lines(name, lines + 1)
        for request in (("exec", name, "true"), ("stop", "-t", "0", name)):
            host.cli("container", "pause", name)
            assert host.berth(*request)[0] == 0
        assert host.wait_for_state(name, "exited")["exit_code"] == 137


def test_with_swap_it_is_trimmed(host):
    with host.container("-m", "128M", "busybox:1", "sh", "-c", FOREVER) as name:
        swap = host.json("host", "swap")
        if not swap["areas"]:
            refused = host.refused("container", "pause", "--level", "trimmed", name)
            assert refused.returncode == 4 and "berth host swap" in refused.stderr
            assert host.inspect(name)["state"] == "running"
        if not swap["has_zram"]:
            pytest.skip("this kernel has no zram")
        if any(area["ours"] for area in swap["areas"]):
            pytest.skip("this host has swap of Berth's, which is not for tests")
        script = "head -c 16000000 /dev/urandom >/tmp/trimmed; sha256sum /tmp/trimmed"
        code, before, _ = host.berth("exec", name, "sh", "-c", script)
        assert code == 0
        try:
            host.json("host", "swap", "--zram", "256M")
            host.cli("container", "pause", "--level", "trimmed", name, timeout_s=LIMIT_S)
            pause = host.inspect(name)["pause"]
            assert pause["level"] == "trimmed" and pause["before"]["memory"] > 15_000_000
            assert pause["after"]["swapped"] > 15_000_000 and pause["after"]["memory"] < pause["before"]["memory"] / 4
            assert host.berth("exec", name, "sha256sum", "/tmp/trimmed") == (0, before, "")
        finally:
            host.cli("host", "swap", "--undo")


# --- Deaths.


def kill_keeper(host, name):
    keeper = host.keeper_of(name)
    os.kill(keeper, signal.SIGKILL)
    wait_for_exit(keeper)


def numbers(lines):
    return [int(line.split()[1]) for line in lines]


def test_killed_keepers_and_daemons_lose_nothing(host):
    with host.container("-p", "127.0.0.1:0:7", "busybox:1", "sh", "-c", f"({COUNTING}) & {ECHO}") as name:
        shown = host.inspect(name)
        pid, port = shown["pid"], shown["ports"][0]["host_port"]
        for _ in range(3):
            lines = len(host.wait_for_lines(name, 3))
            kill_keeper(host, name)
            assert host.wait_for_state(name, "running")["pid"] == pid
            host.wait_for_lines(name, lines + 5)
        host.restart(kill=True)
        lines = len(host.wait_for_lines(name, 3))
        host.daemon.kill()
        kill_keeper(host, name)
        host.start()
        assert host.wait_for_state(name, "running")["pid"] == pid
        assert answer(port) == b"hello"
        got = numbers(host.wait_for_lines(name, lines + 5))
        assert got == list(range(1, len(got) + 1))


def test_a_killed_keepers_frozen_container_stays_so_until_somebody_asks(host):
    with host.container("busybox:1", "sh", "-c", COUNTING) as name:
        host.wait_for_lines(name, 3)
        host.cli("container", "pause", name)
        kill_keeper(host, name)
        assert host.wait_for_state(name, "frozen")["pause"]["level"] == "frozen"
        host.cli("container", "resume", name)
        lines = len(host.lines_of(name))
        got = numbers(host.wait_for_lines(name, lines + 3))
        assert got == list(range(1, len(got) + 1))
        host.cli("container", "pause", name)
        kill_keeper(host, name)
        host.cli("container", "rm", "-f", name, timeout_s=LIMIT_S)
        assert host.refused("container", "inspect", name).returncode == 3


def test_one_that_is_killed_from_outside_has_ended(host):
    with host.container("busybox:1", "sh", "-c", FOREVER) as name:
        os.kill(host.inspect(name)["pid"], signal.SIGKILL)
        shown = host.wait_for_state(name, "exited")
        assert shown["exit_code"] == 255 and "ended by itself" in shown["error"]


def test_one_that_ends_while_nobody_looks_is_known_to_have(host):
    with host.container("busybox:1", "sh", "-c", FOREVER) as name:
        pid = host.inspect(name)["pid"]
        keeper = host.keeper_of(name)
        host.daemon.kill()
        os.kill(keeper, signal.SIGKILL)
        wait_for_exit(keeper)
        os.kill(pid, signal.SIGKILL)
        host.start()
        assert host.wait_for_state(name, "exited")["exit_code"] == 255
        host.cli("container", "rm", name)
        assert host.refused("container", "inspect", name).returncode == 3


@pytest.mark.parametrize("delay_s", [0.0, 0.03, 0.06, 0.09, 0.12, 0.16])
def test_a_keeper_that_is_killed_while_it_starts_one_leaves_nothing_unknown(host, delay_s):
    """It runs, or has ended with a reason; and goes without a trace."""
    others = set(host.run_dir.glob("sandboxes/*"))
    host.cli("container", "create", *OWN, "--name", "early", "busybox:1", "sh", "-c", FOREVER)
    host.inspect("early")
    with subprocess.Popen([program(), "container", "start", "early"], env=host.environment, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL) as starting:
        deadline = time.monotonic() + LIMIT_S
        while True:
            with contextlib.suppress(ValueError):
                keeper = host.keeper_of("early")
                break
            assert time.monotonic() < deadline and starting.poll() is None
        time.sleep(delay_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGKILL)
        starting.wait(LIMIT_S)
    deadline = time.monotonic() + LIMIT_S
    while (now := host.inspect("early"))["state"] not in ("created", "running", "exited"):
        assert time.monotonic() < deadline, now
        time.sleep(0.05)
    if now["state"] == "running":
        assert host.berth("exec", "early", "echo", "on") == (0, "on\n", "")
    host.cli("container", "rm", "-f", "early", timeout_s=LIMIT_S)
    deadline = time.monotonic() + LIMIT_S
    identity = now["id"][:8]
    while found := [*set(host.run_dir.glob("sandboxes/*")) - others, *control_groups(identity)]:
        assert time.monotonic() < deadline, (found, host.log())
        time.sleep(0.05)


# --- What cannot be.


@pytest.mark.parametrize("options, why", [(["-v", "data:/data"], "only a container in a microVM can have volumes"),
                                          (["--overlay", "data"], "only a container in a microVM can have volumes")])
def test_volumes_are_refused(host, options, why):
    code, _, errors = host.berth("create", *OWN, *options, "busybox:1", "true")
    assert code != 0 and why in errors


def test_what_only_a_microvm_can_is_refused_in_one_sentence(host, shell):
    refused = host.refused("container", "pause", "--level", "parked", shell)
    assert "only a microVM can be parked" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert host.inspect(shell)["state"] == "running"
    for options in (("--from", shell), ):
        refused = host.refused("template", "create", "t", *options)
        assert "only a microVM can become a template" in refused.stderr
    status, body = host.api("POST", "/v1/templates", {"name": "t", "image": "busybox:1", "specification": {"isolation": "process"}})
    assert status >= 400 and "only a microVM can become a template" in json.dumps(body)
    refused = host.refused("container", "create", "--isolation", "hopes", "busybox:1", "true")
    assert refused.returncode == 2


def test_nothing_is_left_of_those_that_are_gone(host):
    """Also of one that was removed by force while its keeper was dead, and the daemon too."""
    for number in range(3):
        name = f"gone-{number}"
        host.cli("container", "run", "-d", *OWN, "--name", name, "busybox:1", "sh", "-c", FOREVER, timeout_s=LIMIT_S)
        host.inspect(name)
        if number > 0:
            keeper = host.keeper_of(name)
            if number > 1:
                host.daemon.kill()
            os.kill(keeper, signal.SIGKILL)
            wait_for_exit(keeper)
            if number > 1:
                host.start()
        host.cli("container", "rm", "-f", name, timeout_s=LIMIT_S)
    for shown in host.api("GET", "/v1/containers")[1]["containers"]:
        host.run("container", "rm", "-f", shown["name"], timeout_s=LIMIT_S)
    for name in list(host.ids):
        host.wait_for_no_trace(name)
    assert [words for words in host.processes().values() if "slirp4netns" in words or "berth-agent" in words] == []
