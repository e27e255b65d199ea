#include "models/format/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/json.h"

namespace uqa::format {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian and is used as it lies");

constexpr std::size_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the limit of the format's own library
constexpr std::size_t kMaxDims = 32;
constexpr int kMaxJsonDepth = 4;  // file object, tensor object, array; one to spare
constexpr std::string_view kMetadataKey = "__metadata__";

constexpr std::array<std::pair<std::string_view, std::size_t>, 16> kDtypes{{{"BOOL", 1},
                                                                            {"U8", 1},
                                                                            {"I8", 1},
                                                                            {"F8_E5M2", 1},
                                                                            {"F8_E4M3", 1},
                                                                            {"F8_E8M0", 1},
                                                                            {"I16", 2},
                                                                            {"U16", 2},
                                                                            {"F16", 2},
                                                                            {"BF16", 2},
                                                                            {"I32", 4},
                                                                            {"U32", 4},
                                                                            {"F32", 4},
                                                                            {"F64", 8},
                                                                            {"I64", 8},
                                                                            {"U64", 8}}};

/// 0 if unknown.
std::size_t width_of(std::string_view dtype) {
  for (const auto& [name, width] : kDtypes) {
    if (name == dtype) return width;
  }
  return 0;
}

/// Bytes of a tensor, or no value when the product does not fit. A zero does not excuse other sizes that overflow: strides
/// are computed from them.
bool tensor_bytes(const std::vector<std::int64_t>& shape, std::size_t width, std::uint64_t& bytes) {
  std::uint64_t limit_product = width;
  bytes = width;
  for (const std::int64_t size : shape) {
    const auto factor = static_cast<std::uint64_t>(std::max<std::int64_t>(size, 1));
    if (factor > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / limit_product) return false;
    limit_product *= factor;
    bytes *= static_cast<std::uint64_t>(size);
  }
  return true;
}

std::string shown(std::string_view name) {
  constexpr std::size_t kShown = 80;
  return name.size() <= kShown ? std::string(name) : fmt::format("{}... ({} bytes)", name.substr(0, kShown), name.size());
}

/// JSON with duplicate keys and deep nesting refused (the parser itself would keep the last of equal keys).
Json parse_header_json(std::string_view text, const std::string& what) {
  std::vector<std::set<std::string>> keys;
  const Json::parser_callback_t watch = [&](int depth, Json::parse_event_t event, Json& value) {
    UQA_CHECK(depth <= kMaxJsonDepth, ErrorCode::kData, "{}: the header's JSON is nested deeper than {} levels; the file is damaged",
              what, kMaxJsonDepth);
    if (event == Json::parse_event_t::object_start) {
      keys.resize(static_cast<std::size_t>(depth) + 1);
      keys.back().clear();
    } else if (event == Json::parse_event_t::key) {
      const auto level = static_cast<std::size_t>(depth) - 1;  // a key is one deeper than its object
      keys.resize(level + 1);
      const auto& key = value.get_ref<const std::string&>();
      UQA_CHECK(keys[level].insert(key).second, ErrorCode::kData, "{}: the header names '{}' twice; the file is damaged", what,
                shown(key));
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::parse_error& e) {
    UQA_FAIL(ErrorCode::kData, "{}: the header is not valid JSON at byte {}; the file is damaged, fetch or make it again", what, e.byte);
  } catch (const Json::exception&) {  // a number that does not fit a double
    UQA_FAIL(ErrorCode::kData, "{}: the header holds a number that is out of range; the file is damaged, fetch or make it again", what);
  }
}

std::uint64_t unsigned_at(const Json& array, std::size_t index, const std::string& where) {
  UQA_CHECK(array.at(index).is_number_unsigned(), ErrorCode::kData, "{}: element {} must be a whole number >= 0; the file is damaged",
            where, index);
  return array.at(index).get<std::uint64_t>();
}

TensorInfo parse_tensor(const Json& entry, std::uint64_t data_begin, std::uint64_t file_bytes, const std::string& where) {
  UQA_CHECK(entry.is_object() && entry.contains("dtype") && entry.contains("shape") && entry.contains("data_offsets"),
            ErrorCode::kData, "{}: must be an object with dtype, shape and data_offsets; the file is damaged", where);
  const auto &dtype = entry.at("dtype"), &shape = entry.at("shape"), &offsets = entry.at("data_offsets");
  UQA_CHECK(dtype.is_string() && shape.is_array() && shape.size() <= kMaxDims && offsets.is_array() && offsets.size() == 2,
            ErrorCode::kData, "{}: dtype must be a text, shape a list of at most {} sizes, data_offsets two numbers; the file is damaged",
            where, kMaxDims);
  TensorInfo info;
  info.dtype = dtype.get<std::string>();
  const std::size_t width = width_of(info.dtype);
  UQA_CHECK(width > 0, ErrorCode::kData, "{}: dtype = '{}', is not one of the safetensors format that can be read", where,
            shown(info.dtype));
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const std::uint64_t size = unsigned_at(shape, i, where + ": shape");
    UQA_CHECK(size <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()), ErrorCode::kData,
              "{}: shape element {} = {}, is too large; the file is damaged", where, i, size);
    info.shape.push_back(static_cast<std::int64_t>(size));
  }
  std::uint64_t bytes = 0;
  UQA_CHECK(tensor_bytes(info.shape, width, bytes), ErrorCode::kData, "{}: shape = [{}], overflows; the file is damaged", where,
            fmt::join(info.shape, ", "));
  const std::uint64_t begin = unsigned_at(offsets, 0, where + ": data_offsets"), end = unsigned_at(offsets, 1, where + ": data_offsets");
  const std::uint64_t data_bytes = file_bytes - data_begin;
  UQA_CHECK(begin <= end && end <= data_bytes, ErrorCode::kData,
            "{}: data_offsets = [{}, {}], must lie inside the file's {} data bytes; the file is truncated or damaged", where, begin, end,
            data_bytes);
  UQA_CHECK(end - begin == bytes, ErrorCode::kData,
            "{}: data_offsets = [{}, {}] hold {} bytes, but dtype {} and shape [{}] need {}; the file is damaged", where, begin, end,
            end - begin, info.dtype, fmt::join(info.shape, ", "), bytes);
  info.begin = data_begin + begin;
  info.end = data_begin + end;
  return info;
}

