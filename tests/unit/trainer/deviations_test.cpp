// The ledger docs/deviations.md against the ids that runs print.

#include <algorithm>
#include <regex>
#include <set>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "align_fixture.h"
#include "one_rank.h"
#include "tests/support/expect_error.h"
#include "tests/support/source_dir.h"
#include "tests/support/temp_dir.h"
#include "tiny_data.h"
#include "trainer/align_parts.h"
#include "trainer/deviations.h"

namespace uqa::trainer {
namespace {

using ::testing::UnorderedElementsAreArray;

using test::one_rank;

std::string trimmed(const std::string& text) {
  const auto begin = text.find_first_not_of(' '), end = text.find_last_not_of(' ');
  return begin == std::string::npos ? "" : text.substr(begin, end - begin + 1);
}

/// Rows of the ledger's tables whose first cell is a number (traps) or an id in backticks.
std::vector<std::vector<std::string>> rows(bool traps) {
  std::vector<std::vector<std::string>> found;
  std::istringstream lines(read_file(tests::source_dir() / "docs" / "deviations.md"));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("| ")) continue;
    std::vector<std::string> cells;
    std::istringstream parts(line.substr(1));
    for (std::string cell; std::getline(parts, cell, '|');) cells.push_back(trimmed(cell));
    const bool number = !cells[0].empty() && std::all_of(cells[0].begin(), cells[0].end(), [](char c) { return c >= '0' && c <= '9'; });
    if (traps ? number : cells[0].starts_with("`")) found.push_back(cells);
  }
  return found;
}

std::string unquoted(const std::string& cell) { return cell.substr(1, cell.size() - 2); }

std::vector<std::string> ids_of(const Deviations& list) {
  std::vector<std::string> ids;
  for (const auto& deviation : list.list()) ids.push_back(deviation.id);
  return ids;
}

/// Ids that the ledger expects of a faithful run of a stage.
std::vector<std::string> expected_of(const std::string& stage) {
  std::vector<std::string> ids;
  for (const auto& row : rows(false)) {
    const bool here = row.at(1) == "both" || row.at(1) == stage;
    if (here && (row.at(3) == "yes" || row.at(3) == (stage == "align" ? "in alignment" : "in pre-training"))) ids.push_back(unquoted(row[0]));
  }
  return ids;
}

TEST(Deviations, TheLedgerHasEveryIdOnceAndNoOther) {
  std::vector<std::string> ledger;
  for (const auto& row : rows(false)) {
    ASSERT_EQ(row.size(), 4u) << row[0];
    ledger.push_back(unquoted(row[0]));
  }
  EXPECT_THAT(ledger, UnorderedElementsAreArray(known_deviations()));
}

TEST(Deviations, TheLedgerDecidesEveryTrapAndNamesWhatExists) {
  const auto traps = rows(true);
  ASSERT_EQ(traps.size(), 32u);
  std::set<std::string> known;
  for (const char* id : known_deviations()) known.insert(id);
  for (std::size_t i = 0; i < traps.size(); ++i) {
    SCOPED_TRACE("trap " + traps[i][0]);
    EXPECT_EQ(traps[i][0], std::to_string(i + 1));
    ASSERT_EQ(traps[i].size(), 5u);
    for (const auto& cell : traps[i]) EXPECT_FALSE(cell.empty());
    // Ids stand behind the word id or ids; files are in the tree.
    const std::string shown = traps[i][4];
    const std::regex list("\\bids? (`[a-z-]+`(, `[a-z-]+`)*)"), quoted("`([^`]+)`"), file("`((unit/|dist/|golden/|trainer/|models/|tests/|recipes/)[^`]*)`");
    for (std::sregex_iterator at(shown.begin(), shown.end(), list), end; at != end; ++at) {
      const std::string ids = (*at)[1];
      for (std::sregex_iterator one(ids.begin(), ids.end(), quoted); one != end; ++one) EXPECT_TRUE(known.contains((*one)[1])) << (*one)[1];
    }
    for (std::sregex_iterator at(shown.begin(), shown.end(), file), end; at != end; ++at) {
      const std::string path = (*at)[1];
      const auto root = tests::source_dir();
      EXPECT_TRUE(fs::exists(root / path) || fs::exists(root / "tests" / path) || fs::exists(root / "tests" / "unit" / path)) << path;
    }
  }
}

TEST(Deviations, AFaithfulRunHasThoseOfTheLedgerAlone) {
  for (const char* encoder : {"sasrec", "hstu", "gru4rec", "mamba2", "trm_plus"}) {
    EXPECT_THAT(ids_of(pretrain_deviations(pretrain_preset("faithful", encoder), 0)), UnorderedElementsAreArray(expected_of("pretrain"))) << encoder;
  }
  EXPECT_THAT(ids_of(align_deviations(align_preset("faithful"), "plain", kReferenceSystem)), UnorderedElementsAreArray(expected_of("align")));
  auto all = align_preset("faithful");
  all.freeze = "";
  EXPECT_THAT(ids_of(align_deviations(all, "plain", kReferenceSystem)), UnorderedElementsAreArray(expected_of("align")));
}

