// Streams of layers by their numbers, their thread, and the call by which a step says where it is.
//
// Only Linux has what this needs. Elsewhere no stream opens.

#include "stream.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <utility>

#include "export.h"
#include "xla/ffi/api/ffi.h"

#if defined(__linux__)
#include <fcntl.h>
#include <unistd.h>
#endif

namespace packlight {

namespace ffi = xla::ffi;

Stream::Stream(MappedFile file, Cut cut, std::vector<std::vector<Units>> layers, int64_t kept, int64_t ahead)
    : file_(file),
      cut_(std::move(cut)),
      layers_(std::move(layers)),
      kept_(kept),
      ahead_(ahead),
      holders_(cut_.bytes.size()),
      states_(layers_.size(), State::absent),
      errors_(layers_.size()) {
  for (const auto& layer : layers_) {
    for (const Units& units : layer) file_.read_exactly(cut_.whole(units), false);
  }
  for (int64_t layer = kept_; layer < static_cast<int64_t>(layers_.size()); ++layer) {
    // what whoever wrote the file has left in memory
    for (const Units& units : layers_[layer]) file_.give_back(cut_.whole(units));
  }
  for (int64_t layer = 0; layer < kept_; ++layer) states_[layer] = State::asked, jobs_.push_back({layer, true});
  thread_ = std::thread([this] { work(); });
}

Stream::~Stream() {
  close();
#if defined(__linux__)
  ::close(file_.fd);
#endif
}

void Stream::add_experts(int64_t experts, std::vector<int64_t> layers, std::vector<std::vector<Span>> spans,
                         int64_t budget) {
  experts_ = std::make_unique<ExpertPool>(file_, experts, std::move(layers), std::move(spans), budget);
}

void Stream::close() {
  if (experts_) experts_->close();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  asked_.notify_all(), done_.notify_all();
  if (thread_.joinable()) thread_.join();
}

// The layers that a step which is at `layer` reads now or soon, those that stay left out, in that order.
std::vector<int64_t> Stream::next_from(int64_t layer) const {
  const int64_t all = static_cast<int64_t>(layers_.size());
  const int64_t most = std::min(ahead_ + 1, all - kept_);
  std::vector<int64_t> found;
  for (int64_t at = layer; static_cast<int64_t>(found.size()) < most; at = (at + 1) % all) {
    if (at >= kept_) found.push_back(at);
  }
  return found;
}

// Has a layer given back, or not brought.
void Stream::leave(int64_t layer) {
  State& state = states_[layer];
  if (state == State::absent) return;
  if (state == State::asked) {  // and nothing has been done for it
    jobs_.erase(std::find_if(jobs_.begin(), jobs_.end(), [&](const Job& job) { return job.brings && job.layer == layer; }));
  } else {
    jobs_.push_back({layer, false});
  }
  state = State::absent;
  done_.notify_all();
}

// Asks for what is wanted and absent, and has all else given back but the layers that stay.
void Stream::ask(std::vector<int64_t> wanted, const std::vector<int64_t>& next) {
  wanted.insert(wanted.end(), next.begin(), next.end());
  for (int64_t layer = kept_; layer < static_cast<int64_t>(layers_.size()); ++layer) {
    if (std::find(wanted.begin(), wanted.end(), layer) == wanted.end()) leave(layer);
  }
  for (int64_t layer : wanted) {
    if (states_[layer] != State::absent) continue;
    states_[layer] = State::asked, jobs_.push_back({layer, true});
  }
  asked_.notify_one();
}

std::string Stream::advance(int64_t layer) {
  if (layer < 0 || layer >= static_cast<int64_t>(layers_.size())) return "there is no layer " + std::to_string(layer);
  std::unique_lock<std::mutex> lock(mutex_);
  if (closed_) return "";
  if (states_[layer] == State::failed) leave(layer);  // what failed ahead of time is tried once more
  ask(layer < kept_ ? std::vector<int64_t>{layer} : std::vector<int64_t>{}, next_from(layer));
  State& state = states_[layer];
  const bool ready = state == State::here;
  if (!ready) {
    const auto began = Clock::now();
    // absent: another step, which is elsewhere, has had it given back
    done_.wait(lock, [&] { return closed_ || (state != State::asked && state != State::coming); });
    counts_.waited_ns += nanoseconds_since(began);
  }
  if (layer >= kept_) ++(ready ? counts_.ready : counts_.late);
  if (state != State::failed) return "";
  return "layer " + std::to_string(layer) + ": its weights cannot be read: " + std::strerror(errors_[layer]);
}

std::string Stream::bring_experts(int64_t layer, const int32_t* chosen, int64_t count) {
  return experts_ ? experts_->bring(layer, chosen, count) : "";
}

StreamCounts Stream::counts() {
  std::lock_guard<std::mutex> lock(mutex_);
  StreamCounts found = counts_;
  if (experts_) found.experts = experts_->counts();
  return found;
}

void Stream::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    asked_.wait(lock, [&] { return closed_ || !jobs_.empty(); });
    if (closed_) return;
    const Job job = jobs_.front();
    jobs_.pop_front();
    if (!job.brings) {
      lock.unlock();
      give_back(job.layer);
      lock.lock();
      continue;
    }
    states_[job.layer] = State::coming;
    lock.unlock();
    const auto began = Clock::now();
    int64_t bytes = 0;
    const int error = bring(job.layer, &bytes);
    lock.lock();
    counts_.reading_ns += nanoseconds_since(began);
    if (job.layer < kept_) counts_.kept_bytes += bytes;
    else ++counts_.reads, counts_.bytes += bytes;
    errors_[job.layer] = error;
    if (states_[job.layer] == State::coming) states_[job.layer] = error ? State::failed : State::here;
    done_.notify_all();
  }
}

