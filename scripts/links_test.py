"""Broken links are found; sound ones, outside ones and code are left alone."""

import pathlib
import tempfile
import unittest

from links import broken_links


class LinksTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = pathlib.Path(directory.name)
        (self.root / "docs").mkdir()
        (self.root / "docs" / "map.md").write_text("# The map\n\n## Slots, twice\n", encoding="utf-8")

    def broken(self, text):
        page = self.root / "README.md"
        page.write_text(text, encoding="utf-8")
        return [link for _, link, _ in broken_links(page)]

    def test_sound_links_pass(self):
        self.assertEqual(
            self.broken("# Top\n[a](docs/map.md) [b](docs/map.md#slots-twice) [c](#top) [d](https://x.org/y) [e](docs/)\n"),
            [],
        )

    def test_missing_files_and_headings_are_found(self):
        self.assertEqual(
            self.broken("[a](docs/gone.md) ![b](b.png)\n[c](docs/map.md#holds) [d](#nowhere)\n\n[r]: docs/r.md\n"),
            ["docs/gone.md", "b.png", "docs/map.md#holds", "#nowhere", "docs/r.md"],
        )

    def test_code_is_left_alone(self):
        self.assertEqual(self.broken("`[a](gone.md)`\n```\n[b](gone.md)\n```\n"), [])


if __name__ == "__main__":
    unittest.main()
