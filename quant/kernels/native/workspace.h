// This thread's memory for one block of a call's work.
#ifndef PACKLIGHT_WORKSPACE_H_
#define PACKLIGHT_WORKSPACE_H_

#include <cstdint>
#include <new>

namespace packlight {

// Kept, because fresh pages cost more than a short block takes. The next call may give the same memory.
inline float* workspace(int64_t floats) {
  struct Memory {
    float* data = nullptr;
    int64_t floats = 0;
    ~Memory() { operator delete[](data, std::align_val_t(64)); }
  };
  thread_local Memory memory;
  if (memory.floats < floats) {
    operator delete[](memory.data, std::align_val_t(64));
    memory.data = nullptr, memory.floats = 0;
    memory.data = static_cast<float*>(operator new[](floats * sizeof(float), std::align_val_t(64)));
    memory.floats = floats;
  }
  return memory.data;
}

}  // namespace packlight

#endif  // PACKLIGHT_WORKSPACE_H_
