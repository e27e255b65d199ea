#include "trainer/prompt_tree.h"

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "core/error.h"

namespace uqa::trainer {
namespace {

constexpr std::int64_t kTreeRows = 768;  // a tree that has more takes no further prompt

Tensor int_tensor(const std::vector<std::int64_t>& values) { return at::tensor(values, at::kLong); }

/// One row of the trees: a token after the row `parent`.
struct Node {
  std::int64_t token = 0, position = 0, parent = -1;
  std::vector<std::int64_t> children;
};

/// Prefix trees over token sequences; nodes are numbered in the order in which they were made.
class Forest {
 public:
  explicit Forest(const std::vector<ScoredPrompt>& prompts) {
    for (const auto& prompt : prompts) add(prompt);
    const auto with_soft = std::count_if(prompts.begin(), prompts.end(), [](const auto& p) { return p.prompt->soft_index >= 0; });
    UQA_CHECK(with_soft == 0 || with_soft == static_cast<std::ptrdiff_t>(prompts.size()), ErrorCode::kInternal, "pack_prompts: {} of {} prompts have a soft row",
              with_soft, prompts.size());
  }

  /// The scored token `token` is predicted by the node `node`.
  struct Pair {
    std::int64_t node, token, continuation;
  };
  std::vector<Node> nodes;
  std::vector<std::int64_t> roots, soft_nodes, prompt_nodes;
  std::vector<Pair> pairs;
  std::vector<float> continuation_tokens;

 private:
  struct Root {
    std::int64_t node = -1, rows = 0;
  };

  std::int64_t make(std::int64_t token, std::int64_t parent) {
    const auto node = static_cast<std::int64_t>(nodes.size());
    nodes.push_back({.token = token, .position = parent < 0 ? 0 : nodes[static_cast<std::size_t>(parent)].position + 1, .parent = parent, .children = {}});
    if (parent >= 0) nodes[static_cast<std::size_t>(parent)].children.push_back(node);
    return node;
  }

  std::int64_t child(std::int64_t parent, std::int64_t token) {
    const auto [found, is_new] = children_.try_emplace({parent, token}, 0);
    if (is_new) found->second = make(token, parent);
    return found->second;
  }

  void add(const ScoredPrompt& scored) {
    const auto& question = *scored.prompt;
    UQA_CHECK(!question.prompt.empty(), ErrorCode::kInternal, "pack_prompts: empty prompt");
    const auto before = static_cast<std::int64_t>(nodes.size());
    auto shared = shared_tokens(question);
    Root own;
    Root& root = shared.empty() ? own : shared_roots_[std::move(shared)];
    if (root.rows > kTreeRows) root = {};
    std::int64_t node = -1;
    for (std::size_t i = 0; i < question.prompt.size(); ++i) {
      const auto place = static_cast<std::int64_t>(i) - question.soft_index;
      const bool soft = question.soft_index >= 0 && place >= 0 && place < question.num_soft;
      if (i == 0) {
        if (root.node < 0) roots.push_back(root.node = make(question.prompt[0], -1));
        node = root.node;
      } else {
        node = soft ? make(question.prompt[i], node) : child(node, question.prompt[i]);
      }
      if (soft) soft_nodes.push_back(node);
    }
    prompt_nodes.push_back(node);
    for (const auto& continuation : scored.continuations) add_continuation(node, continuation);
    root.rows += static_cast<std::int64_t>(nodes.size()) - before;
  }

  void add_continuation(std::int64_t node, std::span<const std::int64_t> tokens) {
    UQA_CHECK(!tokens.empty(), ErrorCode::kInternal, "pack_prompts: empty continuation");
    const auto index = static_cast<std::int64_t>(continuation_tokens.size());
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      pairs.push_back({.node = node, .token = tokens[i], .continuation = index});
      if (i + 1 < tokens.size()) node = child(node, tokens[i]);
    }
    continuation_tokens.push_back(static_cast<float>(tokens.size()));
  }

