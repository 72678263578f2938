#!/usr/bin/python3
"""Disk benchmarks: Berth beside qemu-storage-daemon and the raw file, in one run (make bench-disk).

    bench/disk.py [--rounds 5] [--quick] [--only steady,tracking,fresh,scale] [--output FILE]

All sides lie on the same file system and take turns, round by round; figures are medians with their spread, ratios are
taken within a round. The result goes to bench/results/disk-DATE.json with the machine's description. --quick shows
that everything runs; its figures mean nothing, and they go to no file unless --output names one.

BERTH_BIN is the program (a release build); the programs in benchmarks/ lie beside it, or in BERTH_BUILD_DIR.
BERTH_BENCH_DIR is a directory on the file system to measure (build/ when it is not set). Nothing is left there.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import time

import report
from peers import Berth, PeerError, QemuStorageDaemon, create_qcow2, fill, fio, memory_bytes, run
from report import Goal, figure, ratios

GIB = 1 << 30
BLOCK_SIZE = 64 << 10  # of a volume, and of qcow2's clusters

# name, what a person reads, fio's options, what is compared, goal against qemu-storage-daemon
WORKLOADS = [
    ("randwrite_4k_qd32", "4 KiB random writes, depth 32", {"pattern": "randwrite", "depth": 32}, "iops", 2.0),
    ("randread_4k_qd32", "4 KiB random reads, depth 32", {"pattern": "randread", "depth": 32}, "iops", 1.15),
    ("write_1m_qd8", "1 MiB sequential writes, depth 8", {"pattern": "write", "block_size": "1m", "depth": 8}, "bytes_per_s", 1.5),
    ("read_1m_qd8", "1 MiB sequential reads, depth 8", {"pattern": "read", "block_size": "1m", "depth": 8}, "bytes_per_s", 1.0),
    ("randwrite_4k_qd1", "4 KiB random writes, depth 1", {"pattern": "randwrite", "depth": 1}, "mean_us", 1.2),
    ("randread_4k_qd1", "4 KiB random reads, depth 1", {"pattern": "randread", "depth": 1}, "mean_us", 1.2),
]
RAW_STRETCH = 0.85
TRACKING_TOLERANCE = 0.03
FRESH_GOAL = 0.8
CHANGES_GOAL_MS = 100
CONVERT_GOAL_MS = 10


@dataclasses.dataclass
class Setting:
    """How much of everything, and where."""
    directory: pathlib.Path  # on the file system that is measured
    memory: pathlib.Path     # on a tmpfs; sockets too
    rounds: int
    quick: bool

    @property
    def seconds(self):
        return 0.4 if self.quick else 2.5

    @property
    def ramp_seconds(self):
        return 0.1 if self.quick else 0.3

    @property
    def steady_size(self):
        return GIB // 4 if self.quick else 4 * GIB

    @property
    def fresh_size(self):
        return GIB // 4 if self.quick else 6 * GIB


def say(text):
    print(text, file=sys.stderr, flush=True)


def in_process(setting, program, *arguments):
    """What a benchmark of the engine in process prints."""
    build = pathlib.Path(os.environ.get("BERTH_BUILD_DIR") or pathlib.Path(os.environ["BERTH_BIN"]).parent)
    command = [build / "benchmarks" / program, "--directory", setting.directory, *arguments]
    return json.loads(run(*command, *(["--quick"] if setting.quick else []), timeout_s=300))


# --- Steady state.


def measure_steady(setting):
    """Every workload on every side, in turn."""
    size = setting.steady_size
    raw_file = setting.directory / "raw.img"
    served_file = setting.directory / "served.img"
    with Berth(setting.directory / "state", setting.memory) as berth:
        uri = berth.volume("steady", size)
        berth.cli("refpoint", "create", "steady", "--name", "before")
        for path in (raw_file, served_file):
            with open(path, "wb") as file:
                file.truncate(size)
        say("steady state: writing the disks once")
        fill(uri, size)
        fill(raw_file, size)
        fill(served_file, size)
        with QemuStorageDaemon(served_file, setting.memory / "qsd.sock") as qsd:
            sides = [("berth", uri, berth.pid("steady")), ("qsd", qsd.uri, qsd.pid), ("raw", raw_file, None)]
            runs = {name: {side: [] for side, *_ in sides} for name, *_ in WORKLOADS}
            for turn in range(setting.rounds):
                say(f"steady state: round {turn + 1} of {setting.rounds}")
                for name, _, options, *_ in WORKLOADS:
                    for side, target, pid in sides[turn % 3:] + sides[:turn % 3]:
                        runs[name][side].append(fio(
                            target=target, size=size, seconds=setting.seconds, ramp_seconds=setting.ramp_seconds,
                            server_pid=pid, **options))
    for path in (raw_file, served_file):
        path.unlink()

    results, goals = {}, []
    for name, title, _, measure, wanted in WORKLOADS:
        values = {side: [getattr(one, measure) for one in runs[name][side]] for side in runs[name]}
        less_is_better = measure == "mean_us"
        against = {side: ratios(values[side], values["berth"]) if less_is_better else ratios(values["berth"], values[side])
                   for side in ("qsd", "raw")}
        results[name] = {
            "title": title, "measure": measure,
            **{side: figure(values[side]) for side in values},
            "p99_us": {side: figure([one.p99_us for one in runs[name][side]]) for side in values},
            "server_cpu_us": {side: figure([one.server_cpu_us for one in runs[name][side]]) for side in ("berth", "qsd")},
            "berth_to_qsd": against["qsd"], "berth_to_raw": against["raw"]}
        spread = (against["qsd"]["min"], against["qsd"]["max"])
        goals.append(Goal(f"{title}: against qemu-storage-daemon", against["qsd"]["median"], wanted, spread=spread))
        spread = (against["raw"]["min"], against["raw"]["max"])
        goals.append(Goal(f"{title}: against raw (stretch)", against["raw"]["median"], RAW_STRETCH, spread=spread))
    return results, goals


def show_steady(results):
    scale = {"iops": (1, "IOPS"), "bytes_per_s": (1 << 20, "MiB/s"), "mean_us": (1, "µs")}

    def cell(one, divisor):
        return f"{one['median'] / divisor:,.0f} [{one['min'] / divisor:,.0f}..{one['max'] / divisor:,.0f}]"

    rows = []
    for result in results.values():
        divisor, unit = scale[result["measure"]]
        cpu = result["server_cpu_us"]
        rows.append([f"{result['title']}, {unit}", *(cell(result[side], divisor) for side in ("berth", "qsd", "raw")),
                     f"{result['berth_to_qsd']['median']:.2f}", f"{result['berth_to_raw']['median']:.2f}",
                     f"{cpu['berth']['median']:.1f} / {cpu['qsd']['median']:.1f}"])
    report.table("Steady state over NBD: median [min..max]",
                 ["", "berth", "qemu-storage-daemon", "raw file", "berth/qsd", "berth/raw", "server CPU µs/op"], rows)


# --- The cost of tracking.


def measure_tracking(setting):
    """A keeper's thread and the engine alone, on null data; and whole servers on a disk in memory, where bitmaps are
    QEMU's way to track."""
    say("cost of tracking: a keeper and the engine on null data")
    results = {"keeper": in_process(setting, "keeper_bench")["keeper"],
               "engine": in_process(setting, "volume_bench", "tracking")["tracking"], "servers": {}}
    size = GIB // 4 if setting.quick else GIB
    servers = results["servers"]
    with contextlib.ExitStack() as stack:
        berth = stack.enter_context(Berth(setting.memory / "state", setting.memory))
        sides = []
        for count in (1, 64):
            name = f"refpoints{count}"
            uri = berth.volume(name, size)
            for number in range(count):
                berth.cli("refpoint", "create", name, "--name", f"r{number}")
            fill(uri, size)
            sides.append((f"berth, {count} reference point{'s' * (count > 1)}", uri, berth.pid(name)))
        for count in (0, 1, 64):
            image = setting.memory / f"bitmaps{count}.qcow2"
            create_qcow2(image, size, count)
            qsd = stack.enter_context(QemuStorageDaemon(image, setting.memory / f"bitmaps{count}.sock", "qcow2",
                                                        direct=False))
            stack.callback(image.unlink)
            fill(qsd.uri, size)
            sides.append((f"qcow2, {count} bitmap{'s' * (count != 1)}", qsd.uri, qsd.pid))
        costs = {name: {"write": [], "read": []} for name, *_ in sides}
        for turn in range(setting.rounds):
            say(f"cost of tracking: round {turn + 1} of {setting.rounds}")
            for name, target, pid in sides:
                for kind in ("write", "read"):
                    costs[name][kind].append(fio(f"rand{kind}", target, size=size, depth=32, server_pid=pid,
                                                 seconds=min(1.5, setting.seconds)).server_cpu_us)
    for name, kinds in costs.items():
        servers[name] = {f"{kind}_cpu_us": figure(values) for kind, values in kinds.items()}
    goals = []
    for kind in ("write", "read"):
        for count, points in (("1", "1 reference point"), ("1000", "1,000 reference points")):
            ratio = results["keeper"]["ratios"][f"{kind}_{count}_to_off"]
            goals.append(Goal(f"Keeper's CPU for a {kind}, {points} against no tracking", ratio["median"],
                              1 + TRACKING_TOLERANCE, at_most=True, spread=(ratio["min"], ratio["max"])))
    for kind in ("write", "read"):
        ratio = results["engine"]["ratios"][f"{kind}_1000_to_1"]
        goals.append(Goal(f"Engine's cost of a {kind}, 1,000 reference points against 1", ratio["median"], 1 + TRACKING_TOLERANCE,
                          at_most=True, spread=(ratio["min"], ratio["max"])))
    return results, goals


