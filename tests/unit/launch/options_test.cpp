#include "launch/options.h"

#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/file.h"
#include "launch/command.h"
#include "tests/support/source_dir.h"

namespace uqa::launch {
namespace {

using ::testing::HasSubstr;

struct Settings {
  std::string data;
  double lr = 1e-3;
  std::int64_t steps = 10;
  bool overwrite = false;
  std::vector<std::string> inputs;
};

OptionSet make(Settings& s) {
  OptionSet options("train", "trains", "uqa train --data d");
  options.add("data", &s.data, "data set", OptionSet::kRequired);
  options.add("optim.peak_lr", &s.lr, "learning rate");
  options.add("train.max_steps", &s.steps, "steps");
  options.add("overwrite", &s.overwrite, "replace");
  options.add("input", &s.inputs, "files");
  options.set_transient("overwrite");
  return options;
}

std::string error_of(const std::vector<std::string>& words) {
  Settings s;
  auto options = make(s);
  try {
    (void)options.parse(words);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kConfig);
    return e.what();
  }
  return "";
}

TEST(OptionSet, ReadsValuesSwitchesAndLists) {
  Settings s;
  auto options = make(s);
  ASSERT_TRUE(options.parse({"--data", "d", "--optim.peak_lr=0.5", "--train.max_steps", "1e3", "--overwrite", "--input", "a", "b,c"}));
  EXPECT_EQ(s.data, "d");
  EXPECT_EQ(s.lr, 0.5);
  EXPECT_EQ(s.steps, 1000);
  EXPECT_TRUE(s.overwrite);
  EXPECT_EQ(s.inputs, (std::vector<std::string>{"a", "b", "c"}));
}

TEST(OptionSet, HyphenAndUnderscoreAreTheSameInNames) {
  Settings s;
  auto options = make(s);
  ASSERT_TRUE(options.parse({"--data", "a-b_c", "--train.max-steps=7", "--optim.peak-lr", "0.25"}));
  EXPECT_EQ(s.steps, 7);
  EXPECT_EQ(s.lr, 0.25);
  EXPECT_EQ(s.data, "a-b_c") << "values stay as they are";
  EXPECT_THAT(error_of({"--data", "d", "--train.max-stops", "7"}), HasSubstr("did you mean '--train.max_steps'"));
}

TEST(OptionSet, NamesTheNearestOption) {
  EXPECT_THAT(error_of({"--data", "d", "--optim.peak_rl", "1"}), HasSubstr("did you mean '--optim.peak_lr'?"));
  EXPECT_THAT(error_of({"--data", "d", "--peak_lr", "1"}), HasSubstr("did you mean '--optim.peak_lr'?"));
  EXPECT_THAT(error_of({"--data", "d", "--optim.peak", "1"}), HasSubstr("unknown option '--optim.peak'"));  // no guessing from a prefix
}

TEST(OptionSet, RefusesWhatIsNotANumberAStrayWordAndAMissingInput) {
  EXPECT_THAT(error_of({"--data", "d", "--optim.peak_lr", "fast"}), HasSubstr("--optim.peak_lr = fast, must be a number"));
  EXPECT_THAT(error_of({"--data", "d", "--train.max_steps", "1.5"}), HasSubstr("must be a whole number"));
  EXPECT_THAT(error_of({"stray", "--data", "d"}), HasSubstr("stray"));
  EXPECT_THAT(error_of({}), HasSubstr("--data is required"));
  EXPECT_THAT(error_of({"--data", "d", "--data", "e"}), HasSubstr("takes one value"));
}

TEST(OptionSet, AnIniFileRoundTripsAndTheCommandLineWins) {
  Settings first;
  auto options = make(first);
  ASSERT_TRUE(options.parse({"--data", "d", "--optim.peak_lr=0.25", "--input", "x", "y", "--overwrite"}));
  const auto path = fs::path(::testing::TempDir()) / "options_round_trip.ini";
  write_file_atomic(path, options.to_ini());
  Settings second;
  auto again = make(second);
  ASSERT_TRUE(again.parse({"--config", path.string(), "--train.max_steps=7"}));
  EXPECT_EQ(second.data, "d");
  EXPECT_EQ(second.lr, 0.25);
  EXPECT_EQ(second.steps, 7);
  EXPECT_EQ(second.inputs, (std::vector<std::string>{"x", "y"}));
  EXPECT_FALSE(second.overwrite) << "transient options are not stored";
}

TEST(OptionSet, AnUnknownNameInAFileIsAnError) {
  const auto path = fs::path(::testing::TempDir()) / "options_unknown.ini";
  write_file_atomic(path, "data = d\n[optim]\npeek_lr = 1\n");
  EXPECT_THAT(error_of({"--config", path.string()}), HasSubstr("optim.peek_lr"));
  EXPECT_THAT(error_of({"--config", path.string()}), HasSubstr("did you mean 'optim.peak_lr'?"));
}

TEST(Commands, EveryOneHelpsAndRoundTripsItsDefaults) {
  ASSERT_FALSE(commands().empty());
  for (const auto& entry : commands()) {
    const auto command = entry.make();
    EXPECT_FALSE(command->parse({"--help"})) << entry.name;
    const auto help = command->options().help();
    EXPECT_THAT(help, HasSubstr("Example:\n  ")) << entry.name;
    EXPECT_THAT(help, HasSubstr(std::string("uqa ") + entry.name)) << entry.name;
  }
}

/// The settings that a command has after reading `words`, as an INI file.
std::string settings_of(const CommandEntry& entry, const std::vector<std::string>& words) {
  const auto command = entry.make();
  EXPECT_TRUE(command->parse(words));
  return command->options().to_ini();
}

TEST(Recipes, EveryOneIsReadByItsCommandAndTheReferencesEqualThePreset) {
  const auto named = [](const std::string& name) {
    for (const auto& entry : commands()) {
      if (name == entry.name) return entry;
    }
    throw std::runtime_error("no command " + name);
  };
  const std::vector<std::string> align_inputs{"--data", "d", "--run", "r", "--questions", "q", "--encoder-run", "e", "--llm", "l"};
  const auto with = [](std::vector<std::string> words, const std::vector<std::string>& more) {
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  std::size_t published = 0, read = 0;
  for (const auto& file : fs::directory_iterator(tests::source_dir() / "recipes")) {
    if (file.path().extension() != ".ini") continue;
    SCOPED_TRACE(file.path().string());
    const std::string name = file.path().stem();
    if (name.find("align") != std::string::npos) {
      const auto settings = settings_of(named("align"), with({"--config", file.path()}, align_inputs));
      EXPECT_THAT(settings, HasSubstr("calibrate"));
      if (name.starts_with("uqabench-")) {
        EXPECT_EQ(settings, settings_of(named("align"), with({"--preset", "faithful"}, align_inputs)));
        ++published;
      }
    } else if (name.find("evaluate") != std::string::npos) {
      EXPECT_THAT(settings_of(named("evaluate"), {"--config", file.path(), "--data", "d", "--run", "r"}), HasSubstr("dtype = float32"));
      ++published;
    } else {
      const auto settings = settings_of(named("pretrain"), {"--config", file.path(), "--data", "d", "--run", "r"});
      if (name.starts_with("uqabench-")) {
        const auto encoder = name.substr(std::string("uqabench-").size());
        EXPECT_EQ(settings, settings_of(named("pretrain"), {"--preset", "faithful", "--encoder", encoder, "--data", "d", "--run", "r"}));
        ++published;
      }
    }
    ++read;
  }
  EXPECT_EQ(published, 7u);
  EXPECT_GE(read, 13u);
}

TEST(Presets, WhatIsGivenGoesOnTopAndTheStoredFileRunsAgainAsItIs) {
  for (const auto& entry : commands()) {
    if (std::string(entry.name) != "align") continue;
    const auto first = settings_of(entry, {"--preset", "faithful", "--freeze", "", "--optim.peak_lr=5e-5", "--data", "d", "--run", "r", "--questions", "q", "--encoder-run", "e",
                                           "--llm", "l"});
    EXPECT_THAT(first, HasSubstr("freeze = \n"));
    EXPECT_THAT(first, HasSubstr("peak_lr = 5e-05"));
    EXPECT_THAT(first, HasSubstr("objective = chat"));
    EXPECT_THAT(first, HasSubstr("other_lr = 1e-06"));
    const auto path = fs::path(::testing::TempDir()) / "options_preset.ini";
    write_file_atomic(path, first);
    EXPECT_EQ(settings_of(entry, {"--config", path.string()}), first);
    const auto other = settings_of(entry, {"--data", "d", "--run", "r", "--questions", "q", "--encoder-run", "e", "--llm", "l"});
    EXPECT_THAT(other, HasSubstr("objective = choice"));
    return;
  }
  FAIL() << "no command align";
}

}  // namespace
}  // namespace uqa::launch