void check_no_overlap(const SafetensorsHeader& header, const std::string& what) {
  std::vector<std::pair<const std::string*, const TensorInfo*>> order;
  for (const auto& [name, info] : header.tensors) {
    if (info.end > info.begin) order.emplace_back(&name, &info);
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.second->begin < b.second->begin; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    UQA_CHECK(order[i - 1].second->end <= order[i].second->begin, ErrorCode::kData,
              "{}: tensors '{}' and '{}' overlap; the file is damaged", what, shown(*order[i - 1].first), shown(*order[i].first));
  }
}

}  // namespace

std::size_t dtype_bytes(const std::string& dtype) {
  const std::size_t width = width_of(dtype);
  UQA_CHECK(width > 0, ErrorCode::kData, "dtype = '{}', is not one of the safetensors format", shown(dtype));
  return width;
}

SafetensorsHeader parse_safetensors(std::span<const std::byte> file, const std::string& what) {
  UQA_CHECK(file.size() >= kLengthBytes, ErrorCode::kData, "{}: {} bytes, is too short for a safetensors file; fetch or make it again",
            what, file.size());
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), kLengthBytes);
  UQA_CHECK(header_bytes <= kMaxHeaderBytes && header_bytes <= file.size() - kLengthBytes, ErrorCode::kData,
            "{}: header length = {}, must be at most {} and inside the file's {} bytes; the file is truncated or is not safetensors", what,
            header_bytes, kMaxHeaderBytes, file.size());
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, header_bytes);
  const Json json = parse_header_json(text, what);
  UQA_CHECK(json.is_object(), ErrorCode::kData, "{}: the header must be a JSON object; the file is damaged", what);

  SafetensorsHeader header;
  for (const auto& [name, entry] : json.items()) {
    const std::string where = fmt::format("{}: tensor '{}'", what, shown(name));
    if (name != kMetadataKey) {
      header.tensors.emplace(name, parse_tensor(entry, kLengthBytes + header_bytes, file.size(), where));
      continue;
    }
    UQA_CHECK(entry.is_object(), ErrorCode::kData, "{}: {} must be an object of texts; the file is damaged", what, kMetadataKey);
    for (const auto& [key, value] : entry.items()) {
      UQA_CHECK(value.is_string(), ErrorCode::kData, "{}: {} key '{}' must be a text; the file is damaged", what, kMetadataKey, shown(key));
      header.metadata.emplace(key, value.get<std::string>());
    }
  }
  check_no_overlap(header, what);
  return header;
}

