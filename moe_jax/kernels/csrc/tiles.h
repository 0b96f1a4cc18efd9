// Tiles of a matrix product: sums of small blocks in registers, and factors laid out for them.
//
// A unit is 32 bits along k, the axis that is summed over: a float; two bfloat16, where the
// processor multiplies pairs of them; or one bfloat16 widened to a float where it does not.
// Vectors are those of GCC and Clang, so that one source serves AVX-512, AVX2, NEON and SSE.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace moe_jax {

// Lanes of a vector, and rows of a tile of two vectors' width: as many as the registers hold.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kHigh = 12;
#elif defined(__AVX__)
constexpr int kLanes = 8, kHigh = 6;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kHigh = 12;
#else
constexpr int kLanes = 4, kHigh = 6;
#endif
constexpr int kWide = 2 * kLanes;

using Half = uint16_t;  // the bits of a bfloat16
typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

enum class Unit { kFloat, kPair, kWidened };
template <Unit unit>
constexpr long elements = unit == Unit::kPair ? 2 : 1;

template <typename V>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof(V));
  return v;
}

// The first `bytes` of a vector, zeros behind them.
template <typename V>
inline V load(const void* from, long bytes) {
  if (bytes >= static_cast<long>(sizeof(V))) return load<V>(from);
  V v{};
  if (bytes > 0) std::memcpy(&v, from, bytes);
  return v;
}

inline void store(float* to, Vec v) { std::memcpy(to, &v, sizeof(v)); }
inline Bits wide_bits(Halves x) { return __builtin_convertvector(x, Bits); }

template <Unit unit>
inline Vec add_product(Vec sum, float a, Vec b) {
#if defined(__AVX512BF16__)
  if constexpr (unit == Unit::kPair) {  // the bits of `a` are not those of a number
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
  }
#endif
  return sum + (a - Vec{}) * b;
}

// c[high, kWide] = (c if more) + sum over `units` of a's by b's: unit p of row i at
// a[i * row + p * unit_of_a], of the columns at b[p * unit_of_b].
template <Unit unit, int high>
void tile(const float* a, long row, long unit_of_a, const float* b, long unit_of_b, long units,
          float* c, long ldc, bool more) {
  Vec sum[high][2];
#pragma GCC unroll 12
  for (int i = 0; i < high; ++i) {
    for (int j = 0; j < 2; ++j) {
      sum[i][j] = more ? load<Vec>(c + i * ldc + j * kLanes) : Vec{};
    }
  }
  for (long p = 0; p < units; ++p) {
    Vec b0 = load<Vec>(b), b1 = load<Vec>(b + kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < high; ++i) {
      float x = a[i * row];
      sum[i][0] = add_product<unit>(sum[i][0], x, b0);
      sum[i][1] = add_product<unit>(sum[i][1], x, b1);
    }
    a += unit_of_a;
    b += unit_of_b;
  }
#pragma GCC unroll 12
  for (int i = 0; i < high; ++i) {
    for (int j = 0; j < 2; ++j) store(c + i * ldc + j * kLanes, sum[i][j]);
  }
}

using Tile = void (*)(const float*, long, long, const float*, long, long, float*, long, bool);

template <Unit unit, int... n>
inline Tile tile_of(int high, std::integer_sequence<int, n...>) {
  static constexpr Tile all[] = {tile<unit, n + 1>...};
  return all[high - 1];
}

template <Unit unit>
inline Tile tile_of(int high) {
  return tile_of<unit>(high, std::make_integer_sequence<int, kHigh>{});
}

// One unit of `lanes` columns, from rows; `second`: whether a pair's other row is there.
template <Unit unit, typename T>
inline Vec unit_of_rows(const T* x, long ld, bool second, long lanes) {
  long bytes = lanes * static_cast<long>(sizeof(T));
  if constexpr (unit == Unit::kFloat) return load<Vec>(x, bytes);
  if constexpr (unit == Unit::kWidened) return (Vec)(wide_bits(load<Halves>(x, bytes)) << 16);
  Halves next = second ? load<Halves>(x + ld, bytes) : Halves{};
  return (Vec)(wide_bits(load<Halves>(x, bytes)) | (wide_bits(next) << 16));
}

// to[panel][unit][wide]: panels of `wide` columns, from rows x[k, n]; zeros past n and k.
template <Unit unit, typename T>
void lay_out_rows(const T* x, long ld, long k, long n, int wide, float* to) {
  long units = (k + elements<unit> - 1) / elements<unit>;
  for (long u = 0; u < units; ++u) {
    const T* row = x + u * elements<unit> * ld;
    bool second = u * elements<unit> + 1 < k;
    for (long p = 0; p < n; p += wide) {
      float* out = to + p * units + u * wide;
      if (p + wide <= n) {
        for (int j = 0; j < wide; j += kLanes) {
          store(out + j, unit_of_rows<unit>(row + p + j, ld, second, kLanes));
        }
      } else {
        for (int j = 0; j < wide; j += kLanes) {
          store(out + j, unit_of_rows<unit>(row + p + j, ld, second, n - p - j));
        }
      }
    }
  }
}

template <int... i>
inline void zip(Vec a, Vec b, Vec& low, Vec& high, std::integer_sequence<int, i...>) {
  low = __builtin_shufflevector(a, b, (i / 2 + (i % 2) * kLanes)...);
  high = __builtin_shufflevector(a, b, (kLanes / 2 + i / 2 + (i % 2) * kLanes)...);
}

// Rows and columns of kLanes vectors exchanged, by riffling their halves together.
inline void transpose(Vec* x) {
  Vec y[kLanes];
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / 2; ++i) {
      zip(x[i], x[i + kLanes / 2], y[2 * i], y[2 * i + 1],
          std::make_integer_sequence<int, kLanes>{});
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) x[i] = y[i];
  }
}

// Units of one column, at most k elements.
template <Unit unit, typename T>
inline Vec units_of_column(const T* x, long k) {
  if constexpr (unit == Unit::kWidened) return (Vec)(wide_bits(load<Halves>(x, k * 2)) << 16);
  return load<Vec>(x, k * static_cast<long>(sizeof(T)));
}

// As lay_out_rows, from columns x[n, k], which it transposes.
template <Unit unit, typename T>
void lay_out_columns(const T* x, long ld, long k, long n, int wide, float* to) {
  long units = (k + elements<unit> - 1) / elements<unit>;
  long columns = (n + wide - 1) / wide * wide;
  for (long p = 0; p < columns; p += kLanes) {
    float* panel = to + p / wide * wide * units + p % wide;
    for (long u = 0; u < units; u += kLanes) {
      Vec v[kLanes];
      for (int j = 0; j < kLanes; ++j) {
        v[j] = p + j < n ? units_of_column<unit>(x + (p + j) * ld + u * elements<unit>,
                                                 k - u * elements<unit>)
                         : Vec{};
      }
      transpose(v);
      long count = std::min<long>(kLanes, units - u);
      for (long i = 0; i < count; ++i) store(panel + (u + i) * wide, v[i]);
    }
  }
}

// to[n] = (to if more) + from, rounded to the nearest bfloat16, ties to even.
inline void round_to(const float* from, long n, bool more, Half* to) {
  for (long j = 0; j < n; ++j) {
    uint32_t before = static_cast<uint32_t>(to[j]) << 16;
    float old;
    std::memcpy(&old, &before, 4);
    float x = more ? old + from[j] : from[j];
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to[j] = x == x ? rounded : (bits >> 16) | 0x40;  // NaN stays NaN
  }
}

}  // namespace moe_jax
