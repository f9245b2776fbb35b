// Layers of a mapped file, brought into memory before a step reads them and given back behind it; and its experts.
#ifndef PACKLIGHT_STREAM_H_
#define PACKLIGHT_STREAM_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "expert_pool.h"
#include "mapped_file.h"

namespace packlight {

// Consecutive units of a file, of which each is brought and given back as a whole.
struct Units {
  int64_t first, count;
};

// How a file is cut into units, from the first mapped byte on.
struct Cut {
  int64_t unit;                // bytes
  std::vector<int64_t> bytes;  // of each unit, before a hole or the file's end

  Span whole(Units units) const { return {units.first * unit, units.count * unit}; }
  Span filled(Units units) const {
    return {units.first * unit, (units.count - 1) * unit + bytes[units.first + units.count - 1]};
  }
};

// What has happened since a stream was opened.
struct StreamCounts {
  int64_t ready, late;      // layers that were there when a step came to them, and that it waited for
  int64_t waited_ns;        // for those, and for layers that stay when they are first wanted
  int64_t reads, bytes;     // layers that were asked for, and bytes of their units that nothing held before
  int64_t kept_bytes;       // the same of the layers that stay
  int64_t reading_ns;       // of the thread, in both
  PoolCounts experts;
};

// The layers of one model. The first `kept` stay once they are there. Of the others those stay that a step reads now and
// the `ahead` that it reads next: one thread brings them. A step that finds a layer missing waits for it; without the
// thread, page by page, it would find it all the same, as all of it is in the mapping.
class Stream {
 public:
  Stream(MappedFile file, Cut cut, std::vector<std::vector<Units>> layers, int64_t kept, int64_t ahead);
  ~Stream();  // ends the thread

  // Once, before a step names the stream: as `ExpertPool`'s.
  void add_experts(int64_t experts, std::vector<int64_t> layers, std::vector<std::vector<Span>> spans, int64_t budget);

  // A step comes to a layer: what is wrong, or "".
  std::string advance(int64_t layer);
  // As `ExpertPool::bring`; without experts nothing is to be brought.
  std::string bring_experts(int64_t layer, const int32_t* chosen, int64_t count);
  StreamCounts counts();
  // Ends the thread and whoever waits for it. Nothing is brought or given back from then on.
  void close();

 private:
  enum class State { absent, asked, coming, here, failed };
  struct Job {
    int64_t layer;
    bool brings;
  };

  std::vector<int64_t> next_from(int64_t layer) const;
  void ask(std::vector<int64_t> wanted, const std::vector<int64_t>& next);
  void leave(int64_t layer);
  void work();
  int bring(int64_t layer, int64_t* bytes);
  void give_back(int64_t layer);

  const MappedFile file_;
  const Cut cut_;
  const std::vector<std::vector<Units>> layers_;
  const int64_t kept_, ahead_;
  std::vector<int> holders_;  // of each unit: layers that are brought. The thread's own
  std::mutex mutex_;
  std::condition_variable asked_, done_;
  std::vector<State> states_;
  std::vector<int> errors_;
  std::deque<Job> jobs_;  // a layer has one of a kind at most
  StreamCounts counts_{};
  bool closed_ = false;
  std::unique_ptr<ExpertPool> experts_;
  std::thread thread_;
};

}  // namespace packlight

#endif  // PACKLIGHT_STREAM_H_
