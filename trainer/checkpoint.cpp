#include "trainer/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <exception>
#include <map>
#include <numeric>

#include "core/hash.h"
#include "core/log.h"
#include "models/format/safetensors.h"
#include "trainer/checkpoint_manifest.h"
#include "trainer/device.h"

namespace uqa::trainer {
namespace {

constexpr const char* kLatest = "latest";
constexpr const char* kPrefix = "step-";

/// The step of a directory name "step-N"; nullopt for anything else ("step-5.tmp" too).
std::optional<std::int64_t> step_of(const std::string& name) {
  const std::string_view prefix(kPrefix);
  if (!name.starts_with(prefix)) return std::nullopt;
  std::int64_t step = 0;
  const char* const end = name.data() + name.size();
  const auto [at, error] = std::from_chars(name.data() + prefix.size(), end, step);
  if (error != std::errc() || at != end || step < 0) return std::nullopt;
  return step;
}

/// The part of `parameter` that is `range` of the whole, or all of it.
Tensor held_part(const NamedParameter& parameter, const std::optional<models::SliceRange>& range) {
  if (!range) return parameter.tensor.detach();
  std::int64_t position = 0;
  for (const auto& own : parameter.layout.ranges) {
    if (own == *range) return parameter.tensor.detach().narrow(parameter.layout.dim, position, own.length);
    position += own.length;
  }
  UQA_FAIL(ErrorCode::kInternal, "tensor {}: this rank does not hold positions [{}, {})", parameter.name, range->begin, range->begin + range->length);
}

fs::path staging_path(const fs::path& directory, std::int64_t step) { return checkpoint_path(directory, step).concat(".tmp"); }

std::span<const std::byte> bytes_of(const Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), static_cast<std::size_t>(tensor.nbytes())};
}

void remove_tree(const fs::path& path) {
  std::error_code ec;
  fs::remove_all(path, ec);
  UQA_CHECK(!ec, ErrorCode::kData, "cannot remove {}: {}", path.string(), ec.message());
}

}  // namespace

std::vector<StoredSlice> assign_slices(const std::vector<NamedParameter>& tensors,
                                       const std::vector<std::vector<std::vector<models::SliceRange>>>& held) {
  struct Candidate {
    StoredSlice slice;
    std::size_t bytes = 0;
    std::vector<std::size_t> holders;
  };
  std::vector<Candidate> candidates;
  std::vector<std::size_t> all_ranks(held.size());
  std::iota(all_ranks.begin(), all_ranks.end(), std::size_t{0});
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, tensor, lr_scale, layout] = tensors[i];
    if (!layout.sharded()) {
      candidates.push_back({.slice = {.tensor = i}, .bytes = tensor.nbytes(), .holders = all_ranks});
      continue;
    }
    const std::int64_t size = layout.global_shape[static_cast<std::size_t>(layout.dim)];
    std::int64_t elements = 1;
    for (const auto extent : layout.global_shape) elements *= extent;
    const auto position_bytes = static_cast<std::size_t>(elements / std::max<std::int64_t>(1, size)) * tensor.element_size();
    std::map<std::int64_t, Candidate> by_begin;
    std::int64_t covered = 0;
    for (const std::size_t rank : all_ranks) {
      for (const auto& range : held[rank][i]) {
        if (range.length == 0) continue;
        auto [at, is_new] = by_begin.try_emplace(range.begin, Candidate{.slice = {.tensor = i, .range = range}, .bytes = 0, .holders = {}});
        UQA_CHECK(at->second.slice.range == range, ErrorCode::kInternal, "tensor {}: ranks hold ranges that overlap at {}", name, range.begin);
        if (is_new) covered += range.length;
        at->second.bytes = static_cast<std::size_t>(range.length) * position_bytes;
        at->second.holders.push_back(rank);
      }
    }
    UQA_CHECK(covered == size, ErrorCode::kInternal, "tensor {}: slices of all ranks cover {} of {} positions of dimension {}", name, covered, size, layout.dim);
    for (auto& [begin, candidate] : by_begin) candidates.push_back(std::move(candidate));
  }
  std::stable_sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.bytes > b.bytes; });
  std::vector<std::size_t> load(held.size(), 0);
  std::vector<StoredSlice> stored;
  for (auto& candidate : candidates) {
    const auto least = *std::min_element(candidate.holders.begin(), candidate.holders.end(), [&](std::size_t a, std::size_t b) { return load[a] < load[b]; });
    load[least] += candidate.bytes;
    candidate.slice.rank = static_cast<int>(least);
    stored.push_back(candidate.slice);
  }
  return stored;
}

