// Experts of a mapped file, brought into memory when they are chosen, and given back when others need the room.
#ifndef PACKLIGHT_EXPERT_POOL_H_
#define PACKLIGHT_EXPERT_POOL_H_

#include <cstdint>
#include <list>
#include <mutex>
#include <string>
#include <vector>

#include "mapped_file.h"

namespace packlight {

// What has happened since a pool was made.
struct PoolCounts {
  int64_t here;          // experts that are in memory
  int64_t ready, reads;  // experts that were there when they were chosen, and that were read then
  int64_t bytes;         // of those that were read
  int64_t waited_ns;     // for them
};

// The experts of the layers that have some. Those stay that were chosen last, as many as the budget lets. Whoever has
// chosen brings what is missing, in turn with others, so that none is read twice. What is given back while another step
// reads it is found by that page by page.
class ExpertPool {
 public:
  // experts: of each layer. layers: their numbers in the model. spans: of each expert of each of these layers, what no
  // other has. budget: bytes of them.
  ExpertPool(const MappedFile& file, int64_t experts, std::vector<int64_t> layers, std::vector<std::vector<Span>> spans,
             int64_t budget);

  // Rows of the layer that is number `layer` among those with experts have chosen: what is wrong, or "". A number that
  // is no expert's is nobody's.
  std::string bring(int64_t layer, const int32_t* chosen, int64_t count);
  PoolCounts counts();
  // Waits for whoever brings something. Nothing is brought or given back from then on.
  void close();

 private:
  std::vector<int64_t> make_room(const std::vector<int64_t>& missing, size_t wanted);
  std::string read(const std::vector<int64_t>& missing);
  Span huge(Span span) const;

  const MappedFile& file_;
  const int64_t experts_;
  const std::vector<int64_t> layers_;
  const std::vector<std::vector<Span>> spans_;
  const int64_t budget_;
  std::vector<int64_t> bytes_;  // of each expert
  bool by_huge_pages_ = false;  // what lies in whole huge pages is read in these, which is twice as fast
  std::mutex turn_;             // of all that follows; `mutex_` is taken inside it and never held for long
  std::list<int64_t> held_;     // the one that was chosen longest ago first
  std::vector<std::list<int64_t>::iterator> places_;  // of each expert in `held_`, or its end
  int64_t held_bytes_ = 0;
  std::mutex mutex_;
  PoolCounts counts_{};
  bool closed_ = false;
};

}  // namespace packlight

#endif  // PACKLIGHT_EXPERT_POOL_H_
