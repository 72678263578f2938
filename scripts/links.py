#!/usr/bin/python3
"""Checks that relative links in the Markdown files of this tree lead somewhere: a file, and a heading if one is named.

    scripts/links.py [FILE...]
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)


def anchors(text):
    """The anchors that a Markdown page offers: its headings, in lower case, spaces as hyphens."""
    names = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        repeated = name
        count = 0
        while repeated in names:
            count += 1
            repeated = f"{name}-{count}"
        names.add(repeated)
    return names


def broken_links(page):
    """Each broken relative link of a page, as (line, link, reason)."""
    text = page.read_text(encoding="utf-8")
    # Code is blanked, not removed, so that line numbers stay.
    blank = lambda match: re.sub(r"[^\n]", " ", match[0])
    prose = _CODE.sub(blank, _FENCE.sub(blank, text))
    for match in _LINK.finditer(prose):
        link = match[1] or match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:|//", link):
            continue
        line = prose.count("\n", 0, match.start()) + 1
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield line, link, "no such file"
        elif anchor and target.suffix == ".md" and anchor not in anchors(target.read_text(encoding="utf-8")):
            yield line, link, f"no heading for #{anchor}"


def main():
    listed = sys.argv[1:] or subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    ).stdout.split()
    broken = 0
    for name in sorted(set(listed)):
        page = ROOT / name
        if not page.is_file():
            continue
        for line, link, reason in broken_links(page):
            print(f"{name}:{line}: {link}: {reason}")
            broken += 1
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