struct CheckpointWriter::Pending {
  Manifest manifest;                  ///< complete but for sizes and checksums
  std::vector<NamedParameter> copies; ///< this rank's part, in host memory
  std::string hash;                   ///< of this rank's file; empty when it has none
  std::int64_t size = 0;
  std::exception_ptr error;
  std::atomic<bool> written = false;  ///< release: hash, size and error are set
  std::thread thread;
  ~Pending() {
    if (thread.joinable()) thread.join();
  }
};

CheckpointWriter::CheckpointWriter(fs::path directory, comm::Communicator world, std::int64_t keep)
    : directory_(std::move(directory)), world_(std::move(world)), keep_(keep) {
  comm::run_agreed(world_, [&] {
    if (world_.rank() != 0) return;
    std::vector<fs::path> stale;
    for (const auto& entry : fs::directory_iterator(directory_)) {
      if (entry.path().extension() == ".tmp") stale.push_back(entry.path());
    }
    for (const auto& path : stale) remove_tree(path);
  });
  comm::run_agreed(world_, [&] { latest_ = latest_checkpoint(directory_); });
}

CheckpointWriter::~CheckpointWriter() = default;

void CheckpointWriter::start(std::int64_t step, const std::vector<NamedParameter>& tensors, const Json& loop) {
  UQA_CHECK(!in_flight(), ErrorCode::kInternal, "checkpoint of step {} started while one is in flight", step);
  const at::NoGradGuard no_grad;
  auto pending = std::make_unique<Pending>();
  pending->manifest.step = step;
  pending->manifest.loop = loop;
  const auto stored = assign_slices(tensors, exchange_ranges(tensors, world_));
  for (const auto& [tensor, range, rank] : stored) {
    const auto& parameter = tensors[tensor];
    auto& entry = pending->manifest.tensors[parameter.name];
    entry.dtype = dtype_name(parameter.tensor);
    entry.shape = models::global_shape_of(parameter.tensor, parameter.layout);
    TensorSlice slice{.file = rank_file(rank), .key = parameter.name, .offset = std::vector<std::int64_t>(entry.shape.size(), 0), .shape = entry.shape};
    if (range) {
      slice.key = slice_key(parameter.name, range->begin);
      slice.offset[static_cast<std::size_t>(parameter.layout.dim)] = range->begin;
      slice.shape[static_cast<std::size_t>(parameter.layout.dim)] = range->length;
    }
    if (rank == world_.rank()) pending->copies.push_back({slice.key, host_copy(held_part(parameter, range))});
    entry.slices.push_back(std::move(slice));
  }
  const fs::path staging = staging_path(directory_, step);
  pending->thread = std::thread([p = pending.get(), staging, rank = world_.rank()] {
    try {
      // Every rank makes the directory: whoever comes first, without a barrier.
      fs::create_directories(staging);
      if (!p->copies.empty()) {
        std::vector<format::TensorBytes> parts;
        for (const auto& [name, tensor, lr_scale, layout] : p->copies) {
          parts.push_back({name, dtype_name(tensor), tensor.sizes().vec(), bytes_of(tensor)});
        }
        const fs::path file = staging / rank_file(rank);
        format::write_safetensors(file, parts);
        p->hash = hash_file(file);
        p->size = static_cast<std::int64_t>(fs::file_size(file));
        p->copies.clear();
      }
    } catch (...) {
      p->error = std::current_exception();
    }
    p->written.store(true, std::memory_order_release);
  });
  pending_ = std::move(pending);
}

bool CheckpointWriter::written() const { return pending_ != nullptr && pending_->written.load(std::memory_order_acquire); }

