#include "cli/terminal_reader.h"

#ifdef MLXLM_HAS_LIBEDIT

#include <clocale>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>

#include <histedit.h>
#include <langinfo.h>

namespace mlxlm::cli {
namespace {

constexpr int kHistoryLines = 1000;

// libedit knows characters by the locale alone.
void use_utf8() {
  std::setlocale(LC_CTYPE, "");
  for (const char* name : {"C.UTF-8", "en_US.UTF-8", "UTF-8"}) {
    if (std::strcmp(::nl_langinfo(CODESET), "UTF-8") == 0) {
      return;
    }
    std::setlocale(LC_CTYPE, name);
  }
}

class TerminalReader : public LineReader {
 public:
  explicit TerminalReader(const std::string& history_file)
      : history_file_(history_file),
        editor_(::el_init("mlx-lm", stdin, stdout, stderr)),
        history_(::history_init()) {
    if (editor_ == nullptr || history_ == nullptr) {
      return;
    }
    ::el_set(editor_, EL_CLIENTDATA, this);
    ::el_set(editor_, EL_PROMPT, &prompt_of);
    ::el_set(editor_, EL_EDITOR, "emacs");
    ::el_set(editor_, EL_SIGNAL, 1);  // a resized window, and cleaning up
    ::el_set(editor_, EL_HIST, history, history_);
    ::el_set(editor_, EL_BIND, "^R", "em-inc-search-prev", nullptr);
    // Ctrl-C is a key while a line is edited.
    ::el_set(editor_, EL_ADDFN, "mlx-lm-give-up", "Give the line up", &give_up);
    ::el_set(editor_, EL_BIND, "^C", "mlx-lm-give-up", nullptr);
    ::el_set(editor_, EL_SETTY, "-d", "-isig", nullptr);
    ::el_source(editor_, nullptr);  // ~/.editrc
    HistEvent event;
    ::history(history_, &event, H_SETSIZE, kHistoryLines);
    ::history(history_, &event, H_SETUNIQUE, 1);
    if (!history_file_.empty()) {
      ::history(history_, &event, H_LOAD, history_file_.c_str());
    }
  }

  ~TerminalReader() override {
    if (history_ != nullptr) {
      ::history_end(history_);
    }
    if (editor_ != nullptr) {
      ::el_end(editor_);
    }
  }

  bool works() const { return editor_ != nullptr && history_ != nullptr; }
  bool interactive() const override { return true; }
  bool gave_up() const override { return gave_up_; }

  std::optional<std::string> read(const std::string& prompt,
                                  const std::string& text) override {
    prompt_ = prompt;
    gave_up_ = false;
    if (!text.empty()) {
      ::el_push(editor_, text.c_str());
    }
    ::el_set(editor_, EL_PREP_TERM, 1);  // before the prompt invites to type
    int count = 0;
    const char* line = ::el_gets(editor_, &count);
    if (gave_up_) {
      std::fputs("^C\n", stdout);
      std::fflush(stdout);
      return "";
    }
    if (line == nullptr || count <= 0) {
      std::fputs("\n", stdout);
      std::fflush(stdout);
      return std::nullopt;
    }
    std::string_view view(line, static_cast<std::size_t>(count));
    view.remove_suffix(view.ends_with('\n') ? 1 : 0);
    std::string result(view);
    remember(result);
    return result;
  }

 private:
  static TerminalReader& of(EditLine* editor) {
    void* self = nullptr;
    ::el_get(editor, EL_CLIENTDATA, &self);
    return *static_cast<TerminalReader*>(self);
  }
  static char* prompt_of(EditLine* editor) { return of(editor).prompt_.data(); }
  static unsigned char give_up(EditLine* editor, int) {
    of(editor).gave_up_ = true;
    return CC_EOF;
  }

  // Saved line by line: the program may end at any time.
  void remember(const std::string& line) {
    if (line.find_first_not_of(" \t") == std::string::npos) {
      return;
    }
    HistEvent event;
    ::history(history_, &event, H_ENTER, line.c_str());
    if (!history_file_.empty()) {
      std::error_code ignored;
      std::filesystem::create_directories(
          std::filesystem::path(history_file_).parent_path(), ignored);
      ::history(history_, &event, H_SAVE, history_file_.c_str());
    }
  }

  std::string history_file_;
  std::string prompt_;
  bool gave_up_ = false;
  EditLine* editor_;
  History* history_;
};

}  // namespace

std::unique_ptr<LineReader> make_terminal_reader(
    const std::string& history_file) {
  use_utf8();
  auto reader = std::make_unique<TerminalReader>(history_file);
  return reader->works() ? std::move(reader) : nullptr;
}

}  // namespace mlxlm::cli

#else

namespace mlxlm::cli {

std::unique_ptr<LineReader> make_terminal_reader(const std::string&) {
  return nullptr;
}

}  // namespace mlxlm::cli

#endif
