#!/usr/bin/python3
"""Container benchmarks: from nothing and from templates to a service's first answer, beside runc, what clones and paused containers
take of memory, and whether clones can be told apart (make bench-containers).

    bench/containers.py [--rounds 20] [--quick] [--only PART,…] [--add-to FILE] [--output FILE]

With --add-to the parts that an earlier run has found, which is of the same machine (but for the build of its kernel) and of as many
rounds, are in the result too.

Two images of Debian's packages (scripts/service-images): nginx, and a search in Python (bench/search_service.py), which takes its
time to start. runc runs the same images: its times are of a process on this kernel, Berth's of a whole machine, emulated where
there is no KVM. Parts, each of which can be run alone:

  cold     from the command (`berth container run`; for runc the mount of its overlay, and `runc run`) to the service's first
           answer, in turns, the page cache dropped before each: no program and no image is in memory. Berth is asked through
           its published port, runc from within its network namespace. Then a program run in the container, to its end; and
           another start at once, when program and image are in the page cache
  clone    from the command (`berth container clone`) to its return, which is the agent's answer, and to the service's first
           answer; by the command line, and by one request to the daemon. Against the starts from nothing that have all of it
           in the page cache too
  density  100 clones at once, of a pool of 2 and of one in which all of them wait, and what they take of memory; against
           containers that started from nothing, of Berth and of runc
  levels   one container that has touched 64, 256, 1024 MiB (half of each page random, half text), paused and resumed: how long,
           what is left in memory and where the rest is, the first answer after it, and the answer to a request that reads every
           page; and the answer to a request that finds it paused, which resumes it. Between rounds the service writes every page.
           Hibernated memory is not in the page cache when it is resumed
  herd     20 of them, resumed at once
  unique   clones of a template that is at least 150 s old: hostname, machine-id, MAC, address, the first random bytes

What this Berth cannot do yet is skipped, with a line that says so, and is no goal. A time is a median; the worst of the rounds is
beside it, which of fewer than 100 is their p99. The first answer is looked for every millisecond, later every 3 % of the time that
has gone by: a service that is asked all the time does not come up. "Private" is what QEMU has in memory that no other process has,
and that is not its template's.

The result goes to bench/results/containers-DATE.json with the machine's description. --quick shows that everything runs; its
figures mean nothing, and they go to no file unless --output names one. Where a part fails the others are measured still; what they
found is kept in build/, and the exit code is 1.

BERTH_BIN is the program (a release build). BERTH_BENCH_DIR is a directory on the file system to measure (build/ when it is not
set). Nothing is left there. Needs root. Where the host has no swap, compressed swap in memory is there while density, levels and
herds are measured: without it a host of 24 GiB lets no more than 82 containers of 160 MiB in that start from nothing.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import report
from container_goals import IMAGES, POOLS, goals_of, show
from container_sides import MIB, Berth, Missing, NotAdmitted, Runc, at_once, available_bytes, drop_caches, swap_in_memory
from peers import PeerError
from report import ratios, tail

import guest  # of the tests: peers.py has put them on the path
from berth_host import BerthError
from volume_tools import take_private_mounts

PARTS = ("cold", "clone", "density", "levels", "herd", "unique")
LEVELS = ("frozen", "trimmed", "parked", "hibernated")
SYSTEM_MIB = 256  # of a machine, beside what it is asked to touch
SMALL = "160M"    # where there are a hundred of them
FAILURES = (PeerError, guest.GuestError, BerthError, OSError, ValueError, subprocess.TimeoutExpired)
IDENTITY = ("hostname", "machine_id", "mac", "address", "getrandom", "openssl", "uuidgen")


@dataclasses.dataclass
class Setting:
    """How much of everything."""
    rounds: int
    clones: int = 100
    touched_mib: tuple = (64, 256, 1024)
    herd: int = 20
    herd_rounds: int = 2
    template_age_s: float = 150
    skipped: list = dataclasses.field(default_factory=list)
    failed: list = dataclasses.field(default_factory=list)

    @classmethod
    def quick(cls, rounds):
        return cls(rounds, clones=3, touched_mib=(64,), herd=3, herd_rounds=1, template_age_s=3)

    def skip(self, what, why):
        line = f"{what}: {why}"
        if line not in self.skipped:
            self.skipped.append(line)
            say(f"skipped: {line}")


def say(text):
    print(text, file=sys.stderr, flush=True)


def figures(found):
    """A figure of each measure of the rounds."""
    return {name: tail([one[name] for one in found]) for name in found[0]}


def elapsed_ms(work):
    begun = time.monotonic()
    work()
    return (time.monotonic() - begun) * 1000


# --- Cold.


def measure_cold(setting, berth, runc):
    results = {}
    for image in IMAGES:
        rounds = {"berth": [], "runc": []}
        for turn in range(setting.rounds):
            say(f"cold: {image}, round {turn + 1} of {setting.rounds}")
            sides = [("berth", berth), ("runc", runc)]
            for name, side in sides if turn % 2 == 0 else sides[::-1]:
                rounds[name].append(cold_round(side, image))
        results[image] = {side: figures(found) for side, found in rounds.items()}
        results[image]["answer_berth_to_runc"] = ratios(
            *(results[image][side]["answer_ms"]["rounds"] for side in ("berth", "runc")))
    return results


def cold_round(side, image):
    drop_caches()
    with side.cold(image) as started:
        found = {"command_ms": started.command_ms, "answer_ms": started.answer_ms, "execute_ms": elapsed_ms(started.execute)}
    with side.cold(image) as started:
        return {**found, "again_ms": started.answer_ms}


# --- Clones.


def pools_of(berth):
    """{kind: options of `template create`}: what this Berth has."""
    if berth.has("template", "create", "--pool"):
        return {"pool": ["--pool", "2"], "no_pool": ["--pool", "0"]}
    return {"no_pool": []}


def measure_clones(setting, berth):
    results = {}
    pools = pools_of(berth)
    if "pool" not in pools:
        setting.skip("clone: from the pool", "`berth template create` has no --pool yet")
    for image in IMAGES:
        results[image] = {}
        for kind, options in pools.items():
            with berth.template(image, *options) as (template, made_ms):
                rounds = {"command": [], "request": []}
                for turn in range(setting.rounds):
                    say(f"clone: {image}, {POOLS[kind]}, round {turn + 1} of {setting.rounds}")
                    ways = [("command", berth.clone), ("request", berth.clone_by_api)]
                    for way, clone in ways if turn % 2 == 0 else ways[::-1]:
                        rounds[way].append(clone_round(berth, clone, template, kind))
            results[image][kind] = {"template_ms": made_ms, **{way: figures(found) for way, found in rounds.items()}}
    return results


def clone_round(berth, clone, template, kind):
    if kind == "pool":
        time.sleep(1)  # the pool is full again
    with clone(template) as started:
        found = {"command_ms": started.command_ms, "answer_ms": started.answer_ms}
        loaded_ms = berth.device_load_ms(started.name)
        return found if loaded_ms is None else {**found, "load_ms": loaded_ms}


# --- Density.


def measure_density(setting, berth, runc):
    """Each side as many as are asked for, or as fit."""
    results = {}
    with swap_in_memory(8 << 30):
        for image in IMAGES:
            results[image] = {"runc": density_cold(setting, runc, image, setting.clones),
                              "berth_cold": density_cold(setting, berth, image, setting.clones)}
            try:
                results[image]["clones"] = density_clones(setting, berth, image)
                results[image]["pooled"] = density_clones(setting, berth, image, setting.clones)
            except Missing as error:
                setting.skip("density: clones", error)
    return results


def density_cold(setting, side, image, count):
    """As many are started at a time as there are CPUs."""
    group = os.cpu_count()
    with contextlib.ExitStack() as stack:
        before, names = available_bytes(), []
        while len(names) < count:
            say(f"density: {image}, {side.title}, from nothing, {len(names)} of {count}")
            starting = [side.cold(image, SMALL) for _ in range(min(group, count - len(names)))]
            try:
                names += [one.name for one in at_once(stack.enter_context, starting)]
            except NotAdmitted:
                setting.skip(f"density: {image}, {side.title}: {count} from nothing", f"no more than {len(names)} are let in")
                break
            each = (before - available_bytes()) / len(names)
            if available_bytes() < 2 * group * each + (1 << 30) and len(names) < count:
                setting.skip(f"density: {image}, {side.title}: {count} from nothing", f"{len(names)} fill the host's memory")
                break
        return {"count": len(names), "proportional_bytes": side.proportional(names), "host_bytes": before - available_bytes()}


def density_clones(setting, berth, image, pool=2):
    with berth.template(image, "--pool", pool, memory=SMALL) as (template, _):
        before = available_bytes()
        berth.wait_until_full(template, pool)
        say(f"density: {image}, {setting.clones} clones")
        with berth.clones(template, setting.clones) as clones:
            names = [clone.name for clone in clones]
            private = [berth.private(name) for name in names]
            return {"count": len(names), "command_ms": clones[0].command_ms, "each_ms": clones[0].command_ms / len(names),
                    "answer_ms": tail([clone.answer_ms for clone in clones]),
                    "qemu_private_bytes": tail([one["qemu"] for one in private]),
                    "keeper_private_bytes": tail([one["keeper"] for one in private]),
                    "proportional_bytes": berth.proportional(names), "host_bytes": before - available_bytes()}


# --- Levels of pause.


@contextlib.contextmanager
def source(setting, berth, mib):
    """What makes containers with room for so much memory, which they have not touched, COUNT at a time: clones, where there
    are any."""
    memory = f"{mib + SYSTEM_MIB}M"
    if berth.has("template", "create", "--ready"):
        with berth.template("search", memory=memory) as (template, _):
            yield lambda count: berth.clones(template, count)
    else:
        setting.skip("levels: clones", "there is no `berth template` yet; containers from nothing are in their place")
        yield lambda count: several_cold(berth, memory, count)


@contextlib.contextmanager
def several_cold(berth, memory, count):
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(berth.cold("search", memory=memory)) for _ in range(count)]


def touched(started, path, mib):
    """Has the service go over all of its memory, which has to be as it left it."""
    answer = json.loads(started.get(path))
    if answer != {"pages": mib * MIB // 4096, "changed": 0}:
        raise PeerError(f"{started.name}, {path}: {answer}: its memory is not what it was")


def dirtied(started, mib):
    """Has the service write all of its memory, which it takes the first time."""
    touched(started, "/dirty" if started.filled else f"/fill?mib={mib}", mib)
    started.filled = True


def levels_of(setting, berth, part):
    for level in LEVELS:
        if berth.has_level(level):
            yield level
        else:
            setting.skip(f"{part}: {level}", "`berth container pause` has no such level yet")


def measure_levels(setting, berth):
    levels = list(levels_of(setting, berth, "levels"))
    with swap_in_memory(4 << 30) as swap:
        results = {"swap": swap, "levels": {level: {} for level in levels}}
        for mib in setting.touched_mib:
            with source(setting, berth, mib) as make:
                for level in levels:
                    with make(1) as [one]:
                        results["levels"][level][str(mib)] = figures(level_rounds(setting, berth, one, level, mib))
        results["idle"] = measure_idle(setting, berth, levels)
    return results


def level_rounds(setting, berth, one, level, mib):
    dirtied(one, mib)
    drop_caches()  # a clone's first writes leave empty pages in its template's memory object, which the kernel can have back
    stores = berth.stores()
    rounds = []
    for turn in range(setting.rounds):
        say(f"levels: {level}, {mib} MiB, round {turn + 1} of {setting.rounds}")
        rounds.append(level_round(berth, one, level, mib, stores))
    return rounds


def level_round(berth, one, level, mib, stores):
    """Paused by a request, and resumed; then once more by the command line, for the time that takes, and resumed by whoever
    asks the service, where that is enough. `stores`: what there was before it was ever paused."""
    dirtied(one, mib)
    private = berth.private(one.name)
    paused_ms = berth.pause(one.name, level)
    left, kept = berth.private(one.name), berth.stores()
    if level == "hibernated":
        drop_caches()
    begun = time.monotonic()
    berth.resume(one.name)
    resumed_ms = (time.monotonic() - begun) * 1000
    one.get("/")
    answer_ms = (time.monotonic() - begun) * 1000
    touched(one, "/touch", mib)
    back_ms = (time.monotonic() - begun) * 1000
    dirtied(one, mib)
    command_ms = berth.pause_by_command(one.name, level)
    woken = {}
    if berth.wakes:
        woken = {"woken_ms": elapsed_ms(lambda: one.get("/"))}
    else:
        berth.resume(one.name)
    return {**woken, "pause_ms": paused_ms, "pause_command_ms": command_ms, "resume_ms": resumed_ms, "answer_ms": answer_ms,
            "back_ms": back_ms, "private_bytes": private["qemu"], "left_bytes": left["qemu"],
            "released_percent": (1 - left["qemu"] / private["qemu"]) * 100,
            "ram_store_bytes": kept["ram"] - stores["ram"], "disk_bytes": kept["disk"] - stores["disk"]}


def measure_idle(setting, berth, levels):
    """What an idle clone that has touched nothing of its own takes, at each level: MiB are the goals'."""
    results = {}
    for image in IMAGES:
        try:
            with berth.template(image) as (template, _):
                results[image] = {}
                for level in ("running", *levels):
                    with berth.clones(template) as [one]:
                        if level != "running":
                            berth.pause(one.name, level)
                        results[image][level] = berth.private(one.name)
        except Missing as error:
            setting.skip("levels: an idle clone", error)
            return {}
    return results


