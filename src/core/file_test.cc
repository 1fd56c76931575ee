#include "core/file.h"

#include <fstream>
#include <stdexcept>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <mlxlm/error.h>

#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using testing::HasSubstr;

std::size_t count_entries(const std::filesystem::path& folder) {
  std::size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    count += entry.exists();
  }
  return count;
}

TEST(File, ReadsBackWhatItWrote) {
  TemporaryFolder folder;
  std::string content("a\0b\n", 4);
  write_file_atomically(folder / "file", content);
  EXPECT_EQ(read_file(folder / "file"), content);
  MappedFile map(folder / "file");
  EXPECT_EQ(map.bytes().size(), 4u);
  EXPECT_EQ(map.bytes()[2], std::byte{'b'});
}

TEST(File, AFailedWriteLeavesTheOldFileAlone) {
  TemporaryFolder folder;
  write_file_atomically(folder / "file", "old");
  EXPECT_THROW(
      write_file_atomically(folder / "file",
                            [](const std::filesystem::path& temporary) {
                              std::ofstream(temporary) << "half";
                              throw std::runtime_error("the disk is full");
                            }),
      std::runtime_error);
  EXPECT_EQ(read_file(folder / "file"), "old");
  EXPECT_EQ(count_entries(folder.path()), 1u);
}

TEST(File, ErrorsNameTheFile) {
  TemporaryFolder folder;
  try {
    read_file(folder / "missing");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::file);
    EXPECT_THAT(error.what(), HasSubstr("missing: No such file"));
  }
  EXPECT_THROW(read_file(folder.path()), Error);
  EXPECT_THROW(MappedFile(folder.path()), Error);
  EXPECT_THROW(write_file_atomically(folder / "no/such/folder", "x"), Error);
}

TEST(File, ExistsIfItCanBeReached) {
  TemporaryFolder folder;
  write_file_atomically(folder / "file", "x");
  std::filesystem::create_symlink("loop", folder / "loop");
  EXPECT_TRUE(file_exists(folder / "file"));
  EXPECT_FALSE(file_exists(folder / "none"));
  EXPECT_FALSE(file_exists(folder / "file/below"));
  EXPECT_FALSE(file_exists(folder / "loop"));
}

TEST(File, APipeIsNoFile) {
  TemporaryFolder folder;
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  EXPECT_THROW(read_file(folder / "pipe"), Error);
  EXPECT_THROW(MappedFile(folder / "pipe"), Error);
}

TEST(File, RefusesWhatIsTooLarge) {
  TemporaryFolder folder;
  write_file_atomically(folder / "file", "12345");
  EXPECT_THROW(read_file(folder / "file", 4), Error);
}

TEST(File, KeepsTheUsualPermissions) {
  TemporaryFolder folder;
  write_file_atomically(folder / "file", "x");
  struct stat info {};
  ASSERT_EQ(::stat((folder / "file").c_str(), &info), 0);
  EXPECT_TRUE(info.st_mode & S_IRUSR);
  EXPECT_FALSE(info.st_mode & S_IXUSR);
}

TEST(File, AnEmptyFileMapsToNothing) {
  TemporaryFolder folder;
  write_file_atomically(folder / "file", "");
  EXPECT_TRUE(MappedFile(folder / "file").bytes().empty());
}

}  // namespace
}  // namespace mlxlm
