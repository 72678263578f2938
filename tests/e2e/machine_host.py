"""Machines of a throw-away Berth host, with the test guest in them.

    with BerthHost() as host:
        machine = Machine.create(host, "web")          # from the guest of scripts/guest-image, small and quick
        machine.start()                                # returns when the guest's agent answers
        machine.agent().run("uname -r")
        machine.checkpoint("before", "--memory")
        machine.stop()
"""

import pathlib
import time

import guest


def guest_toml(name, *, words="berth.load=off", memory="256M", cpus=1, extra="", disk="root", network='mode = "none"', image_file=None):
    """A vm.toml with the test guest: direct boot, its disk, or another image of it, copied into a volume."""
    image = guest.image()
    return f"""
name = "{name}"
cpus = {cpus}
memory = "{memory}"

[kernel]
image = "{image['kernel']}"
initrd = "{image['initrd']}"
command_line = "{image['cmdline']} {words}"

[[disk]]
name = "{disk}"
image = "{image_file or image['disk']}"

[[network]]
{network}
{extra}
"""


class Machine:
    def __init__(self, host, name):
        self.host, self.name = host, name

    @classmethod
    def create(cls, host, name, toml=None, **options):
        path = host.directory / f"{name}.toml"
        path.write_text(toml or guest_toml(name, **options))
        host.cli("vm", "create", "-f", path, timeout_s=180)
        return cls(host, name)

    def info(self):
        return self.host.json("vm", "info", self.name)

    @property
    def state(self):
        machines = {each["name"]: each for each in self.host.json("vm", "list")["machines"]}
        return machines[self.name]["state"]

    @property
    def qemu_directory(self):
        return self.host.run_dir / "machines" / self.name / "q"

    def agent(self):
        return guest.Agent(self.qemu_directory / "agent.sock")

    def qmp(self):
        return guest.Qmp(self.qemu_directory / "qmp.sock")

    def start(self, *options, wait=True):
        self.host.cli("vm", "start", self.name, *options, timeout_s=60)
        if wait:
            self.wait_for_agent()

    def stop(self, *options):
        self.host.cli("vm", "stop", self.name, *options, timeout_s=120)

    def wait_for_agent(self, timeout_s=120):
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.agent().ping(timeout_s=2)
                return
            except guest.GuestError as error:
                if time.monotonic() > deadline:
                    raise guest.GuestError(f"no agent in {self.name}: {error}\n{self.console_text()[-2000:]}") from error
                time.sleep(0.1)

    def console_text(self):
        path = self.qemu_directory / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_state(self, wanted, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while self.state != wanted:
            assert time.monotonic() < deadline, f"{self.name} is {self.state}, not {wanted}, after {timeout_s} s\n{self.host.log()}"
            time.sleep(0.05)

    def checkpoint(self, name, *options, timeout_s=120):
        return self.host.json("checkpoint", "create", self.name, "--name", name, *options, timeout_s=timeout_s)

    def checkpoints(self):
        return self.host.points("checkpoint", self.name)

    def commits(self):
        """The last transaction that the guest's client has seen committed; None before the first."""
        return self.agent().committed()

    def wait_for_commits(self, serial, timeout_s=90):
        deadline = time.monotonic() + timeout_s
        while True:
            committed = self.commits()
            if committed is not None and committed >= serial:
                return committed
            assert time.monotonic() < deadline, f"{committed} transactions after {timeout_s} s, wanted {serial}"
            time.sleep(0.1)

    def keeper_pid(self):
        """Of the machine's own keeper."""
        for pid, words in self.host.processes().items():
            if f"--machine {self.name} " in words:
                return pid
        return None

    def directory(self):
        return pathlib.Path(self.host.state_dir) / "machines" / self.name