# --- The herd.


def measure_herd(setting, berth):
    levels = list(levels_of(setting, berth, "herd"))
    results = {level: {} for level in levels}
    with swap_in_memory(8 << 30):
        for mib in setting.touched_mib:
            try:
                with source(setting, berth, mib) as make, make(setting.herd) as herd:
                    for level in levels:
                        herd_at_level(setting, berth, herd, level, mib, results[level])
            except BerthError as error:
                setting.skip(f"herd: {setting.herd} of {mib} MiB", str(error).splitlines()[1])
    return results


def herd_at_level(setting, berth, herd, level, mib, results):
    # What is frozen stays where it is, what is trimmed shrinks by half; of the others one at a time is in memory.
    share = {"frozen": 1.0, "trimmed": 0.6}.get(level, 0.1)
    if available_bytes() < setting.herd * mib * MIB * share + (2 << 30):
        setting.skip(f"herd: {level}, {setting.herd} of {mib} MiB", "the host has not so much memory")
        return
    answers = []
    for turn in range(setting.herd_rounds):
        say(f"herd: {level}, {mib} MiB, round {turn + 1} of {setting.herd_rounds}")
        answers += herd_round(berth, herd, level, mib)
    results[str(mib)] = {"answer_ms": tail(answers)}


def herd_round(berth, herd, level, mib):
    """Milliseconds from the moment when all are resumed to each one's first answer."""
    for one in herd:
        dirtied(one, mib)
        berth.pause(one.name, level)
    if level == "hibernated":
        drop_caches()
    begun = time.monotonic()

    def back(one):
        berth.resume(one.name)
        one.get("/")
        return (time.monotonic() - begun) * 1000

    return at_once(back, herd)


