#include "load/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mlxlm/error.h>

#include "tests/support/environment.h"
#include "tests/support/model_writer.h"
#include "tests/support/temporary_folder.h"

namespace mlxlm {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Files as Linux shows them, under a folder of its own.
class FakeLinux {
 public:
  void write(const std::string& name, const std::string& text) {
    auto path = folder_ / name;
    std::filesystem::create_directories(path.parent_path());
    write_text(path, text);
  }
  AvailableMemory memory() { return linux_memory(folder_.path()).value(); }
  std::filesystem::path root() const { return folder_.path(); }

 private:
  TemporaryFolder folder_;
};

TEST(LinuxMemory, TheMachine) {
  FakeLinux fake;
  EXPECT_FALSE(linux_memory(fake.root()).has_value());
  fake.write("proc/meminfo",
             "MemTotal:       32000000 kB\nMemAvailable:   1000 kB\n");
  EXPECT_EQ(fake.memory().bytes, 1024000u);
  EXPECT_EQ(fake.memory().bound_by, "the machine's memory");
}

TEST(LinuxMemory, ControlGroupsOfVersion2AndTheirParents) {
  FakeLinux fake;
  fake.write("proc/meminfo", "MemAvailable: 1000000 kB\n");
  fake.write("proc/self/cgroup", "0::/a/b\n");
  std::string group = "sys/fs/cgroup/a/b/";
  fake.write(group + "memory.max", "max\n");
  EXPECT_EQ(fake.memory().bytes, 1024000000u);
  fake.write(group + "memory.max", "5000\n");
  fake.write(group + "memory.current", "3000\n");
  fake.write(group + "memory.stat",
             "anon 1\ninactive_file 500\nactive_file 1500\n");
  EXPECT_EQ(fake.memory().bytes, 4000u);
  EXPECT_THAT(fake.memory().bound_by, HasSubstr("control group /a/b"));
  fake.write("sys/fs/cgroup/a/memory.max", "2000\n");
  fake.write("sys/fs/cgroup/a/memory.current", "2500\n");
  EXPECT_EQ(fake.memory().bytes, 0u);
  EXPECT_THAT(fake.memory().bound_by, HasSubstr("/a"));
}

TEST(LinuxMemory, InAContainerTheGroupIsMountedAsTheRoot) {
  FakeLinux fake;
  fake.write("proc/self/cgroup", "0::/docker/0123\n");
  fake.write("sys/fs/cgroup/memory.max", "7000\n");
  fake.write("sys/fs/cgroup/memory.current", "1000\n");
  EXPECT_EQ(fake.memory().bytes, 6000u);
}

TEST(LinuxMemory, ControlGroupsOfVersion1) {
  FakeLinux fake;
  fake.write("proc/self/cgroup",
             "12:cpu,cpuacct:/x\n4:memory:/x/y\nnonsense\n0::/\n");
  std::string group = "sys/fs/cgroup/memory/x/y/";
  fake.write(group + "memory.limit_in_bytes", "9223372036854771712\n");
  EXPECT_FALSE(linux_memory(fake.root()).has_value());
  fake.write(group + "memory.limit_in_bytes", "8000\n");
  fake.write(group + "memory.usage_in_bytes", "2000\n");
  fake.write(group + "memory.stat",
             "inactive_file 7\ntotal_inactive_file 1000\n");
  EXPECT_EQ(fake.memory().bytes, 7000u);
}

TEST(Memory, SizesAsText) {
  EXPECT_EQ(parse_bytes("1000"), 1000u);
  EXPECT_EQ(parse_bytes("6G"), 6000000000u);
  EXPECT_EQ(parse_bytes("1.5 GB"), 1500000000u);
  EXPECT_EQ(parse_bytes("512MiB"), 536870912u);
  for (const char* text : {"", "x", "-1", "5 apples", "1G G", "1e30", "nan"}) {
    EXPECT_EQ(parse_bytes(text), std::nullopt) << text;
  }
  EXPECT_EQ(format_bytes(12), "12 bytes");
  EXPECT_EQ(format_bytes(1234), "1.2 kB");
  EXPECT_EQ(format_bytes(269000000), "269 MB");
  EXPECT_EQ(format_bytes(4600000000), "4.6 GB");
}

TEST(Memory, MoreThanThereIsIsRefusedWithTheEstimate) {
  ScopedVariable limit("MLX_LM_MEMORY_LIMIT", "1G");
  EXPECT_NO_THROW(require_memory(999, "the model", "take a smaller one"));
  try {
    require_memory(2000000000, "the model", "take a smaller one");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::memory);
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("the model needs about 2.0 GB of memory"),
                      HasSubstr("MLX_LM_MEMORY_LIMIT leaves 1.0 GB"),
                      HasSubstr("take a smaller one")));
  }
}

TEST(Memory, TheCheckCanBeSwitchedOff) {
  ScopedVariable limit("MLX_LM_MEMORY_LIMIT", "none");
  EXPECT_NO_THROW(require_memory(std::uint64_t{1} << 62, "x", "y"));
}

TEST(Memory, ALimitThatIsNoSizeIsRefused) {
  ScopedVariable limit("MLX_LM_MEMORY_LIMIT", "lots");
  EXPECT_THROW(available_memory(), Error);
}

TEST(Memory, ThisMachineHasSome) {
  ScopedVariable limit("MLX_LM_MEMORY_LIMIT", "");
  auto memory = available_memory();
  EXPECT_TRUE(!memory || memory->bytes > 0);
}

}  // namespace
}  // namespace mlxlm
