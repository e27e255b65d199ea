// The group of one rank. The public functions answer such groups themselves, so what is here only has to be true.
#include <cstring>

#include "comm/backend.h"

namespace uqa::comm::detail {

namespace {

class DonePending : public Pending {
 public:
  void wait() override {}
  bool test() override { return true; }
};

class SerialBackend : public Backend {
 public:
  explicit SerialBackend(const std::string& axis) : Backend(0, 1, axis) {}

  std::shared_ptr<Backend> split(int, int, const std::string& axis) override { return make_serial_backend(axis); }
  void all_reduce(const Elements&, ReduceOp) override {}
  std::unique_ptr<Pending> all_reduce_async(const Elements&, ReduceOp, const Tensor&) override {
    return std::make_unique<DonePending>();
  }
  std::unique_ptr<Pending> all_gather_async(const void* in, void* out, std::span<const std::int64_t> bytes, std::vector<Tensor>) override {
    copy(in, out, bytes[0]);
    return std::make_unique<DonePending>();
  }
  void all_gather(const void* in, void* out, std::span<const std::int64_t> bytes) override { copy(in, out, bytes[0]); }
  void reduce_scatter(const Elements& in, void* out, std::span<const std::int64_t> counts) override {
    copy(in.data, out, counts[0] * element_bytes(in.type));
  }
  void broadcast(void*, std::int64_t, int) override {}
  void all_to_all(const void* in, std::span<const std::int64_t> send_bytes, void* out,
                  std::span<const std::int64_t>) override {
    copy(in, out, send_bytes[0]);
  }
  void barrier() override {}

 private:
  static void copy(const void* in, void* out, std::int64_t bytes) {
    if (bytes > 0) std::memcpy(out, in, static_cast<std::size_t>(bytes));
  }
};

}  // namespace

std::shared_ptr<Backend> make_serial_backend(const std::string& axis) { return std::make_shared<SerialBackend>(axis); }

}  // namespace uqa::comm::detail
