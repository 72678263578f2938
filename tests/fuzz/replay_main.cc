// Runs a fuzz target once over each file given, or found below a directory given, without
// libFuzzer: so that every build, with any compiler flags, can show that the inputs which once
// broke something break nothing now.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

bool replay(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) {
    std::fprintf(stderr, "cannot read %s\n", file.c_str());
    return false;
  }
  const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
  // The target may abort: say first on what.
  std::printf("%s\n", file.c_str());
  std::fflush(stdout);
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  LLVMFuzzerTestOneInput(nullptr, 0);
  std::size_t files = 0;
  bool all_read = true;
  for (int i = 1; i < argc; ++i) {
    const std::filesystem::path path = argv[i];
    if (!std::filesystem::exists(path)) {
      std::fprintf(stderr, "%s does not exist: a fuzz target needs at least one input there\n",
                   path.c_str());
      return 1;
    }
    if (!std::filesystem::is_directory(path)) {
      all_read &= replay(path);
      ++files;
      continue;
    }
    for (const auto& entry : std::filesystem::recursive_directory_iterator(path)) {
      if (!entry.is_regular_file()) continue;
      all_read &= replay(entry.path());
      ++files;
    }
  }
  std::printf("replayed %zu inputs and the empty one\n", files);
  return all_read ? 0 : 1;
}