std::vector<std::size_t> SafetensorsWriter::order_of(const std::vector<TensorPlan>& tensors) {
  // The format allows no gaps, so padding cannot align a tensor: the widest dtypes come first instead.
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return dtype_bytes(tensors[a].dtype) > dtype_bytes(tensors[b].dtype); });
  return order;
}

SafetensorsWriter::SafetensorsWriter(const fs::path& path, const std::vector<TensorPlan>& tensors, const std::map<std::string, std::string>& metadata)
    : file_(path) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[std::string(kMetadataKey)] = metadata;
  std::set<std::string_view> names;
  for (const std::size_t i : order_of(tensors)) {
    const auto& tensor = tensors[i];
    UQA_CHECK(tensor.name != kMetadataKey && names.insert(tensor.name).second, ErrorCode::kInternal,
              "{}: tensor name '{}' is reserved or given twice", path.string(), tensor.name);
    std::uint64_t bytes = 0;
    UQA_CHECK(std::all_of(tensor.shape.begin(), tensor.shape.end(), [](std::int64_t size) { return size >= 0; }) &&
                  tensor_bytes(tensor.shape, dtype_bytes(tensor.dtype), bytes),
              ErrorCode::kInternal, "{}: tensor '{}' has shape [{}]", path.string(), tensor.name, fmt::join(tensor.shape, ", "));
    header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {expected_, expected_ + bytes}}};
    expected_ += bytes;
  }
  std::string text = header.dump();
  text.append((8 - (kLengthBytes + text.size()) % 8) % 8, ' ');
  const std::uint64_t header_bytes = text.size();
  UQA_CHECK(header_bytes <= kMaxHeaderBytes, ErrorCode::kData, "{}: header = {} bytes, must be at most {}; write fewer tensors a file",
            path.string(), header_bytes, kMaxHeaderBytes);
  std::string head(kLengthBytes, '\0');
  std::memcpy(head.data(), &header_bytes, kLengthBytes);
  file_.append(head + text);
}

void SafetensorsWriter::append(std::span<const std::byte> bytes) {
  file_.append({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  written_ += bytes.size();
}

void SafetensorsWriter::finish() {
  UQA_CHECK(written_ == expected_, ErrorCode::kInternal, "safetensors file: {} bytes given of {}", written_, expected_);
  file_.commit();
}

void write_safetensors(const fs::path& path, const std::vector<TensorBytes>& tensors, const std::map<std::string, std::string>& metadata) {
  std::vector<TensorPlan> plans;
  for (const auto& tensor : tensors) {
    std::uint64_t bytes = 0;
    UQA_CHECK(std::all_of(tensor.shape.begin(), tensor.shape.end(), [](std::int64_t size) { return size >= 0; }) &&
                  tensor_bytes(tensor.shape, dtype_bytes(tensor.dtype), bytes) && bytes == tensor.bytes.size(),
              ErrorCode::kInternal, "{}: tensor '{}' of dtype {} and shape [{}] is given {} bytes", path.string(), tensor.name, tensor.dtype,
              fmt::join(tensor.shape, ", "), tensor.bytes.size());
    plans.push_back({.name = tensor.name, .dtype = tensor.dtype, .shape = tensor.shape});
  }
  SafetensorsWriter writer(path, plans, metadata);
  for (const std::size_t i : SafetensorsWriter::order_of(plans)) writer.append(tensors[i].bytes);
  writer.finish();
}

}  // namespace uqa::format