# --- Whether clones can be told apart.


def measure_unique(setting, berth):
    with berth.template("search", memory=SMALL) as (template, _):
        made = time.monotonic()
        while (age_s := time.monotonic() - made) < setting.template_age_s:
            say(f"unique: the template is {age_s:.0f} s old")
            time.sleep(min(30, setting.template_age_s - age_s))
        with berth.clones(template, setting.clones) as clones:
            found = at_once(lambda clone: json.loads(clone.get("/identity")), clones)
    distinct = {name: len({json.dumps(one[name]) for one in found if one[name] and one[name] != [None]}) for name in IDENTITY}
    return {"count": len(found), "template_age_s": age_s, "distinct": distinct}


# --- All of it.


def measure(setting, result, berth, runc, parts):
    works = {"cold": lambda: measure_cold(setting, berth, runc), "clone": lambda: measure_clones(setting, berth),
             "density": lambda: measure_density(setting, berth, runc), "levels": lambda: measure_levels(setting, berth),
             "herd": lambda: measure_herd(setting, berth), "unique": lambda: measure_unique(setting, berth)}
    for part in parts:
        try:
            result[part] = works[part]()
        except Missing as error:
            setting.skip(part, error)
        except FAILURES as error:
            say(f"failed: {part}: {error}")
            setting.failed.append(f"{part}: {error}")