def show_tracking(results):
    for part, title in (("keeper", "thread of a keeper, over NBD on a socket"), ("engine", "engine alone")):
        found = results[part]
        rows = []
        for name in ("off", "0", "1", "1000"):
            line = "tracking off (the null file itself)" if name == "off" else f"on, {int(name):,} reference points"
            rows.append([line] + [f"{one['median']:,.0f} [{one['min']:,.0f}..{one['max']:,.0f}]"
                                  for one in (found["per_request"][f"{kind}_{name}"] for kind in ("write", "read"))])
        report.table(f"Cost of a 4 KiB request, null data file, {title} ({found['unit']}, median [min..max])",
                     ["", "write", "read"], rows)
    report.table("Server CPU per 4 KiB request over NBD, depth 32, disk in memory (µs, median [min..max])", ["", "write", "read"],
                 [[name] + [f"{one['median']:.1f} [{one['min']:.1f}..{one['max']:.1f}]" for one in kinds.values()]
                  for name, kinds in results["servers"].items()])


# --- A fresh epoch.


def visit_blocks(target, setting, turn, seconds):
    """4 KiB writes to the beginnings of random blocks, a third as many as there are blocks: most meet a block for the first
    time. The same turn writes the same blocks in the same order. Ends when the time is over, too."""
    writes = setting.fresh_size // BLOCK_SIZE // 3
    return fio("randwrite", target, f"--blockalign={BLOCK_SIZE}", "--norandommap", f"--randseed={turn + 1}",
               f"--io_size={writes * 4096}", f"--runtime={seconds}", size=setting.fresh_size, depth=32,
               log_directory=setting.directory)


