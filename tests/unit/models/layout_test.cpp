#include "models/parallel/layout.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "models/init.h"

namespace uqa::models {
namespace {

TEST(Layout, EvenRangesCoverWithoutOverlapAndKnowTheirOwner) {
  for (const std::int64_t size : {1, 2, 5, 7, 64, 1000}) {
    for (const int ranks : {1, 2, 3, 4, 7, 64}) {
      std::int64_t next = 0;
      for (int r = 0; r < ranks; ++r) {
        const auto range = even_range(size, r, ranks);
        EXPECT_EQ(range.begin, next);
        EXPECT_LE(std::abs(range.length - size / ranks), 1);
        next += range.length;
        for (auto p = range.begin; p < range.begin + range.length; ++p) EXPECT_EQ(even_owner(size, p, ranks), r) << size << " over " << ranks;
      }
      EXPECT_EQ(next, size);
    }
  }
}

Tensor slice_of(const Tensor& whole, const ParameterLayout& layout) {
  std::vector<Tensor> pieces;
  for (const auto& range : layout.ranges) pieces.push_back(whole.narrow(layout.dim, range.begin, range.length));
  return at::cat(pieces, layout.dim).contiguous();
}

TEST(Layout, InitialWeightsOfASliceAreThoseOfTheWholeThere) {
  auto stacked = sliced(ShardAxis::kTp, {12, 7}, 0, {1, 2});
  stacked.ranges = {{.begin = 1, .length = 2}, {.begin = 5, .length = 2}, {.begin = 9, .length = 2}};
  const std::vector<ParameterLayout> layouts{sliced(ShardAxis::kTable, {12, 7}, 0, {5, 4}), sliced(ShardAxis::kTp, {12, 7}, 1, {2, 3}),
                                             sliced(ShardAxis::kTable, {12, 7}, 0, {12, 0}), stacked};
  const auto whole = at::empty({12, 7}), bias = at::empty({12});
  for (const auto& layout : layouts) {
    const auto part = at::empty_like(slice_of(whole, layout));
    const auto check = [&](const auto& init) {
      whole.fill_(-9);
      part.fill_(9);
      init(whole, ParameterLayout{});
      init(part, layout);
      EXPECT_TRUE(at::equal(part, slice_of(whole, layout))) << whole << part;
    };
    check([](const Tensor& x, const ParameterLayout& l) { init_normal_(x, 3, "w", 0.1, l); });
    check([](const Tensor& x, const ParameterLayout& l) { init_truncated_normal_(x, 3, "w", 0.1, l); });
    check([](const Tensor& x, const ParameterLayout& l) { init_uniform_(x, 3, "w", 0.1, l); });
    check([](const Tensor& x, const ParameterLayout& l) { init_xavier_uniform_(x, 3, "w", l); });
    check([](const Tensor& x, const ParameterLayout& l) { init_linear_default_(x, {}, 3, "layer", l); });
  }
  init_linear_default_(whole, bias, 3, "layer");
  const auto layout = sliced(ShardAxis::kTp, {12}, 0, {4, 5});
  const auto bias_part = at::empty({5}), weight_part = at::empty({5, 7});
  init_linear_default_(weight_part, bias_part, 3, "layer", sliced(ShardAxis::kTp, {12, 7}, 0, {4, 5}), layout);
  EXPECT_TRUE(at::equal(bias_part, slice_of(bias, layout)));
}

struct Cut : torch::nn::Module, HasLayouts {
  Cut() { register_parameter("weight", at::zeros({2, 3})); }
  [[nodiscard]] std::map<std::string, ParameterLayout> own_layouts() const override { return {{"weight", sliced(ShardAxis::kTp, {4, 3}, 0, {0, 2})}}; }
};
struct Outer : torch::nn::Module {
  Outer() {
    register_module("first", std::make_shared<Cut>());
    register_parameter("bias", at::zeros({1}));
  }
};

TEST(Layout, IsCollectedFromModulesByFullName) {
  const auto outer = std::make_shared<Outer>();
  const auto layouts = layouts_of(*outer);
  ASSERT_EQ(layouts.size(), 1U);
  EXPECT_EQ(layouts.begin()->first, "first.weight");
  EXPECT_EQ(layouts.begin()->second.global_shape, (std::vector<std::int64_t>{4, 3}));
  EXPECT_EQ(layouts_of(Cut()).begin()->first, "weight");
}

TEST(Layout, ThatDoesNotFitIsRefused) {
  const auto x = at::zeros({2, 3});
  EXPECT_NO_THROW(check_layout("w", x, sliced(ShardAxis::kTp, {4, 3}, 0, {2, 2})));
  EXPECT_THROW(check_layout("w", x, sliced(ShardAxis::kTp, {4, 3}, 0, {3, 2})), Error);
  EXPECT_THROW(check_layout("w", x, sliced(ShardAxis::kTp, {4, 3}, 0, {0, 3})), Error);
  EXPECT_THROW(check_layout("w", x, sliced(ShardAxis::kTp, {4, 4}, 0, {0, 2})), Error);
  EXPECT_THROW(check_layout("w", x, sliced(ShardAxis::kTp, {2, 3, 1}, 0, {0, 2})), Error);
  EXPECT_THROW(check_layout("w", x, sliced(ShardAxis::kTp, {2, 3, 1}, 2, {0, 1})), Error);
}

}  // namespace
}  // namespace uqa::models