def kind_of(run):
    """What runs have to have in common to be one result: which build of the kernel it was, and what that left of the memory, is
    told beside their parts. Earlier runs did not say what the disk reads ahead."""
    machine = {**run["machine"], "kernel": None, "read_ahead_kib": None, "memory_bytes": run["machine"]["memory_bytes"] >> 30}
    return {"rounds": run["rounds"], "quick": run["quick"], "machine": machine}


def add_earlier(result, path, setting):
    """Parts of another run that this one has not measured."""
    earlier = json.loads(path.read_text())
    ours, theirs = kind_of(result), kind_of(earlier)
    if unlike := [what for what, found in ours.items() if theirs[what] != found]:
        sys.exit(f"bench-containers: {path} is of a run that differs from this one: {', '.join(unlike)}")
    parts = [part for part in PARTS if part in earlier and part not in result]
    result.update({part: earlier[part] for part in parts})
    result["other_runs"] = [*earlier.get("other_runs", []),
                            {**{what: earlier[what] for what in ("date", "machine", "load_before", "load_after")}, "parts": parts}]
    setting.skipped += [line for line in earlier["skipped"] if line not in setting.skipped]


def faster(result):
    """How much sooner a clone answers than a container that starts from nothing, round by round; both have what they need in
    the page cache."""
    return {image: {kind: {side: ratios(result["cold"][image][side]["again_ms"]["rounds"],
                                        clone["command"]["answer_ms"]["rounds"]) for side in ("berth", "runc")}
                    for kind, clone in clones.items()} for image, clones in result["clone"].items()}