def measure_fresh(setting):
    """Every block's slow path, beside the same writes once more: the blocks are the epoch's own then."""
    seconds = 1 if setting.quick else 4
    size = setting.fresh_size
    kinds = ("steady", "reference point", "volatile checkpoint", "durable checkpoint",
             "qcow2 steady", "qcow2 internal snapshot", "qcow2 fleecing backup")
    runs = {kind: [] for kind in kinds}
    with Berth(setting.directory / "state", setting.memory) as berth:
        uri = berth.volume("fresh", size)
        say("fresh epoch: writing the disks once")
        fill(uri, size)
        images = {name: setting.directory / f"{name}.qcow2" for name in ("snapshot", "fleeced")}
        for image in images.values():
            create_qcow2(image, size)
            with QemuStorageDaemon(image, setting.memory / "fresh.sock", "qcow2") as qsd:
                fill(qsd.uri, size)
        for turn in range(setting.rounds):
            say(f"fresh epoch: round {turn + 1} of {setting.rounds}")
            berth.cli("refpoint", "create", "fresh", "--name", f"r{turn}")
            runs["reference point"].append(visit_blocks(uri, setting, turn, 10 * seconds))
            runs["steady"].append(visit_blocks(uri, setting, turn, 10 * seconds))
            for kind, options in (("volatile checkpoint", ["--volatile"]), ("durable checkpoint", [])):
                berth.cli("checkpoint", "create", "fresh", "--name", "held", *options)
                runs[kind].append(visit_blocks(uri, setting, turn, seconds))
                berth.cli("checkpoint", "delete", "fresh@held")
            measure_qcow2(setting, images, runs, turn, seconds)
        for image in images.values():
            image.unlink()

    results = {}
    for kind, found in runs.items():
        base = "qcow2 steady" if kind.startswith("qcow2") else "steady"
        results[kind] = {
            **{name: figure([getattr(one, name) for one in found]) for name in ("iops", "p50_us", "p99_us", "p999_us")},
            "to_steady": ratios([one.iops for one in found], [one.iops for one in runs[base]]),
            "iops_over_time": found[len(found) // 2].iops_over_time}
    ratio = results["reference point"]["to_steady"]
    goal = Goal("Fresh epoch, reference point only, against steady state", ratio["median"], FRESH_GOAL,
                spread=(ratio["min"], ratio["max"]))
    return results, [goal]


def measure_qcow2(setting, images, runs, turn, seconds):
    """One round of what QEMU has for it."""
    socket_path = setting.memory / "fresh.sock"
    with QemuStorageDaemon(images["snapshot"], socket_path, "qcow2") as qsd:
        runs["qcow2 steady"].append(visit_blocks(qsd.uri, setting, turn, seconds))
    run("qemu-img", "snapshot", "-c", "point", images["snapshot"])
    with QemuStorageDaemon(images["snapshot"], socket_path, "qcow2") as qsd:
        runs["qcow2 internal snapshot"].append(visit_blocks(qsd.uri, setting, turn, seconds))
    run("qemu-img", "snapshot", "-d", "point", images["snapshot"])
    fleecing = setting.directory / "fleecing.qcow2"
    create_qcow2(fleecing, setting.fresh_size)
    with QemuStorageDaemon(images["fleeced"], socket_path, "qcow2", fleecing=fleecing) as qsd:
        qsd.backup()
        runs["qcow2 fleecing backup"].append(visit_blocks(qsd.uri, setting, turn, seconds))
    fleecing.unlink()


def show_fresh(results):
    rows = [[kind, f"{one['iops']['median']:,.0f} [{one['iops']['min']:,.0f}..{one['iops']['max']:,.0f}]",
             f"{one['to_steady']['median']:.2f}",
             *(f"{one[name]['median']:,.0f}" for name in ("p50_us", "p99_us", "p999_us"))]
            for kind, one in results.items()]
    report.table("Fresh epoch: 4 KiB into random 64 KiB blocks, most for the first time, depth 32 (IOPS median [min..max], latencies in µs)",
                 ["", "IOPS", "to steady", "p50", "p99", "p99.9"], rows)
    steps = 12
    rows = []
    for kind, one in results.items():
        points = [f"{value / 1000:.1f}" for _, value in one["iops_over_time"][:steps]]
        rows.append([kind, *points, *[""] * (steps - len(points))])
    report.table("Fresh epoch over time: thousands of IOPS in steps of 100 ms after the cut (one round)",
                 ["", *(f"{step / 10:.1f}s" for step in range(1, steps + 1))], rows)


# --- Large disks.


def timed_ms(work):
    start = time.monotonic()
    work()
    return (time.monotonic() - start) * 1000


def measure_scale(setting):
    """Questions about 4 TiB: in process, and through the command line."""
    say("large disks: the engine in process")
    engine = in_process(setting, "volume_bench", "scale")["scale"]
    say("large disks: through the command line")
    clients = {}
    with Berth(setting.directory / "state", setting.memory) as berth:
        for name, size in (("1GiB", GIB), ("4TiB", 4096 * GIB)):
            volume = f"disk-{name.lower()}"
            uri = berth.volume(volume, size)
            berth.cli("refpoint", "create", volume, "--name", "before")
            writes = 200 if setting.quick else 2000
            done = fio("randwrite", uri, "--norandommap", f"--io_size={writes * 4096}", size=size, depth=32)
            convert_ms = []
            for number in range(setting.rounds):
                berth.cli("checkpoint", "create", volume, "--name", f"c{number}")
                convert_ms.append(timed_ms(lambda v=volume, n=number: berth.cli("refpoint", "convert", f"{v}@c{n}")))
            changes_ms = [timed_ms(lambda v=volume: berth.cli("changes", v, "--since", "before", "-o", "json"))
                          for _ in range(setting.rounds)]
            clients[name] = {
                "scattered_write_iops": done.iops, "convert_cli_ms": figure(convert_ms), "changes_cli_ms": figure(changes_ms),
                "idle_cli_ms": figure([timed_ms(lambda: berth.cli("volume", "list")) for _ in range(setting.rounds)]),
                "keeper_memory": memory_bytes(berth.pid(volume))}
            berth.delete(volume)
    goals = []
    for name, one in engine.items():
        large = name != "1GiB"
        if large:
            for kind in ("scattered", "clustered"):
                found = one[f"changes_{kind}"]["ms"]
                goals.append(Goal(f"changes on {name}, 1 % changed, {kind}", found["median"], CHANGES_GOAL_MS, at_most=True,
                                  unit="ms", spread=(found["min"], found["max"])))
        found = one["conversion"]["ms"]
        goals.append(Goal(f"Conversion of a checkpoint at {name}", found["median"], CONVERT_GOAL_MS, at_most=True, unit="ms",
                          spread=(found["min"], found["max"])))
    return {"engine": engine, "command_line": clients}, goals


def show_scale(results):
    rows = []
    for name, one in results["engine"].items():
        for kind in ("scattered", "clustered", "none"):
            found = one[f"changes_{kind}"]
            rows.append([f"{name}: changes, {kind}", f"{found['extents']:,} extents", f"{found['ms']['median']:.1f} ms",
                         f"CPU {found['cpu_ms']['median']:.1f} ms", f"in pages {found['paged_ms']['median']:.1f} ms"])
        rows.append([f"{name}: conversion of a checkpoint", f"{one['conversion']['held_bytes'] >> 20} MiB held",
                     f"{one['conversion']['ms']['median']:.2f} ms", "", ""])
        rows.append([f"{name}: memory of the process", "", f"{one['memory'].get('private', 0) >> 20} MiB private",
                     f"{one['memory'].get('shared', 0) >> 20} MiB shared", "every page touched"])
    report.table("Large disks: the engine in process", ["", "", "time", "", ""], rows)
    rows = [[name, f"{one['changes_cli_ms']['median']:.0f} ms", f"{one['convert_cli_ms']['median']:.0f} ms",
             f"{one['idle_cli_ms']['median']:.0f} ms", f"{one['keeper_memory'].get('private', 0) >> 20} MiB",
             f"{one['keeper_memory'].get('shared', 0) >> 20} MiB"] for name, one in results["command_line"].items()]
    report.table("Large disks through the command line (2,000 scattered writes)",
                 ["", "changes", "convert", "volume list", "keeper, private", "keeper, shared"], rows)


# --- All of it.

SECTIONS = {"steady": (measure_steady, show_steady), "tracking": (measure_tracking, show_tracking),
            "fresh": (measure_fresh, show_fresh), "scale": (measure_scale, show_scale)}


def parse_arguments():
    parser = report.parser(__doc__)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between them")
    arguments = report.parse(parser)
    arguments.sections = arguments.only.split(",")
    if unknown := set(arguments.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(unknown)}")
    return arguments


def main():
    arguments = parse_arguments()
    goals = []
    with report.Run("disk", arguments) as bench:
        setting = Setting(*bench.directories, rounds=arguments.rounds, quick=arguments.quick)
        for name in arguments.sections:
            measure, show = SECTIONS[name]
            bench.result[name], more_goals = measure(setting)
            goals += more_goals
            show(bench.result[name])
    bench.finish(goals, programs=("qemu", "fio"))


if __name__ == "__main__":
    try:
        main()
    except PeerError as error:
        sys.exit(f"bench-disk: {error}")
