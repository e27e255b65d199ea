// trainer/align_users.h - the user side of an alignment: encoder, adapter, and the states that a frozen encoder gives once; private to
// trainer/.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "trainer/align.h"
#include "trainer/align_parts.h"
#include "trainer/align_questions.h"

namespace uqa::trainer {

class AlignUsers {
 public:
  /// Loads the encoder, checks it against `data`, splits it over `tp`, moves it to `device`, builds the adapter for an LLM of width `llm_hidden`. `config`
  /// and `questions` are kept by reference. Collective over tp.comm, whose ranks agree on errors.
  AlignUsers(const AlignConfig& config, const Frozen& frozen, const data::Dataset& data, const AlignQuestions& questions, std::int64_t llm_hidden,
             const models::TensorParallel& tp, const at::Device& device);
  /// States of a frozen encoder, and the adapter's start from the training questions, made on the CPU; then the adapter follows the encoder.
  /// `tokens_VL` are the LLM's token embeddings, float32 on the CPU. Once, before anything below. Collective over `world`.
  void prepare(const Tensor& tokens_VL, const comm::Communicator& world);

  /// What soft_tokens() needs of some questions. Made on a loader thread.
  struct Batch {
    std::vector<std::int64_t> questions;                 ///< B
    std::int64_t num_references = 0;                     ///< prompts about the average user, behind them
    std::shared_ptr<const data::PackedBatch> histories;  ///< distinct spans; where the encoder runs in the step
    Tensor history_B;                                    ///< int64: which of them each question shows
  };
  [[nodiscard]] Batch load(const std::vector<std::size_t>& questions, std::int64_t num_references) const;
  /// Soft tokens of the batch's questions, then of its references: [(B + references) * K, L], float32. `bf16`: the encoder's matrix products.
  [[nodiscard]] Tensor soft_tokens(const Batch& batch, const models::DropoutContext& context, bool bf16);
  /// Soft tokens of the average training user, [K, L]: the adapter on the mean of their states; with an adapter that looks at every
  /// position, the mean of what it makes of 32 training histories. Undefined where the encoder is trained.
  [[nodiscard]] Tensor average_user();

  [[nodiscard]] models::AdapterImpl& adapter() const { return *adapter_; }
  [[nodiscard]] models::UserModel encoder() const { return encoder_.model; }  ///< this rank's part
  [[nodiscard]] const models::UserModelConfig& encoder_config() const { return encoder_.config; }
  [[nodiscard]] const std::string& encoder_digest() const { return encoder_digest_; }
  [[nodiscard]] const std::vector<data::Span>& spans() const { return spans_; }  ///< of questions.all()
  [[nodiscard]] std::int64_t num_cut() const { return num_cut_; }                ///< histories longer than max_len
  [[nodiscard]] const std::string& start() const { return start_; }              ///< "plain", "whitened" or "words": "auto" resolved; "plain" for a given adapter
  [[nodiscard]] double take_encoder_seconds() { return std::exchange(encoder_seconds_, 0); }  ///< spent in the encoder by soft_tokens() since the last call; on the CPU

 private:
  void prepare_states(const Tensor& tokens_VL, const comm::Communicator& world);
  void start_adapter(const Tensor& states_SH, const Tensor& tokens_VL);
  [[nodiscard]] std::vector<std::int64_t> training_questions() const;
  [[nodiscard]] bool runs_in_step() const { return !frozen_.encoder || config_.cache.users == "off"; }
  [[nodiscard]] bool has_dropout() const { return !frozen_.encoder || !config_.encoder.eval_when_frozen; }

  const AlignConfig& config_;
  Frozen frozen_;
  data::Dataset data_;                          ///< with the features that the encoder sees
  const AlignQuestions& questions_;
  LoadedUserModel encoder_;
  models::TensorParallel tp_;
  at::Device device_;
  std::string encoder_digest_, start_;
  std::vector<data::Span> spans_;
  std::int64_t num_cut_ = 0;
  models::Adapter adapter_;
  UserStates states_;                           ///< of questions.all(); only with a frozen encoder
  Tensor average_rows_RH_;                      ///< rows of average_layout_
  models::PackedLayout average_layout_;
  double encoder_seconds_ = 0;
};

}  // namespace uqa::trainer
