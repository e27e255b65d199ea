// A world small enough to learn in seconds: 24 users who each look at one of four items only, questions that ask which one it is, a random
// encoder, and a tiny random LLM with a real tokenizer.
#pragma once

#include <string>
#include <vector>

#include "core/file.h"
#include "core/random.h"
#include "data/import/import.h"
#include "data/question.h"
#include "data/questions/question_files.h"
#include "models/tensor_io.h"
#include "tests/support/fixtures.h"
#include "trainer/align.h"

namespace uqa::trainer::test {

struct AlignWorld {
  fs::path data, questions, encoder_run, llm;
};

inline const std::vector<std::string>& world_titles() {
  static const std::vector<std::string> titles{"old ant", "bee", "wild black cat", "dog"};
  return titles;
}

inline data::Dataset write_world_data(const fs::path& directory, bool with_titles = true) {
  std::string log = "user,item,time\n", items = "id,title\n";
  for (int user = 0; user < 24; ++user) {
    for (int t = 0; t < 3 + user % 3; ++t) log += fmt::format("u{},i{},{}\n", user, user % 4, 100 + t);
  }
  for (std::size_t i = 0; i < world_titles().size(); ++i) items += fmt::format("i{},{}\n", i, world_titles()[i]);
  fs::create_directories(directory);
  write_file_atomic(directory / "log.csv", log);
  write_file_atomic(directory / "items.csv", items);
  Json schema{{"name", "world"},
              {"layout", "events"},
              {"format", "csv"},
              {"interactions", {{"user", "user"}, {"item", "item"}, {"time", "time"}}},
              {"features", {{{"name", "item_id"}, {"table", "item_id"}}}}};
  data::import::ImportOptions options;
  options.inputs = {directory / "log.csv"};
  if (with_titles) {
    schema["items"] = {{"file", "items.csv"}, {"id", "id"}, {"title", "title"}};
    options.inputs.push_back(directory / "items.csv");
  }
  options.output = directory / "data";
  options.overwrite = true;
  static_cast<void>(data::import::run_import(data::SourceSchema::from_json(schema, "world schema"), options));
  return data::Dataset::open(options.output);
}

/// The question of `user` whose options are rotated by `shift`.
inline data::Question world_question(const data::Dataset& data, std::int64_t id, std::int64_t user, std::int64_t shift) {
  data::Question q;
  q.id = id;
  q.user = user;
  q.end = data.length(user) - shift % 2;
  q.type = data::kQuestionTypes[static_cast<std::size_t>(id) % 2 == 0 ? 4 : 0];
  q.stem = "Which one?";
  q.text = q.stem;
  for (std::int64_t i = 0; i < 4; ++i) {
    const auto item = (user + i + shift) % 4;
    q.options.push_back(world_titles()[static_cast<std::size_t>(item)]);
    if (item == user % 4) q.answer = std::string(1, static_cast<char>('A' + i));
    q.text += fmt::format("\n{}. {}", static_cast<char>('A' + i), q.options.back());
  }
  return q;
}

inline void write_question_set(const fs::path& directory, const std::vector<data::Question>& train, const std::vector<data::Question>& test,
                               const std::string& data_digest) {
  const auto train_text = data::questions_to_jsonl(train), test_text = data::questions_to_jsonl(test);
  fs::create_directories(directory);
  write_file_atomic(directory / data::kTrainQuestions, train_text);
  write_file_atomic(directory / data::kTestQuestions, test_text);
  const Json manifest{{"format", data::kQuestionFormat}, {"version", 1}, {"language", "en"}, {"data_digest", data_digest},
                      {"digest", data::question_files_digest(train_text, test_text)}, {"prior_only", {{"all", {{"accuracy", 0.25}}}}}};
  write_file_atomic(directory / data::kQuestionManifest, manifest.dump());
}

inline void write_encoder(const fs::path& run, const data::Dataset& data, std::uint64_t seed) {
  models::UserModelConfig config;
  config.encoder = "trm_plus";
  for (const auto& table : data.schema().tables) config.tables.push_back({.name = table.name, .rows = table.rows, .dim = 8});
  for (const auto& feature : data.schema().features) config.features.push_back({.name = feature.name, .table = feature.table});
  config.hidden = 16;
  config.inner = 24;
  config.max_len = 4;  // shorter than the longest history
  models::UserModel model(config);
  model->init_weights(seed);
  fs::create_directories(run);
  {
    // A large item table, so that users differ as much as after training.
    const at::NoGradGuard no_grad;
    model->item_table().mul_(50);
  }
  models::save_tensors(run / "model.safetensors", models::state_dict(*model));
  write_file_atomic(run / "model.json", Json{{"format", "uqa.user_model"}, {"version", 1}, {"stage", "pretrain"}, {"model", to_json(config)},
                                             {"schema", data.schema().to_json()}, {"data_digest", data.digest()}}.dump());
}

inline AlignWorld write_world(const fs::path& directory) {
  const auto data = write_world_data(directory);
  std::vector<data::Question> train, test;
  for (std::int64_t user = 0; user < 24; ++user) {
    for (std::int64_t shift = 0; shift < 4; ++shift) {
      auto& split = user < 16 ? train : test;
      split.push_back(world_question(data, user * 4 + shift, user, shift));
    }
  }
  AlignWorld world{.data = directory / "data", .questions = directory / "questions", .encoder_run = directory / "encoder",
                   .llm = tests::fixtures() / "llm" / "qwen2-tiny"};
  write_question_set(world.questions, train, test, data.digest());
  write_encoder(world.encoder_run, data, 3);
  return world;
}

inline AlignConfig world_config(const AlignWorld& world) {
  AlignConfig config;
  config.data = world.data.string();
  config.questions = world.questions.string();
  config.encoder_run = world.encoder_run.string();
  config.llm = world.llm.string();
  config.lora.rank = 4;
  config.validation_fraction = 0.25;
  config.loop.optim.peak_lr = 1e-2;
  config.loop.batch.global_users = 16;
  config.loop.train.epochs = 3;
  config.loop.train.log_every_steps = 1;
  config.loop.train.num_threads = 1;
  return config;
}

}  // namespace uqa::trainer::test
