#!/usr/bin/python3
"""Machine benchmarks: checkpoints of running machines, beside what QEMU has for it, in one run (make bench-vm).

    bench/vm.py [--rounds 5] [--quick] [--output FILE]

A guest writes its memory at a rate, half of its memory being what it writes. Of Berth: a checkpoint without memory (how
long the guest was frozen) and one with memory (how long its CPUs stood, how long all of it took). Of QEMU, the same
program with the same machine, kernel, disk and words: a migration to a file with background-snapshot, and
snapshot-save into the guest's qcow2 disk. Sides take turns, round by round, each in a guest that was booted for it, so
that never more than one runs. Every file lies on the same file system and is durable when a time ends.

How long CPUs stood is the time between QEMU's events STOP and RESUME, on both sides. Beside it, the same for all: the
longest time in which the thread of the guest's CPU did not run at all while the command went on, seen from outside. It
has waits for memory and for the host's CPUs in it, and cannot be shorter than a tick of the host's clock; "at rest" is
the same without any command. Berth's checkpoint has the disks in it, background-snapshot's file has not; its total time
is that of the command line. "Frozen" has the guest's hooks in it, which have the database make a checkpoint while it
writes still, and the guest's own thaw; "held" is what is ours of it: from the guest's answer that it is frozen until it
is told to thaw. The longest wait of a writer in the guest shows what the frozen file system costs in all.

The result goes to bench/results/vm-DATE.json with the machine's description. --quick shows that everything runs; its
figures mean nothing, and they go to no file unless --output names one.

BERTH_BIN is the program (a release build). BERTH_BENCH_DIR is a directory on the file system to measure (build/ when it
is not set). Nothing is left there. Needs root, and the guest of scripts/guest-image, which is built when it is not there.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import report
from peers import PeerError, run
from report import Goal, figure, ratios

import guest  # of the tests: peers.py has put them on the path
from berth_host import BerthError, BerthHost
from machine_host import Machine, guest_toml
from watch import Watch

MIB = 1 << 20
BOOT_TIMEOUT_S = 120
SAVE_TIMEOUT_S = 180
SETTLE_S = 1.0

FROZEN_GOAL_MS = 50
STOPPED_GOAL_MS = {256: 50, 1024: 100}  # by MiB of memory
STOP_GOAL = 1.0                         # of background-snapshot's
TOTAL_GOAL = 0.5                        # of background-snapshot's

SIDES = {"berth": "berth", "background": "background-snapshot", "internal": "snapshot-save"}

# Writes 4 KiB with O_DSYNC every few milliseconds until it is told to stop; the longest time between two that were
# complete. By the guest's clock, which goes on while its file systems are frozen.
WRITER = r"""
use strict; use warnings;
use Fcntl; use Time::HiRes qw(clock_gettime CLOCK_MONOTONIC sleep);
sysopen my $file, '/var/writer', O_WRONLY | O_CREAT | O_DSYNC or die;
my ($longest, $count, $last) = (0, 0, 0);
my $end = clock_gettime(CLOCK_MONOTONIC) + 120;
until (-e '/run/writer.stop') {
  sysseek $file, 4096 * ($count % 64), 0;
  syswrite($file, 'w' x 4096) == 4096 or die;
  my $now = clock_gettime(CLOCK_MONOTONIC);
  $longest = $now - $last if $last && $now - $last > $longest;
  $last = $now;
  open my $mark, '>', '/run/writer.started' unless $count++;
  last if $now > $end;
  sleep 0.005;
}
open my $out, '>', '/run/writer.new' or die;
print $out $longest, ' ', $count, "\n";
close $out;
rename '/run/writer.new', '/run/writer.done';
"""


@dataclasses.dataclass(frozen=True)
class Load:
    """One guest."""
    memory_mib: int
    rate_mib: int  # that it is asked to write in a second; what it can do is measured

    @property
    def key(self):
        return f"{self.memory_mib}MiB_{self.rate_mib}MiB_per_s"

    @property
    def title(self):
        return f"{self.memory_mib} MiB, {self.rate_mib} MiB/s"

    @property
    def words(self):
        return f"berth.load=off berth.dirty={self.rate_mib}:{self.memory_mib // 2}"


LOADS = [Load(memory, rate) for memory in (256, 1024) for rate in (100, 400)]


@dataclasses.dataclass
class Setting:
    """How much of everything, and where."""
    directory: pathlib.Path  # on the file system that is measured
    run: pathlib.Path        # on a tmpfs: sockets
    rounds: int
    loads: list
    shared: bool = True      # the peers' guest memory is shared, as Berth's is
    why_not_shared: str = ""

    @property
    def disk(self):
        return self.directory / "base.qcow2"


def say(text):
    print(text, file=sys.stderr, flush=True)


# --- The guest, whoever runs it.


class CpuWatch(Watch):
    """The longest time, while the block goes on, in which the threads of the guest's CPUs did not run."""

    PERIOD_S = 0.0005

    def __init__(self, pid):
        super().__init__()
        self.longest_ms = 0.0
        tasks = pathlib.Path(f"/proc/{pid}/task").iterdir()
        self._paths = [task / "schedstat" for task in tasks if (task / "comm").read_text().startswith("CPU ")]
        if not self._paths:
            raise PeerError(f"process {pid} has no thread of a CPU")

    def watch(self):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            files = [stack.enter_context(open(path, "rb", buffering=0)) for path in self._paths]
            last, since = None, time.monotonic()
            while not self.is_over():
                ran = [os.pread(file.fileno(), 64, 0).split()[0] for file in files]
                now = time.monotonic()
                if last is not None:
                    self.longest_ms = max(self.longest_ms, (now - since) * 1000)
                if ran != last:
                    last, since = ran, now
                time.sleep(self.PERIOD_S)


