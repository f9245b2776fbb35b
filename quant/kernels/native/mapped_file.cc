#include "mapped_file.h"

#include <algorithm>

#if defined(__linux__)
#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <cstdio>
#endif

namespace packlight {

#if defined(__linux__)
namespace {

constexpr int64_t kPage = 4096;
constexpr int kPopulateRead = 22;  // MADV_POPULATE_READ, which older headers lack
constexpr int64_t kAsked = 1 << 17;  // bytes at a time: of a longer request the system may drop the rest

// From 5.18 on, a huge page of a mapping with MADV_HUGEPAGE is read as one: MADV_RANDOM then only keeps the system from
// reading on behind it. Before, it would read each small page alone.
bool find_huge_reads() {
  utsname name;
  int major = 0, minor = 0;
  if (uname(&name) || std::sscanf(name.release, "%d.%d", &major, &minor) != 2) return false;
  return major > 5 || (major == 5 && minor >= 18);
}

bool reads_huge_pages() {
  static const bool found = find_huge_reads();
  return found;
}

}  // namespace

bool MappedFile::read_exactly(Span span, bool small) const {
  const int64_t bytes = std::min(span.bytes, size - span.first);
  const bool advised = !madvise(memory + span.first, bytes, small ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
  if (!small && !(advised && reads_huge_pages())) return false;
  return !madvise(memory + span.first, bytes, MADV_RANDOM);
}

void MappedFile::ask(Span span) const {
  for (int64_t at = span.first, end = span.first + span.bytes; at < end; at += kAsked) {
    posix_fadvise(fd, offset + at, std::min(kAsked, end - at), POSIX_FADV_WILLNEED);
  }
}

int MappedFile::bring(Span span) const {
  uint8_t* first = memory + span.first;
  if (!span.bytes || !madvise(first, span.bytes, kPopulateRead)) return 0;
  if (errno == EFAULT || errno == EHWPOISON || errno == EIO) return errno;
  volatile uint8_t touched = 0;  // a system without it, or one short of memory for the moment
  for (int64_t at = 0; at < span.bytes; at += kPage) touched = first[at];
  (void)touched;
  return 0;
}

void MappedFile::give_back(Span span) const {
  madvise(memory + span.first, std::min(span.bytes, size - span.first), MADV_DONTNEED);
  // pages that another process has mapped stay in the system's cache
  posix_fadvise(fd, offset + span.first, span.bytes, POSIX_FADV_DONTNEED);
}
#else
bool MappedFile::read_exactly(Span, bool) const { return false; }
void MappedFile::ask(Span) const {}
int MappedFile::bring(Span) const { return 0; }
void MappedFile::give_back(Span) const {}
#endif

}  // namespace packlight
