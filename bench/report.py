"""What a benchmark is made of beside its measurements: its arguments, the directories it works in, and what it found, for
people and for machines: figures with their spread, goals, the machine's description.

    with Run("disk", parse(parser(__doc__))) as bench:
        bench.result["steady"] = measure(*bench.directories)
    bench.finish(goals)
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def figure(values):
    """Median and spread of the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "rounds": list(values)}


def tail(values):
    """The same for many rounds, with the value that one in a hundred is above; of fewer than a hundred it is the largest."""
    return {**figure(values), "p99": sorted(values)[math.ceil(len(values) * 0.99) - 1]}


def ratios(values, others):
    """Round by round: what disturbed one disturbed the other."""
    return figure([value / other for value, other in zip(values, others, strict=True)])


@dataclasses.dataclass
class Goal:
    """One line of the issue's list. `found` must be at least (or, `at_most`, not above) `wanted`."""
    what: str
    found: float
    wanted: float
    at_most: bool = False
    unit: str = "×"
    spread: tuple = ()

    @property
    def met(self):
        return self.found <= self.wanted if self.at_most else self.found >= self.wanted

    def verdict(self):
        if self.met:
            return "met"
        return f"missed by {abs(self.found / self.wanted - 1):.0%}"

    def json(self):
        return {"what": self.what, "found": self.found, "wanted": self.wanted, "at_most": self.at_most,
                "unit": self.unit, "spread": list(self.spread), "met": self.met, "verdict": self.verdict()}


def table(title, header, rows):
    """Columns as wide as they need to be; the first is text, the others are numbers."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{title}")
    for row in [header, *rows]:
        cells = [cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        print("  " + "  ".join(cells).rstrip())


def goal_table(goals):
    rows = []
    for goal in goals:
        sign = "≤" if goal.at_most else "≥"
        spread = f"{goal.spread[0]:.2f}..{goal.spread[1]:.2f}" if goal.spread else ""
        rows.append([goal.what, f"{goal.found:.2f} {goal.unit}", spread, f"{sign} {goal.wanted:g} {goal.unit}", goal.verdict()])
    table("Goals", ["", "found", "spread", "goal", ""], rows)


# --- The machine.


def _output(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        return " ".join(done.stdout.split())
    except OSError:
        return ""


def _first_line(path, key):
    for line in pathlib.Path(path).read_text().splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""


def _read_ahead(directory):
    """KiB that the kernel reads at least for one page fault in a file of its; None where no disk of this host is below."""
    device = directory.stat().st_dev
    found = [path for queue in ("queue", "../queue")
             if (path := pathlib.Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}", queue, "read_ahead_kb")).exists()]
    return int(found[0].read_text()) if found else None


def machine(directory):
    """What the figures depend on. `directory` lies on the file system that is measured."""
    source = _output("findmnt", "-n", "-o", "SOURCE", "-T", str(directory))
    return {
        "cpu": _first_line("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": int(_first_line("/proc/meminfo", "MemTotal").split()[0]) * 1024,
        "kernel": platform.release(),
        "virtual_machine": _output("systemd-detect-virt") or "unknown",
        "file_system": _output("findmnt", "-n", "-o", "FSTYPE,OPTIONS", "-T", str(directory)),
        "device": _output("lsblk", "-n", "-d", "-o", "NAME,TYPE,SIZE,ROTA,MODEL", source) or source,
        "read_ahead_kib": _read_ahead(directory),
        "qemu": _output("qemu-storage-daemon", "--version").partition(" Copyright")[0],
        "fio": _output("fio", "--version"),
        "runc": _output("runc", "--version").partition(" commit")[0],
    }


def load():
    """Load averages: what else the machine was doing."""
    return list(os.getloadavg())


def write_json(path, result):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


# --- A benchmark, from its arguments to its file.


def parser(text):
    """With what every benchmark takes; a caller adds its own."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int)
    made.add_argument("--quick", action="store_true")
    made.add_argument("--output", type=pathlib.Path)
    return made


def parse(made, rounds=5, quick_rounds=1):
    arguments = made.parse_args()
    arguments.rounds = arguments.rounds or (quick_rounds if arguments.quick else rounds)
    return arguments


class Run:
    """One run of the benchmark `name`. While its block goes on, `directories` are there: one on the file system to measure,
    one on a tmpfs. `result` is what the file will say."""

    def __init__(self, name, arguments):
        self._name, self._arguments = name, arguments
        self._started = datetime.datetime.now(datetime.timezone.utc)
        self._stack = contextlib.ExitStack()
        self.directories, self.result = [], {}

    def __enter__(self):
        os.environ.setdefault("BERTH_BIN", str(ROOT / "build" / "release" / "berth"))
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(1))  # unwinds, so everything is ended and removed
        with contextlib.ExitStack() as stack:
            for where in (os.environ.get("BERTH_BENCH_DIR") or str(ROOT / "build"), "/dev/shm"):
                directory = pathlib.Path(tempfile.mkdtemp(prefix="berth-bench-", dir=where))
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                self.directories.append(directory)
            self.result = {"date": self._started.isoformat(timespec="seconds"), "quick": self._arguments.quick,
                           "rounds": self._arguments.rounds, "machine": machine(self.directories[0]), "load_before": load()}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()
        self.result["load_after"] = load()

    def finish(self, goals, remark="", programs=("qemu",)):
        """Shows the goals and the machine, and writes the file: where --output says, else among the results unless it was
        --quick."""
        self.result["goals"] = [goal.json() for goal in goals]
        goal_table(goals)
        host = self.result["machine"]
        print(f"\n{remark}{host['cpu']}, {host['cores']} cores, {host['memory_bytes'] >> 30} GiB; Linux {host['kernel']}; "
              f"{host['file_system']} on {host['device']}; {'; '.join(host[program] for program in programs)}; "
              f"load {self.result['load_before'][0]:.1f} before, {self.result['load_after'][0]:.1f} after")
        output = self._arguments.output
        if output is None and not self._arguments.quick:
            output = ROOT / "bench" / "results" / f"{self._name}-{self._started.date().isoformat()}.json"
        if output is not None:
            write_json(output, self.result)
            print(f"written to {output}")