def wait_until(what, done, timeout_s):
    deadline = time.monotonic() + timeout_s
    while True:
        if (value := done()) is not None:
            return value
        if time.monotonic() > deadline:
            raise PeerError(f"{what}: not within {timeout_s} s")
        time.sleep(0.05)


def wait_for_agent(agent):
    def answered():
        with contextlib.suppress(guest.GuestError):
            agent.ping(timeout_s=2)
            return True
    wait_until("the guest's agent", answered, BOOT_TIMEOUT_S)


def next_report(agent):
    """What the guest has written when it next says so, four times a second, and when that was."""
    before, deadline = agent.dirty()["written"], time.monotonic() + 30
    while (written := agent.dirty()["written"]) == before:
        if time.monotonic() > deadline:
            raise PeerError("the guest writes nothing to its memory")
        time.sleep(0.005)
    return written, time.monotonic()


def settle(agent, pid):
    """Waits until the guest writes its memory, and nobody else anything; what that is like without a command."""
    wait_until("the guest's memory is filled", agent.dirty, BOOT_TIMEOUT_S)
    os.sync()
    time.sleep(SETTLE_S)
    written, started = next_report(agent)
    with CpuWatch(pid) as watch:
        time.sleep(SETTLE_S)
    more, ended = next_report(agent)
    return {"dirtied_mib_per_s": (more - written) * 4096 / MIB / (ended - started), "at_rest_ms": watch.longest_ms}


def check_memory(agent):
    if (mismatches := agent.dirty()["mismatches"]) != 0:
        raise PeerError(f"the guest found {mismatches} pages of its memory that are not as it left them")


def longest_write_ms(agent, work):
    """The guest's longest wait for a 4 KiB write while `work` is done, and its answer."""
    agent.run("rm -f /run/writer.*")
    agent.call("guest-exec", path="/usr/bin/perl", arg=["-e", WRITER])

    def read(name):
        with contextlib.suppress(guest.GuestError):
            return agent.read_file(f"/run/writer.{name}")
    wait_until("the guest's writer begins", lambda: read("started"), 30)
    answer = work()
    time.sleep(0.1)
    agent.run("touch /run/writer.stop")
    text = wait_until("the guest's writer ends", lambda: read("done") or None, 30)
    return float(text.split()[0]) * 1000, answer


# --- Berth.


