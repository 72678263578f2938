// What is remembered of jobs from one daemon to the next.

#include "control/jobs.h"

#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include <unistd.h>

#include <boost/asio/thread_pool.hpp>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "control/run_for_test.h"

namespace berth::control {
namespace {

using nlohmann::json;

class JobsTest : public testing::Test {
 protected:
  JobsTest() { std::filesystem::create_directory(directory_); }
  ~JobsTest() override { std::filesystem::remove_all(directory_); }

  Jobs& daemon() {
    jobs_.reset();
    catalogue_.reset();
    catalogue_ = MUST(Catalogue::open(directory_ + "/catalogue"));
    jobs_.emplace(io_.get_executor(), workers_, *catalogue_, events_);
    EXPECT_TRUE(run_for_test(io_, jobs_->load()));
    return *jobs_;
  }

  /// The id of a job that ends, as its work is to end, when it is asked to.
  std::string start_one(Jobs& jobs) {
    auto work = [](std::shared_ptr<JobProgress> job) -> Async<Result<json>> {
      while (!job->stop().stop_requested()) co_await pause_for(Milliseconds(1));
      co_return failure(ErrorKind::cancelled, "somebody asked for it");
    };
    const auto started = run_for_test(io_, jobs.start({.kind = "test", .target = "x"}, work));
    return started->value("id", "");
  }

  static Async<bool> end(Jobs& jobs) {
    co_await jobs.end_all(Milliseconds(5000));
    co_return true;
  }

  std::string directory_ = testing::TempDir() + "/jobs-" + std::to_string(::getpid());
  boost::asio::io_context io_;
  boost::asio::thread_pool workers_{1};
  EventLog events_{io_.get_executor()};
  std::unique_ptr<Catalogue> catalogue_;
  std::optional<Jobs> jobs_;
};

TEST_F(JobsTest, OneThatWasAskedToEndIsRememberedAsItEnded) {
  Jobs& first = daemon();
  const std::string id = start_one(first);
  // Nothing of the first daemon runs after this: what is not in the catalogue yet will not be.
  ASSERT_TRUE(run_for_test(io_, end(first)));
  EXPECT_EQ(daemon().info(id)->value("state", ""), "cancelled");
}

TEST_F(JobsTest, OneThatWasCutShortHasFailed) {
  const std::string id = start_one(daemon());
  const auto job = daemon().info(id);
  EXPECT_EQ(job->value("state", ""), "failed");
  EXPECT_EQ((*job)["error"]["kind"], "disconnected");
}

}  // namespace
}  // namespace berth::control
