#include "base/error.h"

#include <cerrno>
#include <string>
#include <utility>

#include <gtest/gtest.h>

namespace berth {
namespace {

TEST(ErrorTest, EveryKindHasANameThatLeadsBackToIt) {
  for (int value = 0; value <= static_cast<int>(ErrorKind::internal); ++value) {
    const auto kind = static_cast<ErrorKind>(value);
    EXPECT_EQ(error_kind_from_string(to_string(kind)), kind) << value;
  }
  EXPECT_EQ(to_string(ErrorKind::full_backup_required), "full_backup_required");
}

TEST(ErrorTest, AnUnknownNameIsInternal) {
  EXPECT_EQ(error_kind_from_string("from_the_future"), ErrorKind::internal);
  EXPECT_EQ(error_kind_from_string(""), ErrorKind::internal);
}

TEST(ErrorTest, ErrnoValuesBecomeKinds) {
  EXPECT_EQ(Error::from_errno(ENOENT, "").kind(), ErrorKind::not_found);
  EXPECT_EQ(Error::from_errno(EEXIST, "").kind(), ErrorKind::already_exists);
  EXPECT_EQ(Error::from_errno(ENOSPC, "").kind(), ErrorKind::no_space);
  EXPECT_EQ(Error::from_errno(EDQUOT, "").kind(), ErrorKind::no_space);
  EXPECT_EQ(Error::from_errno(EFBIG, "").kind(), ErrorKind::no_space);
  EXPECT_EQ(Error::from_errno(EROFS, "").kind(), ErrorKind::read_only);
  EXPECT_EQ(Error::from_errno(EACCES, "").kind(), ErrorKind::permission);
  EXPECT_EQ(Error::from_errno(EINVAL, "").kind(), ErrorKind::invalid_argument);
  EXPECT_EQ(Error::from_errno(EOPNOTSUPP, "").kind(), ErrorKind::unsupported);
  EXPECT_EQ(Error::from_errno(EWOULDBLOCK, "").kind(), ErrorKind::in_use);
  EXPECT_EQ(Error::from_errno(ETIMEDOUT, "").kind(), ErrorKind::timed_out);
  EXPECT_EQ(Error::from_errno(EPIPE, "").kind(), ErrorKind::disconnected);
  EXPECT_EQ(Error::from_errno(EIO, "").kind(), ErrorKind::io_error);
}

TEST(ErrorTest, TheMessageNamesTheThingAndTheReason) {
  const Error error = Error::from_errno(ENOSPC, "cannot write 'data'");
  EXPECT_EQ(error.message(), "cannot write 'data': No space left on device");
  EXPECT_EQ(error.errno_value(), ENOSPC);
}

TEST(ErrorTest, ContextIsPutInFrontAndKeepsTheKindAndTheErrno) {
  const Error error = Error::from_errno(EIO, "cannot read").with_context("cannot open volume 'a'");
  EXPECT_EQ(error.kind(), ErrorKind::io_error);
  EXPECT_EQ(error.errno_value(), EIO);
  EXPECT_EQ(error.message(), "cannot open volume 'a': cannot read: Input/output error");
}

TEST(ErrorTest, ACauseMayHaveAnotherKind) {
  const Error error(ErrorKind::full_backup_required, "the map is gone",
                    Error(ErrorKind::corrupt, "bad checksum"));
  EXPECT_EQ(error.kind(), ErrorKind::full_backup_required);
  EXPECT_EQ(error.message(), "the map is gone: bad checksum");
}

TEST(ErrorTest, ACopyIsIndependentOfItsOriginal) {
  Error original = Error(ErrorKind::limit, "inner").with_context("outer");
  Error copy = original;
  original = Error(ErrorKind::corrupt, "other");
  EXPECT_EQ(copy.kind(), ErrorKind::limit);
  EXPECT_EQ(copy.message(), "outer: inner");
  copy = original;
  EXPECT_EQ(copy.message(), "other");
}

TEST(ErrorTest, IsOnePointerWide) { EXPECT_EQ(sizeof(Error), sizeof(void*)); }

}  // namespace
}  // namespace berth
