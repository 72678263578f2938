#!/usr/bin/python3
"""The figures of the README, made from the newest result of each benchmark in bench/results; one that has none is left out.

    bench/figures.py            writes them between the two marks in README.md
    bench/figures.py --check    exit code 1 where README.md says something else (make check)
"""

import json
import sys

from report import ROOT

BEGIN, END = "<!-- figures: made by bench/figures.py -->", "<!-- end of figures -->"


def newest_result(directory, benchmark):
    """Path and content of the newest run of bench/BENCHMARK.py, if there is one."""
    paths = sorted(directory.glob(f"{benchmark}-*.json"))
    return (paths[-1], json.loads(paths[-1].read_text())) if paths else None


def row(*cells):
    return "| " + " | ".join(cells) + " |"


def spread(one, divisor=1.0, digits=0):
    """Median and, in brackets, least and most."""
    median, least, most = (f"{one[key] / divisor:,.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} [{least}–{most}]"


def steady_table(steady):
    scale = {"iops": (1, "IOPS"), "bytes_per_s": (1 << 20, "MiB/s"), "mean_us": (1, "µs")}
    yield row("through NBD on a unix socket", "Berth, tracking on", "qemu-storage-daemon", "the raw file, no NBD",
              "Berth against qemu-storage-daemon")
    yield "|---|---|---|---|---|"
    for one in steady.values():
        divisor, unit = scale[one["measure"]]
        yield row(f"{one['title']}, {unit}", *(spread(one[side], divisor) for side in ("berth", "qsd", "raw")),
                  f"{one['berth_to_qsd']['median']:.2f} ×")


def fresh_table(fresh):
    yield row("4 KiB writes to random blocks, most for the first time since the cut", "IOPS", "p50, µs", "p99, µs", "p99.9, µs")
    yield "|---|---|---|---|---|"
    for kind, one in fresh.items():
        yield row(kind if kind.startswith("qcow2") else f"Berth, {kind}", spread(one["iops"]),
                  *(f"{one[name]['median']:,.0f}" for name in ("p50_us", "p99_us", "p999_us")))


def goal_table(goals):
    yield row("goal", "found", "wanted", "")
    yield "|---|---|---|---|"
    for goal in goals:
        sign = "≤" if goal["at_most"] else "≥"
        between = f" [{goal['spread'][0]:.2f}–{goal['spread'][1]:.2f}]" if goal["spread"] else ""
        yield row(goal["what"], f"{goal['found']:.2f} {goal['unit']}{between}", f"{sign} {goal['wanted']:g} {goal['unit']}",
                  goal["verdict"])


def cut_table(guests):
    yield row("a checkpoint, the guest and its database being quiesced, ms", "held for the cut of the disks", "frozen, hooks included",
              "longest wait of a writer in the guest", "the same at rest")
    yield "|---|---|---|---|---|"
    for one in guests.values():
        yield row(one["title"], spread(one["cut"]["held_ms"], digits=1),
                  *(spread(one["cut"][name]) for name in ("frozen_ms", "longest_write_ms", "at_rest_ms")))


def memory_table(guests):
    yield row("a checkpoint with memory", "CPUs stood, ms", "all of it, ms", "MiB written")
    yield "|---|---|---|---|"
    sides = {"berth": "Berth, disks included", "background": "QEMU's background-snapshot, memory only",
             "internal": "QEMU's snapshot-save"}
    for one in guests.values():
        for side, name in sides.items():
            yield row(f"{one['title']}: {name}", spread(one[side]["stopped_ms"], digits=1), spread(one[side]["total_ms"]),
                      f"{one[side]['bytes']['median'] / (1 << 20):,.0f}")


def tail(one, divisor=1.0, digits=0):
    """Median and, in brackets, what one in a hundred is above."""
    return f"{one['median'] / divisor:,.{digits}f} [{one['p99'] / divisor:,.{digits}f}]"


IMAGES = {"nginx": "nginx", "search": "Python"}


def cold_table(cold):
    yield row("from nothing, page cache empty, ms: median [p99]", "command", "first answer of the service",
              "the same, page cache full", "a program run in it")
    yield "|---|---|---|---|---|"
    for image, sides in cold.items():
        for side, name in (("berth", "Berth, a machine"), ("runc", "runc, a process")):
            yield row(f"{IMAGES[image]}: {name}",
                      *(tail(sides[side][what]) for what in ("command_ms", "answer_ms", "again_ms", "execute_ms")))


def clone_table(clone, faster):
    yield row("a clone, ms: median [p99]", "agent's answer", "first answer of the service", "against Berth from nothing",
              "against runc from nothing")
    yield "|---|---|---|---|---|"
    pools, ways = {"pool": "from the pool", "no_pool": "without a pool"}, {"command": "by command", "request": "by request"}
    for image, kinds in clone.items():
        for kind, found in kinds.items():
            for way, name in ways.items():
                against = faster.get(image, {}).get(kind, {}) if way == "command" else {}
                yield row(f"{IMAGES[image]}, {pools[kind]}, {name}",
                          *(tail(found[way][what], 1, 1) for what in ("command_ms", "answer_ms")),
                          *(f"{against[side]['median']:.1f} ×" if against else "" for side in ("berth", "runc")))


def density_table(density):
    yield row("idle containers, MiB for each", "how many", "processes, shared memory shared out", "what the host has less")
    yield "|---|---|---|---|"
    for image, sides in density.items():
        for side, name in (("clones", "Berth, clones"), ("pooled", "Berth, clones that waited"), ("berth_cold", "Berth, from nothing"),
                           ("runc", "runc")):
            if found := sides.get(side):
                yield row(f"{IMAGES[image]}: {name}", str(found["count"]),
                          *(f"{found[what] / (1 << 20) / found['count']:,.1f}" for what in ("proportional_bytes", "host_bytes")))


def level_table(levels, herd):
    yield row("paused and resumed: median [p99]", "to pause, ms", "first answer, ms", "all memory back, ms", "by a request, ms",
              "in a herd, ms", "private, MiB", "left, MiB", "in RAM store, MiB", "on disk, MiB")
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for level, sizes in levels.items():
        for mib, found in sizes.items():
            together = herd.get(level, {}).get(mib)
            times = ("pause_ms", "answer_ms", "back_ms", "woken_ms")
            yield row(f"{level}, {mib} MiB touched", *(tail(found[what], 1, 1) if what in found else "" for what in times),
                      tail(together["answer_ms"], 1, 1) if together else "",
                      *(f"{found[what]['median'] / (1 << 20):,.0f}"
                        for what in ("private_bytes", "left_bytes", "ram_store_bytes", "disk_bytes")))


def disk_tables(result):
    return steady_table(result["steady"]), fresh_table(result["fresh"])


def vm_tables(result):
    return cut_table(result["guests"]), memory_table(result["guests"])


def container_tables(result):
    tables = [("cold", cold_table), ("clone", lambda found: clone_table(found, result.get("faster", {}))),
              ("density", density_table), ("levels", lambda found: level_table(found["levels"], result.get("herd", {})))]
    return [table(result[part]) for part, table in tables if part in result]


# Of each benchmark: its tables, and the programs that its figures depend on.
BENCHMARKS = {"disk": (disk_tables, ["qemu", "fio"]), "vm": (vm_tables, ["qemu"]),
              "containers": (container_tables, ["qemu", "runc"])}


def of_other_kernels(result):
    """In words, which parts were measured under another build of the kernel."""
    return "".join(f" Under Linux {run['machine']['kernel']}: {', '.join(run['parts'])}." for run in result.get("other_runs", [])
                   if run.get("machine", result["machine"])["kernel"] != result["machine"]["kernel"])


def block(benchmark, path, result):
    """What one benchmark found."""
    machine, (tables, used) = result["machine"], BENCHMARKS[benchmark]
    programs = "; ".join(machine[program] for program in used)
    ahead = f" ({machine['read_ahead_kib']:,} KiB read ahead)" if machine.get("read_ahead_kib") else ""
    yield ""
    yield (f"Median and spread of {result['rounds']} interleaved rounds of `make bench-{benchmark}` "
           f"({path.relative_to(ROOT)}): {machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] >> 30} GiB, "
           f"Linux {machine['kernel']}, {machine['file_system'].split()[0]} on a virtual disk{ahead}; "
           f"{programs}.{of_other_kernels(result)}")
    for table in (*tables(result), goal_table(result["goals"])):
        yield ""
        yield from table
    yield ""


def lines(directory):
    """What stands between the marks."""
    for benchmark in BENCHMARKS:
        if found := newest_result(directory, benchmark):
            yield from block(benchmark, *found)


def main():
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"figures: README.md has no line {BEGIN!r} and {END!r} after it")
    made = before + BEGIN + "\n".join(lines(ROOT / "bench" / "results")) + "\n" + END + after
    if "--check" not in sys.argv[1:]:
        readme.write_text(made)
    elif made != text:
        sys.exit("figures: README.md does not say what the newest results say; run bench/figures.py")
    else:
        print("README.md says what the newest results say")


if __name__ == "__main__":
    main()
