#include "data/split.h"

#include <algorithm>
#include <charconv>
#include <numeric>
#include <optional>
#include <string_view>
#include <unordered_map>

#include "core/random.h"
#include "core/text.h"

namespace uqa::data {
namespace {

template <typename T>
T number(std::string_view text, const std::string& whole, const char* what) {
  T value{};
  const auto [end, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  UQA_CHECK(ec == std::errc() && end == text.data() + text.size(), ErrorCode::kConfig, "split = {}: {} '{}' is not a number", whole, what, text);
  return value;
}

/// Interactions [0, end) may train: the most recent max_len + 1 of them.
bool add_train(Splits& out, std::int64_t user, std::int64_t end, std::int64_t max_len) {
  if (end < 2) return false;
  out.train.push_back({.user = user, .begin = std::max<std::int64_t>(0, end - max_len - 1), .end = end});
  return true;
}

/// Interaction `target` >= 1 is asked for, after the most recent max_len before it.
Span target_span(std::int64_t user, std::int64_t target, std::int64_t max_len) {
  return {.user = user, .begin = std::max<std::int64_t>(0, target - max_len), .end = target + 1};
}

void leave_one_out(const Dataset& data, std::int64_t max_len, Splits& out) {
  for (std::int64_t u = 0; u < data.num_users(); ++u) {
    const std::int64_t n = data.length(u);
    if (n < 3) {
      add_train(out, u, n, max_len);
      ++out.users_without_eval;
      continue;
    }
    if (!add_train(out, u, n - 2, max_len)) ++out.users_without_train;
    out.valid.push_back(target_span(u, n - 2, max_len));
    out.test.push_back(target_span(u, n - 1, max_len));
  }
}

void by_ratio(const Dataset& data, const SplitSpec& spec, std::int64_t max_len, Splits& out) {
  const auto n = data.num_users();
  const auto num_train = std::clamp<std::int64_t>(static_cast<std::int64_t>(spec.train_share * static_cast<double>(n) + 0.5), 1, n);
  const std::int64_t num_valid = (n - num_train + 1) / 2;
  const Permutation order(static_cast<std::uint64_t>(n), stream_key(spec.seed, "split"));
  std::vector<std::int64_t> place(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) place[order(static_cast<std::uint64_t>(i))] = i;
  for (std::int64_t u = 0; u < n; ++u) {
    const std::int64_t p = place[static_cast<std::size_t>(u)];
    if (p < num_train) {
      add_train(out, u, data.length(u), max_len);
    } else {
      (p < num_train + num_valid ? out.valid : out.test).push_back(target_span(u, data.length(u) - 1, max_len));
      ++out.users_without_train;
    }
  }
}

void by_time(const Dataset& data, std::int64_t time_s, std::int64_t max_len, Splits& out) {
  UQA_CHECK(data.num_users() == 0 || data.timestamp(0, 0).has_value(), ErrorCode::kData,
            "split = time:{}: the data set has no timestamps; import it with a time column or use another split", time_s);
  for (std::int64_t u = 0; u < data.num_users(); ++u) {
    const std::int64_t n = data.length(u);
    std::int64_t before = 0;  // a user's interactions are sorted by time
    while (before < n && *data.timestamp(u, before) < time_s) ++before;
    if (before == 0) {
      ++out.users_left_out;
      continue;
    }
    if (before == n) {
      add_train(out, u, n, max_len);
      ++out.users_without_eval;
      continue;
    }
    const bool validates = before >= 3;
    if (!add_train(out, u, validates ? before - 1 : before, max_len)) ++out.users_without_train;
    if (validates) out.valid.push_back(target_span(u, before - 1, max_len));
    out.test.push_back(target_span(u, before, max_len));
  }
}

void by_files(const Dataset& data, const std::vector<fs::path>& files, std::int64_t max_len, Splits& out) {
  std::unordered_map<std::string_view, std::int64_t> index;
  for (std::int64_t u = 0; u < data.num_users(); ++u) index.emplace(data.raw_user_id(u), u);
  constexpr std::size_t kNone = 3;
  std::vector<std::size_t> part(static_cast<std::size_t>(data.num_users()), kNone);
  for (std::size_t p = 0; p < files.size(); ++p) {
    const std::string text = read_file(files[p]);
    std::int64_t line_number = 0;
    for (auto& line : split(text, '\n')) {
      ++line_number;
      if (!line.empty() && line.back() == '\r') line.pop_back();
      if (line.empty()) continue;
      const auto at = index.find(line);
      UQA_CHECK(at != index.end(), ErrorCode::kData,
                "{} line {}: user '{}' is not in the data set (users with fewer than 2 interactions are left out of it); remove the line",
                files[p].string(), line_number, line);
      auto& taken = part[static_cast<std::size_t>(at->second)];
      UQA_CHECK(taken == kNone, ErrorCode::kData, "{} line {}: user '{}' was named before in {}; a user belongs to one part",
                files[p].string(), line_number, line, files[taken].string());
      taken = p;
    }
  }
  for (std::int64_t u = 0; u < data.num_users(); ++u) {
    const std::size_t p = part[static_cast<std::size_t>(u)];
    if (p == kNone) {
      ++out.users_left_out;
    } else if (p == 0) {
      add_train(out, u, data.length(u), max_len);
    } else {
      (p == 1 ? out.valid : out.test).push_back(target_span(u, data.length(u) - 1, max_len));
      ++out.users_without_train;
    }
  }
}

}  // namespace

SplitSpec parse_split(const std::string& text) {
  SplitSpec spec;
  const auto colon = text.find(':');
  const std::string kind = text.substr(0, colon);
  const std::string rest = colon == std::string::npos ? "" : text.substr(colon + 1);
  if (kind == "leave_one_out") {
    UQA_CHECK(colon == std::string::npos, ErrorCode::kConfig, "split = {}: leave_one_out takes nothing after it; remove '{}'", text,
              text.substr(colon));
    return spec;
  }
  if (kind == "ratio") {
    spec.kind = SplitKind::kRatio;
    const auto parts = split(rest, ':');
    UQA_CHECK(parts.size() == 1 || parts.size() == 2, ErrorCode::kConfig, "split = {}: must be ratio:SHARE or ratio:SHARE:SEED", text);
    spec.train_share = number<double>(parts[0], text, "the share");
    UQA_CHECK(spec.train_share > 0 && spec.train_share < 1, ErrorCode::kConfig, "split = {}: the share must be between 0 and 1", text);
    if (parts.size() == 2) spec.seed = number<std::uint64_t>(parts[1], text, "the seed");
    return spec;
  }
  if (kind == "time") {
    spec.kind = SplitKind::kTime;
    spec.time_s = number<std::int64_t>(rest, text, "the time in seconds since the epoch");
    return spec;
  }
  if (kind == "files") {
    spec.kind = SplitKind::kFiles;
    const auto parts = split(rest, ',');
    UQA_CHECK((parts.size() == 2 || parts.size() == 3) && std::none_of(parts.begin(), parts.end(), [](const auto& p) { return p.empty(); }),
              ErrorCode::kConfig, "split = {}: must be files:TRAIN,VALID or files:TRAIN,VALID,TEST", text);
    for (const auto& part : parts) spec.files.emplace_back(part);
    return spec;
  }
  UQA_FAIL(ErrorCode::kConfig, "split = {}: unknown kind '{}'{}; use leave_one_out, ratio:SHARE[:SEED], time:SECONDS or files:TRAIN,VALID[,TEST]",
           text, kind, suggestion(kind, {"leave_one_out", "ratio", "time", "files"}));
}

Splits make_splits(const Dataset& data, const SplitSpec& spec, std::int64_t max_len) {
  UQA_CHECK(max_len >= 1, ErrorCode::kConfig, "max_len = {}, must be at least 1", max_len);
  Splits out;
  switch (spec.kind) {
    case SplitKind::kLeaveOneOut: leave_one_out(data, max_len, out); break;
    case SplitKind::kRatio: by_ratio(data, spec, max_len, out); break;
    case SplitKind::kTime: by_time(data, spec.time_s, max_len, out); break;
    case SplitKind::kFiles: by_files(data, spec.files, max_len, out); break;
  }
  UQA_CHECK(!out.train.empty(), ErrorCode::kData, "the split leaves no user to train on ({} users in the data set); choose another split",
            data.num_users());
  return out;
}

void keep_train_fraction(Splits& splits, double fraction, std::uint64_t seed) {
  UQA_CHECK(fraction > 0 && fraction <= 1, ErrorCode::kConfig, "fraction = {}, must be in (0, 1]", fraction);
  if (fraction == 1) return;
  // One order for every fraction: a user is kept when its place in it is below the number that is kept.
  const auto n = static_cast<std::int64_t>(splits.train.size());
  const auto kept = std::clamp<std::int64_t>(static_cast<std::int64_t>(fraction * static_cast<double>(n) + 0.5), std::min<std::int64_t>(1, n), n);
  std::vector<bool> keep(static_cast<std::size_t>(n), false);
  const Permutation order(static_cast<std::uint64_t>(n), stream_key(seed, "train fraction"));
  for (std::int64_t i = 0; i < kept; ++i) keep[order(static_cast<std::uint64_t>(i))] = true;
  std::vector<Span> train;
  for (std::size_t i = 0; i < splits.train.size(); ++i) {
    if (keep[i]) train.push_back(splits.train[i]);
  }
  splits.train = std::move(train);
}

}  // namespace uqa::data
