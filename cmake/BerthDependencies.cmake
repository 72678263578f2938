# Every library from outside, once. A module names what it uses: berth_library(... LINK PkgConfig::uring).

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(OpenSSL 3 REQUIRED)               # OpenSSL::SSL OpenSSL::Crypto
find_package(fmt REQUIRED)                     # fmt::fmt
find_package(spdlog REQUIRED)                  # spdlog::spdlog
find_package(nlohmann_json REQUIRED)           # nlohmann_json::nlohmann_json
find_package(Boost 1.81 REQUIRED COMPONENTS url)  # Boost::headers (Asio, Beast) Boost::url
find_package(GTest REQUIRED)                   # GTest::gtest GTest::gmock
find_package(benchmark REQUIRED)               # benchmark::benchmark

pkg_check_modules(uring REQUIRED IMPORTED_TARGET liburing)   # PkgConfig::uring
pkg_check_modules(nbd REQUIRED IMPORTED_TARGET libnbd)       # PkgConfig::nbd
pkg_check_modules(sqlite3 REQUIRED IMPORTED_TARGET sqlite3)  # PkgConfig::sqlite3
pkg_check_modules(zstd REQUIRED IMPORTED_TARGET libzstd)     # PkgConfig::zstd
pkg_check_modules(xxhash REQUIRED IMPORTED_TARGET libxxhash) # PkgConfig::xxhash
pkg_check_modules(cli11 REQUIRED IMPORTED_TARGET CLI11)      # PkgConfig::cli11
pkg_check_modules(archive REQUIRED IMPORTED_TARGET libarchive) # PkgConfig::archive
pkg_check_modules(tomlplusplus REQUIRED tomlplusplus)  # headers alone: what uses it sets its macros, and links nothing
find_package(SQLiteCpp REQUIRED)               # SQLiteCpp
