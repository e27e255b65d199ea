#include "trainer/user_states.h"

#include <cstring>
#include <map>
#include <numeric>
#include <tuple>

#include "core/error.h"
#include "core/hash.h"
#include "core/log.h"
#include "core/text.h"
#include "data/h5.h"
#include "trainer/align_parts.h"
#include "trainer/device.h"

namespace uqa::trainer {
namespace {

using models::StateView;

constexpr std::int64_t kBatchRows = 8192;  // interactions of one encoder pass
constexpr std::int64_t kFileVersion = 1;

struct Histories {
  std::vector<data::Span> distinct;
  std::vector<std::int64_t> of_question, lengths;
};

Histories distinct_histories(const std::vector<data::Span>& spans) {
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, std::int64_t> seen;
  Histories histories;
  for (const auto& span : spans) {
    const auto [found, is_new] = seen.try_emplace({span.user, span.begin, span.end}, static_cast<std::int64_t>(histories.distinct.size()));
    histories.of_question.push_back(found->second);
    if (!is_new) continue;
    histories.distinct.push_back(span);
    histories.lengths.push_back(span.end - span.begin);
  }
  return histories;
}

/// The view of the states of histories [begin, end), laid end to end, in host memory.
Tensor states_of(models::UserModelImpl& model, const data::Dataset& data, const Histories& histories, const Group& group, StateView view) {
  const std::vector<data::Span> part(histories.distinct.begin() + static_cast<std::ptrdiff_t>(group.begin),
                                     histories.distinct.begin() + static_cast<std::ptrdiff_t>(group.end));
  const auto packed = std::make_shared<const data::PackedBatch>(
      data::pack(data, part, std::vector<std::int64_t>(part.size(), 0), data::Targets::kNone));
  const auto batch = to_device(wrap_user_batch(packed), device_of(model));
  const auto states_TH = model.forward(batch, {});
  switch (view) {
    case StateView::kMean: return models::history_means(states_TH, batch.layout).cpu();
    case StateView::kLast: return models::history_lasts(states_TH, batch.layout).cpu();
    case StateView::kAll: return states_TH.to(at::kBFloat16).cpu();
  }
  UQA_FAIL(ErrorCode::kInternal, "unknown state view");
}

at::ScalarType type_of(StateView view) { return view == StateView::kAll ? at::kBFloat16 : at::kFloat; }

/// The rows' places, as compute_user_states() lays them out.
UserStates laid_out(const Histories& histories, StateView view) {
  UserStates states{.view = view, .rows_RH = {}, .begins = {}, .ends = {}, .history_of = histories.of_question};
  std::int64_t rows = 0;
  for (const auto length : histories.lengths) {
    states.begins.push_back(rows);
    rows += view == StateView::kAll ? length : 1;
    states.ends.push_back(rows);
  }
  return states;
}

std::string digest_of_spans(const std::vector<data::Span>& spans) {
  std::string text;
  for (const auto& span : spans) text += fmt::format("{} {} {}\n", span.user, span.begin, span.end);
  return hash_hex(text);
}

/// What a file must have been made for.
struct CacheKey {
  std::string encoder, data, spans, view;
};

void write_states(const fs::path& path, const UserStates& states, const CacheKey& key) {
  auto partial = path;
  partial += ".partial";
  auto file = data::h5::File::create(partial);
  file.set_attribute("format", "uqa.user_states");
  file.set_attribute("version", kFileVersion);
  file.set_attribute("encoder", key.encoder);
  file.set_attribute("data", key.data);
  file.set_attribute("spans", key.spans);
  file.set_attribute("view", key.view);
  file.set_attribute("rows", states.rows_RH.size(0));
  file.set_attribute("width", states.rows_RH.size(1));
  const auto rows_RH = states.rows_RH.contiguous();
  file.write<char>("states", std::span(static_cast<const char*>(rows_RH.const_data_ptr()), rows_RH.nbytes()));
  file.close();
  fs::rename(partial, path);
}

Tensor read_states(const fs::path& path, const CacheKey& key, StateView view) {
  const auto file = data::h5::File::open(path);
  const auto must_be = [&](const char* name, const std::string& expected, const char* what) {
    const auto stored = file.text_attribute(name);
    UQA_CHECK(stored == expected, ErrorCode::kConfig, "cache.users = {}, holds states of {} ({}, this run has {}); remove the file or give another --cache.users",
              path.string(), what, stored, expected);
  };
  must_be("format", "uqa.user_states", "another kind of file");
  UQA_CHECK(file.integer_attribute("version") == kFileVersion, ErrorCode::kConfig, "cache.users = {}, is of version {}, must be {}; remove the file", path.string(),
            file.integer_attribute("version"), kFileVersion);
  must_be("view", key.view, "another view");
  must_be("encoder", key.encoder, "another encoder");
  must_be("data", key.data, "another data set");
  must_be("spans", key.spans, "other histories");
  auto rows_RH = at::empty({file.integer_attribute("rows"), file.integer_attribute("width")}, type_of(view));
  const auto bytes = file.read<char>("states");
  UQA_CHECK(bytes.size() == rows_RH.nbytes(), ErrorCode::kData, "{}: {} bytes of states, must be {}; remove the file", path.string(), bytes.size(), rows_RH.nbytes());
  std::memcpy(rows_RH.mutable_data_ptr(), bytes.data(), bytes.size());
  return rows_RH;
}

}  // namespace

std::pair<Tensor, models::PackedLayout> UserStates::select(std::span<const std::int64_t> questions, const at::Device& device) const {
  models::PackedLayout layout;
  std::vector<std::int64_t> rows;
  for (const auto q : questions) {
    const auto history = static_cast<std::size_t>(history_of.at(static_cast<std::size_t>(q)));
    for (auto row = begins[history]; row < ends[history]; ++row) rows.push_back(row);
    layout.cu_seqlens.push_back(static_cast<std::int64_t>(rows.size()));
    layout.sample_ids.push_back(q);
  }
  return {rows_RH.index_select(0, at::tensor(rows, at::kLong)).to(device).to(at::kFloat), std::move(layout)};
}

UserStates compute_user_states(models::UserModel model, const data::Dataset& data, const std::vector<data::Span>& spans, StateView view, const comm::Communicator& comm,
                               const models::TensorParallel& tp) {
  const auto histories = distinct_histories(spans);
  // Groups do not depend on the number of ranks, so neither do the bits of a state.
  const auto groups = group_by_rows(histories.lengths, kBatchRows);
  std::vector<std::int64_t> costs;
  for (const auto& group : groups) {
    costs.push_back(std::accumulate(histories.lengths.begin() + static_cast<std::ptrdiff_t>(group.begin),
                                    histories.lengths.begin() + static_cast<std::ptrdiff_t>(group.end), std::int64_t{0}));
  }
  Tensor mine_RH;
  comm::run_agreed(comm, [&] {
    for (const auto& span : histories.distinct) {
      UQA_CHECK(span.user >= 0 && span.user < data.num_users() && span.begin >= 0 && span.begin < span.end && span.end <= data.length(span.user),
                ErrorCode::kData, "a question shows interactions [{}, {}) of user {}, which the data set does not have; build the questions from this data set",
                span.begin, span.end, span.user);
    }
    const at::NoGradGuard no_grad;
    const bool was_training = model->is_training();
    model->eval();
    const auto share = share_of(costs, comm.rank() / tp.size(), comm.size() / tp.size());
    std::vector<Tensor> parts{at::empty({0, model->config().hidden}, type_of(view))};
    for (std::size_t g = share.begin; g < share.end; ++g) parts.push_back(states_of(*model, data, histories, groups[g], view));
    mine_RH = at::cat(tp.rank() == 0 ? parts : std::vector<Tensor>{parts.front()}, 0);  // ranks of a group have the same
    model->train(was_training);
  });
  auto states = laid_out(histories, view);
  states.rows_RH = comm::all_gather(mine_RH, comm);
  return states;
}

UserStates cached_user_states(const StateCacheConfig& cache, const std::string& encoder_digest, models::UserModel model, const data::Dataset& data,
                              const std::vector<data::Span>& spans, StateView view, const comm::Communicator& comm,
                              const models::TensorParallel& tp) {
  const auto histories = distinct_histories(spans);
  auto states = laid_out(histories, view);
  const std::int64_t rows = states.ends.empty() ? 0 : states.ends.back();
  const auto bytes = rows * model->config().hidden * static_cast<std::int64_t>(c10::elementSize(type_of(view)));
  const bool in_file = cache.users != "memory" && cache.users != "off";
  const CacheKey key{.encoder = encoder_digest, .data = data.digest(), .spans = digest_of_spans(spans), .view = models::name_of(view)};
  bool present = false;
  comm::run_agreed(comm, [&] {
    UQA_CHECK(bytes <= cache.max_bytes, ErrorCode::kConfig,
              "the states of {} histories ({} rows of width {}) take {}, cache.max_bytes = {}; raise it, or run the encoder in every step with --cache.users off",
              histories.distinct.size(), rows, model->config().hidden, bytes_text(bytes), cache.max_bytes);
    present = in_file && fs::exists(cache.users);
    if (present) states.rows_RH = read_states(cache.users, key, view);
  });
  if (present) {
    log::info("align", "states of {} histories read from {}: the encoder does not run", histories.distinct.size(), cache.users);
    return states;
  }
  states = compute_user_states(std::move(model), data, spans, view, comm, tp);
  log::info("align", "{} states of {} histories, {}", models::name_of(view), histories.distinct.size(), bytes_text(bytes));
  if (in_file) {
    comm::run_agreed(comm, [&] {
      if (comm.rank() == 0) write_states(cache.users, states, key);
    });
  }
  return states;
}

}  // namespace uqa::trainer
