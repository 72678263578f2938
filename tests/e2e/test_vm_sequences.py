"""A machine's life in random order: its guest writes, zeroes and discards; checkpoints are made, converted, exported, deleted and
gone back to; the machine stops, starts and travels; and QEMU, the keepers and the daemon are killed at any time, also in the
middle of a command. Throughout:

1. a checkpoint reads what the guest had written when it was made;
2. the image of an earlier point and what has changed from it to a later checkpoint are that checkpoint, byte for byte;
3. a point is there as a whole, in the machine and in all of its volumes, or not at all;
4. what Berth cannot vouch for is refused (`full_backup_required`), and never an empty list.

BERTH_SEED=N begins again with the choices of one run; BERTH_SEQUENCE_SECONDS is how long it goes on."""

import contextlib
import dataclasses
import itertools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

from berth_host import BerthHost, program, wait_for_exit
from machine_host import Machine, guest_toml
from volume_tools import child, log_on_failure, wait_until

SEED = int(os.environ.get("BERTH_SEED") or random.SystemRandom().randrange(1 << 32))
SECONDS = float(os.environ.get("BERTH_SEQUENCE_SECONDS") or 130)
NAME = "seq"
UNIT = 4096
UNITS = 4096  # of the data disk
IMAGES_MAX = 4
CHECKPOINTS_MAX = 5
COMMAND_S = 120
FULL_BACKUP_REQUIRED = 4

# Writes units of the data disk: "first:count:number" each, a unit being its number again and again. They are on the disk when
# it ends.
WRITER = r"""
use strict; use Fcntl; use IO::Handle;
sysopen(my $disk, "/dev/vdb", O_WRONLY) or die "open: $!";
for (@ARGV) {
  my ($first, $count, $number) = split /:/;
  my $data = pack("Q<", $number) x (UNIT / 8) x $count;
  sysseek($disk, $first * UNIT, 0);
  syswrite($disk, $data) == length $data or die "write: $!";
}
$disk->sync or die "sync: $!";
""".replace("UNIT", str(UNIT))