def arguments_of():
    made = report.parser(__doc__)
    made.add_argument("--only", default=",".join(PARTS))
    made.add_argument("--add-to", type=pathlib.Path)
    arguments = report.parse(made, rounds=20, quick_rounds=2)
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - set(PARTS):
        made.error(f"no such part: {', '.join(sorted(unknown))}")
    return arguments


def main():
    arguments = arguments_of()
    setting = Setting.quick(arguments.rounds) if arguments.quick else Setting(arguments.rounds)
    # A build of them is no part of any round.
    layouts, _ = guest.built("service-images"), guest.built("guest-kernel")
    if not take_private_mounts():
        sys.exit("bench-containers: runc and the page cache need root")
    with report.Run("containers", arguments) as bench:
        for directory in bench.directories:
            directory.chmod(0o711)  # Berth's QEMU runs as a user of its own
        with Berth(*bench.directories) as berth, Runc(bench.directories[0]) as runc:
            for side in (berth, runc):
                for image in IMAGES:
                    side.add_image(image, layouts[image])
            with berth.cold("nginx") as started:
                bench.result["accelerator"] = berth.inspect(started.name)["accelerator"]
            measure(setting, bench.result, berth, runc, arguments.only)
    if arguments.add_to:
        add_earlier(bench.result, arguments.add_to, setting)
    if "cold" in bench.result and "clone" in bench.result:
        bench.result["faster"] = faster(bench.result)
    bench.result["skipped"] = setting.skipped
    show(bench.result)
    for line in setting.skipped:
        print(f"skipped: {line}")
    if setting.failed:
        kept = report.ROOT / "build" / "bench-containers-failed.json"
        report.write_json(kept, {**bench.result, "failed": setting.failed})
        lines = "\n".join(setting.failed)
        sys.exit(f"bench-containers: {len(setting.failed)} of its parts failed; what was found is in {kept}:\n{lines}")
    bench.finish(goals_of(bench.result), remark=f"QEMU's accelerator: {bench.result['accelerator']}. ", programs=("qemu", "runc"))


if __name__ == "__main__":
    try:
        main()
    except FAILURES as error:
        sys.exit(f"bench-containers: {error}")
