#include "expert_pool.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace packlight {
namespace {

constexpr int64_t kPage = 4096, kHugePage = 1 << 21;
constexpr int64_t kMostPieces = 1 << 14;  // of the mapping, of which the system allows four times as many

// Spans with no more than a page between them, joined: advice on each alone would cut the mapping into more pieces than
// the system allows.
std::vector<Span> joined(const std::vector<std::vector<Span>>& spans) {
  std::vector<Span> all, found;
  for (const auto& one : spans) all.insert(all.end(), one.begin(), one.end());
  std::sort(all.begin(), all.end(), [](Span a, Span b) { return a.first < b.first; });
  for (const Span& span : all) {
    if (!found.empty() && span.first - (found.back().first + found.back().bytes) <= kPage) {
      found.back().bytes = span.first + span.bytes - found.back().first;
    } else {
      found.push_back(span);
    }
  }
  return found;
}

}  // namespace

ExpertPool::ExpertPool(const MappedFile& file, int64_t experts, std::vector<int64_t> layers,
                       std::vector<std::vector<Span>> spans, int64_t budget)
    : file_(file),
      experts_(experts),
      layers_(std::move(layers)),
      spans_(std::move(spans)),
      budget_(budget),
      bytes_(spans_.size()),
      places_(spans_.size(), held_.end()) {
  for (size_t expert = 0; expert < spans_.size(); ++expert) {
    for (const Span& span : spans_[expert]) bytes_[expert] += span.bytes;
  }
  for (const Span& span : joined(spans_)) {
    file_.read_exactly(span, true);
    file_.give_back(span);  // what whoever wrote the file has left in memory
  }
  std::vector<Span> whole;
  for (const auto& one : spans_) {
    for (const Span& span : one) {
      if (huge(span).bytes) whole.push_back(huge(span));
    }
  }
  by_huge_pages_ = 2 * static_cast<int64_t>(whole.size()) < kMostPieces;
  for (const Span& span : whole) by_huge_pages_ = by_huge_pages_ && file_.read_exactly(span, false);
}

// The whole huge pages in a span; the file is mapped from one on.
Span ExpertPool::huge(Span span) const {
  const int64_t first = (span.first + kHugePage - 1) / kHugePage * kHugePage;
  const int64_t end = (span.first + span.bytes) / kHugePage * kHugePage;
  return {first, std::max<int64_t>(0, end - first)};
}

std::string ExpertPool::bring(int64_t layer, const int32_t* chosen, int64_t count) {
  if (layer < 0 || layer >= static_cast<int64_t>(layers_.size())) {
    return "there are no experts of a layer " + std::to_string(layer);
  }
  std::vector<int64_t> wanted;
  for (int64_t i = 0; i < count; ++i) {
    if (chosen[i] >= 0 && chosen[i] < experts_) wanted.push_back(layer * experts_ + chosen[i]);
  }
  std::sort(wanted.begin(), wanted.end());
  wanted.erase(std::unique(wanted.begin(), wanted.end()), wanted.end());

  const auto began = Clock::now();
  std::lock_guard<std::mutex> turn(turn_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) return "";
  }
  std::vector<int64_t> missing;
  for (int64_t expert : wanted) {
    if (places_[expert] == held_.end()) missing.push_back(expert);
    else held_.splice(held_.end(), held_, places_[expert]);
  }
  const size_t ready = wanted.size() - missing.size();
  for (int64_t expert : make_room(missing, ready)) {
    for (const Span& span : spans_[expert]) file_.give_back(span);
  }
  const std::string wrong = read(missing);
  std::lock_guard<std::mutex> lock(mutex_);
  counts_.here = held_.size();
  counts_.ready += ready;
  if (!missing.empty()) counts_.waited_ns += nanoseconds_since(began);
  return wrong;
}

// Takes those that were chosen longest ago off the list, until what is missing fits beside the others; what has been
// chosen now, the last `wanted`, stays. Returns what is to be given back.
std::vector<int64_t> ExpertPool::make_room(const std::vector<int64_t>& missing, size_t wanted) {
  int64_t needed = 0;
  for (int64_t expert : missing) needed += bytes_[expert];
  std::vector<int64_t> leaving;
  while (held_bytes_ + needed > budget_ && held_.size() > wanted) {
    const int64_t expert = held_.front();
    held_.pop_front();
    places_[expert] = held_.end();
    held_bytes_ -= bytes_[expert];
    leaving.push_back(expert);
  }
  return leaving;
}

// What is read in small pages is asked for at once, so that the disk has something to do. What cannot be read is not
// there.
std::string ExpertPool::read(const std::vector<int64_t>& missing) {
  for (int64_t expert : missing) {
    for (const Span& span : spans_[expert]) {
      const Span whole = by_huge_pages_ ? huge(span) : Span{span.first + span.bytes, 0};
      if (!whole.bytes) {
        file_.ask(span);
        continue;
      }
      file_.ask({span.first, whole.first - span.first});
      file_.ask({whole.first + whole.bytes, span.first + span.bytes - whole.first - whole.bytes});
    }
  }
  std::string wrong;
  for (int64_t expert : missing) {
    int error = 0;
    for (const Span& span : spans_[expert]) error = error ? error : file_.bring(span);
    if (error) {
      const std::string name = "layer " + std::to_string(layers_[expert / experts_]) + ", expert " +
                               std::to_string(expert % experts_);
      if (wrong.empty()) wrong = name + ": its weights cannot be read: " + std::strerror(error);
      for (const Span& span : spans_[expert]) file_.give_back(span);
      continue;
    }
    places_[expert] = held_.insert(held_.end(), expert);
    held_bytes_ += bytes_[expert];
    std::lock_guard<std::mutex> lock(mutex_);
    ++counts_.reads, counts_.bytes += bytes_[expert];
  }
  return wrong;
}

PoolCounts ExpertPool::counts() {
  std::lock_guard<std::mutex> lock(mutex_);
  return counts_;
}

void ExpertPool::close() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  std::lock_guard<std::mutex> turn(turn_);
}

}  // namespace packlight