def unit_bytes(number):
    return number.to_bytes(8, "little") * (UNIT // 8)


@dataclasses.dataclass
class Point:
    """A checkpoint, and the reference point that it may become."""
    order: int
    units: list  # the data disk at its cut: for each unit, the set of numbers that it may hold
    memory: bool = False
    image: pathlib.Path | None = None


@dataclasses.dataclass
class Expected:
    """What has to be there."""
    running: bool = True
    units: list = dataclasses.field(default_factory=lambda: [{0}] * UNITS)
    checkpoints: dict = dataclasses.field(default_factory=dict)
    refpoints: dict = dataclasses.field(default_factory=dict)

    def points(self):
        return {**self.checkpoints, **self.refpoints}


class Life:
    """The machine, what is expected of it, and what may happen to it."""

    def __init__(self, host, directory):
        self.host, self.directory = host, directory
        self.chance = random.Random(SEED)
        self.numbers = itertools.count(1)
        self.orders = itertools.count(1)
        self.expected = Expected()
        self.story = []
        disk = f'[[disk]]\nname = "data"\nsize = "{UNITS * UNIT}"\n'
        self.machine = Machine.create(host, NAME, guest_toml(NAME, words="", extra=disk))
        self.machine.start()

    def tell(self, text):
        self.story.append(f"{time.monotonic() - self.began:6.1f} s  {text}")

    def step(self):
        """One thing happens, out of those that can."""
        possible = [(weight, action) for weight, when, action in ACTIONS if when(self)]
        weights, actions = zip(*possible)
        action = self.chance.choices(actions, weights)[0]
        action(self)
        self.check_points()

    def live(self, seconds):
        self.began = time.monotonic()
        while time.monotonic() < self.began + seconds:
            self.step()

    # --- What the guest does.

    def ranges(self, count_max):
        for _ in range(self.chance.randint(1, count_max)):
            length = self.chance.choice((1, 1, 2, 7, 16, 33, 200))
            yield self.chance.randrange(UNITS - length), length

    def in_guest(self, script):
        code, output, errors = self.machine.agent().run(script, 60)
        assert code == 0, f"{script}: {output}{errors}"

    def write(self):
        words = []
        for first, length in self.ranges(12):
            number = next(self.numbers)
            self.expected.units[first:first + length] = [{number}] * length
            words.append(f"{first}:{length}:{number}")
        self.tell(f"the guest writes {' '.join(words)}")
        self.machine.agent().write_file("/run/writer.pl", WRITER.encode())
        self.in_guest(f"perl /run/writer.pl {' '.join(words)}")

    def discard(self):
        zeroes = self.chance.random() < 0.5
        words = []
        for first, length in self.ranges(4):
            # What a checkpoint needs need not be discarded.
            units = self.expected.units
            units[first:first + length] = [{0} if zeroes else {0} | before for before in units[first:first + length]]
            words.append(f"blkdiscard {'-z' if zeroes else ''} -o {first * UNIT} -l {length * UNIT} /dev/vdb")
        self.tell(f"the guest runs {'; '.join(words)}")
        self.in_guest("set -e; " + "; ".join(words))

    # --- Points.

    def new_name(self, kind):
        return f"{kind}{next(self.orders)}"

    def created(self, name, memory):
        self.expected.checkpoints[name] = Point(int(name.strip("cr")), list(self.expected.units), memory)

    def converted(self, name):
        self.expected.refpoints[name] = self.expected.checkpoints.pop(name)

    def creation(self):
        """A command, and whether it is with memory."""
        options = ["--volatile"] if self.chance.random() < 0.1 else []
        memory = self.expected.running and self.chance.random() < 0.3
        if memory:
            options = options + ["--memory"]
        elif self.chance.random() < 0.5:
            options = options + ["--no-quiesce"]
        name = self.new_name("c")
        return ["checkpoint", "create", NAME, "--name", name, *options], name, memory

    def checkpoint(self):
        command, name, memory = self.creation()
        self.tell(" ".join(command))
        self.host.cli(*command, timeout_s=COMMAND_S)
        self.created(name, memory)
        if self.chance.random() < 0.7:
            self.export_whole(name)

    def any_checkpoint(self):
        return self.chance.choice(sorted(self.expected.checkpoints))

    def convert(self):
        name = self.any_checkpoint()
        self.tell(f"convert {name}")
        self.host.json("checkpoint", "convert", f"{NAME}@{name}")
        self.converted(name)

    def delete(self):
        name = self.any_checkpoint()
        self.tell(f"delete {name}")
        self.host.cli("checkpoint", "delete", f"{NAME}@{name}")
        self.drop_image(self.expected.checkpoints.pop(name))

    def forget(self):
        name = self.chance.choice(sorted(self.expected.refpoints))
        self.tell(f"forget {name}")
        self.host.cli("refpoint", "delete", f"{NAME}@{name}")
        self.drop_image(self.expected.refpoints.pop(name))
        self.check_refused(NAME, name)

    def check_refused(self, machine, refpoint):
        for disk in ("root", "data"):
            refused = self.host.refused("changes", f"{machine}.{disk}", "--since", refpoint)
            assert refused.returncode in ((3, FULL_BACKUP_REQUIRED) if machine == NAME else (FULL_BACKUP_REQUIRED,)), refused

    def drop_image(self, point):
        if point.image is not None:
            shutil.rmtree(point.image)
            point.image = None

    def check_points(self):
        """3, and no point is there that nobody has made."""
        for noun, points in (("checkpoint", self.expected.checkpoints), ("refpoint", self.expected.refpoints)):
            for place in (NAME, f"{NAME}.root", f"{NAME}.data"):
                assert set(self.host.points(noun, place)) == set(points), f"{noun}s of {place}"

    # --- Images of them.

    def check_data(self, point, image):
        data = (image / "data.raw").read_bytes()
        assert len(data) == UNIT * UNITS
        for index, numbers in enumerate(point.units):
            unit = data[index * UNIT:(index + 1) * UNIT]
            assert any(unit == unit_bytes(number) for number in numbers), f"unit {index} is not {numbers}: {unit[:16].hex()}"

    def export_whole(self, name):
        point = self.expected.checkpoints[name]
        if point.image is not None:
            return
        with_image = [each for each in self.expected.points().values() if each.image is not None]
        if len(with_image) >= IMAGES_MAX:
            self.drop_image(min(with_image, key=lambda each: each.order))
        self.tell(f"export {name} whole")
        point.image = self.directory / f"image-{name}"
        self.host.json("checkpoint", "export", f"{NAME}@{name}", point.image, timeout_s=COMMAND_S)
        self.check_data(point, point.image)

    def increments(self):
        """Pairs of a point with an image, and a later checkpoint."""
        return [(since, name) for since, earlier in sorted(self.expected.points().items()) if earlier.image is not None
                for name, later in sorted(self.expected.checkpoints.items()) if later.order > earlier.order]

    def export_increment(self):
        self.check_increment(*self.chance.choice(self.increments()))

    def check_increment(self, since, name):
        self.export_whole(name)
        earlier, later = self.expected.points()[since], self.expected.checkpoints[name]
        if earlier.image is None:  # it gave way to the one just made
            return
        self.tell(f"export {name} since {since}")
        patched = self.directory / "patched"
        try:
            subprocess.run(["cp", "-a", "--reflink=auto", "--sparse=always", earlier.image, patched], check=True)
            made = self.host.json("checkpoint", "export", f"{NAME}@{name}", patched, "--since", since, timeout_s=COMMAND_S)
            assert made["exact"] is True  # no power has been lost
            for disk in ("root.raw", "data.raw"):
                done = subprocess.run(["cmp", patched / disk, later.image / disk], stdout=subprocess.PIPE, text=True, check=False)
                assert done.returncode == 0, f"{since} and what has changed until {name} is not {name}: {done.stdout}"
        finally:
            shutil.rmtree(patched, ignore_errors=True)

    # --- Going back, stopping, travelling.

    def revert(self):
        name = self.any_checkpoint()
        point = self.expected.checkpoints[name]
        with_memory = point.memory and self.chance.random() < 0.8
        self.tell(f"revert to {name}{', with its memory' if with_memory else ''}")
        options = ["--force"] if with_memory else ["--force", "--disks-only"]
        self.host.cli("checkpoint", "revert", f"{NAME}@{name}", *options, timeout_s=COMMAND_S)
        self.expected.units = list(point.units)
        self.expected.running = self.expected.running or with_memory
        self.wait_for_guest()

    def start(self):
        self.tell("start")
        self.machine.start()
        self.expected.running = True

    def stop(self):
        force = self.chance.random() < 0.6
        self.tell(f"stop{' by force' if force else ''}")
        self.machine.stop(*(["--force"] if force else []))
        self.expected.running = False

    def travel(self):
        """Away and back again; and a copy, which has no reference point of its own."""
        self.tell("travel")
        away = self.directory / "away"
        self.host.cli("vm", "export", NAME, away, timeout_s=COMMAND_S)
        self.host.cli("vm", "delete", NAME)
        self.host.cli("vm", "import", away, "--moved", timeout_s=COMMAND_S)
        if self.expected.refpoints:
            self.host.cli("vm", "import", away, "--copied", "--name", "twin", timeout_s=COMMAND_S)
            for name in self.expected.refpoints:
                self.check_refused("twin", name)
            self.host.cli("vm", "delete", "twin")
        shutil.rmtree(away)

    def wait_for_guest(self):
        if self.expected.running:
            self.machine.wait_for_state("running")
            self.machine.wait_for_agent(60)

    # --- Deaths.

    def victims(self):
        return ["daemon", f"{NAME}.data", f"{NAME}.root"] + (["qemu", "keeper"] if self.expected.running else [])

    def pid_of(self, victim):
        if victim == "daemon":
            return self.host.daemon.pid
        words = {"qemu": "qemu-system-x86_64", "keeper": f"--machine {NAME} "}.get(victim, f"--volume {victim}")
        return next((pid for pid, line in self.host.processes().items() if words in line), None)

    def kill(self, victim):
        """The process id that it had; None where there was none."""
        pid = self.pid_of(victim)
        if pid is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if victim == "daemon":
            self.host.daemon.wait()
        wait_for_exit(pid)
        return pid

    def mourn(self, victim, pid):
        """What has to be true after a death: of all but QEMU the guest has not felt a thing, and there is another QEMU, if
        it has not died too often."""
        if not self.host.daemon.running:
            self.host.start()
        if victim == "qemu":
            wait_until(lambda: self.machine.state == "crashed" or self.machine.info().get("pid") not in (None, pid),
                       "the machine's end, or its next QEMU")
            self.expected.running = self.machine.state != "crashed"
        self.wait_for_guest()

    def die(self):
        victim = self.chance.choice(self.victims())
        if pid := self.kill(victim):
            self.tell(f"{victim} is killed")
            self.mourn(victim, pid)

    def die_in_a_command(self):
        kinds = ["create"] + ["convert", "delete", "export"] * bool(self.expected.checkpoints)
        kind, memory = self.chance.choice(kinds), False
        if kind == "create":
            command, name, memory = self.creation()
        else:
            name = self.any_checkpoint()
            command = ["checkpoint", kind, f"{NAME}@{name}"] + ([self.directory / "torn"] if kind == "export" else [])
        victim = self.chance.choice(self.victims())
        with child(program(), *map(str, command), env=self.host.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                   text=True) as process:
            time.sleep(self.chance.random() ** 2 * (1.0 if kind in ("create", "export") else 0.1))
            pid = self.kill(victim)
            errors = process.communicate(timeout=COMMAND_S)[1]
        done = process.returncode == 0
        fate = 'is killed' if pid else 'is not there'
        self.tell(f"{' '.join(map(str, command))}, while {victim} {fate}: {errors.strip() or 'done'}")
        if pid:
            self.mourn(victim, pid)
        self.settle(kind, name, memory, done)

    def settle(self, kind, name, memory, done):
        """What was cut short has happened or has not; what was done has."""
        found = {noun: self.host.points(noun, NAME) for noun in ("checkpoint", "refpoint")}
        if kind == "create":
            assert not done or name in found["checkpoint"], "it was made, and is not there"
            if name in found["checkpoint"]:
                assert not done or found["checkpoint"][name]["memory"] == memory
                self.created(name, found["checkpoint"][name]["memory"])
        elif kind == "convert":
            assert not done or name in found["refpoint"]
            if name in found["refpoint"]:
                self.converted(name)
        elif kind == "delete":
            assert not done or name not in found["checkpoint"]
            if name not in found["checkpoint"]:
                self.drop_image(self.expected.checkpoints.pop(name))
        else:
            if done:
                self.check_data(self.expected.checkpoints[name], self.directory / "torn")
            shutil.rmtree(self.directory / "torn", ignore_errors=True)

    def finish(self):
        """Every image that there is leads to one last checkpoint; then nothing is left of any of them."""
        if not self.expected.running:
            self.start()
        self.checkpoint()
        last = max(self.expected.checkpoints, key=lambda name: self.expected.checkpoints[name].order)
        for since, name in self.increments():
            if name == last:
                self.check_increment(since, name)
        for name in list(self.expected.checkpoints):
            self.host.cli("checkpoint", "delete", f"{NAME}@{name}")
        for name in list(self.expected.refpoints):
            self.host.cli("refpoint", "delete", f"{NAME}@{name}")
        wait_until(lambda: not list(self.machine.directory().glob("disks/*/holds/*")), "the end of all holds")
        self.machine.stop("--force")
        self.host.cli("vm", "delete", NAME)


def always(_):
    return True


def running(life):
    return life.expected.running


def stopped(life):
    return not life.expected.running


def has_checkpoints(life):
    return bool(life.expected.checkpoints)


def has_room(life):
    return len(life.expected.checkpoints) < CHECKPOINTS_MAX


# How often, when, what.
ACTIONS = [
    (12, running, Life.write),
    (6, running, Life.discard),
    (12, has_room, Life.checkpoint),
    (6, has_checkpoints, Life.convert),
    (3, has_checkpoints, Life.delete),
    (2, lambda life: len(life.expected.refpoints) > 2, Life.forget),
    (12, lambda life: bool(life.increments()), Life.export_increment),
    (2, has_checkpoints, Life.revert),
    (12, stopped, Life.start),
    (1, running, Life.stop),
    (3, stopped, Life.travel),
    (5, always, Life.die),
    (8, has_room, Life.die_in_a_command),
]


def test_a_machine_lives_in_random_order(tmp_path):
    print(f"BERTH_SEED={SEED}")
    with BerthHost() as host, log_on_failure(host):
        life = Life(host, tmp_path)
        try:
            life.live(SECONDS)
            life.finish()
        except BaseException:
            print(f"BERTH_SEED={SEED}, after:\n" + "\n".join(life.story))
            raise
        print(f"{len(life.story)} things happened")
