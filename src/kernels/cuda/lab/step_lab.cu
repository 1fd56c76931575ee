// Checks the step kernel against float64 on small models and times it in the
// shape of an 8B llama, with -DWITH_EXPERTS of a 30B with 128 experts:
//   nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a -I .. step_lab.cu
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef TRACE
#define MLXLM_STEP_TRACE
#endif
#include "step_matrices.h"

#ifndef STAGES
#define STAGES 8
#endif

#ifdef WITH_EXPERTS
constexpr bool kExperts = true;
#else
constexpr bool kExperts = false;
#endif

constexpr int kHead = 128;
constexpr int kQueries = kExperts ? 8 : 4;  // of a key head
template <int MAX_SIZE>
using TheStep = Step<T,
                     kBits,
                     kGroup,
                     false,
                     1,
                     kHead,
                     kHead,
                     false,
                     kQueries,
                     STAGES,
                     MAX_SIZE,
                     kExperts>;

template <int MAX_SIZE>
__global__ void __launch_bounds__(kBlockThreads, 1)
    step_kernel(StepArguments<T> a) {
  TheStep<MAX_SIZE>::run(a);
}

struct Shape {
  int layers, size, heads, kv_heads, hidden, vocabulary, capacity;
  int experts = 0, chosen = 0;  // of size `hidden` each
  bool normalizes = true;
};

template <int MAX_SIZE>
struct Model {
  Shape s;
  bool keep;
  int blocks;
  Matrix embedding, head;
  struct Layer {
    Matrix q, k, v, o, gate, up, down;
    std::vector<T> n1, n2;
    T *keys, *values;
    std::vector<float> router;
  };
  std::vector<Layer> layers;
  std::vector<T> norm;
  std::vector<float> frequencies;
  StepArguments<T> a{};
  // Of the reference.
  std::vector<double> last_heads, last_logits, last_hidden, last_state;
  double closest = 0;  // logits of an expert that is chosen and one that isn't
  int* position;
  int* token;

  Model(Shape shape, bool keep) : s(shape), keep(keep) {
    cudaDeviceProp prop;
    CHECK(cudaGetDeviceProperties(&prop, 0));
    blocks = prop.multiProcessorCount;
    embedding = matrix(s.vocabulary, s.size, keep);
    head = matrix(s.vocabulary, s.size, keep);
    norm = values(s.size, 0.1f, 1);
    const int q = s.heads * kHead, kv = s.kv_heads * kHead;
    const int times = std::max(s.experts, 1);
    for (int i = 0; i < s.layers; ++i) {
      Layer l{matrix(q, s.size, keep),
              matrix(kv, s.size, keep),
              matrix(kv, s.size, keep),
              matrix(s.size, q, keep),
              matrix(times * s.hidden, s.size, keep),
              matrix(times * s.hidden, s.size, keep),
              matrix(times * s.size, s.hidden, keep),
              values(s.size, 0.1f, 1),
              values(s.size, 0.1f, 1),
              room<T>(size_t(kv) * s.capacity),
              room<T>(size_t(kv) * s.capacity),
              {}};
      std::normal_distribution<float> d(0, 1 / std::sqrt(float(s.size)));
      l.router.resize(size_t(s.experts) * s.size);
      for (float& x : l.router) x = d(rng);
      fill_values<<<1024, 256>>>(l.keys, size_t(kv) * s.capacity, 0, 2, rng());
      fill_values<<<1024, 256>>>(
          l.values, size_t(kv) * s.capacity, 0, 2, rng());
      layers.push_back(std::move(l));
    }
    for (int i = 0; i < kHead / 2; ++i)
      frequencies.push_back(std::pow(500000.0, -2.0 * i / kHead));
    build();
  }

