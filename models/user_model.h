// models/user_model.h - feature tables + projection + encoder backbone + item projection: the user encoder of UQABench.
//
//   auto model = models::UserModel(config);                    // LibTorch module holder; state_dict named as the reference's
//   const auto states_TH = model->forward(batch, context);     // encoder states
//   const auto h_TD = model->item_hiddens(states_TH);          // proj2, scored against the item table
#pragma once

#include <map>
#include <string>
#include <vector>

#include "models/layered.h"
#include "models/loss/item_softmax.h"
#include "models/packed.h"
#include "models/parallel/layout.h"
#include "models/parallel/sharded_rows.h"
#include "models/parallel/sliced.h"

namespace uqa::models {

struct TableConfig {
  std::string name;
  std::int64_t rows = 0;
  std::int64_t dim = 0;  ///< width of one row; > 0
};
struct FeatureConfig {
  std::string name;
  std::string table;  ///< tables may be shared by several features
};

/// As messages list them.
inline constexpr const char* kKnownEncoders = "sasrec, hstu, gru4rec, mamba2 or trm_plus";

inline constexpr std::int64_t kHstuTimeBuckets = 129;  ///< of HSTU's relative time bias

/// What only HSTU has.
struct HstuConfig {
  std::int64_t linear_dim = 0;     ///< width of u and v per head; 0: hidden / num_heads
  std::int64_t attention_dim = 0;  ///< width of q and k per head; 0: hidden / num_heads
  std::string norm = "true_len";   ///< attention weights are divided by model.max_len ("max_len", the reference) or by the history's length ("true_len")
  std::string bias = "none";       ///< relative bias of the attention: "none" (in effect the reference's), "position", or "position_time"
};

/// What only Mamba2 has.
struct Mamba2Config {
  std::int64_t head_dim = 64;      ///< width of one head; > 0, divides expand * hidden
  std::int64_t state_size = 128;   ///< > 0
  std::int64_t expand = 2;         ///< inner width / hidden; > 0
  std::int64_t conv_kernel = 4;    ///< taps of the causal convolution; > 0
  std::int64_t num_groups = 1;     ///< groups of heads that share B and C; > 0, divides the number of heads
  std::int64_t chunk = 64;         ///< rows that are computed together; > 0; changes speed and rounding only
};

/// Everything that fixes the structure of a user encoder.
struct UserModelConfig {
  std::string encoder = "trm_plus";    ///< "sasrec", "hstu", "gru4rec", "mamba2" or "trm_plus"
  std::vector<TableConfig> tables;
  std::vector<FeatureConfig> features; ///< in concatenation order; the first one's table is also the output head
  std::int64_t hidden = 64;            ///< backbone width; > 0, divisible by num_heads
  std::int64_t num_layers = 2;         ///< > 0
  std::int64_t num_heads = 2;          ///< > 0
  std::int64_t inner = 0;              ///< FFN, GLU or GRU width; 0: the encoder's own rule (sasrec 4 * hidden; gru4rec 2 * hidden; trm_plus 8/3 * hidden rounded up to ffn_multiple_of)
  std::int64_t ffn_multiple_of = 256;  ///< trm_plus rounding; > 0
  std::int64_t max_len = 200;          ///< longest history; > 0; sasrec has that many learned positions
  double norm_eps = 1e-5;
  double rope_base = 10000;
  double dropout = 0.2;                ///< hidden dropout; in [0, 0.999]
  double attention_dropout = 0.2;      ///< in [0, 0.999]
  HstuConfig hstu;
  Mamba2Config mamba2;
  void validate() const;               ///< Error(kConfig) naming the field
  [[nodiscard]] const TableConfig& table(const std::string& table_name) const;  ///< Error(kConfig) if absent
  [[nodiscard]] std::int64_t feature_width() const;   ///< sum of the features' table widths: input of proj1
  [[nodiscard]] std::int64_t item_dim() const;        ///< width of the first feature's table: output of proj2
  [[nodiscard]] std::int64_t hstu_linear_dim() const { return hstu.linear_dim > 0 ? hstu.linear_dim : hidden / num_heads; }
  [[nodiscard]] std::int64_t hstu_attention_dim() const { return hstu.attention_dim > 0 ? hstu.attention_dim : hidden / num_heads; }
  [[nodiscard]] std::int64_t resolved_inner() const;  ///< `inner`, or the encoder's own rule where it is 0
};

/// Bags of one feature over the T packed interactions; on the CPU, where ids are checked, whatever the model's device.
struct FeatureTensor {
  Tensor values;   ///< int64 [T] (single-valued) or [N]
  Tensor offsets;  ///< int64 [T + 1], last offset included; undefined for single-valued features
};

struct UserBatch {
  PackedLayout layout;
  std::vector<FeatureTensor> features;  ///< config.features order
};

/// An encoder backbone: x [T, H] -> states [T, H]; row t depends only on rows of its own sequence up to t.
class EncoderImpl : public torch::nn::Module, public Layered {
 public:
  virtual Tensor forward(const Tensor& x_TH, const PackedLayout& layout, const DropoutContext& context) = 0;
  /// Sets every parameter as the reference does; `prefix` is the encoder's name in the model, with its dot ("backbone.").
  virtual void init_weights(std::uint64_t seed, const std::string& prefix) = 0;
};

/// With row-sharded tables (`sharding`) every rank of the table group must call embed() and forward() at the same time, with an empty batch
/// (T = 0, B = 0) if it has none, and run backward through them alike: they fetch rows from each other.
class UserModelImpl : public torch::nn::Module, public HasLayouts {
 public:
  /// With `tp` the backbone is split over the group (GRU4Rec's is whole on every rank); projections are whole. Collective over tp.comm. Error(kConfig)
  /// where the degree does not fit the sizes, with both numbers.
  explicit UserModelImpl(UserModelConfig config, TableSharding sharding = {}, const TensorParallel& tp = {});
  /// Sets every parameter from (seed, name, element), as the reference initialises its modules; the same at any world size.
  void init_weights(std::uint64_t seed);
  /// Mean-bag embeddings of all features, concatenated. -> [T, sum of dims]; empty bags give zeros.
  [[nodiscard]] Tensor embed(const UserBatch& batch) const;
  /// -> encoder states [T, H], float32. Error(kData) for a sequence longer than max_len or a batch that does not fit the features.
  [[nodiscard]] Tensor forward(const UserBatch& batch, const DropoutContext& context);
  /// proj2: [T, H] -> [T, item_dim], float32.
  [[nodiscard]] Tensor item_hiddens(const Tensor& states_TH);
  /// The item table [V, item_dim]: input rows and output head (tied); this rank's rows where it is cut.
  [[nodiscard]] Tensor item_table() const;
  /// How item_table() is cut, for the item softmax.
  [[nodiscard]] ItemShards item_shards() const;
  /// Some table is cut over more than one rank.
  [[nodiscard]] bool shards_tables() const;
  [[nodiscard]] std::map<std::string, ParameterLayout> own_layouts() const override;
  /// The layers of the backbone.
  [[nodiscard]] Layered& layers() const;
  /// A batch of no users, as a rank without work needs it.
  [[nodiscard]] UserBatch empty_batch() const;
  [[nodiscard]] const UserModelConfig& config() const { return config_; }

 private:
  UserModelConfig config_;
  TableSharding sharding_;
  struct Modules;
  std::shared_ptr<Modules> modules_;
};
TORCH_MODULE(UserModel);

/// Backbone factory by config.encoder; Error(kConfig) names the known ones.
[[nodiscard]] std::shared_ptr<EncoderImpl> make_encoder(const UserModelConfig& config, const TensorParallel& tp = {});
/// False for encoders that every tensor-parallel rank computes whole: gru4rec, whose recurrence would need a collective a time step.
[[nodiscard]] bool splits_over_ranks(const std::string& encoder);

}  // namespace uqa::models
