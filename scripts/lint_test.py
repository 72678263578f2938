"""What lint.py takes for a file's command."""

import unittest

import lint


class WithoutPrecompiledHeaders(unittest.TestCase):
    def test_only_what_has_to_do_with_them_goes(self):
        command = ["-Isrc", "-Wall", "-Xclang", "-fno-pch-timestamp", "-std=c++2b", "-Winvalid-pch",
                   "-Xclang", "-include-pch", "-Xclang", "cmake_pch.hxx.pch",
                   "-Xclang", "-include", "-Xclang", "cmake_pch.hxx", "-Xclang", "-disable-O0-optnone", "-O1"]
        self.assertEqual(lint.without_precompiled(command),
                         ["-Isrc", "-Wall", "-std=c++2b", "-Xclang", "-disable-O0-optnone", "-O1"])

    def test_a_command_without_them_stays(self):
        command = ["-Isrc", "-include", "src/config.h", "-O1"]
        self.assertEqual(lint.without_precompiled(command), command)


class CapturingCoroutines(unittest.TestCase):
    def test_are_found_wherever_they_stand(self):
        text = """int a;
loop.run([&]() -> Task<> { co_return; });
auto work = [this, x = 1](int y)
    mutable -> async::Task<int> { co_return y; };
"""
        self.assertEqual(lint.capturing_coroutines(text), [2, 3])

    def test_those_without_captures_and_other_lambdas_are_not(self):
        text = "run([](Loop& loop) -> Task<> { co_return; }); auto f = [&](int a) -> int { return a; }; Task<> g(int a[3]);"
        self.assertEqual(lint.capturing_coroutines(text), [])


class WhatIsLookedAt(unittest.TestCase):
    def test_tests_are_not_tidied(self):
        self.assertTrue(lint.is_tidied(lint.ROOT / "src/base/fd.cc"))
        self.assertFalse(lint.is_tidied(lint.ROOT / "src/base/fd_test.cc"))
        self.assertFalse(lint.is_tidied(lint.ROOT / "bench/keeper_bench.cc"))
        self.assertFalse(lint.is_tidied(lint.ROOT / "src/base/fd.h"))

    def test_a_header_is_compiled_alone_unless_its_source_does(self):
        self.assertTrue(lint.is_included_first(lint.ROOT / "src/memory/parking.h"))
        self.assertFalse(lint.is_included_first(lint.ROOT / "src/memory/test_support.h"))
        jobs = dict(lint.header_jobs({}, [lint.ROOT / "src/memory/parking.h", lint.ROOT / "src/memory/test_support.h"]))
        self.assertEqual(list(jobs), [lint.ROOT / "src/memory/test_support.h"])


if __name__ == "__main__":
    unittest.main()