  void build() {
    std::vector<StepOperation<T>> ops;
    std::vector<StepKeys<T>> caches;
    const float* f = upload(frequencies);
    long long tiles = 0;
    auto add = [&](StepOperation<T> op) {
      if (op.kind == kStepLinear || op.kind == kStepGated) {
        op.num_tiles = 0;
        const int n = op.kind == kStepGated ? 1 : op.num_matrices;
        for (int i = 0; i < n; ++i)
          op.num_tiles += (op.matrices[i].num_rows + 15) / 16;
        op.first_block = tiles % blocks;
        tiles += op.num_tiles;
      }
      op.eps = 1e-5f;
      ops.push_back(op);
    };
    StepOperation<T> e{};
    e.kind = kStepEmbed, e.size = s.size, e.scale = 1;
    e.num_matrices = 1, e.matrices[0] = embedding.device;
    add(e);
    const int q = s.heads * kHead, kv = s.kv_heads * kHead;
    for (int i = 0; i < s.layers; ++i) {
      auto& l = layers[i];
      StepOperation<T> op{};
      op.kind = kStepLinear, op.size = s.size, op.input = kInputState;
      op.output = kOutputHeads, op.num_matrices = 3, op.norm = upload(l.n1);
      op.matrices[0] = l.q.device, op.matrices[1] = l.k.device;
      op.matrices[2] = l.v.device;
      op.matrices[1].first_output = q, op.matrices[2].first_output = q + kv;
      add(op);
      op = {};
      op.kind = kStepAttention, op.layer = i;
      op.scale = 1 / std::sqrt(float(kHead));
      add(op);
      op = {};
      op.kind = kStepLinear, op.size = q, op.input = kInputAttention;
      op.output = kOutputState, op.num_matrices = 1, op.scale = 1;
      op.matrices[0] = l.o.device;
      add(op);
      const T* n2 = upload(l.n2);
      const int hidden = kExperts ? s.chosen * s.hidden : s.hidden;
      auto choosing = [&] {
        op = {};
        if (!kExperts) return;
        op.num_experts = s.experts, op.num_chosen = s.chosen;
        op.expert_size = s.hidden;
      };
      choosing();
      if (kExperts) {
        op.kind = kStepRoute, op.size = s.size, op.input = kInputState;
        op.norm = n2, op.scale = 1, op.normalizes = s.normalizes;
        op.matrices[0].words = reinterpret_cast<u32*>(upload(l.router));
        add(op);
      }
      choosing();
      op.kind = kStepGated, op.size = s.size;
      op.input = kExperts ? kInputKept : kInputState;
      op.output = kOutputHidden, op.num_matrices = 2, op.norm = n2;
      op.matrices[0] = l.gate.device, op.matrices[1] = l.up.device;
      op.matrices[0].num_rows = op.matrices[1].num_rows = hidden;
      add(op);
      choosing();
      op.kind = kStepLinear, op.size = hidden, op.input = kInputHidden;
      op.output = kOutputState, op.num_matrices = 1, op.scale = 1;
      op.matrices[0] = l.down.device;
      op.matrices[0].num_rows = s.size;
      add(op);
      caches.push_back({l.keys, l.values, s.capacity});
    }
    StepOperation<T> op{};
    op.kind = kStepLinear, op.size = s.size, op.input = kInputState;
    op.output = kOutputLogits, op.num_matrices = 1, op.norm = upload(norm);
    op.matrices[0] = head.device;
    add(op);
    token = room<int>(1), position = room<int>(1);
    a.operations = upload(ops), a.num_operations = ops.size();
    a.caches = upload(caches);
    a.tokens = token, a.positions = position;
    a.num_heads = s.heads, a.num_kv_heads = s.kv_heads;
    a.size = s.size;
    a.hidden_size = kExperts ? s.chosen * s.hidden : s.hidden;
    a.vocabulary_size = s.vocabulary;
    a.logits = room<float>(s.vocabulary);
    a.barrier = room<unsigned long long>(1);
    a.state = room<float>(s.size);
    a.heads = room<float>(q + 2 * kv);
    a.frequencies = f;
    a.answers = room<T>(size_t(s.heads) * (kHead + 8) * blocks);
    a.hidden = room<T>(a.hidden_size);
#ifdef TRACE
    a.trace = room<long long>(size_t(blocks) * ops.size() * 4);
#endif
    CHECK(cudaFuncSetAttribute(step_kernel<MAX_SIZE>,
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               sizeof(typename TheStep<MAX_SIZE>::Shared)));
    printf("shared memory of a block: %zu bytes\n",
           sizeof(typename TheStep<MAX_SIZE>::Shared));
    CHECK(cudaDeviceSynchronize());
  }

