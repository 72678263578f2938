#!/usr/bin/python3
"""The figures of the README, made from the newest result in bench/results.

    bench/figures.py            writes them between the two marks in README.md
    bench/figures.py --check    exit code 1 where README.md says something else (make check)
"""

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- figures: made by bench/figures.py -->", "<!-- end of figures -->"


def newest_result(directory):
    """Path and content of the newest run of bench/disk.py, or None."""
    paths = sorted(directory.glob("disk-*.json"))
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


def block(path, result):
    """What stands between the marks."""
    machine = result["machine"]
    yield ""
    yield (f"Median and spread of {result['rounds']} interleaved rounds of `make bench-disk` ({path.relative_to(ROOT)}): "
           f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] >> 30} GiB, Linux {machine['kernel']}, "
           f"{machine['file_system'].split()[0]} on a virtual disk; {machine['qemu']}; {machine['fio']}.")
    for table in (steady_table(result["steady"]), fresh_table(result["fresh"]), goal_table(result["goals"])):
        yield ""
        yield from table
    yield ""


def main():
    found = newest_result(ROOT / "bench" / "results")
    if found is None:
        sys.exit("figures: no bench/results/disk-*.json: run make bench-disk")
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        sys.exit(f"figures: README.md has no line {BEGIN!r} and {END!r} after it")
    made = before + BEGIN + "\n".join(block(*found)) + "\n" + END + after
    if "--check" not in sys.argv[1:]:
        readme.write_text(made)
    elif made != text:
        sys.exit("figures: README.md does not say what the newest result says; run bench/figures.py")
    else:
        print(f"README.md says what {found[0].name} says")


if __name__ == "__main__":
    main()
