#include "control/catalogue.h"

#include <mutex>

#include <sqlite3.h>

#include <SQLiteCpp/SQLiteCpp.h>
#include <fmt/format.h>

namespace berth::control {
namespace {

constexpr int schema_version = 1;
constexpr int jobs_kept_max = 1000;
constexpr int groups_kept_max = 10'000;
constexpr int busy_timeout_ms = 10'000;

constexpr const char* schema_sql = R"(
  CREATE TABLE groups (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('prepared', 'committed', 'aborted'))
  );
  CREATE TABLE group_members (
    group_id TEXT NOT NULL REFERENCES groups (id) ON DELETE CASCADE,
    volume TEXT NOT NULL,
    settled INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (group_id, volume)
  );
  CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    document TEXT NOT NULL
  );
)";

const char* to_text(GroupState state) {
  switch (state) {
    case GroupState::prepared: return "prepared";
    case GroupState::committed: return "committed";
    case GroupState::aborted: return "aborted";
  }
  return "prepared";
}

GroupState group_state_of(const std::string& text) {
  if (text == "committed") return GroupState::committed;
  return text == "aborted" ? GroupState::aborted : GroupState::prepared;
}

ErrorKind kind_of(const SQLite::Exception& exception) {
  switch (exception.getErrorCode()) {
    case SQLITE_FULL: return ErrorKind::no_space;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB: return ErrorKind::corrupt;
    case SQLITE_BUSY:
    case SQLITE_LOCKED: return ErrorKind::in_use;
    case SQLITE_READONLY: return ErrorKind::read_only;
    case SQLITE_CANTOPEN:
    case SQLITE_PERM: return ErrorKind::permission;
    default: return ErrorKind::io_error;
  }
}

/// Runs `work`, and makes an Error of what SQLite throws.
template <typename Work>
auto guarded(const char* what, Work work) -> decltype(work()) {
  try {
    return work();
  } catch (const SQLite::Exception& exception) {
    return failure(kind_of(exception),
                   fmt::format("the catalogue cannot {}: {}", what, exception.what()));
  }
}

}  // namespace

struct Catalogue::Impl {
  explicit Impl(const std::string& path)
      : database(path, SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE, busy_timeout_ms) {}

  void execute(const char* sql, const std::vector<std::string>& values) {
    SQLite::Statement statement(database, sql);
    for (std::size_t i = 0; i < values.size(); ++i)
      statement.bind(static_cast<int>(i + 1), values[i]);
    statement.exec();
  }

  std::mutex mutex;
  SQLite::Database database;
};

