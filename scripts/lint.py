#!/usr/bin/python3
"""Runs clang-tidy over every source but tests, compiles headers alone, or looks for lambdas that may not be coroutines.

    scripts/lint.py tidy|headers|coroutines BUILD_DIR [FILE...]

BUILD_DIR has the compile commands. A header that its own source includes first is compiled alone by that. What passed is
remembered in build/check by a hash of everything that the verdict depends on: the file, every file of ours that it
includes, the command, .clang-tidy and the installed packages. So a second run looks only at what changed, and a change
back costs nothing.
"""

import concurrent.futures
import functools
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "check"
CLANG = "clang++-19"
CLANG_TIDY = "clang-tidy-19"

_INCLUDE = re.compile(rb'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_FIRST_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
# A lambda that captures something, and says that it returns a Task.
_CAPTURING_COROUTINE = re.compile(r"\[[^\[\]]+\]\s*\([^()]*\)\s*(?:mutable\s*)?->\s*(?:async::)?Task<")


@functools.cache
def content_hash(path):
    """Hash of a file, and the files of ours that it includes."""
    data = path.read_bytes()
    included = []
    for name in _INCLUDE.findall(data):
        for base in (path.parent, ROOT / "src"):
            candidate = pathlib.Path(os.path.normpath(base / name.decode()))
            if candidate.is_file():
                included.append(candidate)
                break
    return hashlib.sha256(data).hexdigest(), included


def closure_hash(path):
    """Hash of a file with everything of ours that it includes, directly or not."""
    seen = set()
    left = [path]
    while left:
        file = left.pop()
        if file not in seen:
            seen.add(file)
            left.extend(content_hash(file)[1])
    digest = hashlib.sha256()
    for file in sorted(seen):
        digest.update(f"{file.relative_to(ROOT)} {content_hash(file)[0]}\n".encode())
    return digest.hexdigest()


@functools.cache
def installed_packages():
    """What the system's headers and tools are: the installed packages of the list, with versions."""
    lines = (ROOT / "scripts" / "packages.txt").read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    return subprocess.run(["dpkg-query", "-W", *names], capture_output=True, text=True, check=False).stdout


def without_precompiled(arguments):
    """Without precompiled headers: only then does it show what a file forgot to include, and nothing need be built."""
    kept = []
    left = list(arguments)
    while left:
        if left[0] == "-Xclang" and left[1] in ("-include-pch", "-include"):
            left = left[4:]  # -Xclang -include -Xclang FILE
        elif left[0] == "-Xclang" and "pch" in left[1]:
            left = left[2:]
        else:
            kept.append(left.pop(0))
    return [argument for argument in kept if argument != "-Winvalid-pch"]


def compile_commands(build):
    """File: compiler arguments without the output; of several commands for a file, the product's own."""
    commands = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        file = pathlib.Path(entry["file"])
        arguments = shlex.split(entry["command"])[1:]
        output = arguments.index("-o")
        arguments = arguments[:output] + arguments[output + 2 :]
        arguments = without_precompiled(arguments)
        # Every warning is an error here, whatever the build directory says.
        arguments = [argument for argument in arguments if argument not in ("-c", entry["file"], "-Werror")]
        if file not in commands or "-DBERTH_SABOTAGE=1" not in arguments:
            commands[file] = arguments
    return commands


def is_tidied(source):
    """Tests are not: parsing GoogleTest costs more than clang-tidy finds in them."""
    return source.suffix == ".cc" and source.relative_to(ROOT).parts[0] == "src" and not source.name.endswith("_test.cc")


def tidy_jobs(commands, sources):
    for source in sources:
        if source.suffix == ".cc" and source not in commands:
            yield source, None
        elif is_tidied(source):
            yield source, [CLANG_TIDY, "--quiet", str(source), "--", *commands[source]]


def is_included_first(header):
    """By its own source, which clang-tidy compiles without precompiled headers: so it has all that it needs."""
    source = header.with_suffix(".cc")
    if not is_tidied(source) or not source.is_file():
        return False
    first = _FIRST_INCLUDE.search(source.read_text())
    return first is not None and ROOT / "src" / first[1] == header


def header_jobs(commands, sources):
    """A header takes the command of a source beside it, or of any: the include root is the same everywhere."""
    fallback = next(iter(commands.values()), ["-std=c++23", f"-I{ROOT}/src"])
    beside = {source.parent: arguments for source, arguments in commands.items()}
    for source in sources:
        if source.suffix == ".h" and not is_included_first(source):
            arguments = beside.get(source.parent, fallback)
            yield source, [CLANG, *arguments, "-Werror", "-fsyntax-only", "-include", str(source), "-x", "c++", "/dev/null"]


def capturing_coroutines(text):
    """Lines, counted from 1, of lambdas that are coroutines and capture: what they captured goes with the lambda, which may
    be before they are done."""
    return [text.count("\n", 0, found.start()) + 1 for found in _CAPTURING_COROUTINE.finditer(text)]


def check_coroutines(sources):
    found = [(source, line) for source in sources for line in capturing_coroutines(source.read_text())]
    for source, line in found:
        print(f"{source.relative_to(ROOT)}:{line}: a coroutine that is a lambda captures: pass what it needs as arguments")
    print(f"{len(sources)} files, {len(found)} found")
    return 1 if found else 0


def key_of(kind, source, command):
    digest = hashlib.sha256()
    for part in (kind, " ".join(command), installed_packages(), closure_hash(source)):
        digest.update(part.encode() + b"\0")
    if kind == "tidy":
        digest.update((ROOT / ".clang-tidy").read_bytes())
    return digest.hexdigest()


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, cwd=ROOT)
    noise = re.compile(r"^(\d+ warnings?.* generated\.|Suppressed .*|Use -header-filter.*|\d+ warnings? treated as errors?)$")
    output = "\n".join(line for line in (done.stdout + done.stderr).splitlines() if line and not noise.match(line))
    return done.returncode == 0, output.replace(f"{ROOT}/", "")


def main():
    kind, build = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
    listed = sys.argv[3:] or subprocess.run(
        [ROOT / "scripts" / "sources"], capture_output=True, text=True, check=True
    ).stdout.split()
    sources = [ROOT / name for name in listed]
    if kind == "coroutines":
        return check_coroutines(sources)
    CACHE.mkdir(parents=True, exist_ok=True)

    commands = compile_commands(build)
    jobs = {"tidy": tidy_jobs, "headers": header_jobs}[kind](commands, sources)
    failed = 0
    fresh = 0
    total = 0
    with concurrent.futures.ThreadPoolExecutor(int(os.environ.get("BERTH_JOBS") or os.cpu_count())) as pool:
        running = {}
        for source, command in jobs:
            total += 1
            if command is None:
                print(f"{source.relative_to(ROOT)}: no target builds this file")
                failed += 1
                continue
            marker = CACHE / key_of(kind, source, command)
            if not marker.exists():
                running[pool.submit(run, command)] = (source, marker)
        for future in concurrent.futures.as_completed(running):
            source, marker = running[future]
            passed, output = future.result()
            fresh += 1
            if passed:
                marker.touch()
            else:
                failed += 1
                print(f"{source.relative_to(ROOT)}:\n{output}", flush=True)
    print(f"{total} files, {fresh} looked at, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
