"""`berth container` and `berth kernel`: the daemon, the command line and real microVMs, as a user meets them.

What a keeper does of itself is in test_container_keeper.py."""

import concurrent.futures
import contextlib
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import time

import guest
import pytest
from berth_host import BerthHost, program, wait_for_exit
from oci_images import Image, directory, file, layer, symlink, write_layout

LIMIT_S = 60
COUNTING = "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.02; done"
FOREVER = "while true; do sleep 1; done"
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:Web:/var/www:/bin/sh\n"


def make_layout(path):
    """An image with busybox, two users, a file that is no program, and something to say of how it runs."""
    members = [directory(name) for name in ("bin", "etc", "root", "var", "var/www")] + [directory("tmp", mode=0o1777)]
    members.append(file("bin/busybox", pathlib.Path("/usr/bin/busybox").read_bytes(), mode=0o755))
    members.append(file("bin/no-program", b"neither a script nor a program\n", mode=0o755))
    members += [file("etc/passwd", PASSWD), file("etc/group", b"root:x:0:\nwww:x:34:\n")]
    applets = subprocess.run(["/usr/bin/busybox", "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    members += [symlink(f"bin/{name}", "busybox") for name in applets if name != "busybox"]
    config = {"Cmd": ["/bin/sh", "-c", "echo the image; pwd"], "Env": ["PATH=/bin", "OF=image"], "WorkingDir": "/var"}
    return write_layout(path, [("busybox:1", Image([layer(members)], config=config))])


def release_of(modules):
    """What the kernel of these modules calls itself: they say it."""
    module = next(path for path in sorted(pathlib.Path(modules).rglob("*.ko")))
    return re.search(rb"vermagic=(\S+)", module.read_bytes())[1].decode()


class ContainerHost(BerthHost):
    """With an image and, if wanted, a kernel."""

    def __init__(self, kernel=True, **options):
        super().__init__(**options)
        self.ids = {}  # of containers that were looked at, by name: their control groups are called by them
        try:
            self.cli("image", "import", f"oci:{make_layout(self.directory / 'layout')}", "--name", "busybox:1")
            if kernel:
                self.import_kernel()
        except BaseException:
            self.close(check=False)
            raise

    def import_kernel(self):
        built = guest.built("guest-kernel")
        modules = self.directory / release_of(built["modules"])
        if not modules.exists():
            modules.symlink_to(built["modules"])
        return self.cli("kernel", "import", "--image", built["kernel"], "--modules", modules, timeout_s=LIMIT_S)

    def berth(self, *arguments, data="", environment=()):
        """(exit code, standard output, standard error) of `berth container ARGUMENTS`."""
        done = subprocess.run([program(), "container", *map(str, arguments)], env={**self.environment, **dict(environment)},
                              input=data, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S,
                              check=False)
        return done.returncode, done.stdout, done.stderr

    def once(self, *arguments, data=""):
        """What a container that is of no use any more has written."""
        done = self.berth("run", "--rm", *arguments, data=data)
        assert done[0] == 0 and done[2] == "", done
        return done[1]

    def inspect(self, name):
        shown = json.loads(self.cli("container", "inspect", name))
        self.ids.setdefault(name, set()).add(shown["id"])
        return shown

    def wait_for_state(self, name, state, limit_s=LIMIT_S):
        deadline = time.monotonic() + limit_s
        while (now := self.inspect(name))["state"] != state:
            assert time.monotonic() < deadline, f"{now['state']}: {now}\n{self.log()[-3000:]}"
            time.sleep(0.02)
        return now

    @contextlib.contextmanager
    def container(self, *arguments):
        """One that runs (`run -d ARGUMENTS`), by its name, and goes in the end."""
        name = self.cli("container", "run", "-d", *arguments, timeout_s=LIMIT_S).strip()
        try:
            yield name
        finally:
            self.run("container", "rm", "-f", name, timeout_s=LIMIT_S)

    def lines_of(self, name):
        return self.cli("container", "logs", name).splitlines()

    def wait_for_lines(self, name, count):
        deadline = time.monotonic() + LIMIT_S
        while len(lines := self.lines_of(name)) < count:
            assert time.monotonic() < deadline, lines[-3:]
            time.sleep(0.05)
        return lines

    def keeper_of(self, name):
        [pid] = [pid for pid, words in self.processes().items() if f" keeper " in words and f"--container {name}" in words]
        return pid

    def traces_of(self, name):
        """Everything that there is of a container."""
        found = [str(path) for path in (self.state_dir / "containers").glob(name)]
        found += [str(path) for path in (self.run_dir / "containers").glob(name)]
        found += [str(path) for path in (self.run_dir / "microvms").glob(f"{name}*")]
        found += [str(path) for path in self.memory_dir.glob(f"**/{name}*")]
        for identity in self.ids.get(name, ()):
            found += map(str, pathlib.Path("/sys/fs/cgroup").glob(f"**/berth/container-{identity[:8]}-*"))
        return found + [words for words in self.processes().values() if f"--container {name}" in words or f"/{name}" in words]

    def wait_for_no_trace(self, name):
        deadline = time.monotonic() + LIMIT_S
        while found := self.traces_of(name):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)


class Terminal:
    """`berth container ARGUMENTS` at a terminal of its own."""

    def __init__(self, host, *arguments, rows=24, columns=80):
        self._master, slave = pty.openpty()
        self.resize(rows, columns)
        self._process = subprocess.Popen([program(), "container", *arguments], stdin=slave, stdout=slave, stderr=slave,
                                         env=host.environment, start_new_session=True)
        os.close(slave)
        self.text = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def resize(self, rows, columns):
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resized(self, rows, columns):
        self.resize(rows, columns)
        self._process.send_signal(signal.SIGWINCH)

    def type(self, keys):
        os.write(self._master, keys)

    def read_until(self, words):
        """What came, up to these words."""
        deadline = time.monotonic() + LIMIT_S
        while words not in self.text:
            ready, _, _ = select.select([self._master], [], [], max(0, deadline - time.monotonic()))
            assert ready, self.text
            try:
                self.text += os.read(self._master, 65536)
            except OSError:
                raise AssertionError(f"the terminal is closed: {self.text}") from None
        before, self.text = self.text.split(words, 1)
        return before

    def wait(self):
        """The exit code."""
        deadline = time.monotonic() + LIMIT_S
        while self._process.poll() is None:
            assert time.monotonic() < deadline, self.text
            if select.select([self._master], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.text += os.read(self._master, 65536)
        return self._process.returncode


@pytest.fixture(scope="module")
def host():
    with ContainerHost() as made:
        yield made


@pytest.fixture(scope="module")
def shell(host):
    """A container that runs on."""
    options = ("--name", "shell", "-e", "WORD=of it", "-w", "/var/www", "-u", "web", "--memory", "128M")
    with host.container(*options, "busybox:1", "sh", "-c", FOREVER) as name:
        yield name


# --- Kernels.

def test_without_a_kernel_it_is_said_how_to_get_one():
    with ContainerHost(kernel=False) as host:
        assert host.json("kernel", "list")["kernels"] == []
        code, out, err = host.berth("run", "--rm", "--name", "early", "busybox:1", "true")
        assert code == 125 and out == "" and "berth kernel import" in err
        assert host.traces_of("early") == []
        assert host.refused("kernel", "import", "--image", "/nowhere", "--modules", "/nowhere").returncode in (2, 3)
        host.import_kernel()
        [kernel] = host.json("kernel", "list")["kernels"]
        assert kernel["release"] == release_of(guest.built("guest-kernel")["modules"])
        host.import_kernel()
        assert [each["release"] for each in host.json("kernel", "list")["kernels"]] == [kernel["release"]]


# --- run.

@pytest.mark.parametrize("words, code", [(["true"], 0), (["sh", "-c", "exit 3"], 3), (["/bin/no-program"], 126),
                                         (["/bin/nowhere"], 127), (["sh", "-c", "kill -9 $$"], 137)])
def test_run_ends_as_its_program_does(host, words, code):
    found, out, err = host.berth("run", "--rm", "--name", "once", "busybox:1", *words)
    assert (found, out) == (code, "")
    assert (words[0] in err) == (code in (126, 127)), err
    host.wait_for_no_trace("once")


def test_output_and_errors_are_two_streams(host):
    assert host.berth("run", "--rm", "busybox:1", "sh", "-c", "echo out; echo err >&2; printf x") == (0, "out\nx", "err\n")


def test_what_the_image_says_is_run_where_nothing_else_is_said(host):
    assert host.once("busybox:1") == "the image\n/var\n"
    assert host.once("--entrypoint", "echo", "busybox:1", "one", "two words") == "one two words\n"
    assert host.once("--", "busybox:1", "echo", "-n", "--rm") == "--rm"


def test_its_input_is_ours(host):
    data = "".join(f"line {number}\n" for number in range(20_000))
    assert host.once("-i", "busybox:1", "cat", data=data) == data
    assert host.once("busybox:1", "cat", data="not sent") == ""


def test_what_it_runs_with_is_what_was_asked_for(host, tmp_path):
    variables = tmp_path / "variables"
    variables.write_text("# none\nA=of the file\n\nB=two words\n")
    script = "echo $OF/$A/$B/$C; pwd; id -un; id -gn; hostname; grep MemTotal /proc/meminfo"
    out = host.once("--env-file", variables, "-e", "A=1", "-e", "C=", "-w", "/tmp", "-u", "web:root", "--hostname", "somebody",
                    "--memory", "128M", "busybox:1", "sh", "-c", script)
    *lines, memory = out.splitlines()
    assert lines == ["image/1/two words/", "/tmp", "web", "root", "somebody"]
    assert 64 << 10 < int(memory.split()[1]) <= 128 << 10
    code, out, _ = host.berth("run", "--rm", "-e", "HERE", "-e", "NOT_HERE", "-e", "OF=me", "busybox:1", "env",
                              environment={"HERE": "taken along"})
    assert code == 0 and {"HERE=taken along", "OF=me"} <= set(out.splitlines()) and "NOT_HERE" not in out


def test_what_cannot_be_is_refused_before_anything_runs(host):
    for words in (("--memory", "1", "busybox:1"), ("-p", "x", "busybox:1"), ("-v", "data", "busybox:1"),
                  ("-v", "none:/x", "busybox:1"), ("--name", "-x", "busybox:1"), ("--env-file", "/nowhere", "busybox:1"),
                  ("--cpus", "none", "busybox:1"), ("--overlay", "none", "busybox:1"), ("127.0.0.1:1/none:1",)):
        code, out, err = host.berth("run", "--rm", *words)
        assert (code, out) == (125, "") and err.count("\n") in (1, 2), (words, err)
    assert host.json("container", "ps", "-a")["containers"] == []


# --- At a terminal.

def test_a_terminal_has_a_size_and_keys(host):
    script = "stty size; read x; stty size; exec cat"
    with Terminal(host, "run", "-it", "--rm", "--name", "tty", "busybox:1", "sh", "-c", script, rows=33, columns=101) as terminal:
        terminal.read_until(b"33 101\r\n")
        terminal.resized(11, 22)
        time.sleep(0.5)
        terminal.type(b"\r")
        terminal.read_until(b"11 22\r\n")
        terminal.type(b"typed\r")
        terminal.read_until(b"typed\r\ntyped\r\n")
        terminal.type(b"\x03")
        assert terminal.wait() == 130
    host.wait_for_no_trace("tty")


def test_who_detaches_leaves_it_running_and_may_come_back(host):
    with Terminal(host, "run", "-it", "--name", "tty", "busybox:1", "sh") as terminal:
        terminal.type(b"echo $((20+3))\r")
        terminal.read_until(b"23\r\n")
        terminal.type(b"\x10\x11")
        assert terminal.wait() == 0
    try:
        assert host.inspect("tty")["state"] == "running"
        with Terminal(host, "attach", "tty") as terminal:
            terminal.type(b"echo $((40+5)); exit 6\r")
            terminal.read_until(b"45\r\n")
            assert terminal.wait() == 6
        assert host.wait_for_state("tty", "exited")["exit_code"] == 6
    finally:
        host.cli("container", "rm", "-f", "tty")


def test_exec_has_a_terminal_of_its_own(host, shell):
    with Terminal(host, "exec", "-it", shell, "sh", rows=12, columns=34) as terminal:
        terminal.type(b"stty size; exit 5\r")
        terminal.read_until(b"12 34\r\n")
        assert terminal.wait() == 5


# --- Its log, over the API.

def test_the_api_sends_a_log_until_the_container_ends(host):
    script = "echo one; printf 'a\\377b\\n'; printf tw; sleep 1; echo o; echo bad >&2; exit 3"
    with host.container("busybox:1", "sh", "-c", script) as name:
        with host.lines(f"/v1/containers/{name}/logs?follow=true", timeout_s=LIMIT_S) as sent:
            entries = list(sent)
        assert host.wait_for_state(name, "exited")["exit_code"] == 3

        def written(stream):
            return "".join(entry["text"] + "\n" * (not entry["partial"]) for entry in entries if entry["stream"] == stream)

        assert (written("stdout"), written("stderr")) == ("one\na\ufffdb\ntwo\n", "bad\n")
        assert [entry["at"] for entry in entries] == sorted(entry["at"] for entry in entries)
        with host.lines(f"/v1/containers/{name}/logs") as sent:
            assert list(sent) == entries
        with host.lines(f"/v1/containers/{name}/logs?tail=2") as sent:
            assert "".join(entry["text"] for entry in sent) == "twobad"


def test_who_leaves_while_a_log_is_sent_disturbs_nobody(host, shell):
    for _ in range(20):
        with host.lines(f"/v1/containers/{shell}/logs?follow=true", timeout_s=LIMIT_S):
            pass
    assert host.api("GET", "/v1/host")[0] == 200
    with host.container("busybox:1", "sh", "-c", "while true; do echo word; sleep 0.1; done") as name:
        with host.lines(f"/v1/containers/{name}/logs?follow=true&tail=0", timeout_s=LIMIT_S) as sent:
            assert next(sent)["text"] == "word"
            host.cli("container", "rm", "-f", name)
            assert {entry["text"] for entry in sent} <= {"word"}


# --- Its clock.

def test_a_guest_that_boots_on_a_busy_host_keeps_its_clock(host):
    """Linux distrusts the CPU's counter where timer ticks are lost meanwhile: 250 a second from then on, and time that is lost."""
    command = [program(), "container", "run", "-d", "--name", "steady", "busybox:1", "sleep", "100000"]
    with subprocess.Popen(command, env=host.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as client:
        try:
            held_up = 0
            while client.poll() is None:
                found = host.run("container", "inspect", "steady")
                pid = json.loads(found.stdout)["pid"] if found.returncode == 0 else None
                while pid and client.poll() is None:
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(0.05)
                    os.kill(pid, signal.SIGCONT)
                    time.sleep(0.1)
                    held_up += 1
            assert client.returncode == 0 and held_up > 10
            clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
            settled = f"until ! grep -q tsc-early {clock}; do sleep 0.1; done; cat {clock}"
            assert host.berth("exec", "steady", "sh", "-c", settled) == (0, "tsc\n", "")
        finally:
            client.kill()
            host.run("container", "rm", "-f", "steady")


# --- exec.

def test_exec_ends_as_its_program_does(host, shell):
    assert host.berth("exec", shell, "sh", "-c", "echo out; echo err >&2; exit 9") == (9, "out\n", "err\n")
    assert host.berth("exec", shell, "sh", "-c", "kill -9 $$")[0] == 137
    for word, code in (("/bin/no-program", 126), ("/bin/nowhere", 127)):
        found, _, err = host.berth("exec", shell, word)
        assert found == code and word in err
    assert host.berth("exec", "nobody", "true")[0] == 125
    assert host.berth("exec", "-i", shell, "cat", data="given\n") == (0, "given\n", "")
    assert host.berth("exec", shell, "cat", data="not given\n") == (0, "", "")


def test_exec_runs_with_what_the_container_has_unless_told_otherwise(host, shell):
    script = "echo $OF/$WORD; pwd; id -un"
    assert host.berth("exec", shell, "sh", "-c", script)[1] == "image/of it\n/var/www\nweb\n"
    found = host.berth("exec", "-e", "WORD=mine", "-w", "/tmp", "-u", "root", shell, "sh", "-c", script)
    assert found == (0, "image/mine\n/tmp\nroot\n", "")


# --- Copying.

def test_files_are_copied_in_and_out(host, tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "data").write_bytes(os.urandom(3 << 20))
    (tree / "run.sh").write_text("#!/bin/sh\necho run\n")
    (tree / "run.sh").chmod(0o755)
    (tree / "link").symlink_to("run.sh")
    with host.container("busybox:1", "sh", "-c", FOREVER) as name:
        # Into a directory that is there, and as a name that is not.
        assert host.berth("cp", tree, f"{name}:/tmp") == (0, "", "")
        assert host.berth("cp", tree, f"{name}:/tmp/other") == (0, "", "")
        assert host.berth("cp", tree / "run.sh", f"{name}:/tmp/started") == (0, "", "")
        script = "cd /tmp; diff -r tree other && ./tree/link && ./started && stat -c %u:%g tree/run.sh"
        assert host.berth("exec", name, "sh", "-c", script) == (0, "run\nrun\n0:0\n", "")
        # And back.
        assert host.berth("cp", f"{name}:/tmp/tree", tmp_path / "back") == (0, "", "")
        (tmp_path / "into").mkdir()
        assert host.berth("cp", f"{name}:/tmp/tree/", tmp_path / "into") == (0, "", "")
        assert host.berth("cp", f"{name}:/tmp/started", tmp_path / "into/one file") == (0, "", "")
        for found in (tmp_path / "back", tmp_path / "into" / "tree"):
            assert (found / "sub/data").read_bytes() == (tree / "sub/data").read_bytes()
            assert (found / "run.sh").stat().st_mode & 0o777 == 0o755
            assert os.readlink(found / "link") == "run.sh"
        assert (tmp_path / "into/one file").read_text() == (tree / "run.sh").read_text()
        packed = subprocess.run([program(), "container", "cp", f"{name}:/tmp/tree", "-"], env=host.environment, timeout=LIMIT_S,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True).stdout
        assert b"tree/sub/data" in packed
        # Mistakes.
        assert host.berth("cp", f"{name}:/nowhere", tmp_path)[0] == 125
        assert "nowhere" in host.berth("cp", f"{name}:/nowhere", tmp_path)[2]
        assert host.berth("cp", tmp_path / "none", f"{name}:/tmp")[0] == 3
        assert host.berth("cp", tree, f"{name}:/nowhere/at/all")[0] == 125
        assert host.berth("cp", tree, tmp_path)[0] == 2
        assert host.berth("exec", name, "sh", "-c", "ls /tmp") == (0, "other\nstarted\ntree\n", "")


# --- Logs.

def test_logs_are_what_it_wrote(host):
    with host.container("busybox:1", "sh", "-c", "for i in 1 2 3 4; do echo out $i; done; echo err >&2; printf end") as name:
        host.wait_for_state(name, "exited")
        assert host.berth("logs", name) == (0, "out 1\nout 2\nout 3\nout 4\nend", "err\n")
        stamped = host.berth("logs", "-t", name)
        lines = stamped[1].splitlines() + stamped[2].splitlines()
        assert [re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z (.+)", line)[1] for line in lines] == [
            "out 1", "out 2", "out 3", "out 4", "end", "err"]
    with host.container("busybox:1", "sh", "-c", "for i in 1 2 3 4 5; do echo $i; done; printf end") as name:
        host.wait_for_state(name, "exited")
        assert host.berth("logs", "--tail", "3", name) == (0, "4\n5\nend", "")
        assert host.berth("logs", "--tail", "0", name) == (0, "", "")
        assert host.berth("logs", "-n", "99", name)[1] == "1\n2\n3\n4\n5\nend"
    assert host.berth("logs", "nobody")[0] == 3


def test_who_follows_the_log_sees_its_end(host):
    with host.container("busybox:1", "sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.3; done; printf end") as name:
        assert host.inspect(name)["state"] == "running"
        assert host.berth("logs", "-f", name) == (0, "1\n2\n3\n4\n5\n6\nend", "")
        assert host.berth("logs", "-f", name)[1] == "1\n2\n3\n4\n5\n6\nend"
        host.wait_for_state(name, "exited")


# --- Its life.

def test_a_container_from_its_making_to_its_end(host):
    polite = "trap 'echo bye; exit 7' USR1; echo ready; while true; do sleep 0.05; done"
    host.cli("container", "create", "--name", "life", "--stop-signal", "USR1", "-l", "a=b", "busybox:1", "sh", "-c", polite)
    try:
        assert host.inspect("life")["state"] == "created"
        assert "life" not in host.cli("container", "ps", "-q").split()
        assert "life" in host.cli("container", "ps", "-a", "-q").split()
        assert host.refused("container", "stop", "life").returncode == 4
        host.cli("container", "start", "life", timeout_s=LIMIT_S)
        assert "life" in host.cli("container", "ps", "-q").split() and "busybox:1" in host.cli("container", "ps")
        host.wait_for_lines("life", 1)
        assert host.refused("container", "start", "life").returncode == 4
        refused = host.refused("container", "rm", "life")
        assert refused.returncode == 4 and "life" in refused.stderr
        refused = host.refused("image", "delete", "busybox:1")
        assert refused.returncode == 4 and "life" in refused.stderr

        host.cli("container", "pause", "life")
        assert host.inspect("life")["state"] == "frozen"
        host.cli("container", "pause", "--level", "parked", "life")
        now = host.inspect("life")
        assert now["state"] == now["pause"]["level"] == "parked" and now["pause"]["after"]["memory"] == 0
        assert "parked" in host.cli("container", "ps")
        assert host.refused("container", "pause", "life").returncode == 4
        assert host.refused("container", "pause", "--level", "asleep", "life").returncode == 2
        host.restart(kill=True)
        assert host.inspect("life")["pause"] == now["pause"]
        host.cli("container", "resume", "life")
        assert (host.inspect("life")["state"], host.inspect("life")["pause"]) == ("running", None)

        host.cli("container", "stop", "life")
        now = host.inspect("life")
        assert (now["state"], now["exit_code"], now["pid"]) == ("exited", 7, None)
        assert host.lines_of("life") == ["ready", "bye"]

        # Again; and it ends by a signal.
        host.cli("container", "start", "life", timeout_s=LIMIT_S)
        assert host.inspect("life")["exit_code"] is None
        host.cli("container", "kill", "-s", "KILL", "life")
        assert host.wait_for_state("life", "exited")["exit_code"] == 137
        assert host.refused("container", "kill", "life").returncode == 4
    finally:
        host.cli("container", "rm", "-f", "life")
    assert host.traces_of("life") == []
    assert host.refused("container", "inspect", "life").returncode == 3
    host.cli("image", "info", "busybox:1")


def test_a_signal_is_taken_by_its_program(host):
    with host.container("busybox:1", "sh", "-c", "trap 'echo got' HUP; echo ready; while true; do sleep 0.05; done") as name:
        host.wait_for_lines(name, 1)
        host.cli("container", "kill", "-s", "HUP", name)
        assert host.wait_for_lines(name, 2) == ["ready", "got"]
        begun = time.monotonic()
        host.cli("container", "stop", "-t", "0", name)
        assert time.monotonic() - begun < 10 and host.inspect(name)["exit_code"] == 137


def test_start_attached_shows_the_new_run_alone(host):
    with host.container("--name", "again", "busybox:1", "sh", "-c", "cat /n; echo more >>/n; echo done; exit 4"):
        host.wait_for_state("again", "exited")
        code, out, _ = host.berth("start", "-a", "again")  # its changes were in its memory
        assert (code, out) == (4, "done\n")
        assert host.wait_for_state("again", "exited")["exit_code"] == 4


def test_a_name_is_taken_and_a_beginning_of_an_id_is_enough(host, shell):
    code, _, err = host.berth("create", "--name", shell, "busybox:1")
    assert code == 4 and shell in err
    assert host.inspect(host.inspect(shell)["id"][:12])["name"] == shell


def test_one_that_is_removed_by_force_leaves_nothing(host):
    with host.container("--name", "forced", "busybox:1", "sh", "-c", FOREVER):
        host.inspect("forced")
        assert len(host.traces_of("forced")) > 3
        host.cli("container", "rm", "-f", "forced")
        assert host.traces_of("forced") == []


def test_one_that_goes_by_itself_leaves_nothing(host):
    with host.container("--rm", "--name", "gone", "busybox:1", "sleep", "1"):
        host.wait_for_no_trace("gone")
        assert "gone" not in host.cli("container", "ps", "-a", "-q").split()


# --- Ports and volumes.

def dial(port):
    """A connection to a service that is there soon."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        with contextlib.suppress(OSError):
            client = socket.create_connection(("127.0.0.1", port), timeout=20)
            client.sendall(b"?")
            if client.recv(1) == b"?":
                return client
            client.close()
        assert time.monotonic() < deadline, "the service does not answer"
        time.sleep(0.05)


def test_a_published_port_leads_to_its_service(host):
    with host.container("-p", "127.0.0.1:0:7", "busybox:1", "nc", "-ll", "-p", "7", "-e", "cat") as name:
        [port] = host.inspect(name)["ports"]
        assert (port["host_address"], port["guest_port"]) == ("127.0.0.1", 7)
        with dial(port["host_port"]) as client:
            client.sendall(b"hello" * 1000)
            client.shutdown(socket.SHUT_WR)
            got = b""
            while piece := client.recv(65536):
                got += piece
            assert got == b"hello" * 1000
        with contextlib.closing(socket.socket()) as other:
            assert other.connect_ex(("127.0.0.1", port["host_port"])) == 0
    with contextlib.closing(socket.socket()) as other:
        assert other.connect_ex(("127.0.0.1", port["host_port"])) != 0


def test_what_lies_in_a_volume_stays(host):
    host.cli("volume", "create", "data", "--size", "64M", "--file-system", "ext4")
    try:
        assert host.once("-v", "data:/data", "busybox:1", "sh", "-c", "echo kept >/data/f; cat /data/f") == "kept\n"
        assert host.once("-v", "data:/some/where", "busybox:1", "cat", "/some/where/f") == "kept\n"
        code, out, err = host.berth("run", "--rm", "-v", "data:/data:ro", "busybox:1", "sh", "-c", "cat /data/f; echo >/data/g")
        assert code != 0 and out == "kept\n" and "Read-only" in err
        with host.container("-v", "data:/data", "busybox:1", "sh", "-c", FOREVER) as name:
            assert host.berth("exec", name, "cat", "/data/f") == (0, "kept\n", "")
            refused = host.refused("volume", "delete", "data")
            assert refused.returncode == 4 and name in refused.stderr
            assert host.berth("run", "--rm", "-v", "data:/data", "busybox:1", "true")[0] == 125
    finally:
        host.cli("volume", "delete", "data")


def test_with_an_overlay_its_changes_stay(host):
    host.cli("volume", "create", "changes", "--size", "64M", "--file-system", "ext4")
    try:
        with host.container("--overlay", "changes", "busybox:1", "sh", "-c", FOREVER) as name:
            assert host.berth("exec", name, "sh", "-c", "echo mine >/etc/data; rm /bin/no-program; sync")[0] == 0
            host.cli("container", "stop", "-t", "0", name)
            host.cli("container", "start", name, timeout_s=LIMIT_S)
            assert host.berth("exec", name, "cat", "/etc/data") == (0, "mine\n", "")
            assert host.berth("exec", name, "/bin/no-program")[0] == 127
            host.cli("container", "stop", "-t", "0", name)
            assert host.refused("volume", "delete", "changes").returncode == 4
    finally:
        host.cli("volume", "delete", "changes")


# --- Deaths.

@pytest.mark.parametrize("who", ["daemon", "keeper", "both"])
def test_a_death_beside_it_loses_nothing(host, who):
    with host.container("busybox:1", "sh", "-c", COUNTING) as name:
        before = len(host.wait_for_lines(name, 20))
        qemu, keeper = host.inspect(name)["pid"], host.keeper_of(name)
        if who == "both":
            host.daemon.kill()
        if who in ("keeper", "both"):
            os.kill(keeper, signal.SIGKILL)
            wait_for_exit(keeper)
        if who == "daemon":
            host.restart(kill=True)
        elif who == "both":
            host.start()
        assert host.wait_for_state(name, "running")["pid"] == qemu
        lines = host.wait_for_lines(name, before + 50)
        assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]
        assert host.berth("exec", name, "echo", "there") == (0, "there\n", "")
        assert (host.keeper_of(name) == keeper) == (who == "daemon")
        host.cli("container", "stop", "-t", "0", name)
        lines = host.lines_of(name)
        assert lines == [f"line {number}" for number in range(1, len(lines) + 1)]


def test_one_that_ends_while_nobody_looks_is_found_ended(host):
    with host.container("busybox:1", "sh", "-c", "sleep 2; echo last; exit 5") as name:
        qemu = host.inspect(name)["pid"]
        host.daemon.kill()
        wait_for_exit(qemu)
        host.start()
        assert host.wait_for_state(name, "exited")["exit_code"] == 5
        assert host.lines_of(name) == ["last"]


def test_who_is_attached_does_not_need_the_daemon(host):
    words = [program(), "container", "run", "--name", "kept", "busybox:1", "sh", "-c", "echo up; sleep 2; echo down; exit 8"]
    with subprocess.Popen(words, env=host.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "up\n"
        host.restart(kill=True)
        assert client.stdout.read() == "down\n"
        assert client.wait(LIMIT_S) == 8
    assert host.wait_for_state("kept", "exited")["exit_code"] == 8
    host.cli("container", "rm", "kept")


@pytest.mark.parametrize("option, code", [("--stop-machines", 7), ("--stop-keepers", 137)])
def test_when_the_host_goes_down_its_containers_end(host, option, code):
    polite = "trap 'exit 7' TERM; echo ready; while true; do sleep 0.05; done"
    host.cli("container", "run", "-d", "--name", "late", "busybox:1", "sh", "-c", polite, timeout_s=LIMIT_S)
    host.wait_for_lines("late", 1)
    host.cli("daemon", option, timeout_s=LIMIT_S)
    assert host.daemon.wait() == 0
    host.start()
    assert host.wait_for_state("late", "exited")["exit_code"] == code
    host.cli("container", "rm", "late")


def test_one_that_is_parked_while_it_writes_to_a_volume_goes_on_writing(host):
    host.cli("volume", "create", "busy", "--size", "64M", "--file-system", "ext4")
    try:
        writing = "i=0; while true; do i=$((i+1)); echo $i >>/data/f; sync; [ $i = 1 ] && echo begun; done"
        with host.container("-v", "busy:/data", "busybox:1", "sh", "-c", writing) as name:
            host.wait_for_lines(name, 1)
            for _ in range(3):
                host.cli("container", "pause", "--level", "parked", name)
                code, before, _ = host.berth("exec", name, "cat", "/data/f")
                assert code == 0
                deadline = time.monotonic() + LIMIT_S
                while host.berth("exec", name, "cat", "/data/f")[1] == before:
                    assert time.monotonic() < deadline, "it writes no more"
            host.cli("container", "pause", "--level", "parked", name)
            host.cli("container", "stop", "-t", "0", name, timeout_s=LIMIT_S)
        lines = host.once("-v", "busy:/data", "busybox:1", "cat", "/data/f").splitlines()
        assert lines == [str(number + 1) for number in range(len(lines))] and len(lines) >= len(before.splitlines())
    finally:
        host.cli("volume", "delete", "busy")


# --- Swap.

@pytest.fixture
def another(host):
    """One that the end of the host, above, has not taken with it."""
    with host.container("--memory", "128M", "busybox:1", "sh", "-c", FOREVER) as name:
        yield name


def turns_of_threads(pid):
    """How often QEMU's main thread and its CPU's had a processor: (main, CPU). Linux, scheduler/sched-stats.rst."""
    turns = {task.name: int((task / "schedstat").read_text().split()[2]) for task in pathlib.Path(f"/proc/{pid}/task").iterdir()}
    cpu = next(name for name in turns if pathlib.Path(f"/proc/{pid}/task/{name}/comm").read_text().startswith("CPU 0"))
    return turns[str(pid)], turns[cpu]


def test_nothing_wakes_it_that_it_does_not_need(host, another):
    """QEMU's main thread has its turns with the CPU's timer, and next to none beside them: the interval timer (Intel 8254),
    which nobody uses, would make it 36 more a second. And nobody is asked whether an IPv6 address is taken."""
    pid, more = host.inspect(another)["pid"], []
    while len(more) < 20 and min(more, default=99) > 15:
        before = turns_of_threads(pid)
        time.sleep(1)
        now = turns_of_threads(pid)
        more.append((now[0] - before[0]) - (now[1] - before[1]))
    assert min(more) <= 15, more
    assert host.berth("exec", another, "sh", "-c", "cat /proc/sys/net/ipv6/conf/eth0/accept_dad")[1] == "0\n"


def pages_swapped_in():
    """By the host, since it started."""
    counted = dict(line.split() for line in pathlib.Path("/proc/vmstat").read_text().splitlines())
    return sum(int(counted.get(name, 0)) for name in ("pswpin", "swpin_zero"))


def swapped_in_before_it_runs(host, name):
    """Resumed, what QEMU needed of its own memory the last time is swapped in: here while it cannot come to any of it."""
    pid, had = host.inspect(name)["pid"], pages_swapped_in()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        os.kill(pid, signal.SIGSTOP)
        try:
            resumed = pool.submit(host.cli, "container", "resume", name)
            deadline = time.monotonic() + LIMIT_S
            while (came := pages_swapped_in() - had) < 500:
                assert time.monotonic() < deadline, f"{came} pages"
                time.sleep(0.05)
        finally:
            os.kill(pid, signal.SIGCONT)
        resumed.result()


def test_with_swap_it_is_trimmed(host, another):
    swap = host.json("host", "swap")
    if not swap["areas"]:
        refused = host.refused("container", "pause", "--level", "trimmed", another)
        assert refused.returncode == 4 and "berth host swap" in refused.stderr
        assert host.inspect(another)["state"] == "running"
    if not swap["has_zram"]:
        pytest.skip("this kernel has no zram")
    if any(area["ours"] for area in swap["areas"]):
        pytest.skip("this host has swap of Berth's, which is not for tests")
    script = "head -c 16000000 /dev/urandom >/tmp/trimmed; sha256sum /tmp/trimmed"
    code, before, _ = host.berth("exec", another, "sh", "-c", script)
    assert code == 0
    try:
        ours = [area for area in host.json("host", "swap", "--zram", "256M")["areas"] if area["ours"]]
        assert [area["kind"] for area in ours] == ["zram"] and ours[0]["size"] > 255 << 20
        host.cli("container", "pause", "--level", "trimmed", another)
        pause = host.inspect(another)["pause"]
        assert pause["level"] == "trimmed" and pause["before"]["memory"] > 16_000_000
        seen = f"{pause}, {host.json('host', 'swap')}, {pathlib.Path('/proc/meminfo').read_text()}"
        assert pause["after"]["swapped"] > 16_000_000, seen
        assert pause["after"]["memory"] < pause["before"]["memory"] / 4, seen
        assert host.berth("exec", another, "sha256sum", "/tmp/trimmed") == (0, before, "")
        time.sleep(2)  # it has noted what that took
        host.cli("container", "pause", "--level", "trimmed", another)
        host.cli("container", "pause", "--level", "parked", another)
        assert host.inspect(another)["pause"]["after"]["memory"] == 0
        swapped_in_before_it_runs(host, another)
        assert host.berth("exec", another, "sha256sum", "/tmp/trimmed") == (0, before, "")
    finally:
        host.cli("host", "swap", "--undo")
    assert [area for area in host.json("host", "swap")["areas"] if area["ours"]] == []
