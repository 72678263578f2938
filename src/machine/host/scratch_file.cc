#include "machine/host/scratch_file.h"

#include <cerrno>
#include <cstdlib>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/format.h>

#include "machine/host/host_view.h"

namespace berth::machine {

Result<Fd> make_scratch_file(const std::string& directory) {
  Fd file(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (file) return file;
  std::string name = directory + "/.berth-doctor-XXXXXX";
  file = Fd(::mkostemp(name.data(), O_CLOEXEC));
  if (!file) return errno_failure(errno, fmt::format("cannot make a file in '{}'", directory));
  ::unlink(name.c_str());
  return file;
}

Result<Fd> make_state_scratch_file(const std::string& state_dir) {
  return make_scratch_file(existing_ancestor(state_dir));
}

}  // namespace berth::machine