  struct Hash {
    std::size_t operator()(const std::pair<std::int64_t, std::int64_t>& key) const {
      return std::hash<std::uint64_t>()(static_cast<std::uint64_t>(key.first) * 0x9E3779B97F4A7C15ULL + static_cast<std::uint64_t>(key.second));
    }
  };
  std::unordered_map<std::pair<std::int64_t, std::int64_t>, std::int64_t, Hash> children_;
  std::map<std::vector<std::int64_t>, Root> shared_roots_;
};

/// Rows in depth-first order, cut into blocks where a row has several children.
struct Rows {
  explicit Rows(const Forest& forest) : row_of(forest.nodes.size(), -1) {
    std::vector<std::pair<std::int64_t, std::int64_t>> stack;  // node, parent block
    for (auto root = forest.roots.rbegin(); root != forest.roots.rend(); ++root) stack.emplace_back(*root, -1);
    while (!stack.empty()) {
      auto [node, parent] = stack.back();
      stack.pop_back();
      const auto block = static_cast<std::int64_t>(blocks.size());
      blocks.push_back({.begin = static_cast<std::int64_t>(order.size()), .end = 0, .parent = parent});
      for (;;) {
        row_of[static_cast<std::size_t>(node)] = static_cast<std::int64_t>(order.size());
        order.push_back(node);
        const auto& children = forest.nodes[static_cast<std::size_t>(node)].children;
        if (children.size() != 1) {
          for (auto c = children.rbegin(); c != children.rend(); ++c) stack.emplace_back(*c, block);
          break;
        }
        node = children.front();
      }
      blocks.back().end = static_cast<std::int64_t>(order.size());
    }
  }
  std::vector<std::int64_t> order, row_of;  ///< node of each row, row of each node
  std::vector<models::AttentionBlock> blocks;
};

}  // namespace

std::vector<std::int64_t> shared_tokens(const EncodedQuestion& question) {
  if (question.soft_index < 0) return question.prompt;
  const auto before = static_cast<std::size_t>(question.soft_index);
  if (2 * before < question.prompt.size()) return {};
  return {question.prompt.begin(), question.prompt.begin() + question.soft_index};
}

std::int64_t num_rows(const std::vector<ScoredPrompt>& prompts) { return static_cast<std::int64_t>(Forest(prompts).nodes.size()); }

PackedPrompts pack_prompts(const std::vector<ScoredPrompt>& prompts) {
  const Forest forest(prompts);
  Rows rows(forest);
  std::vector<std::int64_t> ids, positions, soft_rows, head_rows, prompt_heads, pair_rows, pair_tokens, pair_continuations;
  for (const auto node : rows.order) {
    ids.push_back(forest.nodes[static_cast<std::size_t>(node)].token);
    positions.push_back(forest.nodes[static_cast<std::size_t>(node)].position);
  }
  std::vector<std::int64_t> head_of(forest.nodes.size(), -1);
  const auto head = [&](std::int64_t node) {
    auto& index = head_of[static_cast<std::size_t>(node)];
    if (index < 0) {
      index = static_cast<std::int64_t>(head_rows.size());
      head_rows.push_back(rows.row_of[static_cast<std::size_t>(node)]);
    }
    return index;
  };
  for (const auto node : forest.soft_nodes) soft_rows.push_back(rows.row_of[static_cast<std::size_t>(node)]);
  for (const auto node : forest.prompt_nodes) prompt_heads.push_back(head(node));
  for (const auto& pair : forest.pairs) {
    pair_rows.push_back(head(pair.node));
    pair_tokens.push_back(pair.token);
    pair_continuations.push_back(pair.continuation);
  }
  return {.num_prompts = static_cast<std::int64_t>(prompts.size()),
          .num_continuations = static_cast<std::int64_t>(forest.continuation_tokens.size()),
          .ids_T = int_tensor(ids),
          .positions_T = int_tensor(positions),
          .blocks = std::move(rows.blocks),
          .soft_rows_S = int_tensor(soft_rows),
          .head_rows_R = int_tensor(head_rows),
          .prompt_heads_B = int_tensor(prompt_heads),
          .pair_rows_N = int_tensor(pair_rows),
          .pair_tokens_N = int_tensor(pair_tokens),
          .pair_continuations_N = int_tensor(pair_continuations),
          .continuation_tokens_C = at::tensor(forest.continuation_tokens, at::kFloat)};
}

}  // namespace uqa::trainer