Catalogue::Catalogue(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Catalogue::~Catalogue() = default;

Result<std::unique_ptr<Catalogue>> Catalogue::open(const std::string& path) {
  return guarded("be opened", [&path]() -> Result<std::unique_ptr<Catalogue>> {
    auto impl = std::make_unique<Impl>(path);
    SQLite::Database& database = impl->database;
    database.exec(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;");
    SQLite::Transaction transaction(database, SQLite::TransactionBehavior::IMMEDIATE);
    const int version = database.execAndGet("PRAGMA user_version").getInt();
    if (version > schema_version) {
      return failure(
          ErrorKind::unsupported,
          fmt::format("the catalogue '{}' has version {}, and this berth knows {}: use a newer one",
                      path, version, schema_version));
    }
    if (version == 0) {
      database.exec(schema_sql);
      database.exec(fmt::format("PRAGMA user_version = {}", schema_version));
    }
    transaction.commit();
    return std::unique_ptr<Catalogue>(new Catalogue(std::move(impl)));
  });
}

Result<void> Catalogue::add_group(const std::string& id, const std::vector<std::string>& volumes) {
  const std::scoped_lock lock(impl_->mutex);
  return guarded("record a cut", [&]() -> Result<void> {
    SQLite::Transaction transaction(impl_->database);
    impl_->execute("INSERT INTO groups (id, state) VALUES (?, 'prepared')", {id});
    for (const std::string& volume : volumes) {
      impl_->execute("INSERT INTO group_members (group_id, volume) VALUES (?, ?)", {id, volume});
    }
    // Settled ones are needed no more: every volume knows.
    impl_->database.exec(fmt::format(
        "DELETE FROM groups WHERE number <= (SELECT MAX(number) FROM groups) - {} AND NOT EXISTS "
        "(SELECT 1 FROM group_members WHERE group_id = groups.id AND settled = 0)",
        groups_kept_max));
    transaction.commit();
    return {};
  });
}

Result<void> Catalogue::decide_group(const std::string& id, GroupState decision) {
  const std::scoped_lock lock(impl_->mutex);
  return guarded("record a cut's decision", [&]() -> Result<void> {
    SQLite::Statement statement(
        impl_->database, "UPDATE groups SET state = ? WHERE id = ? AND state IN ('prepared', ?)");
    statement.bind(1, to_text(decision));
    statement.bind(2, id);
    statement.bind(3, to_text(decision));
    if (statement.exec() == 1) return {};
    return failure(ErrorKind::precondition,
                   fmt::format("the cut {} is not open, or decided otherwise", id));
  });
}

Result<void> Catalogue::mark_settled(const std::string& id, const std::string& volume) {
  const std::scoped_lock lock(impl_->mutex);
  return guarded("record a settled cut", [&]() -> Result<void> {
    impl_->execute("UPDATE group_members SET settled = 1 WHERE group_id = ? AND volume = ?",
                   {id, volume});
    return {};
  });
}

Result<GroupState> Catalogue::decision_of(const std::string& id) {
  const std::scoped_lock lock(impl_->mutex);
  return guarded("look up a cut", [&]() -> Result<GroupState> {
    SQLite::Statement statement(impl_->database, "SELECT state FROM groups WHERE id = ?");
    statement.bind(1, id);
    if (!statement.executeStep()) return GroupState::aborted;
    return group_state_of(statement.getColumn(0).getString());
  });
}

Result<std::vector<GroupRecord>> Catalogue::unsettled_groups() {
  const std::scoped_lock lock(impl_->mutex);
  return guarded("list open cuts", [&]() -> Result<std::vector<GroupRecord>> {
    std::vector<GroupRecord> groups;
    SQLite::Statement statement(
        impl_->database,
        "SELECT id, state, volume FROM groups JOIN group_members ON group_id = id "
        "WHERE settled = 0 ORDER BY number, volume");
    while (statement.executeStep()) {
      const std::string id = statement.getColumn(0).getString();
      if (groups.empty() || groups.back().id != id) {
        groups.push_back({.id = id,
                          .state = group_state_of(statement.getColumn(1).getString()),
                          .unsettled = {}});
      }
      groups.back().unsettled.push_back(statement.getColumn(2).getString());
    }
    return groups;
  });
}

Result<void> Catalogue::save_job(const JobRecord& job) {
  const std::scoped_lock lock(impl_->mutex);
  return guarded("record a job", [&]() -> Result<void> {
    SQLite::Transaction transaction(impl_->database);
    impl_->execute(
        "INSERT INTO jobs (id, state, document) VALUES (?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET state = excluded.state, document = excluded.document",
        {job.id, job.state, job.document});
    impl_->database.exec(
        fmt::format("DELETE FROM jobs WHERE number <= (SELECT MAX(number) FROM jobs) - {} AND "
                    "state != 'running'",
                    jobs_kept_max));
    transaction.commit();
    return {};
  });
}

Result<std::vector<JobRecord>> Catalogue::jobs(std::size_t count_max) {
  const std::scoped_lock lock(impl_->mutex);
  return guarded("list jobs", [&]() -> Result<std::vector<JobRecord>> {
    std::vector<JobRecord> found;
    SQLite::Statement statement(
        impl_->database, "SELECT id, state, document FROM jobs ORDER BY number DESC LIMIT ?");
    statement.bind(1, static_cast<std::int64_t>(count_max));
    while (statement.executeStep()) {
      found.push_back({.id = statement.getColumn(0).getString(),
                       .state = statement.getColumn(1).getString(),
                       .document = statement.getColumn(2).getString()});
    }
    return found;
  });
}

}  // namespace berth::control
