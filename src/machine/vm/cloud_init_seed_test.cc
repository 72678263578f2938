#include "machine/vm/cloud_init_seed.h"

#include <cstdlib>
#include <ctime>
#include <map>
#include <memory>
#include <string>

#include <archive.h>
#include <archive_entry.h>
#include <sys/stat.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "machine/temporary_directory.h"

namespace berth::machine {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

const Id128& machine_id() {
  static const Id128 id = MUST(Id128::parse("11111111-2222-4333-8444-555555555555"));
  return id;
}

/// The files of an image, by name. `options` are libarchive's for its reader.
std::map<std::string, std::string> read_image(const std::string& path, const char* options) {
  std::map<std::string, std::string> files;
  const std::unique_ptr<archive, int (*)(archive*)> reader(::archive_read_new(),
                                                           ::archive_read_free);
  ::archive_read_support_format_iso9660(reader.get());
  EXPECT_EQ(::archive_read_set_options(reader.get(), options), ARCHIVE_OK);
  EXPECT_EQ(::archive_read_open_filename(reader.get(), path.c_str(), 2048), ARCHIVE_OK);
  archive_entry* entry = nullptr;
  while (::archive_read_next_header(reader.get(), &entry) == ARCHIVE_OK) {
    if (::archive_entry_filetype(entry) != AE_IFREG) continue;
    std::string content(static_cast<std::size_t>(::archive_entry_size(entry)), '\0');
    EXPECT_EQ(::archive_read_data(reader.get(), content.data(), content.size()),
              static_cast<la_ssize_t>(content.size()));
    files[::archive_entry_pathname(entry)] = content;
  }
  return files;
}

class CloudInitSeed : public testing::Test {
 protected:
  TemporaryDirectory directory_;
  const std::string path_ = directory_ / "seed.iso";
  const CloudInitSpecification cloud_init_{.user_data = "#cloud-config\npackages: [nginx]\n",
                                           .meta_data = "instance-id: mine\n",
                                           .network_config = "version: 2\n"};
};

TEST_F(CloudInitSeed, HasTheFilesThatCloudInitReads) {
  const auto written = write_seed_image(cloud_init_, "web", machine_id(), path_);
  ASSERT_TRUE(written) << written.error().message();
  // As Linux reads it (Rock Ridge), and as others do (Joliet).
  for (const char* options : {"!joliet", "!rockridge"}) {
    EXPECT_THAT(read_image(path_, options),
                ElementsAre(Pair("meta-data", cloud_init_.meta_data),
                            Pair("network-config", cloud_init_.network_config),
                            Pair("user-data", cloud_init_.user_data)))
        << options;
  }
  EXPECT_THAT(directory_.names(), ElementsAre("seed.iso"));
}

TEST_F(CloudInitSeed, IsFoundByItsLabel) {
  ASSERT_TRUE(write_seed_image(cloud_init_, "web", machine_id(), path_));
  const std::string image = read_text(path_);
  // The volume identifiers of the primary descriptor, and of Joliet's (UCS-2).
  EXPECT_EQ(image.substr(16 * 2048, 6),
            "\x01"
            "CD001");
  EXPECT_EQ(image.substr(16 * 2048 + 40, 8), "cidata  ");
  EXPECT_EQ(image.substr(17 * 2048, 6),
            "\x02"
            "CD001");
  EXPECT_EQ(image.substr(17 * 2048 + 40, 12), std::string("\0c\0i\0d\0a\0t\0a", 12));
  EXPECT_EQ(image.size() % 512, 0U) << "a volume has whole sectors";
}

TEST_F(CloudInitSeed, TheMachinesIdAndNameAreTheDefault) {
  ASSERT_TRUE(write_seed_image({}, "web_1.", machine_id(), path_));
  EXPECT_THAT(read_image(path_, "!joliet"),
              ElementsAre(Pair("meta-data",
                               "instance-id: \"11111111-2222-4333-8444-555555555555\"\n"
                               "local-hostname: \"web-1\"\n"),
                          Pair("user-data", "")));
}

/// Another time zone, until it goes.
class TimeZone {
 public:
  explicit TimeZone(const char* zone) {
    ::setenv("TZ", zone, 1);
    ::tzset();
  }
  TimeZone(const TimeZone&) = delete;
  TimeZone& operator=(const TimeZone&) = delete;
  ~TimeZone() {
    ::unsetenv("TZ");
    ::tzset();
  }
};

TEST_F(CloudInitSeed, TheSameInputGivesTheSameBytesAtAnyTimeAndPlace) {
  const std::string later = directory_ / "later.iso";
  ASSERT_TRUE(write_seed_image(cloud_init_, "web", machine_id(), path_));
  // ISO 9660 tells seconds apart: until time(2) has the next one, a tick after the clock.
  const timespec next{.tv_sec = std::time(nullptr) + 1};
  ASSERT_EQ(::clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &next, nullptr), 0);
  while (std::time(nullptr) < next.tv_sec) std::this_thread::yield();
  const TimeZone far("TEST-13");
  ASSERT_TRUE(write_seed_image(cloud_init_, "web", machine_id(), later));
  EXPECT_TRUE(read_text(path_) == read_text(later));
  EXPECT_FALSE(read_text(path_).contains("libarchive"));
}

TEST_F(CloudInitSeed, OnlyItsOwnerMayReadIt) {
  ASSERT_TRUE(write_seed_image(cloud_init_, "web", machine_id(), path_));
  struct stat status{};
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  EXPECT_EQ(status.st_nlink, 1U);
}

TEST_F(CloudInitSeed, WhatIsThereStays) {
  write_text(path_, "something");
  const auto written = write_seed_image(cloud_init_, "web", machine_id(), path_);
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().kind(), ErrorKind::already_exists);
  EXPECT_EQ(read_text(path_), "something");
  EXPECT_THAT(directory_.names(), ElementsAre("seed.iso"));
}

TEST_F(CloudInitSeed, NothingIsLeftWhereItCannotBeWritten) {
  const auto nowhere = write_seed_image(cloud_init_, "web", machine_id(), directory_ / "a/seed");
  ASSERT_FALSE(nowhere);
  EXPECT_EQ(nowhere.error().kind(), ErrorKind::not_found);
  CloudInitSpecification large = cloud_init_;
  large.user_data.assign(std::size_t{9} << 20, 'x');
  EXPECT_FALSE(write_seed_image(large, "web", machine_id(), path_));
  EXPECT_THAT(directory_.names(), IsEmpty());
}

TEST_F(CloudInitSeed, TakesTheLargestTextsThatAMachineMayHave) {
  CloudInitSpecification large = cloud_init_;
  large.user_data.assign(machine_json_bytes_max, 'x');
  ASSERT_TRUE(write_seed_image(large, "web", machine_id(), path_));
  EXPECT_EQ(read_image(path_, "!joliet").at("user-data"), large.user_data);
}

}  // namespace
}  // namespace berth::machine
