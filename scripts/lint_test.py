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


if __name__ == "__main__":
    unittest.main()
