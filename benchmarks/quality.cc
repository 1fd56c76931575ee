// What the CPU's fast modes cost: perplexity and agreement on a text.
//
//   quality MODEL TEXT-FILE [TOKENS [CHUNK [step|fastest]]]
//
// Each chunk is read afresh, once in exact mode and once in fast mode (`step`:
// one token at a time) or in fastest mode. Prints both perplexities, their
// change, and how often the most probable token is the same.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <mlx/mlx.h>

#include <mlxlm/error.h>
#include <mlxlm/generate.h>

#include "kernels/seam.h"

namespace {

namespace mx = mlx::core;
using mlxlm::kernels::CpuMode;

struct Judgement {
  std::vector<float> logprobs;      // of the tokens that follow
  std::vector<std::uint32_t> best;  // the most probable tokens
};

// `one_by_one`: as in generation, one token at a time.
Judgement judge(mlxlm::Model& model,
                const std::vector<int>& tokens,
                CpuMode mode,
                bool one_by_one) {
  mlxlm::kernels::set_cpu_mode(mode);
  const int count = static_cast<int>(tokens.size()) - 1;
  const auto cache = model.make_cache();
  const int step = one_by_one ? 1 : count;
  Judgement result;
  for (int first = 0; first < count; first += step) {
    mx::array input(tokens.data() + first, {1, step}, mx::int32);
    mx::array next(tokens.data() + first + 1, {step, 1}, mx::int32);
    const auto& table = mlxlm::kernels::table();
    auto logprobs =
        table.log_softmax(mx::squeeze(model.forward(input, cache), 0));
    auto best = mx::astype(table.argmax(logprobs), mx::uint32);
    auto chosen = mx::contiguous(mx::take_along_axis(logprobs, next, 1));
    mx::eval(best, chosen);
    result.logprobs.insert(result.logprobs.end(),
                           chosen.data<float>(),
                           chosen.data<float>() + step);
    result.best.insert(result.best.end(),
                       best.data<std::uint32_t>(),
                       best.data<std::uint32_t>() + step);
  }
  return result;
}

double sum_of(const std::vector<float>& values) {
  double sum = 0;
  for (float value : values) sum += value;
  return sum;
}

void run(const std::string& name,
         const std::string& path,
         int max_tokens,
         int chunk,
         CpuMode mode,
         bool one_by_one) {
  auto loaded = mlxlm::load(name);
  std::ifstream file(path);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  auto all = loaded.tokenizer->encode(text);
  if (static_cast<int>(all.size()) > max_tokens) all.resize(max_tokens);
  double exact_sum = 0;
  double fast_sum = 0;
  std::size_t judged = 0;
  std::size_t same = 0;
  for (std::size_t first = 0; first + 2 < all.size(); first += chunk) {
    const auto end = std::min(first + chunk + 1, all.size());
    const std::vector<int> tokens(all.begin() + first, all.begin() + end);
    auto exact = judge(*loaded.model, tokens, CpuMode::exact, one_by_one);
    auto fast = judge(*loaded.model, tokens, mode, one_by_one);
    exact_sum += sum_of(exact.logprobs);
    fast_sum += sum_of(fast.logprobs);
    judged += exact.best.size();
    for (std::size_t i = 0; i < exact.best.size(); ++i) {
      same += exact.best[i] == fast.best[i] ? 1 : 0;
    }
    mx::clear_cache();
  }
  const double n = static_cast<double>(judged);
  const double exact = std::exp(-exact_sum / n);
  const double fast = std::exp(-fast_sum / n);
  std::printf(
      "%zu tokens: perplexity %.4f exact, %.4f fast (%+.4f %%); most probable "
      "token the same: %.3f %%\n",
      judged,
      exact,
      fast,
      100 * (fast / exact - 1),
      100 * static_cast<double>(same) / n);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr,
                 "usage: quality MODEL TEXT-FILE [TOKENS [CHUNK "
                 "[step|fastest]]]\n");
    return 2;
  }
  const std::string option = argc > 5 ? argv[5] : "";
  try {
    run(argv[1],
        argv[2],
        argc > 3 ? std::atoi(argv[3]) : 24000,
        argc > 4 ? std::atoi(argv[4]) : 512,
        option == "fastest" ? CpuMode::fastest : CpuMode::fast,
        option == "step");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "quality: %s\n", error.what());
    return 1;
  }
}