// Brings what no other layer holds. Returns 0 or an errno; *bytes: of what was brought.
int Stream::bring(int64_t layer, int64_t* bytes) {
  int error = 0;
  for (const Units& units : layers_[layer]) {
    const int64_t end = units.first + units.count;
    for (int64_t at = units.first; at < end;) {
      Units missing{at, 0};
      for (; at < end && !holders_[at]; ++at, ++missing.count) ++holders_[at], *bytes += cut_.bytes[at];
      if (missing.count && !error) error = file_.bring(cut_.filled(missing));
      for (; at < end && holders_[at]; ++at) ++holders_[at];
    }
  }
  return error;
}

void Stream::give_back(int64_t layer) {
  for (const Units& units : layers_[layer]) {
    const int64_t end = units.first + units.count;
    for (int64_t at = units.first; at < end;) {
      Units free{at, 0};
      for (; at < end && holders_[at] == 1; ++at, ++free.count) --holders_[at];
      if (free.count) file_.give_back(cut_.whole(free));
      for (; at < end && holders_[at] > 1; ++at) --holders_[at];
    }
  }
}

namespace {

// Steps know streams by numbers: what is compiled holds no address.
struct Registry {
  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<Stream>> streams;
  int64_t last = 0;

  std::shared_ptr<Stream> find(int64_t number) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto found = streams.find(number);
    return found == streams.end() ? nullptr : found->second;
  }
};

Registry& registry() {
  static Registry* all = new Registry;  // never destroyed: a step may run while the process ends
  return *all;
}

ffi::Error run_advance(ffi::AnyBuffer x, ffi::Buffer<ffi::S32> layer, ffi::Buffer<ffi::S32> number,
                       ffi::Result<ffi::AnyBuffer> y) {
  if (layer.element_count() != 1 || number.element_count() != 1 || y->size_bytes() != x.size_bytes()) {
    return ffi::Error::InvalidArgument("want one layer, one stream, and a result like x");
  }
  if (y->untyped_data() != x.untyped_data()) std::memcpy(y->untyped_data(), x.untyped_data(), x.size_bytes());
  const auto stream = registry().find(*number.typed_data());
  if (!stream) return ffi::Error::InvalidArgument("no stream has this number");
  const std::string wrong = stream->advance(*layer.typed_data());
  return wrong.empty() ? ffi::Error::Success() : ffi::Error::Internal(wrong);
}

