// TFRecord framing and the few protobuf fields of Event and Summary that a scalar needs (tensorboard/compat/proto/event.proto, summary.proto):
//   Event   { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; }
//   Summary { repeated Value value = 1; }      Value { string tag = 1; float simple_value = 2; }
#include "trainer/export_tensorboard.h"

#include <array>
#include <bit>
#include <cstring>

#include <sys/stat.h>

#include "core/error.h"

namespace uqa::trainer {
namespace {

constexpr std::array<std::uint32_t, 256> crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) != 0 ? 0x82F63B78u : 0u);
    table[i] = crc;
  }
  return table;
}

template <typename T>
void append_fixed(std::string& out, T value) {
  static_assert(std::endian::native == std::endian::little, "TFRecord is little-endian");
  std::array<char, sizeof(T)> bytes{};
  std::memcpy(bytes.data(), &value, sizeof(T));
  out.append(bytes.data(), bytes.size());
}

void append_varint(std::string& out, std::uint64_t value) {
  while (value >= 0x80) {
    out += static_cast<char>((value & 0x7F) | 0x80);
    value >>= 7;
  }
  out += static_cast<char>(value);
}

/// Key of a protobuf field: wire 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
void append_key(std::string& out, std::uint64_t field, std::uint64_t wire) { append_varint(out, field << 3 | wire); }

void append_bytes(std::string& out, std::uint64_t field, const std::string& bytes) {
  append_key(out, field, 2);
  append_varint(out, bytes.size());
  out += bytes;
}

void append_record(std::string& file, const std::string& event) {
  std::string length;
  append_fixed<std::uint64_t>(length, event.size());
  file += length;
  append_fixed(file, masked_crc32c(length));
  file += event;
  append_fixed(file, masked_crc32c(event));
}

std::string event_head(double wall_time) {
  std::string event;
  append_key(event, 1, 1);
  append_fixed(event, wall_time);
  return event;
}

double start_time(const fs::path& path) {
  struct ::stat info {};
  return ::stat(path.c_str(), &info) == 0 ? static_cast<double>(info.st_mtim.tv_sec) : 0.0;
}

}  // namespace

std::uint32_t crc32c(std::string_view bytes) {
  static constexpr auto kTable = crc_table();
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes) crc = kTable[(crc ^ static_cast<unsigned char>(c)) & 0xFFu] ^ (crc >> 8);
  return ~crc;
}

std::uint32_t masked_crc32c(std::string_view bytes) {
  const std::uint32_t crc = crc32c(bytes);
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

TensorboardResult write_tensorboard(const fs::path& run, const fs::path& directory, bool overwrite) {
  UQA_CHECK(fs::exists(run / "run.json"), ErrorCode::kConfig, "run = {} holds no run.json; give the run directory of `uqa pretrain` or `uqa align`", run.string());
  const auto path = run / "metrics.jsonl";
  UQA_CHECK(fs::exists(path), ErrorCode::kConfig, "run = {} holds no metrics.jsonl: it has not trained yet", run.string());
  const std::string text = read_file(path);
  const Json info = read_json(run / "run.json");
  const auto host = get_or<std::string>(info, "host", "unknown", (run / "run.json").string());
  const double started = start_time(run / "config.ini");

  std::string file, version = event_head(started);
  append_bytes(version, 3, "brain.Event:2");
  append_record(file, version);
  TensorboardResult result;
  double seconds = 0;
  std::size_t begin = 0;
  for (std::size_t line = 1; begin < text.size(); ++line) {
    const auto end = text.find('\n', begin);
    const auto piece = std::string_view(text).substr(begin, end == std::string::npos ? std::string::npos : end - begin);
    begin = end == std::string::npos ? text.size() : end + 1;
    const auto record = Json::parse(piece, nullptr, /*allow_exceptions=*/false);
    if (!record.is_object() && end == std::string::npos) break;  // a last line that was cut short is no record
    UQA_CHECK(record.is_object(), ErrorCode::kData, "{}, line {}: not a JSON object", path.string(), line);
    const auto what = fmt::format("{}, line {}", path.string(), line);
    const auto kind = get<std::string>(record, "kind", what);
    const auto step = get<std::int64_t>(record, "step", what);
    seconds += get_or<double>(record, "seconds", 0, what);
    std::string summary;
    for (const auto& [key, value] : record.items()) {
      if (!value.is_number() || key == "step") continue;
      std::string scalar;
      append_bytes(scalar, 1, kind + "/" + key);
      append_key(scalar, 2, 5);
      append_fixed(scalar, value.get<float>());
      append_bytes(summary, 1, scalar);
      ++result.scalars;
    }
    std::string event = event_head(started + seconds);
    append_key(event, 2, 0);
    append_varint(event, static_cast<std::uint64_t>(step));
    append_bytes(event, 5, summary);
    append_record(file, event);
    ++result.records;
  }
  OutputDir output(directory, {.kind = "uqa.tensorboard", .overwrite = overwrite});
  write_file_atomic(output.path() / fmt::format("events.out.tfevents.{:010}.{}", static_cast<std::int64_t>(started), host), file);
  output.commit();
  return result;
}

}  // namespace uqa::trainer
