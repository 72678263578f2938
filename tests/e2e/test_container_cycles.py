"""The life of clones in random order: one is cloned from a template, with a pool or without, writes, runs commands, is paused at a
random level and resumed, and is stopped; the keeper, the daemon or QEMU is killed at any time, also in the middle of a command.
Throughout:

1. a clone's memory, its files among it, is after a pause what it was before;
2. a clone whose keeper or daemon was killed goes on; one whose QEMU was killed has ended;
3. no two clones have the same random numbers;
4. the template is untouched, and nothing is left of a clone that was removed.

BERTH_SEED=N begins again with the choices of one run; BERTH_CONTAINER_CYCLES is how many clones there are."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import struct
import threading
import time

import pytest
from berth_host import BerthError
from test_container import LIMIT_S, ContainerHost

SEED = int(os.environ.get("BERTH_SEED") or random.SystemRandom().randrange(1 << 32))
CYCLES = int(os.environ.get("BERTH_CONTAINER_CYCLES") or 50)
SERVICE = "nc -ll -p 7 -e cat & i=0; while true; do i=$((i+1)); echo line $i; sleep 0.2; done"
WRITE = "head -c {size} /dev/urandom >/tmp/data; cat /tmp/data /bin/busybox | sha256sum"
CHECK = "cat /tmp/data /bin/busybox | sha256sum"


def has_swap():
    return len(pathlib.Path("/proc/swaps").read_text().splitlines()) > 1


class Cycle:
    """One clone, from its making to its end."""

    def __init__(self, host, choose, number):
        self.host, self.choose, self.name, self.steps = host, choose, f"cycle-{number}", []
        self.sum = None

    def note(self, step):
        self.steps.append(step)

    def cli(self, *arguments):
        """A command that may be disturbed: (exit code, standard output, standard error)."""
        self.note(" ".join(map(str, arguments))[:60])
        done = self.host.run(*arguments, timeout_s=LIMIT_S)
        return done.returncode, done.stdout, done.stderr

    def execute(self, script):
        """What a command in the clone says. Its keeper may have been killed the instant before."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            code, output, errors = self.cli("container", "exec", self.name, "sh", "-c", script)
            if code == 0:
                return output
            if "does not run" not in errors and "keeper" not in errors and "hung up" not in errors and "closed" not in errors:
                raise BerthError(f"{script}: {code} {errors}")
            if time.monotonic() > deadline:
                raise BerthError(f"{script}: {errors}")
            time.sleep(0.05)

    def keeper(self):
        """Its process; the next one's, where one was killed the instant before; None of one that is hibernated."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            with socket.socket(socket.AF_UNIX) as stream, contextlib.suppress(OSError):
                stream.connect(str(self.host.run_dir / "containers" / self.name / "control"))
                return struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            if self.host.inspect(self.name)["state"] == "hibernated":
                return None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def kill(self, whom):
        self.note(f"kill the {whom}")
        if whom == "daemon":
            self.host.restart(kill=True)
        else:
            pid = self.keeper() if whom == "keeper" else self.host.inspect(self.name)["pid"]
            with contextlib.suppress(ProcessLookupError):
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)

    def disturbed(self, *arguments):
        """A command while something is killed; whether it was done, and that it says why if it was not."""
        whom = self.choose.choice(["keeper", "daemon"])
        pause = self.choose.random() * 0.3
        result = []
        command = threading.Thread(target=lambda: result.append(self.cli(*arguments)))
        command.start()
        time.sleep(pause)
        self.kill(whom)
        command.join(LIMIT_S * 2)
        code, _, errors = result[0]
        assert code == 0 or errors.strip(), self.steps
        return code == 0

    def surely(self, *arguments):
        """A command whose keeper may have been killed the instant before, which nobody has noticed so far."""
        deadline = time.monotonic() + 10
        while (done := self.cli(*arguments))[0] != 0:
            assert time.monotonic() < deadline, done
            time.sleep(0.1)

    # --- Its life.

    def make(self):
        code, output, errors = self.cli("container", "clone", "cycles", "--name", self.name, "-p", "7")
        assert code == 0 and output == f"{self.name}\n", errors
        self.host.inspect(self.name)  # which tells traces_of() its id
        return self.execute("head -c 16 /dev/urandom | sha256sum")

    def write(self):
        self.sum = self.execute(WRITE.format(size=self.choose.randrange(1, 24) << 20))

    def check(self):
        if self.sum is not None:
            assert self.execute(CHECK) == self.sum

    def echo(self):
        port = self.host.inspect(self.name)["ports"][0]["host_port"]
        with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as client:
            client.sendall(b"hello")
            assert client.recv(10) == b"hello"

    def pause(self):
        levels = ["frozen", "parked", "hibernated"] + (["trimmed"] if has_swap() else [])
        arguments = ("container", "pause", "--level", self.choose.choice(levels), self.name)
        if self.choose.random() < 0.3:
            self.disturbed(*arguments)
        else:
            self.surely(*arguments)
        if self.choose.random() < 0.3:
            self.kill(self.choose.choice(["keeper", "daemon"]))
        if self.choose.random() < 0.5:
            self.cli("container", "resume", self.name)  # it may run
        self.execute("true")  # and else a request resumes it
        self.check()

    def live(self):
        for _ in range(self.choose.randrange(1, 4)):
            step = self.choose.choice([self.write, self.check, self.echo, self.pause, self.pause])
            step()
            if self.choose.random() < 0.15:
                self.kill(self.choose.choice(["keeper", "daemon"]))
        self.check()

    def end(self):
        if self.choose.random() < 0.2:
            self.kill("qemu")
            self.host.wait_for_state(self.name, "exited")
            assert self.host.inspect(self.name)["exit_code"] == 255
        elif self.choose.random() < 0.5:
            self.surely("container", "stop", "-t", "0", self.name)
        self.surely("container", "rm", "-f", self.name)
        deadline = time.monotonic() + LIMIT_S
        while left := self.host.traces_of(self.name):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


def left_over(host, known):
    """What is there of containers that are not there: processes, directories, memory objects, control groups, mounts."""
    found = [words for words in host.processes().values() if " keeper " in words or "qemu-system" in words]
    for place in ("containers", "microvms"):
        found += map(str, (host.run_dir / place).glob("*"))
    found += [str(path) for path in host.memory_dir.iterdir() if path.name not in known]
    found += map(str, (host.state_dir / "containers").glob("*"))
    return found + [line for line in pathlib.Path("/proc/mounts").read_text().splitlines() if str(host.directory) in line]


@pytest.mark.parametrize("pool", [0, 2])
def test_clones_in_random_order(pool):
    print(f"BERTH_SEED={SEED} BERTH_CONTAINER_CYCLES={CYCLES}")
    choose = random.Random(SEED + pool)
    with ContainerHost() as host:
        host.cli("template", "create", "cycles", "--image", "busybox:1", "--ready", "tcp:7", "--pool", pool, "-m", "128M", "--",
                 "/bin/sh", "-c", SERVICE, timeout_s=LIMIT_S)
        seen = set()
        for number in range(CYCLES // 2):
            cycle = Cycle(host, choose, number)
            try:
                seen.add(cycle.make())
                cycle.live()
                cycle.end()
            except BaseException:
                print(f"cycle {number}:", *cycle.steps, sep="\n  ")
                raise
        assert len(seen) == CYCLES // 2
        assert host.json("template", "check", "cycles")["untouched"]
        if pool == 0:
            known = {host.json("template", "inspect", "cycles")["id"]}
            assert left_over(host, known) == []
        host.cli("template", "delete", "cycles")
        deadline = time.monotonic() + LIMIT_S
        while left := left_over(host, set()):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
