#include "nn/rope.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include <mlx/mlx.h>

#include <mlxlm/error.h>

namespace mlxlm::nn {
namespace {

mx::array constant(double value) {
  return mx::array(static_cast<float>(value));
}

// base^(0 / d), base^(2 / d), ... for `count` pairs of dimensions: the inverse
// frequencies, [count].
mx::array wavelengths(double base, int dimensions, int count) {
  auto exponents = mx::divide(mx::arange(0, 2 * count, 2, mx::float32),
                              constant(dimensions));
  return mx::power(constant(base), exponents);
}

mx::array wavelengths(const RopeOptions& options) {
  return wavelengths(options.base, options.dimensions, options.dimensions / 2);
}

kernels::Rope plain(const RopeOptions& options) {
  return {.dimensions = options.dimensions,
          .traditional = options.traditional,
          .base = static_cast<float>(options.base)};
}

Rope with_freqs(const RopeOptions& options,
                mx::array freqs,
                double input_scale = 1) {
  auto rope = plain(options);
  mx::eval(freqs);
  rope.freqs = std::move(freqs);
  rope.input_scale = static_cast<float>(input_scale);
  return Rope(std::move(rope));
}

Rope llama3(const RopeOptions& options, const ConfigReader& scaling) {
  const double factor = scaling.require_float("factor");
  const double low = scaling.get_float("low_freq_factor", 1.0);
  const double high = scaling.get_float("high_freq_factor", 4.0);
  const double old_context =
      scaling.get_float("original_max_position_embeddings", 8192);
  if (factor == 0) scaling.fail("factor", "a number other than 0");
  if (low == 0) scaling.fail("low_freq_factor", "a number other than 0");
  if (high == 0) scaling.fail("high_freq_factor", "a number other than 0");

  auto freqs = wavelengths(options);
  auto lengths = mx::multiply(constant(2 * std::numbers::pi), freqs);
  auto longest = constant(old_context / low);
  auto shortest = constant(old_context / high);
  auto scaled = mx::where(mx::greater(lengths, longest),
                          mx::multiply(freqs, constant(factor)),
                          freqs);
  if (high == low) return with_freqs(options, scaled);
  auto smooth = mx::divide(
      mx::subtract(mx::divide(constant(old_context), lengths), constant(low)),
      constant(high - low));
  auto blend = mx::add(
      mx::divide(mx::subtract(constant(1), smooth), constant(factor)), smooth);
  auto medium = mx::logical_and(mx::greater(lengths, shortest),
                                mx::less(lengths, longest));
  return with_freqs(options,
                    mx::where(medium, mx::divide(scaled, blend), scaled));
}

double yarn_mscale(double scale, double mscale) {
  return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0;
}

Rope yarn(const RopeOptions& options, const ConfigReader& scaling) {
  const double factor = scaling.require_float("factor");
  const double old_context =
      scaling.get_float("original_max_position_embeddings", 4096);
  if (options.base <= 1) scaling.fail("factor", "used with rope_theta over 1");
  if (old_context <= 0) {
    scaling.fail("original_max_position_embeddings", "a positive number");
  }
  const int dims = options.dimensions;
  auto correction_dim = [&](const char* key, double fallback) {
    const double rotations = scaling.get_float(key, fallback);
    if (rotations <= 0) scaling.fail(key, "a positive number");
    return dims * std::log(old_context / (rotations * 2 * std::numbers::pi)) /
           (2 * std::log(options.base));
  };
  const bool whole = scaling.get_bool("truncate", true);
  double low = correction_dim("beta_fast", 32);
  double high = correction_dim("beta_slow", 1);
  low = std::max(whole ? std::floor(low) : low, 0.0);
  high = std::min(whole ? std::ceil(high) : high, dims - 1.0);
  if (high == low) high += 0.001;

  const double mscale =
      yarn_mscale(factor, scaling.get_float("mscale", 1)) /
      yarn_mscale(factor, scaling.get_float("mscale_all_dim", 0));
  auto extra = wavelengths(options);
  auto inter = mx::multiply(constant(factor), extra);
  auto ramp = mx::divide(
      mx::subtract(mx::arange(0, dims / 2, 1, mx::float32), constant(low)),
      constant(high - low));
  ramp = mx::clip(ramp, constant(0), constant(1));
  auto keep = mx::subtract(constant(1), ramp);
  auto freqs =
      mx::divide(mx::multiply(inter, extra),
                 mx::add(mx::multiply(inter, keep),
                         mx::multiply(extra, mx::subtract(constant(1), keep))));
  return with_freqs(options, freqs, mscale);
}

Rope proportional(const RopeOptions& options, const ConfigReader& scaling) {
  const int dims = options.dimensions;
  const double share = scaling.get_float("partial_rotary_factor", 1.0);
  const double factor = scaling.get_float("factor", 1.0);
  if (share < 0 || share > 1) {
    scaling.fail("partial_rotary_factor", "a number from 0 to 1");
  }
  const int rotated = static_cast<int>(dims * share);
  const int pairs = (rotated + 1) / 2;
  auto freqs =
      mx::multiply(constant(factor), wavelengths(options.base, dims, pairs));
  auto still = mx::full({(dims - rotated) / 2},
                        std::numeric_limits<float>::infinity(),
                        mx::float32);
  return with_freqs(options, mx::concatenate({freqs, still}, 0));
}

Rope mrope(const RopeOptions& options, const ConfigReader& scaling) {
  // Text alone has the same position in all three sections.
  auto sections = scaling.find_ints("mrope_section");
  if (!sections || sections->size() != 3) {
    scaling.fail("mrope_section", "a list of 3 integers");
  }
  return Rope(plain(options));
}

}  // namespace

kernels::Rope Rope::at(int num_tokens, int offset) const {
  auto rope = rope_;
  if (dynamic_factor_ != 0) {
    const double length = std::max(num_tokens + offset, max_positions_);
    const double stretch =
        dynamic_factor_ * length / max_positions_ - (dynamic_factor_ - 1);
    const double dims = rope.dimensions;
    rope.base =
        static_cast<float>(rope_.base * std::pow(stretch, dims / (dims - 2)));
  }
  return rope;
}

Rope Rope::dynamic(const RopeOptions& options, double factor) {
  Rope rope(plain(options));
  rope.dynamic_factor_ = factor;
  rope.max_positions_ = *options.max_positions;
  return rope;
}

Rope Rope::long_rope(const LongRopeOptions& options) {
  RopeOptions plain_options{.dimensions = options.dimensions,
                            .base = options.base};
  std::vector<float> factors(options.long_factors.begin(),
                             options.long_factors.end());
  auto freqs = mx::multiply(
      mx::array(factors.data(), {static_cast<int>(factors.size())}),
      wavelengths(plain_options));
  const double factor =
      double(options.max_positions) / options.original_max_positions;
  const double scale =
      factor <= 1 ? 1.0
                  : std::sqrt(1 + std::log(factor) /
                                      std::log(options.original_max_positions));
  return with_freqs(plain_options, freqs, options.input_scale.value_or(scale));
}

Rope Rope::reversed() const {
  auto back = rope_;
  const auto waves =
      back.freqs ? *back.freqs
                 : wavelengths(back.base, back.dimensions, back.dimensions / 2);
  back.freqs = mx::negative(waves);
  mx::eval(*back.freqs);
  back.input_scale = 1 / back.input_scale;
  return Rope(std::move(back));
}

std::string rope_type(const ConfigReader& scaling) {
  auto type = scaling.get_string("type", "");
  return type.empty() ? scaling.get_string("rope_type", "default") : type;
}

std::vector<double> read_long_factors(const ConfigReader& scaling,
                                      int dimensions) {
  const std::string wanted =
      "a number or a list of " + std::to_string(dimensions / 2) + " numbers";
  const auto* value = scaling.find("long_factor");
  if (value == nullptr) scaling.fail("long_factor", wanted);
  if (value->is_number()) return {value->get<double>()};
  auto factors = *scaling.find_floats("long_factor");
  if (factors.size() != 1 &&
      factors.size() != static_cast<std::size_t>(dimensions / 2)) {
    scaling.fail("long_factor", wanted);
  }
  return factors;
}

Rope make_rope(const RopeOptions& options,
               const std::optional<ConfigReader>& scaling) {
  const auto type = scaling ? rope_type(*scaling) : "default";
  if (type == "default") return Rope(plain(options));
  if (type == "linear") {
    const double factor = scaling->require_float("factor");
    if (factor == 0) scaling->fail("factor", "a number other than 0");
    auto rope = plain(options);
    rope.scale = static_cast<float>(1 / factor);
    return Rope(std::move(rope));
  }
  if (type == "dynamic") {
    const double factor = scaling->require_float("factor");
    if (!options.max_positions || *options.max_positions < 1) {
      throw Error(ErrorKind::config,
                  "config.json: rope_scaling of type dynamic needs "
                  "max_position_embeddings");
    }
    return Rope::dynamic(options, factor);
  }
  if (type == "llama3") return llama3(options, *scaling);
  if (type == "yarn" || type == "deepseek_yarn" || type == "telechat3-yarn") {
    return yarn(options, *scaling);
  }
  if (type == "longrope" || type == "su") {
    const int original =
        scaling->require_int("original_max_position_embeddings", 2);
    return Rope::long_rope(
        {.dimensions = options.dimensions,
         .base = options.base,
         .max_positions = options.max_positions.value_or(original),
         .original_max_positions = original,
         .long_factors = read_long_factors(*scaling, options.dimensions)});
  }
  if (type == "proportional") return proportional(options, *scaling);
  if (type == "mrope") return mrope(options, *scaling);
  throw Error(ErrorKind::unsupported,
              "config.json: rope scaling \"" + type +
                  "\" is not known; known are default, linear, dynamic, "
                  "llama3, yarn, longrope, proportional, mrope");
}

}  // namespace mlxlm::nn
