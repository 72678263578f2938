#!/usr/bin/python3
"""Checks who includes whom: the table "may include" of ARCHITECTURE.md.

    scripts/include_table.py [ROOT]

Every `#include "module/file.h"` below src/ must be allowed by MAY_INCLUDE, must name a file that exists, and may name
`testing` only from a *_test.cc or a test_*.h. What lies in tests/ and bench/ may include everything. Prints each violation as
path:line: reason, and exits 1 if there is one.
"""

import pathlib
import re
import sys

_DATA_PLANE = {"async", "base"}
_MACHINE = {"nbd", "memory", "disk"} | _DATA_PLANE
_FEATURE = {"machine"} | _MACHINE
_CONTROL = {"backup", "move", "container", "guard", "privilege"} | _FEATURE

# Module: the modules it may include, besides itself.
MAY_INCLUDE = {
    "base": set(),
    "async": {"base"},
    "testing": _DATA_PLANE,
    "disk": _DATA_PLANE,
    "memory": _DATA_PLANE,
    "nbd": _DATA_PLANE,
    "machine": _MACHINE,
    "backup": _FEATURE,
    "move": _FEATURE,
    "container": {"agent"} | _FEATURE,
    "guard": _FEATURE,
    "privilege": _FEATURE,
    "control": _CONTROL,
    "agent": {"base"},
    "bin": {"control"} | _CONTROL,
}

_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')


def includes(path):
    """The quoted includes of a file, as (line number, included path)."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        match = _INCLUDE.match(line)
        if match:
            yield number, match[1]


def _verdict(root, source, included):
    """What is wrong with one include, or None."""
    target = included.split("/")[0]
    if "/" not in included or not (root / "src" / included).is_file():
        return f'"{included}" is not a file below src/: write "module/file.h"'
    area = source.parts[0]
    if area in ("tests", "bench"):
        return None
    module = source.parts[1]
    if target == module:
        return None
    if target == "testing":
        is_test = source.name.endswith("_test.cc") or source.name.startswith("test_")
        return None if is_test else "only tests may include testing"
    if target not in MAY_INCLUDE[module]:
        allowed = ", ".join(sorted(MAY_INCLUDE[module])) or "nothing"
        return f"{module} may not include {target} (it may include: {allowed})"
    return None


def violations(root):
    """All violations below root, as printable lines."""
    found = []
    for area in ("src", "tests", "bench"):
        for path in sorted((root / area).rglob("*")):
            if path.suffix not in (".cc", ".h") or not path.is_file():
                continue
            source = path.relative_to(root)
            if area == "src" and (len(source.parts) < 3 or source.parts[1] not in MAY_INCLUDE):
                found.append(f"{source}:1: not in a module of the include table")
                continue
            for number, included in includes(path):
                # Beside the tests, a header of their own is named by its file name alone.
                if area != "src" and (path.parent / included).is_file():
                    continue
                reason = _verdict(root, source, included)
                if reason:
                    found.append(f"{source}:{number}: {reason}")
    return found


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    found = violations(root)
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