class BerthSide:
    def __init__(self, host):
        self._host = host

    def measure(self, load):
        """One round: the checkpoints, and the command with which its QEMU was started."""
        path = self._host.directory / "bench.toml"
        path.write_text(guest_toml("bench", words=load.words, memory=f"{load.memory_mib}M"))
        machine = Machine.create(self._host, "bench", path.read_text())
        try:
            machine.start()
            agent, pid = machine.agent(), machine.info()["pid"]
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
            found = settle(agent, pid)
            found["cut"] = self._cut(machine, agent)
            os.sync()
            found["memory"] = self._memory(machine, pid)
            check_memory(agent)
            return found, (command, machine.qemu_directory)
        finally:
            self._remove(machine)

    def _cut(self, machine, agent):
        idle_ms, _ = longest_write_ms(agent, lambda: time.sleep(SETTLE_S))
        stalled_ms, made = longest_write_ms(agent, lambda: machine.checkpoint("cut", timeout_s=SAVE_TIMEOUT_S))
        self._host.cli("checkpoint", "delete", "bench@cut")
        held_us, = self._logged(r"file systems frozen within \d+ us, held for (\d+) us")
        if made["consistency"] != "application":
            raise PeerError(f"the checkpoint is '{made['consistency']}' only: {made['reason']}")
        return {"frozen_ms": made["frozen_us"] / 1000, "held_ms": held_us / 1000,
                "longest_write_ms": stalled_ms, "at_rest_ms": idle_ms}

    def _logged(self, pattern):
        """The numbers of the last such line in the machine's log."""
        log = (self._host.run_dir / "machines" / "bench" / "log").read_text(errors="replace")
        lines = list(re.finditer(pattern, log))
        if not lines:
            raise PeerError(f"the machine's log has no '{pattern}'")
        return [int(number) for number in lines[-1].groups()]

    def _memory(self, machine, pid):
        with CpuWatch(pid) as watch:
            started = time.monotonic()
            made = machine.checkpoint("memory", "--memory", timeout_s=SAVE_TIMEOUT_S)
            total_ms = (time.monotonic() - started) * 1000
        rounds, size = self._logged(r"memory saved in (\d+) rounds, (\d+) bytes")
        self._host.cli("checkpoint", "delete", "bench@memory")
        return {"stopped_ms": made["stopped_us"] / 1000, "not_running_ms": watch.longest_ms, "total_ms": total_ms,
                "rounds": rounds, "bytes": size}

    def _remove(self, machine):
        for arguments in (("vm", "stop", "bench", "--force"), ("vm", "delete", "bench")):
            done = self._host.run(*arguments, timeout_s=120)
        if done.returncode != 0 and sys.exc_info()[0] is None:
            raise PeerError(f"the machine {machine.name} cannot be deleted: {done.stderr}")


# --- QEMU.


def peer_command(command, directory, disk, shared):
    """Berth's QEMU, but: the disk is a qcow2 file, sockets lie elsewhere, and the memory is QEMU's own."""
    arguments, qemu_directory = command
    image = guest.image()
    changed = [arguments[0]]
    for option, value in zip(arguments, arguments[1:]):
        if option == "-kernel":
            value = image["kernel"]
        elif option == "-initrd":
            value = image["initrd"]
        elif option == "-blockdev":
            cache = {"direct": True, "no-flush": False}
            value = json.dumps({
                "driver": "qcow2", "node-name": json.loads(value)["node-name"], "discard": "unmap", "cache": cache,
                "file": {"driver": "file", "filename": str(disk), "cache": cache, "aio": "io_uring"}})
        elif option == "-object" and (found := json.loads(value)).get("id") == "ram":
            kind = {"qom-type": "memory-backend-memfd", "share": True} if shared else {"qom-type": "memory-backend-ram"}
            value = json.dumps({"id": "ram", "size": found["size"], "prealloc": False, **kind})
        changed.append(value.replace(str(qemu_directory), str(directory)))
    node = next(json.loads(value)["node-name"] for option, value in zip(changed, changed[1:]) if option == "-blockdev")
    return changed, node


