#!/usr/bin/python3
"""The figures of the README, made from the newest result of each benchmark in bench/results.

    bench/figures.py            writes them between the two marks in README.md
    bench/figures.py --check    exit code 1 where README.md says something else (make check)
"""

import json
import sys

from report import ROOT

BEGIN, END = "<!-- figures: made by bench/figures.py -->", "<!-- end of figures -->"


def newest_result(directory, benchmark):
    """Path and content of the newest run of bench/BENCHMARK.py."""
    paths = sorted(directory.glob(f"{benchmark}-*.json"))
    if not paths:
        sys.exit(f"figures: no bench/results/{benchmark}-*.json: run make bench-{benchmark}")
    return paths[-1], json.loads(paths[-1].read_text())


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


def disk_tables(result):
    return steady_table(result["steady"]), fresh_table(result["fresh"])


def vm_tables(result):
    return cut_table(result["guests"]), memory_table(result["guests"])


# Of each benchmark: its tables, and the programs that its figures depend on.
BENCHMARKS = {"disk": (disk_tables, ["qemu", "fio"]), "vm": (vm_tables, ["qemu"])}


def block(benchmark, path, result):
    """What one benchmark found."""
    machine, (tables, used) = result["machine"], BENCHMARKS[benchmark]
    programs = "; ".join(machine[program] for program in used)
    yield ""
    yield (f"Median and spread of {result['rounds']} interleaved rounds of `make bench-{benchmark}` "
           f"({path.relative_to(ROOT)}): {machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] >> 30} GiB, "
           f"Linux {machine['kernel']}, {machine['file_system'].split()[0]} on a virtual disk; {programs}.")
    for table in (*tables(result), goal_table(result["goals"])):
        yield ""
        yield from table
    yield ""


def lines(directory):
    """What stands between the marks."""
    for benchmark in BENCHMARKS:
        yield from block(benchmark, *newest_result(directory, benchmark))


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
