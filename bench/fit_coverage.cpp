// fit_coverage - how often the 95 % intervals of `uqa study fit` hold the truth, on synthetic studies with known parameters.
//
//   ninja -C build/release fit_coverage && nice -n 10 build/release/tests/unit/fit/fit_coverage studies=200 sizes=12,30,240
//
// A study: runs on a grid of N and D (2.5 decades each), loss = (E + A/N^alpha + B/D^beta) * exp(noise * z), z normal. One JSON line per
// noise and size: the share of studies whose interval holds the truth, per quantity, and how many studies got an interval at all.
#include <cmath>
#include <cstdio>
#include <string>

#include "trainer/fit/coverage.h"
#include "core/error.h"
#include "core/text.h"

int main(int argc, char** argv) {
  try {
    uqa::fit::CoverageOptions options;
    std::vector<std::int64_t> sizes{12, 30, 240};
    std::vector<double> noises{0.003, 0.01};
    for (int i = 1; i < argc; ++i) {
      const auto parts = uqa::split(argv[i], '=');
      UQA_CHECK(parts.size() == 2, uqa::ErrorCode::kConfig, "'{}', must be name=value", argv[i]);
      const auto whole = [&](const std::string& text) {
        const auto value = uqa::parse_int(text);
        UQA_CHECK(value && *value > 0, uqa::ErrorCode::kConfig, "{} = {}, must be a whole number above 0", parts[0], text);
        return *value;
      };
      if (parts[0] == "studies") {
        options.num_studies = whole(parts[1]);
      } else if (parts[0] == "resamples") {
        options.bootstrap.num_resamples = whole(parts[1]);
      } else if (parts[0] == "seed") {
        options.seed = static_cast<std::uint64_t>(whole(parts[1]));
      } else if (parts[0] == "sizes") {
        sizes.clear();
        for (const auto& text : uqa::split(parts[1], ',')) sizes.push_back(whole(text));
      } else if (parts[0] == "noise") {
        noises.clear();
        for (const auto& text : uqa::split(parts[1], ',')) {
          const auto value = uqa::parse_double(text);
          UQA_CHECK(value && *value > 0, uqa::ErrorCode::kConfig, "noise = {}, must be a number above 0", text);
          noises.push_back(*value);
        }
      } else {
        UQA_FAIL(uqa::ErrorCode::kConfig, "unknown '{}'{}", parts[0], uqa::suggestion(parts[0], {"studies", "sizes", "noise", "resamples", "seed"}));
      }
    }
    for (const double noise : noises) {
      for (const auto size : sizes) {
        options.num_runs = size;
        options.noise = noise;
        std::printf("%s\n", uqa::fit::measure_coverage(options).dump().c_str());
        std::fflush(stdout);
      }
    }
    return 0;
  } catch (const uqa::Error& error) {
    std::fprintf(stderr, "fit_coverage: %s\n", error.what());
    return static_cast<int>(error.code());
  }
}