class PeerGuest:
    """QEMU by itself."""

    def __init__(self, setting, command):
        self._setting, self._process, self._monitor = setting, None, None
        self._directory = pathlib.Path(tempfile.mkdtemp(prefix="q", dir=setting.run))
        self._disk = setting.directory / "peer.qcow2"
        self._log_path = self._directory / "qemu.log"
        self.agent = guest.Agent(self._directory / "agent.sock")
        try:
            run("cp", "--sparse=always", setting.disk, self._disk)
            arguments, self._node = peer_command(command, self._directory, self._disk, setting.shared)
            with open(self._log_path, "wb") as log:
                self._process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *arguments],
                                                 stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            qmp_path = self._directory / "qmp.sock"
            wait_until("QEMU's control socket", lambda: self._is_there(qmp_path), 30)
            self._monitor = guest.Qmp(qmp_path, timeout_s=30)
            wait_for_agent(self.agent)
        except BaseException:
            self.close()
            raise

    def _is_there(self, path):
        if self._process.poll() is not None:
            raise PeerError(f"QEMU ended: {self._log_path.read_text(errors='replace')}")
        return path.exists() or None

    @property
    def pid(self):
        return self._process.pid

    def _capabilities(self, on):
        self._monitor.call("migrate-set-capabilities", capabilities=[
            {"capability": name, "state": on} for name in ("background-snapshot", "events")])

    def background_snapshot(self):
        """A migration to a file that has the memory of the moment when it began."""
        self._capabilities(True)
        self._monitor.call("migrate-set-parameters", max_bandwidth=1 << 40)  # no limit
        path = self._setting.directory / "background"
        try:
            with open(path, "wb", buffering=0) as file, CpuWatch(self.pid) as watch:
                self._monitor.events.clear()
                started = time.monotonic()
                self._monitor.call("getfd", fdname="file", descriptors=[file.fileno()])
                self._monitor.call("migrate", uri="fd:file")
                events = self._monitor.wait_for_event(
                    lambda event: event["event"] == "MIGRATION" and
                    event["data"]["status"] in ("completed", "failed", "cancelled"), SAVE_TIMEOUT_S)
                os.fsync(file.fileno())
                total_ms = (time.monotonic() - started) * 1000
            outcome = self._monitor.call("query-migrate")
            if outcome["status"] != "completed":
                raise PeerError(f"background-snapshot: {outcome['status']}: {outcome.get('error-desc', '')}")
            return {"stopped_ms": self._stopped_ms(events, outcome.get("downtime")), "not_running_ms": watch.longest_ms,
                    "total_ms": total_ms, "bytes": path.stat().st_size}
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(guest.GuestError):
                self._capabilities(False)

    def internal_snapshot(self):
        """A snapshot inside the disk: `savevm`."""
        size = self._disk.stat().st_blocks * 512
        with open(self._disk, "rb") as file, CpuWatch(self.pid) as watch:
            self._monitor.events.clear()
            started = time.monotonic()
            events = self._job("snapshot-save", vmstate=self._node)
            os.fsync(file.fileno())
            total_ms = (time.monotonic() - started) * 1000
        size = self._disk.stat().st_blocks * 512 - size
        self._job("snapshot-delete")
        return {"stopped_ms": self._stopped_ms(events), "not_running_ms": watch.longest_ms, "total_ms": total_ms,
                "bytes": size}

    def _job(self, command, **arguments):
        self._monitor.call(command, job_id="job", tag="point", devices=[self._node], **arguments)
        events = self._monitor.wait_for_event(
            lambda event: event["event"] == "JOB_STATUS_CHANGE" and
            event["data"] == {"id": "job", "status": "concluded"}, SAVE_TIMEOUT_S)
        error = self._monitor.call("query-jobs")[0].get("error")
        self._monitor.call("job-dismiss", id="job")
        if error:
            raise PeerError(f"{command}: {error}")
        return events

    @staticmethod
    def _stopped_ms(events, otherwise_ms=None):
        """From STOP to RESUME."""
        at = {}
        for event in events:
            if event.get("event") in ("STOP", "RESUME"):
                at[event["event"]] = event["timestamp"]["seconds"] * 1000 + event["timestamp"]["microseconds"] / 1000
        if len(at) == 2:
            return at["RESUME"] - at["STOP"]
        if otherwise_ms is None:
            raise PeerError("QEMU does not say how long the guest stood")
        return otherwise_ms

    def close(self):
        if self._monitor is not None:
            self._monitor.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)
        self._disk.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def measure_peers(setting, command, turn):
    """One round: both of QEMU's ways in one guest, in turn the first."""
    with PeerGuest(setting, command) as peer:
        found = settle(peer.agent, peer.pid)
        works = [("background", peer.background_snapshot), ("internal", peer.internal_snapshot)]
        for name, work in works if turn % 2 == 0 else works[::-1]:
            os.sync()
            found[name] = work()
            time.sleep(SETTLE_S)
        check_memory(peer.agent)
        return found


def choose_memory(setting, command):
    """Whether background-snapshot can be had with shared memory; where it cannot, QEMU's memory is its own."""
    say("trying background-snapshot with shared memory")
    try:
        with PeerGuest(setting, command) as peer:
            peer.background_snapshot()
    except (PeerError, guest.GuestError) as error:
        setting.shared, setting.why_not_shared = False, str(error)
        say(f"QEMU gets memory that is not shared: {error}")


# --- All of it.


def measure(setting, host):
    run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", guest.image()["disk"], setting.disk, timeout_s=180)
    berth = BerthSide(host)
    results, chosen = {}, False
    for load in setting.loads:
        rounds = {"berth": [], "peers": []}
        command = None
        for turn in range(setting.rounds):
            say(f"{load.title}: round {turn + 1} of {setting.rounds}")
            for side in ("berth", "peers") if turn % 2 == 0 else ("peers", "berth"):
                if side == "berth":
                    found, command = berth.measure(load)
                else:
                    if not chosen:
                        choose_memory(setting, command)
                        chosen = True
                    found = measure_peers(setting, command, turn)
                rounds[side].append(found)
        results[load.key] = result_of(load, rounds)
    return results


