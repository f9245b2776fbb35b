// The uniform numbers of a draw: jax.random's, to the bit.
#ifndef PACKLIGHT_THREEFRY_H_
#define PACKLIGHT_THREEFRY_H_

#include <cstdint>
#include <cstring>

namespace packlight {

struct Words {
  uint32_t first, second;
};

// Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; 20 rounds, as jax.extend.random has them.
inline Words threefry(Words key, Words x) {
  constexpr int kTurns[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {key.first, key.second, key.first ^ key.second ^ 0x1BD11BDA};
  x.first += keys[0], x.second += keys[1];
  for (uint32_t block = 0; block < 5; ++block) {
    for (const int turn : kTurns[block % 2]) {
      x.first += x.second;
      x.second = (x.second << turn | x.second >> (32 - turn)) ^ x.first;
    }
    x.first += keys[(block + 1) % 3], x.second += keys[(block + 2) % 3] + block + 1;
  }
  return x;
}

struct Uniforms {
  float draw, chance;  // in [0, 1), in steps of 2^-23
};

// uniform(fold_in(key(seed), position), (2,)), of keys that count each number by itself (jax_threefry_partitionable).
inline Uniforms uniforms(uint32_t seed, int32_t position) {
  const Words key = threefry({0, seed}, {0, static_cast<uint32_t>(position)});
  const auto one = [&](uint32_t number) {
    const Words bits = threefry(key, {0, number});
    return static_cast<float>((bits.first ^ bits.second) >> 9) * 0x1p-23f;
  };
  return {one(0), one(1)};
}

}  // namespace packlight

#endif  // PACKLIGHT_THREEFRY_H_