ffi::Error run_bring_experts(ffi::Buffer<ffi::S32> chosen, ffi::Buffer<ffi::S32> layer, ffi::Buffer<ffi::S32> number,
                             ffi::Result<ffi::Buffer<ffi::S32>> y) {
  if (layer.element_count() != 1 || number.element_count() != 1 || y->size_bytes() != chosen.size_bytes()) {
    return ffi::Error::InvalidArgument("want one layer, one stream, and a result like what is chosen");
  }
  if (y->typed_data() != chosen.typed_data()) std::memcpy(y->typed_data(), chosen.typed_data(), chosen.size_bytes());
  const auto stream = registry().find(*number.typed_data());
  if (!stream) return ffi::Error::InvalidArgument("no stream has this number");
  const auto count = static_cast<int64_t>(chosen.element_count());
  const std::string wrong = stream->bring_experts(*layer.typed_data(), chosen.typed_data(), count);
  return wrong.empty() ? ffi::Error::Success() : ffi::Error::Internal(wrong);
}

}  // namespace
}  // namespace packlight

// memory: `size` mapped bytes from unit 0 on. bytes (units,); counts (layers,) of pairs in runs (sum, 2): first unit,
// units. Returns the stream's number, or 0 where the system cannot stream.
PACKLIGHT_EXPORT int64_t packlight_stream_open(int64_t fd, uint8_t* memory, int64_t offset, int64_t unit, int64_t units,
                                               int64_t size, const int64_t* bytes, int64_t layers, const int64_t* counts,
                                               const int64_t* runs, int64_t kept, int64_t ahead) {
#if defined(__linux__)
  using namespace packlight;
  const int own = fcntl(static_cast<int>(fd), F_DUPFD_CLOEXEC, 0);
  if (own < 0) return 0;
  const MappedFile file{own, memory, offset, size};
  std::vector<std::vector<Units>> of(layers);
  for (int64_t layer = 0; layer < layers; ++layer) {
    for (int64_t i = 0; i < counts[layer]; ++i, runs += 2) of[layer].push_back({runs[0], runs[1]});
  }
  auto stream = std::make_shared<Stream>(file, Cut{unit, {bytes, bytes + units}}, std::move(of), kept, ahead);
  Registry& all = registry();
  std::lock_guard<std::mutex> lock(all.mutex);
  all.streams[++all.last] = std::move(stream);
  return all.last;
#else
  return 0;
#endif
}

// Experts that the stream brings too, before a step names it. numbers (layers,): of the layers in the model; counts
// (layers * experts,) of pairs in spans (sum, 2): first byte, bytes.
PACKLIGHT_EXPORT void packlight_stream_add_experts(int64_t number, int64_t experts, int64_t layers,
                                                   const int64_t* numbers, const int64_t* counts, const int64_t* spans,
                                                   int64_t budget) {
  const auto stream = packlight::registry().find(number);
  if (!stream) return;
  std::vector<std::vector<packlight::Span>> of(layers * experts);
  for (int64_t expert = 0; expert < layers * experts; ++expert) {
    for (int64_t i = 0; i < counts[expert]; ++i, spans += 2) of[expert].push_back({spans[0], spans[1]});
  }
  stream->add_experts(experts, {numbers, numbers + layers}, std::move(of), budget);
}

// out (12,): the fields of StreamCounts, in order.
PACKLIGHT_EXPORT void packlight_stream_counts(int64_t number, int64_t* out) {
  const auto stream = packlight::registry().find(number);
  const packlight::StreamCounts counts = stream ? stream->counts() : packlight::StreamCounts{};
  std::memcpy(out, &counts, sizeof(counts));
}

// A step that names the stream is an error from now on; one that runs finds its layers page by page.
PACKLIGHT_EXPORT void packlight_stream_forget(int64_t number) {
  auto& all = packlight::registry();
  if (const auto stream = all.find(number)) stream->close();
  std::lock_guard<std::mutex> lock(all.mutex);
  all.streams.erase(number);
}

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_advance(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_advance, packlight::run_advance,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::AnyBuffer>());

PACKLIGHT_EXPORT XLA_FFI_Error* packlight_bring_experts(XLA_FFI_CallFrame* frame);
XLA_FFI_DEFINE_HANDLER_SYMBOL(packlight_bring_experts, packlight::run_bring_experts,
                              xla::ffi::Ffi::Bind()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>());
