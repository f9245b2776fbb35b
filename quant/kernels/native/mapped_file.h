// A mapped file whose parts are brought into memory, and given back, when that is said.
#ifndef PACKLIGHT_MAPPED_FILE_H_
#define PACKLIGHT_MAPPED_FILE_H_

#include <chrono>
#include <cstdint>

namespace packlight {

// Bytes of a file that is mapped, of whole pages.
struct Span {
  int64_t first, bytes;
};

struct MappedFile {
  int fd;
  uint8_t* memory;
  int64_t offset;  // in the file, of `memory`
  int64_t size;    // bytes that are mapped

  // Nothing is read from the disk but the huge pages that are wanted, or the `small` ones, where a span may begin and
  // end anywhere. Returns whether the system takes that advice.
  bool read_exactly(Span span, bool small) const;
  // Has it read while the caller does something else; `bring` waits for it.
  void ask(Span span) const;
  // 0 or an errno.
  int bring(Span span) const;
  // What cannot be given back stays.
  void give_back(Span span) const;
};

using Clock = std::chrono::steady_clock;

inline int64_t nanoseconds_since(Clock::time_point began) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - began).count();
}

}  // namespace packlight

#endif  // PACKLIGHT_MAPPED_FILE_H_
