#include "trainer/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <exception>
#include <numeric>
#include <set>

#include "core/hash.h"
#include "core/log.h"
#include "models/format/safetensors.h"
#include "trainer/checkpoint_manifest.h"

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

std::vector<int> assign_tensors(const std::vector<NamedParameter>& tensors, int num_ranks) {
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return tensors[a].tensor.nbytes() > tensors[b].tensor.nbytes(); });
  std::vector<std::size_t> load(static_cast<std::size_t>(num_ranks), 0);
  std::vector<int> owner(tensors.size(), 0);
  for (const std::size_t i : order) {
    const auto least = std::min_element(load.begin(), load.end());
    owner[i] = static_cast<int>(least - load.begin());
    *least += tensors[i].tensor.nbytes();
  }
  return owner;
}

struct CheckpointWriter::Pending {
  Manifest manifest;                  ///< complete but for sizes and checksums
  std::vector<NamedParameter> copies; ///< this rank's part
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
  const auto owner = assign_tensors(tensors, world_.size());
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    pending->manifest.tensors[tensors[i].name] = whole_tensor_entry(tensors[i].tensor, owner[i]);
    if (owner[i] == world_.rank()) pending->copies.push_back({tensors[i].name, tensors[i].tensor.detach().contiguous().clone()});
  }
  const fs::path staging = staging_path(directory_, step);
  pending->thread = std::thread([p = pending.get(), staging, rank = world_.rank()] {
    try {
      // Every rank makes the directory: whoever comes first, without a barrier.
      fs::create_directories(staging);
      if (!p->copies.empty()) {
        std::vector<format::TensorBytes> parts;
        for (const auto& [name, tensor] : p->copies) {
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

Json load_checkpoint(const fs::path& path, const std::vector<NamedParameter>& tensors, Coverage coverage) {
  const at::NoGradGuard no_grad;
  const Manifest manifest = Manifest::read(path / kManifestName);
  const std::string what = (path / kManifestName).string();
  std::set<std::string> wanted;
  for (const auto& [name, tensor] : tensors) {
    wanted.insert(name);
    const auto at = manifest.tensors.find(name);
    UQA_CHECK(at != manifest.tensors.end(), ErrorCode::kData, "{}: tensor {} is missing; the run has other parameters than the checkpoint",
              what, name);
    UQA_CHECK(at::IntArrayRef(at->second.shape) == tensor.sizes() && at->second.dtype == dtype_name(tensor), ErrorCode::kData,
              "{}: tensor {} is {} {} in the checkpoint and {} {} in this run; use the settings that it was written with", what, name,
              at->second.dtype, fmt::join(at->second.shape, " x "), dtype_name(tensor), fmt::join(tensor.sizes().vec(), " x "));
  }
  if (coverage == Coverage::kAll) {
    for (const auto& [name, entry] : manifest.tensors) {
      UQA_CHECK(wanted.contains(name), ErrorCode::kData, "{}: tensor {} is not part of this run; use the settings that it was written with",
                what, name);
    }
  }
  // Everything is checked before the first byte is copied: a failed load leaves the run as it was.
  std::map<std::string, MappedFile> files;
  std::map<std::string, format::SafetensorsHeader> headers;
  for (const auto& [name, info] : manifest.files) {
    MappedFile file(path / name);
    const std::string file_path = (path / name).string();
    UQA_CHECK(static_cast<std::int64_t>(file.bytes().size()) == info.size_bytes, ErrorCode::kData,
              "{} has {} bytes, the manifest says {}; it was cut or replaced", file_path, file.bytes().size(), info.size_bytes);
    UQA_CHECK(hash_hex(file.bytes()) == info.hash, ErrorCode::kData, "{} does not match its checksum in the manifest; it is corrupt", file_path);
    headers.emplace(name, format::parse_safetensors(file.bytes(), file_path));
    files.emplace(name, std::move(file));
  }
  for (const auto& [name, tensor] : tensors) check_slices(path, name, manifest.tensors.at(name), headers);
  for (const auto& [name, tensor] : tensors) {
    for (const auto& slice : manifest.tensors.at(name).slices) {
      const auto& info = headers.at(slice.file).tensors.at(name);
      Tensor target = tensor.detach();
      for (std::size_t d = 0; d < slice.shape.size(); ++d) {
        target = target.narrow(static_cast<std::int64_t>(d), slice.offset[d], slice.shape[d]);
      }
      // Data of a safetensors file lies at multiples of 8 at best: copied through memory of its own, which is aligned.
      Tensor source = at::empty(slice.shape, target.options());
      const auto bytes = files.at(slice.file).bytes().subspan(info.begin, info.end - info.begin);
      std::copy(bytes.begin(), bytes.end(), static_cast<std::byte*>(source.mutable_data_ptr()));
      target.copy_(source);
    }
  }
  return manifest.loop;
}

}  // namespace uqa::trainer
