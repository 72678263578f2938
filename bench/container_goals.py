"""What the issue asks of containers, and what containers.py found, for people.

    show(result)              # tables
    report.goal_table(goals_of(result))

`result` is what the file of the benchmark says; a part that was not measured has neither goals nor a table.
"""

import report
from report import Goal

MIB = 1 << 20
IMAGES = {"nginx": "nginx", "search": "a search in Python"}
POOLS = {"pool": "from the pool", "no_pool": "without the pool"}
POOLED = {"clones": "a pool of 2", "pooled": "all of them wait"}
COLD_TIMES = ("command_ms", "answer_ms", "again_ms", "execute_ms")

LOAD_GOAL_MS = 10
AGENT_GOAL_MS = {"pool": 50, "no_pool": 120}
FASTER_GOAL = {"pool": 50, "no_pool": 20}
EACH_GOAL_MS = 15
IDLE_GOAL_MIB, TRIMMED_GOAL_MIB = 45, 20
FROZEN_GOAL_MS = 10
RELEASED_GOAL = 90
PARKED_ANSWER_GOAL_MS, PARKED_BACK_GOAL_MS = 120, 500  # of 256 MiB
HIBERNATED_ANSWER_GOAL_MS = 500                        # of 1 GiB
HERD_GOAL_MS = 2000


def at_most(what, found, wanted, unit="ms", scale=1.0, key="median"):
    """A goal that a figure has to stay below."""
    return Goal(what, found[key] / scale, wanted, at_most=True, unit=unit, spread=(found["min"] / scale, found["max"] / scale))


def at_least(what, found, wanted, unit="×"):
    return Goal(what, found["median"], wanted, unit=unit, spread=(found["min"], found["max"]))


def goals_of(result):
    return [*clone_goals(result), *density_goals(result.get("density", {})), *idle_goals(result.get("levels", {}).get("idle", {})),
            *level_goals(result.get("levels", {}).get("levels", {})), *herd_goals(result.get("herd", {})),
            *unique_goals(result.get("unique"))]


def clone_goals(result):
    for image, clones in result.get("clone", {}).items():
        for kind, clone in clones.items():
            title = f"{IMAGES[image]}, {POOLS[kind]}"
            if "load_ms" in clone["request"]:
                yield at_most(f"{title}: devices loaded", clone["request"]["load_ms"], LOAD_GOAL_MS)
            yield at_most(f"{title}: the agent's answer", clone["request"]["command_ms"], AGENT_GOAL_MS[kind])
            if "faster" in result:
                yield at_least(f"{title}: first answer, against a start from nothing", result["faster"][image][kind]["berth"],
                               FASTER_GOAL[kind])


def density_goals(density):
    for image, sides in density.items():
        for side, name in POOLED.items():
            if clones := sides.get(side):
                title = f"{IMAGES[image]}, {name}"
                yield Goal(f"{title}: {clones['count']} clones at once, each", clones["each_ms"], EACH_GOAL_MS, at_most=True,
                           unit="ms")
                yield at_most(f"{title}: private memory of an idle clone", clones["qemu_private_bytes"], IDLE_GOAL_MIB, "MiB", MIB)


def idle_goals(idle):
    for image, levels in idle.items():
        if "trimmed" in levels:
            yield Goal(f"{IMAGES[image]}: private memory of an idle clone, trimmed", levels["trimmed"]["qemu"] / MIB,
                       TRIMMED_GOAL_MIB, at_most=True, unit="MiB")


def level_goals(levels):
    for level, sizes in levels.items():
        for mib, found in sizes.items():
            title = f"{level}, {mib} MiB"
            if level == "frozen":
                yield at_most(f"{title}: paused", found["pause_ms"], FROZEN_GOAL_MS)
            if level in ("trimmed", "parked"):
                yield at_least(f"{title}: of its private memory released", found["released_percent"], RELEASED_GOAL, "%")
            if (level, mib) == ("parked", "256"):
                yield at_most(f"{title}: first answer", found["answer_ms"], PARKED_ANSWER_GOAL_MS)
                yield at_most(f"{title}: all memory back", found["back_ms"], PARKED_BACK_GOAL_MS)
            if (level, mib) == ("hibernated", "1024"):
                yield at_most(f"{title}, not in the page cache: first answer", found["answer_ms"], HIBERNATED_ANSWER_GOAL_MS)


def herd_goals(herd):
    for level, sizes in herd.items():
        for mib, found in sizes.items():
            yield at_most(f"{level}, {mib} MiB, all resumed at once: first answer, p99", found["answer_ms"], HERD_GOAL_MS,
                          key="p99")


def unique_goals(unique):
    if unique:
        for name, count in unique["distinct"].items():
            yield Goal(f"clones of a template of {unique['template_age_s']:.0f} s: different {name}", count, unique["count"],
                       unit="clones")


# --- For people.


def _cell(one, digits=0, scale=1.0):
    return f"{one['median'] / scale:,.{digits}f} [{one['p99'] / scale:,.{digits}f}]"


def show(result):
    show_starts(result.get("cold", {}), result.get("clone", {}))
    show_density(result.get("density", {}))
    show_levels(result.get("levels", {}).get("levels", {}))


def show_starts(cold, clone):
    rows = []
    for image, sides in cold.items():
        for side, name in (("berth", "Berth"), ("runc", "runc")):
            rows.append([f"{IMAGES[image]}: {name}, from nothing", *(_cell(sides[side][what]) for what in COLD_TIMES)])
    for image, kinds in clone.items():
        for kind, found in kinds.items():
            for way in ("command", "request"):
                rows.append([f"{IMAGES[image]}: clone {POOLS[kind]}, by a {way}",
                             *(_cell(found[way][what], 1) for what in ("command_ms", "answer_ms")), "", ""])
    if rows:
        report.table("To the service's first answer, in ms: median [p99]",
                     ["", "command's end", "first answer", "the same again", "exec /bin/true"], rows)


def show_density(density):
    rows = []
    for image, sides in density.items():
        for side, name in (("runc", "runc"), ("berth_cold", "Berth, from nothing"), ("clones", "Berth, clones"),
                           ("pooled", "Berth, clones that waited")):
            if found := sides.get(side):
                rows.append([f"{IMAGES[image]}: {name}", found["count"],
                             *(f"{found[what] / MIB / found['count']:.1f}" for what in ("proportional_bytes", "host_bytes"))])
    if rows:
        report.table("Memory of idle containers, MiB for each",
                     ["", "containers", "processes, shared memory shared out", "what the host has less"], rows)


def show_levels(levels):
    times = ("pause_ms", "answer_ms", "back_ms", "woken_ms")
    sizes_of = ("private_bytes", "left_bytes", "ram_store_bytes", "disk_bytes")
    rows = []
    for level, sizes in levels.items():
        for mib, found in sizes.items():
            rows.append([f"{level}, {mib} MiB touched", *(_cell(found[what], 1) if what in found else "" for what in times),
                         *(_cell(found[what], 0, MIB) for what in sizes_of)])
    if rows:
        report.table("Paused and resumed, ms and MiB: median [p99]",
                     ["", "to pause", "first answer", "all back", "by a request", "private", "left", "RAM store", "disk"], rows)