void CheckpointWriter::commit() {
  if (!in_flight()) return;
  if (pending_->thread.joinable()) pending_->thread.join();
  const auto done = std::move(pending_);
  try {
    comm::run_agreed(world_, [&] {
      if (!done->error) return;
      try {
        std::rethrow_exception(done->error);
      } catch (const std::exception& e) {
        UQA_FAIL(ErrorCode::kData, "checkpoint of step {} not written: {}; {}", done->manifest.step, e.what(),
                 latest_ ? fmt::format("the checkpoint of step {} is still valid", *latest_) : "no earlier checkpoint exists");
      }
    });
    const Tensor mine = at::zeros({1, 3}, at::kLong);
    auto* const row = mine.mutable_data_ptr<std::int64_t>();
    if (!done->hash.empty()) {
      for (std::size_t half = 0; half < 2; ++half) {
        row[half] = static_cast<std::int64_t>(std::stoull(done->hash.substr(half * 16, 16), nullptr, 16));
      }
      row[2] = done->size;
    }
    const Tensor all = comm::all_gather(mine, world_).contiguous();
    const auto* const rows = all.const_data_ptr<std::int64_t>();
    for (int r = 0; r < world_.size(); ++r) {
      if (rows[3 * r + 2] == 0) continue;  // a rank without tensors has no file
      done->manifest.files[rank_file(r)] = {
          .hash = fmt::format("{:016x}{:016x}", static_cast<std::uint64_t>(rows[3 * r]), static_cast<std::uint64_t>(rows[3 * r + 1])),
          .size_bytes = rows[3 * r + 2]};
    }
    comm::run_agreed(world_, [&] {
      if (world_.rank() == 0) publish(done->manifest);
    });
  } catch (...) {
    std::error_code ignored;  // the first error matters; a later run removes what is left here
    if (world_.rank() == 0) fs::remove_all(staging_path(directory_, done->manifest.step), ignored);
    throw;
  }
  latest_ = done->manifest.step;
}

void CheckpointWriter::publish(const Manifest& manifest) const {
  const fs::path staging = staging_path(directory_, manifest.step);
  const fs::path final_path = checkpoint_path(directory_, manifest.step);
  write_file_atomic(staging / kManifestName, manifest.to_text());
  sync_path(staging);
  if (fs::exists(final_path)) {
    // Left by a run that died between renaming and moving `latest`: no later run has read it.
    const fs::path old = fs::path(final_path).concat(".old.tmp");
    fs::rename(final_path, old);
    fs::rename(staging, final_path);
    remove_tree(old);
  } else {
    fs::rename(staging, final_path);
  }
  sync_path(directory_);
  write_file_atomic(directory_ / kLatest, fmt::format("{}{}\n", kPrefix, manifest.step));
  remove_old(manifest);
}

void CheckpointWriter::remove_old(const Manifest& manifest) const {
  std::vector<std::int64_t> steps;
  for (const auto& entry : fs::directory_iterator(directory_)) {
    if (const auto step = step_of(entry.path().filename().string())) steps.push_back(*step);
  }
  std::sort(steps.rbegin(), steps.rend());
  const auto best = get_or<std::int64_t>(manifest.loop, "best_step", manifest.step, kManifestName);
  std::int64_t newest = 0;
  for (const auto step : steps) {
    // A step beyond this one belongs to a run that was rolled back to an earlier checkpoint.
    if (step <= manifest.step && (newest++ < keep_ || step == best)) continue;
    const fs::path doomed = checkpoint_path(directory_, step).concat(".old.tmp");
    fs::rename(checkpoint_path(directory_, step), doomed);
    remove_tree(doomed);
  }
}

fs::path checkpoint_path(const fs::path& directory, std::int64_t step) { return directory / fmt::format("{}{}", kPrefix, step); }

std::optional<std::int64_t> latest_checkpoint(const fs::path& directory) {
  const fs::path path = directory / kLatest;
  if (!fs::exists(path)) return std::nullopt;
  std::string text = read_file(path);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  const auto step = step_of(text);
  UQA_CHECK(step.has_value(), ErrorCode::kData, "{} holds '{}', must hold the name of a checkpoint such as step-100", path.string(), text);
  return step;
}

}  // namespace uqa::trainer
