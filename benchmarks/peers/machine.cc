// Prints what all threads together read from memory, in GB/s, and how many
// multiplications of bytes they add up, in 10^12 a second (0 without VNNI).
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>

namespace {

double seconds_of(int threads, const std::function<void(int)>& work) {
  auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> all;
  for (int i = 0; i < threads; ++i) {
    all.emplace_back(work, i);
  }
  for (std::thread& each : all) {
    each.join();
  }
  std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  return took.count();
}

double read_gb_per_second(int threads) {
  constexpr std::size_t kWords = std::size_t{1} << 26;  // 512 MiB a thread
  std::vector<std::vector<std::uint64_t>> memory(threads);
  seconds_of(threads, [&](int i) { memory[i].assign(kWords, i); });
  std::vector<std::uint64_t> sums(threads);
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    double seconds = seconds_of(threads, [&](int i) {
      std::uint64_t sum = 0;
      for (std::uint64_t word : memory[i]) {
        sum += word;
      }
      sums[i] = sum;
    });
    best = std::max(best, threads * kWords * 8 / seconds / 1e9);
  }
  return sums[0] == 1 ? 0 : best;
}

double byte_products_per_second(int threads) {
#if defined(__AVX512VNNI__)
  constexpr long kSteps = 20'000'000;
  constexpr int kSums = 16;
  std::vector<std::int32_t> out(threads);
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    double seconds = seconds_of(threads, [&](int i) {
      __m512i x = _mm512_set1_epi8(i + 1), w = _mm512_set1_epi8(3);
      __m512i sums[kSums];
      std::fill(sums, sums + kSums, _mm512_setzero_si512());
      for (long step = 0; step < kSteps; ++step) {
        asm volatile("" : "+v"(x));
#pragma GCC unroll 16
        for (__m512i& sum : sums) {
          sum = _mm512_dpbusd_epi32(sum, x, w);
        }
      }
      for (const __m512i& sum : sums) {
        out[i] += _mm512_reduce_add_epi32(sum);
      }
    });
    best = std::max(best, threads * 64.0 * kSums * kSteps / seconds / 1e12);
  }
  return best;
#else
  (void)threads;
  return 0;
#endif
}

}  // namespace

int main(int argc, char** argv) {
  int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  std::printf("%.1f %.2f\n",
              read_gb_per_second(threads),
              byte_products_per_second(threads));
  return 0;
}