def figures(found):
    return {name: figure([one[name] for one in found]) for name in found[0]}


def result_of(load, rounds):
    result = {"title": load.title, "memory_mib": load.memory_mib, "asked_mib_per_s": load.rate_mib}
    for side, found in rounds.items():
        result[f"{side}_guest"] = figures([{name: one[name] for name in ("dirtied_mib_per_s", "at_rest_ms")} for one in found])
    result["cut"] = figures([one["cut"] for one in rounds["berth"]])
    result["berth"] = figures([one["memory"] for one in rounds["berth"]])
    for side in ("background", "internal"):
        result[side] = figures([one[side] for one in rounds["peers"]])
        for measure_name in ("stopped_ms", "not_running_ms", "total_ms"):
            result[f"{measure_name}_berth_to_{side}"] = ratios(
                result["berth"][measure_name]["rounds"], result[side][measure_name]["rounds"])
    return result


def goals_of(results):
    def goal(what, found, wanted, **options):
        return Goal(what, found["median"], wanted, at_most=True, spread=(found["min"], found["max"]), **options)

    goals = []
    for result in results.values():
        title = result["title"]
        goals += [
            goal(f"{title}: frozen for a checkpoint without memory", result["cut"]["frozen_ms"], FROZEN_GOAL_MS, unit="ms"),
            goal(f"{title}: of that, held for the cut of the disks", result["cut"]["held_ms"], FROZEN_GOAL_MS, unit="ms"),
            goal(f"{title}: stopped for a checkpoint with memory", result["berth"]["stopped_ms"],
                 STOPPED_GOAL_MS[result["memory_mib"]], unit="ms"),
            goal(f"{title}: stop against background-snapshot", result["stopped_ms_berth_to_background"], STOP_GOAL),
            goal(f"{title}: total time against background-snapshot", result["total_ms_berth_to_background"], TOTAL_GOAL)]
    return goals


def show(results):
    def cell(one, digits=1):
        return f"{one['median']:,.{digits}f} [{one['max']:,.{digits}f}]"

    rows = []
    for result in results.values():
        cut = result["cut"]
        rows.append([result["title"], cell(cut["frozen_ms"]), cell(cut["held_ms"]), cell(cut["longest_write_ms"]),
                     cell(cut["at_rest_ms"])])
    report.table("Checkpoint without memory, the guest being quiesced, in ms: median [worst]",
                 ["", "frozen", "of that, held", "guest's longest wait for a 4 KiB write", "the same at rest"], rows)
    rows = []
    for result in results.values():
        for side, name in SIDES.items():
            found, around = result[side], result["berth_guest" if side == "berth" else "peers_guest"]
            rows.append([f"{result['title']}: {name}", cell(found["stopped_ms"]), cell(found["not_running_ms"]),
                         cell(around["at_rest_ms"]), cell(found["total_ms"], 0),
                         f"{found['rounds']['median']:.0f}" if "rounds" in found else "",
                         f"{found['bytes']['median'] / MIB:,.0f}", f"{around['dirtied_mib_per_s']['median']:,.0f}"])
    report.table("Checkpoint with memory, in ms: median [worst]",
                 ["", "stopped", "CPU not running", "at rest", "total", "rounds", "MiB saved", "MiB/s dirtied"], rows)


def main():
    arguments = report.parse(report.parser(__doc__))
    guest.image()  # a build of it is no part of any round
    with report.Run("vm", arguments) as bench:
        for directory in bench.directories:
            directory.chmod(0o711)  # Berth's QEMU runs as a user of its own
        setting = Setting(*bench.directories, rounds=arguments.rounds, loads=LOADS[:1] if arguments.quick else LOADS)
        with BerthHost(directory=setting.run, state_dir=setting.directory / "state") as host:
            bench.result["guests"] = measure(setting, host)
    bench.result["peers_memory"] = {"shared": setting.shared, "why_not_shared": setting.why_not_shared}
    show(bench.result["guests"])
    memory = "shared, as Berth's" if setting.shared else f"not shared ({setting.why_not_shared})"
    bench.finish(goals_of(bench.result["guests"]), remark=f"The memory of QEMU's own guests was {memory}. ")


if __name__ == "__main__":
    try:
        main()
    except (PeerError, guest.GuestError, BerthError, subprocess.TimeoutExpired) as error:
        sys.exit(f"bench-vm: {error}")
