// tests/unit/data/questions_synthetic.h - skewed interaction logs in memory, for the question tests.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "core/random.h"
#include "data/questions/builder.h"

namespace uqa::data {

/// Zipf items with titles (some shared, one missing), a multi-valued "genre" and a single-valued "release_year"; users
/// like some genres more than others. Item popularity falls off so steeply that naive questions are easy to guess.
inline HistoryView synthetic_view(std::int64_t num_users = 240, std::int64_t num_items = 300, std::uint64_t seed = 7) {
  PhiloxStream random(stream_key(seed, "tests/synthetic"));
  HistoryView view;
  view.digest = "synthetic";
  ItemCatalog::Attribute genre{"genre", {}, {0}, {}}, year{"release_year", {}, {0}, {}};
  for (const char* g :
       {"Drama", "Comedy", "Action", "Thriller", "Romance", "Horror", "Sci-Fi", "War", "Musical", "Western"}) {
    genre.vocabulary.emplace_back(g);
  }
  for (int y = 1970; y < 2000; ++y) year.vocabulary.push_back(std::to_string(y));
  const auto skewed = [&](std::size_t n) {  // index 0 is the most likely
    return static_cast<std::int32_t>(std::pow(random.uniform_double(), 2.5) * static_cast<double>(n));
  };
  for (std::int64_t i = 0; i < num_items; ++i) {
    view.catalog.titles.push_back(i == 17 ? "" : "Film " + std::to_string(i % 97 == 0 ? 0 : i));
    std::vector<std::int32_t> genres{skewed(10)};
    while (genres.size() < 3 && random.below(2) == 0) {
      const std::int32_t g = skewed(10);
      if (g != genres.front() && g != genres.back()) genres.push_back(g);
    }
    if (i != 23) genre.values.insert(genre.values.end(), genres.begin(), genres.end());
    genre.offsets.push_back(static_cast<std::int64_t>(genre.values.size()));
    year.values.push_back(29 - skewed(30));
    year.offsets.push_back(static_cast<std::int64_t>(year.values.size()));
  }
  view.catalog.attributes = {genre, year};
  for (std::int64_t u = 0; u < num_users; ++u) {
    std::vector<std::int32_t> history;
    const std::int64_t length = u == 0 ? 3 : 12 + static_cast<std::int64_t>(random.below(120));
    const std::int32_t liked = skewed(10);
    while (std::ssize(history) < length) {
      const std::int32_t item = skewed(static_cast<std::size_t>(num_items));
      const auto genres = genre.of(item);
      const bool likes = std::find(genres.begin(), genres.end(), liked) != genres.end();
      if (likes || random.below(3) == 0) history.push_back(item);
    }
    view.add_user(history);
  }
  return view;
}

inline QuestionBuildOptions small_build(Language language) {
  QuestionBuildOptions options;
  options.language = language;
  options.per_type_train = 400;
  options.per_type_test = 120;
  options.max_len = 60;
  options.seed = 11;
  return options;
}

}  // namespace uqa::data
