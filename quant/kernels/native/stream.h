// Layers of a mapped file, brought into memory before a step reads them and given back behind it.
#ifndef PACKLIGHT_STREAM_H_
#define PACKLIGHT_STREAM_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace packlight {

// Consecutive units of a file.
struct Units {
  int64_t first, count;
};

// A file that is mapped to memory, in units of which each is brought and given back as a whole.
struct MappedFile {
  int fd;
  uint8_t* memory;  // of unit 0
  int64_t offset;   // in the file, of unit 0
  int64_t unit;     // bytes
  int64_t size;     // bytes that are mapped from unit 0 on; the last unit may end before its end
  std::vector<int64_t> bytes;  // of each unit, before a hole or the file's end

  int64_t mapped(Units units) const {
    const int64_t whole = units.count * unit, left = size - units.first * unit;
    return whole < left ? whole : left;
  }

  // Each of these is 0 or an errno. What cannot be given back stays.
  int bring(Units units) const;
  void give_back(Units units) const;
};

// What has happened since a stream was opened.
struct StreamCounts {
  int64_t ready, late;      // layers that were there when a step came to them, and that it waited for
  int64_t waited_ns;        // for those, and for layers that stay when they are first wanted
  int64_t reads, bytes;     // layers that were asked for, and bytes of their units that nothing held before
  int64_t kept_bytes;       // the same of the layers that stay
  int64_t reading_ns;       // of the thread, in both
};

// The layers of one model. The first `kept` stay once they are there. Of the others those stay that a step reads now and
// the `ahead` that it reads next: one thread brings them. A step that finds a layer missing waits for it; without the
// thread, page by page, it would find it all the same, as all of it is in the mapping.
class Stream {
 public:
  Stream(MappedFile file, std::vector<std::vector<Units>> layers, int64_t kept, int64_t ahead);
  ~Stream();  // ends the thread

  // A step comes to a layer: what is wrong, or "".
  std::string advance(int64_t layer);
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
  std::thread thread_;
};

}  // namespace packlight

#endif  // PACKLIGHT_STREAM_H_
