// `berth vm console`: a terminal, or a script's input and output, on a machine's console.
//
// On a terminal every key goes to the guest, but ^], which ends it; the terminal is as it was
// before whatever ends it: ^], a signal, the end of the machine, a window that closes.
//
// With other input than a terminal, all of it is sent, ^] too. When it ends, what the guest says is
// printed until it has said nothing for a while (`silence`); input that was empty from the
// beginning (</dev/null) is no input: then until the machine ends.
//
// Blocking; in a process with one thread.
#pragma once

#include <chrono>
#include <string>

namespace berth::control::cli {

constexpr char console_escape = 0x1D;  // ^]
constexpr std::chrono::milliseconds console_silence{1000};

/// On the standard input and output of the process, and the socket that serves the console: QEMU's,
/// to one client at a time, so that a second one sees nothing until the first has gone. The exit
/// code (exit_code.h): cancelled if a signal ended it.
int run_console(const std::string& socket_path,
                std::chrono::milliseconds silence = console_silence);

}  // namespace berth::control::cli
