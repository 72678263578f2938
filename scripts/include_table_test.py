"""The include table finds each kind of violation, and finds none in a tree that keeps to it."""

import pathlib
import tempfile
import unittest

from include_table import MAY_INCLUDE, violations


class IncludeTableTest(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.root = pathlib.Path(directory.name)
        for module in ("base", "async", "disk", "nbd", "memory", "machine", "control", "testing", "bin"):
            self.write(f"src/{module}/{module}.h", "#pragma once\n")

    def write(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def test_what_the_table_allows_is_no_violation(self):
        self.write("src/disk/volume.cc", '#include "disk/disk.h"\n#include <vector>\n#include "async/async.h"\n')
        self.write("src/control/api.cc", '#include "disk/disk.h"\n#include "machine/machine.h"\n')
        self.write("src/disk/volume_test.cc", '#include "testing/testing.h"\n')
        self.write("tests/sim/harness.h", "#pragma once\n")
        self.write("tests/sim/volume_sim.cc", '#include "harness.h"\n#include "testing/testing.h"\n')
        self.assertEqual(violations(self.root), [])

    def test_a_lower_module_may_not_include_a_higher_one(self):
        self.write("src/base/error.cc", '#include "base/base.h"\n  #  include "async/async.h"\n')
        self.assertEqual(
            violations(self.root),
            ["src/base/error.cc:2: base may not include async (it may include: nothing)"],
        )

    def test_disk_and_memory_never_see_each_other_nor_machine(self):
        self.write("src/disk/a.cc", '#include "memory/memory.h"\n#include "machine/machine.h"\n')
        self.write("src/memory/b.cc", '#include "disk/disk.h"\n#include "machine/machine.h"\n')
        self.assertEqual(len(violations(self.root)), 4)

    def test_only_tests_may_include_testing(self):
        self.write("src/disk/volume.cc", '#include "testing/testing.h"\n')
        self.write("src/disk/volume_fuzz.cc", '#include "testing/testing.h"\n')
        self.write("src/bin/berth.cc", '#include "testing/testing.h"\n')
        self.assertEqual(len(violations(self.root)), 3)

    def test_an_include_names_its_module_and_a_file_that_exists(self):
        self.write("src/disk/volume.cc", '#include "disk.h"\n#include "../base/base.h"\n#include "base/gone.h"\n')
        self.assertEqual(len(violations(self.root)), 3)

    def test_a_module_that_the_table_does_not_know_is_a_violation(self):
        self.write("src/utils/string.cc", "")
        self.assertEqual(violations(self.root), ["src/utils/string.cc:1: not in a module of the include table"])

    def test_the_table_has_no_cycle(self):
        for module, allowed in MAY_INCLUDE.items():
            for other in allowed:
                self.assertNotIn(module, MAY_INCLUDE[other], f"{module} and {other} include each other")


if __name__ == "__main__":
    unittest.main()
