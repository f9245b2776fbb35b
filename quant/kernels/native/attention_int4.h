// A tile of keys or values in 4 bits made int8, which attention_int8.h and attention_mix.h then read: they come out of
// memory in half the bytes, and every sum is that of int8. Included by attention_kernel.h.

// Unpacks positions lead .. count - 1 of a tile, and returns where its first position's channels are. Byte j of 16 has
// channel j of a block in its low half and channel j + 16 in its high one, each 8 more than what it stands for.
inline const uint8_t* unpack_int4(const uint8_t* from, int64_t width, int64_t lead, int64_t count, int8_t* to) {
  constexpr int64_t kHalf = kBlock / 2;
  const uint8_t* const end = from + count * (width / 2);
  int8_t* at = to + lead * width;
  for (from += lead * (width / 2); from < end; from += kHalf, at += kBlock) {
    for (int64_t j = 0; j < kHalf; ++j) {
      at[j] = static_cast<int8_t>((from[j] & 15) - 8);
      at[j + kHalf] = static_cast<int8_t>((from[j] >> 4) - 8);
    }
  }
  return reinterpret_cast<const uint8_t*>(to);
}
