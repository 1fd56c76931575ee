// Whether a draft model's tokens mean the same as the model's.
#include <string>

#include <mlxlm/generate.h>

namespace mlxlm {
namespace {

constexpr char kProbe[] = "The 3 naïve foxes\n\tjumped (over) 42 λ's. 你好";

std::string shown(const std::optional<std::string>& token) {
  return token ? "\"" + *token + "\"" : "none";
}

std::string listed(const std::vector<int>& ids) {
  std::string text;
  for (int id : ids) {
    text += (text.empty() ? "" : ", ") + std::to_string(id);
  }
  return text.empty() ? "none" : text;
}

}  // namespace

void check_draft_tokenizer(const Tokenizer& tokenizer,
                           const Tokenizer& draft_tokenizer) {
  auto refuse = [](const std::string& what) {
    throw Error(
        ErrorKind::argument,
        "the draft model's tokenizer differs from the model's: " + what +
            "; use a draft model of the same family, or "
            "n-grams, which need none");
  };
  const int size = tokenizer.vocabulary_size();
  const int draft_size = draft_tokenizer.vocabulary_size();
  if (size != draft_size) {
    refuse("it has " + std::to_string(draft_size) + " tokens, not " +
           std::to_string(size));
  }
  int num_different = 0;
  int first = 0;
  for (int id = size - 1; id >= 0; --id) {
    if (tokenizer.id_to_token(id) != draft_tokenizer.id_to_token(id)) {
      ++num_different;
      first = id;
    }
  }
  if (num_different > 0) {
    refuse(std::to_string(num_different) + " of " + std::to_string(size) +
           " tokens, the first is " + std::to_string(first) + ": " +
           shown(draft_tokenizer.id_to_token(first)) + ", not " +
           shown(tokenizer.id_to_token(first)));
  }
  const auto probe = tokenizer.encode(kProbe, false);
  const auto draft_probe = draft_tokenizer.encode(kProbe, false);
  if (probe != draft_probe) {
    refuse("the same tokens, but it splits a text otherwise (" +
           listed(draft_probe) + ", not " + listed(probe) + ")");
  }
}

}  // namespace mlxlm