TEST(Deviations, EveryIdIsPrintedByARunThatDiffersSo) {
  std::set<std::string> seen;
  const auto add = [&](const Deviations& list) {
    for (const auto& id : ids_of(list)) seen.insert(id);
  };
  auto pretrain = pretrain_preset("default", "sasrec");
  pretrain.loop.train.dtype = "bf16";
  add(pretrain_deviations(pretrain, 1));
  pretrain = pretrain_preset("default", "hstu");
  pretrain.model.hstu.bias = "position";
  add(pretrain_deviations(pretrain, 0));
  auto align = align_preset("default");
  align.calibrate = true;
  align.prompt_format.place = "user_end";
  add(align_deviations(align, "words", "another"));
  align.adapter.kind = "qformer";
  align.adapter.from = "x";
  align.freeze = "encoder";
  align.lora.rank = 0;
  add(align_deviations(align, "plain", kReferenceSystem));
  align.prompt = "none";
  add(align_deviations(align, "", kReferenceSystem));
  const auto known = known_deviations();
  EXPECT_EQ(seen, std::set<std::string>(known.begin(), known.end()));
}

TEST(Deviations, ASettingThatIsChangedIsNamedWithBothValues) {
  auto pretrain = pretrain_preset("faithful", "sasrec");
  pretrain.model.hidden = 256;
  pretrain.loop.optim.peak_lr = 1e-3;
  const auto list = pretrain_deviations(pretrain, 0);
  ASSERT_TRUE(list.has("settings"));
  const auto text = std::find_if(list.list().begin(), list.list().end(), [](const auto& d) { return d.id == "settings"; })->text;
  EXPECT_THAT(text, ::testing::HasSubstr("hidden 256 (512)"));
  EXPECT_THAT(text, ::testing::HasSubstr("learning rate 0.001 (0.0004)"));
  auto align = align_preset("faithful");
  align.freeze = "";
  align.other_lr = 0;
  const auto aligned = align_deviations(align, "plain", kReferenceSystem);
  ASSERT_TRUE(aligned.has("settings"));
  EXPECT_THAT(aligned.list().back().id, "precision");
  EXPECT_UQA_ERROR(Deviations().add("nothing", ""), ErrorCode::kInternal, "nothing");
}

TEST(Deviations, BothStagesStoreThem) {
  const tests::TempDir dir;
  auto config = test::tiny_config(test::write_tiny_data(dir.path()), "trm_plus");
  config.loop.train.max_steps = 1;
  RunDirectory run(dir.path() / "run", "pretrain", "x", false, true);
  static_cast<void>(run_pretrain(config, one_rank(), run));
  EXPECT_EQ(RunDirectory::read_run_json(dir.path() / "run")["deviations"], pretrain_deviations(config, 0).to_json());

  auto align = test::world_config(test::write_world(dir.path() / "world"));
  align.loop.train.max_steps = 1;
  RunDirectory align_run(dir.path() / "align", "align", "x", false, true);
  static_cast<void>(run_align(align, one_rank(), align_run));
  const auto stored = RunDirectory::read_run_json(dir.path() / "align")["deviations"];
  EXPECT_EQ(stored, align_deviations(align, "whitened", kReferenceSystem).to_json());
  EXPECT_EQ(stored[0]["id"], "packed-prompts");
}

TEST(Deviations, FaithfulSasrecStartsAllAttentionLayersAlike) {
  const tests::TempDir dir;
  auto config = test::tiny_config(test::write_tiny_data(dir.path()), "sasrec");
  config.model.num_layers = 3;
  const auto projections = [&](bool same_start) {
    config.model.sasrec_same_start = same_start;
    std::vector<Tensor> found;
    const PretrainTask task(config);
    for (const auto& parameter : task.parameters()) {
      if (parameter.name.ends_with("in_proj_weight")) found.push_back(parameter.tensor.detach().clone());
    }
    return found;
  };
  const auto own = projections(false), same = projections(true);
  ASSERT_EQ(own.size(), 3u);
  ASSERT_EQ(same.size(), 3u);
  for (std::size_t i = 1; i < 3; ++i) {
    EXPECT_FALSE(at::equal(own[i], own[0]));
    EXPECT_TRUE(at::equal(same[i], own[0]));
  }
  config.model.encoder = "trm_plus";
  EXPECT_UQA_ERROR(PretrainTask(config), ErrorCode::kConfig, "model.sasrec.same_start = true with encoder = trm_plus");
}

}  // namespace
}  // namespace uqa::trainer