  void set(int t, int p) {
    CHECK(cudaMemcpy(token, &t, 4, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(position, &p, 4, cudaMemcpyHostToDevice));
  }
  void launch() {
    step_kernel<MAX_SIZE>
        <<<blocks, kBlockThreads, sizeof(typename TheStep<MAX_SIZE>::Shared)>>>(
            a);
  }

  // Experts with their weights; 0 alone where there are none.
  std::vector<std::pair<int, double>> choice(const Layer& l,
                                             const std::vector<double>& x) {
    if (!kExperts) return {{0, 1.0}};
    std::vector<std::pair<double, int>> logits;
    for (int e = 0; e < s.experts; ++e) {
      double y = 0;
      for (int i = 0; i < s.size; ++i) y += x[i] * l.router[e * s.size + i];
      logits.push_back({-y, e});
    }
    last_logits.clear();
    for (const auto& [y, e] : logits) last_logits.push_back(-y);
    std::sort(logits.begin(), logits.end());
    closest =
        std::min(closest, logits[s.chosen].first - logits[s.chosen - 1].first);
    double total = 0;
    for (int i = 0; i < (s.normalizes ? s.chosen : s.experts); ++i)
      total += std::exp(-logits[i].first);
    std::vector<std::pair<int, double>> result;
    for (int i = 0; i < s.chosen; ++i)
      result.push_back({logits[i].second, std::exp(-logits[i].first) / total});
    return result;
  }

  std::vector<double> reference(int t, int p) {
    closest = 1e9;
    std::vector<double> x(s.size);
    for (int c = 0; c < s.size; ++c)
      x[c] = number(rounded(at(embedding, t, c)));
    const int kv = s.kv_heads * kHead;
    for (auto& l : layers) {
      auto n = normed(x, l.n1);
      auto q = product(l.q, n), k = product(l.k, n), v = product(l.v, n);
      auto rope = [&](std::vector<double>& y) {
        for (size_t h = 0; h < y.size(); h += kHead)
          for (int i = 0; i < kHead / 2; ++i) {
            const double w = p * double(frequencies[i]);
            const double a = y[h + i], b = y[h + i + kHead / 2];
            y[h + i] = a * cos(w) - b * sin(w);
            y[h + i + kHead / 2] = a * sin(w) + b * cos(w);
          }
      };
      last_heads = q;
      last_heads.insert(last_heads.end(), k.begin(), k.end());
      last_heads.insert(last_heads.end(), v.begin(), v.end());
      rope(q), rope(k);
      std::vector<T> keys(size_t(kv) * s.capacity), vals(keys.size());
      CHECK(cudaMemcpy(
          keys.data(), l.keys, keys.size() * 2, cudaMemcpyDeviceToHost));
      CHECK(cudaMemcpy(
          vals.data(), l.values, keys.size() * 2, cudaMemcpyDeviceToHost));
      std::vector<double> out(q.size());
      for (int h = 0; h < s.heads; ++h) {
        const int g = h / (s.heads / s.kv_heads);
        auto key = [&](int j, int d) {
          return j == p
                     ? k[g * kHead + d]
                     : number(keys[(size_t(g) * s.capacity + j) * kHead + d]);
        };
        std::vector<double> w(p + 1);
        double most = -1e300, total = 0;
        for (int j = 0; j <= p; ++j) {
          for (int d = 0; d < kHead; ++d) w[j] += q[h * kHead + d] * key(j, d);
          w[j] /= std::sqrt(double(kHead)), most = std::max(most, w[j]);
        }
        for (double& e : w) e = std::exp(e - most), total += e;
        for (int j = 0; j <= p; ++j)
          for (int d = 0; d < kHead; ++d)
            out[h * kHead + d] +=
                w[j] / total *
                (j == p
                     ? v[g * kHead + d]
                     : number(vals[(size_t(g) * s.capacity + j) * kHead + d]));
      }
      auto y = product(l.o, out);
      for (int i = 0; i < s.size; ++i) x[i] += y[i];
      n = normed(x, l.n2);
      last_hidden.clear();
      for (const auto& [expert, weight] : choice(l, n)) {
        const size_t first = size_t(expert) * s.hidden;
        auto g = product(l.gate, n, first, s.hidden);
        const auto u = product(l.up, n, first, s.hidden);
        for (size_t i = 0; i < g.size(); ++i)
          g[i] = g[i] / (1 + exp(-g[i])) * u[i];
        last_hidden.insert(last_hidden.end(), g.begin(), g.end());
        y = product(l.down, g, size_t(expert) * s.size, s.size);
        for (int i = 0; i < s.size; ++i) x[i] += weight * y[i];
      }
    }
    last_state = x;
    return product(head, normed(x, norm));
  }

  // The largest error in parts of the mean size.
  template <class X>
  double error_of(const char* name,
                  const X* device,
                  const std::vector<double>& want,
                  bool always) {
    std::vector<X> got(want.size());
    CHECK(cudaMemcpy(
        got.data(), device, got.size() * sizeof(X), cudaMemcpyDeviceToHost));
    double worst = 0, square = 0;
    for (double w : want) square += w * w;
    const double rms = std::sqrt(square / want.size());
    size_t first = want.size();
    auto value = [&](size_t i) {
      if constexpr (std::is_same_v<X, float>)
        return double(got[i]);
      else
        return double(number(got[i]));
    };
    for (size_t i = 0; i < want.size(); ++i) {
      const double error = std::fabs(value(i) - want[i]) / rms;
      if (!(error <= worst)) worst = error;
      if (!(error < 0.03)) first = std::min(first, i);
    }
    const bool wrong = first < want.size();
    if (always || wrong) {
      printf("  %-7s largest error %.4f of rms %.3f", name, worst, rms);
      if (wrong) {
        printf(" WRONG from %zu: %g, not %g", first, value(first), want[first]);
      }
      printf("\n");
    }
    return worst;
  }

  void check(int t, int p) {
    set(t, p);
    const auto want = reference(t, p);
    CHECK(cudaMemset(a.logits, 0, s.vocabulary * 4));
    launch();
    CHECK(cudaDeviceSynchronize());
    printf("position %d\n", p);
    if (error_of("logits", a.logits, want, true) < 0.03) return;
    // Of the last layer, as they are still there.
    if (kExperts) {
      printf("  closest logits %.5f\n", closest);
      error_of("router", a.heads, last_logits, true);
    } else {
      error_of("heads", a.heads, last_heads, true);
    }
    error_of("hidden", a.hidden, last_hidden, true);
    error_of("state", a.state, last_state, true);
  }

  void time(int p) {
    set(1, p);
    cudaEvent_t b, e;
    cudaEventCreate(&b), cudaEventCreate(&e);
    for (int i = 0; i < 3; ++i) launch();
    std::vector<float> times;
    for (int i = 0; i < 9; ++i) {
      cudaEventRecord(b);
      for (int j = 0; j < 10; ++j) launch();
      cudaEventRecord(e);
      CHECK(cudaDeviceSynchronize());
      float ms;
      cudaEventElapsedTime(&ms, b, e);
      times.push_back(ms / 10);
    }
    std::sort(times.begin(), times.end());
    printf("position %5d: %.3f ms (%.3f to %.3f), %.0f tokens/s\n",
           p,
           times[4],
           times.front(),
           times.back(),
           1000 / times[4]);
#ifdef TRACE
    if (p == 512) report();
#endif
  }
#ifdef TRACE
  // Per operation of a layer, over blocks and layers: mean time to take the
  // input, to compute, and to wait; and the time of the whole.
  void report() {
    const int n = a.num_operations;
    std::vector<long long> t(size_t(blocks) * n * 4);
    CHECK(cudaMemcpy(t.data(), a.trace, t.size() * 8, cudaMemcpyDeviceToHost));
    std::vector<const char*> names{"qkv", "attention", "o", "gate-up", "down"};
    if (kExperts) names.insert(names.begin() + 3, "router");
    const int each = names.size();
    names.push_back("head");
    for (int k = 0; k <= each; ++k) {
      double take = 0, run = 0, wait = 0, least_wait = 0, whole = 0;
      int count = 0;
      for (int i = k < each ? 1 + k : n - 1; i < n; i += each) {
        if (k < each && i == n - 1) break;
        double least = 1e18;
        long long first = 1ll << 62, last = 0;
        for (int b = 0; b < blocks; ++b) {
          const long long* x = &t[(size_t(b) * n + i) * 4];
          const double middle = (k == 1 ? x[0] : x[1]) - double(x[0]);
          take += middle / blocks;
          run += (x[2] - x[0] - middle) / blocks;
          wait += (x[3] - x[2]) / double(blocks);
          least = std::min<double>(least, x[3] - x[2]);
          first = std::min(first, x[0]);
          last = std::max(last, x[3]);
        }
        least_wait += least, whole += last - first;
        ++count;
      }
      printf(
          "  %-10s take %5.2f run %6.2f wait %5.2f (least %5.2f) whole "
          "%6.2f us\n",
          names[k],
          take / count / 1e3,
          run / count / 1e3,
          wait / count / 1e3,
          least_wait / count / 1e3,
          whole / count / 1e3);
    }
  }
#endif
};

template <int MAX_SIZE>
void check(const Shape& shape) {
  Model<MAX_SIZE> small(shape, true);
  for (int p : {0, 1, 15, 16, 130, 700}) small.check(p % 1000 + 3, p);
  for (int i = 0; i < 3; ++i) small.check(5, 300);
}

template <int MAX_SIZE>
void time(const Shape& shape) {
  if (getenv("CHECK_ONLY")) return;
  Model<MAX_SIZE> big(shape, false);
  for (int p : {128, 512, 2048, 8192}) big.time(p);
  CHECK(cudaDeviceSynchronize());
}

int main() {
  if (kExperts) {
    check<3072>({2, 1024, 16, 2, 256, 1000, 1024, 140, 10, true});
    check<3072>({2, 1024, 16, 2, 768, 1000, 1024, 8, 4, false});
    time<6144>({48, 2048, 32, 4, 768, 151936, 8448, 128, 8});
  } else {
    const bool dense = kBits == 16;  // takes all multiples of 64
    check<1600>(
        {2, dense ? 1088 : 1024, 8, 2, dense ? 1600 : 1536, 1000, 1024});
    time<14336>({32, 4096, 32, 8, 14336, 128256, 8448});
  }
}
