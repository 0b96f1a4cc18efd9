// Grouped matrix products for XLA on CPU: rows sorted by expert, each with its own expert's matrix.
//
// S rows, E groups, K and N widths. Called through jax.ffi by native.py, which says what each
// computes. A product is cut into blocks, which the threads of XLA's pool take in turn; a
// block's sums go along k in pieces whose factors stay in the second-level cache.

#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#include "tiles.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace moe_jax {

// Units along k, columns, and rows of a block; fewer rows where they have to be laid out too.
constexpr long kDepth = 384, kColumns = 256, kRows = 480, kRowsLaidOut = 240;

#if defined(__AVX512BF16__)
constexpr Unit kHalfUnit = Unit::kPair;
#else
constexpr Unit kHalfUnit = Unit::kWidened;
#endif

struct Scratch {
  alignas(64) float a[kDepth * kRowsLaidOut];
  alignas(64) float b[kDepth * kColumns];
  alignas(64) float sums[kRows * kColumns];
};

Scratch& scratch() {
  static thread_local std::unique_ptr<Scratch> mine(new Scratch);
  return *mine;
}

// A factor: element (k, j) at base[k * ld + j] if it lies by rows, else at base[j * ld + k].
template <typename T>
struct Factor {
  const T* base;
  long ld;
  bool by_rows;

  const T* from(long k) const { return by_rows ? base + k * ld : base + k; }
};

template <Unit unit, typename T>
void lay_out(Factor<T> x, long k0, long k, long n, int wide, float* to) {
  if (x.by_rows) {
    lay_out_rows<unit>(x.from(k0), x.ld, k, n, wide, to);
  } else {
    lay_out_columns<unit>(x.from(k0), x.ld, k, n, wide, to);
  }
}

// Factors of a block for `units` units along k, as the tiles read them.
struct Laid {
  const float *a, *b;
  long units, row, unit_of_a, unit_of_b, panel;
};

template <Unit unit, typename T>
Laid laid_out(Factor<T> a, Factor<T> b, long m, long n, long k0, long k, Scratch& s) {
  constexpr long each = elements<unit>;
  Laid x{};
  x.units = (k + each - 1) / each;
  if (unit == Unit::kFloat && b.by_rows && m <= kHigh && n % kWide == 0) {  // read once, as it is
    x.b = reinterpret_cast<const float*>(b.from(k0));
    x.unit_of_b = b.ld;
    x.panel = kWide;
  } else {
    lay_out<unit>(b, k0, k, n, kWide, s.b);
    x.b = s.b;
    x.unit_of_b = kWide;
    x.panel = x.units * kWide;
  }
  if (a.by_rows || unit == Unit::kWidened) {
    int wide = (m + kLanes - 1) / kLanes * kLanes;
    lay_out<unit>(a, k0, k, m, wide, s.a);
    x.a = s.a;
    x.row = 1;
    x.unit_of_a = wide;
  } else {
    x.a = reinterpret_cast<const float*>(a.from(k0));
    x.row = a.ld / each;
    x.unit_of_a = 1;
  }
  return x;
}

// c[m, n] (+)= the product; columns past n are written too where `spare` says that c has room.
template <Unit unit>
void sum_up(const Laid& x, long m, long n, float* c, long ldc, bool spare, bool more) {
  for (long j = 0; j < n; j += kWide) {
    const float* b = x.b + j / kWide * x.panel;
    for (long i = 0; i < m; i += kHigh) {
      int high = std::min<long>(kHigh, m - i);
      const float* a = x.a + i * x.row;
      float* to = c + i * ldc + j;
      if (spare || j + kWide <= n) {
        tile_of<unit>(high)(a, x.row, x.unit_of_a, b, x.unit_of_b, x.units, to, ldc, more);
        continue;
      }
      alignas(64) float edge[kHigh * kWide];
      tile_of<unit>(high)(a, x.row, x.unit_of_a, b, x.unit_of_b, x.units, edge, kWide, false);
      for (int r = 0; r < high; ++r) {
        for (long q = 0; q < n - j; ++q) {
          to[r * ldc + q] = (more ? to[r * ldc + q] : 0.f) + edge[r * kWide + q];
        }
      }
    }
  }
}

// out[m, n] (+)= sum over k of a(k, i) b(k, j); m <= kRows, n <= kColumns.
template <Unit unit, typename T, typename Out>
void multiply(Factor<T> a, Factor<T> b, long m, long n, long k, Out* out, long ld, bool more) {
  constexpr bool in_place = std::is_same_v<Out, float>;
  constexpr long depth = kDepth * elements<unit>;
  Scratch& s = scratch();
  if (k == 0) {
    for (long i = 0; i < m && !more; ++i) std::memset(out + i * ld, 0, n * sizeof(Out));
    return;
  }
  float* c = in_place ? reinterpret_cast<float*>(out) : s.sums;
  for (long k0 = 0; k0 < k; k0 += depth) {
    Laid x = laid_out<unit>(a, b, m, n, k0, std::min(depth, k - k0), s);
    sum_up<unit>(x, m, n, c, in_place ? ld : kColumns, !in_place, k0 > 0 || (in_place && more));
  }
  if constexpr (!in_place) {
    for (long i = 0; i < m; ++i) round_to(c + i * kColumns, n, more, out + i * ld);
  }
}

// work(i) for every i below `count`, by the threads of the pool and by this one.
void in_parallel(ffi::ThreadPool& pool, long count, std::function<void(long)> work) {
  struct State {
    std::function<void(long)> work;
    std::atomic<long> next{0}, done{0};
  };
  auto state = std::make_shared<State>();
  state->work = std::move(work);
  // A thread that comes late finds nothing left to do, in a state that is still there.
  auto take = [state, count] {
    for (long i; (i = state->next++) < count;) {
      state->work(i);
      ++state->done;
    }
  };
  for (long i = std::min<long>(pool.num_threads(), count) - 1; i > 0; --i) {
    pool.Schedule([take] { take(); });
  }
  take();
  while (state->done < count) std::this_thread::yield();
}

// `all` in equal parts of at most `most`, in whole tiles.
long part_of(long all, long most) {
  long parts = std::max(1L, (all + most - 1) / most);
  return ((all + parts - 1) / parts + kHigh - 1) / kHigh * kHigh;
}

struct Block {
  long group, first, size;  // the group's rows
  long i, m, j, n;          // the block's rows and columns of the product
};

void cut(std::vector<Block>& blocks, Block group, long rows, long most, long columns) {
  long step = part_of(rows, most);
  for (long i = 0; i < rows; i += step) {
    for (long j = 0; j < columns; j += kColumns) {
      group.i = i, group.m = std::min(step, rows - i);
      group.j = j, group.n = std::min(kColumns, columns - j);
      blocks.push_back(group);
    }
  }
}

template <Unit unit, typename T>
void matmul(ffi::ThreadPool& pool, const T* lhs, const T* rhs, const int* sizes, T* y, long rows,
            long groups, long k, long n, bool transposed) {
  std::vector<Block> blocks;
  long row = 0;
  for (long e = 0; e < groups && row < rows; ++e) {
    long size = std::min<long>(sizes[e], rows - row);
    cut(blocks, {e, row, size}, size, unit == Unit::kWidened ? kRowsLaidOut : kRows, n);
    row += size;
  }
  std::memset(y + row * n, 0, (rows - row) * n * sizeof(T));
  long count = blocks.size();
  in_parallel(pool, count, [=, blocks = std::move(blocks)](long t) {
    const Block& b = blocks[t];
    const T* matrix = rhs + b.group * k * n;
    Factor<T> right = transposed ? Factor<T>{matrix + b.j * k, k, false}
                             : Factor<T>{matrix + b.j, n, true};
    long first = b.first + b.i;
    multiply<unit>(Factor<T>{lhs + first * k, k, false}, right, b.m, b.n, k, y + first * n + b.j,
                   n, false);
  });
}

// begins: which groups' products replace what is in y, where the others are added; null: all.
template <Unit unit, typename T, typename Out>
void outer(ffi::ThreadPool& pool, const T* lhs, const T* dy, const int* sizes, const int* begins,
           long row, Out* y, long rows, long groups, long d, long f) {
  std::vector<Block> blocks;
  for (long e = 0; e < groups; ++e) {
    long size = std::max(0L, std::min<long>(sizes[e], rows - row));
    if (size > 0 || begins == nullptr || begins[e]) {
      cut(blocks, {e, row, size}, d, kRowsLaidOut, f);
    }
    row += size;
  }
  long count = blocks.size();
  in_parallel(pool, count, [=, blocks = std::move(blocks)](long t) {
    const Block& b = blocks[t];
    Factor<T> left{lhs + b.first * d + b.i, d, true}, right{dy + b.first * f + b.j, f, true};
    bool more = begins != nullptr && !begins[b.group];
    multiply<unit>(left, right, b.m, b.n, b.size, y + (b.group * d + b.i) * f + b.j, f, more);
  });
}

template <typename T>
const T* of(const ffi::AnyBuffer& x) {
  return static_cast<const T*>(x.untyped_data());
}

ffi::Error Matmul(ffi::ThreadPool pool, ffi::AnyBuffer lhs, ffi::AnyBuffer rhs,
                  ffi::Buffer<ffi::S32> sizes, ffi::Result<ffi::AnyBuffer> y, bool transposed) {
  long rows = lhs.dimensions()[0], k = lhs.dimensions()[1];
  long groups = rhs.dimensions()[0], n = y->dimensions()[1];
  if (lhs.element_type() == ffi::F32) {
    matmul<Unit::kFloat>(pool, of<float>(lhs), of<float>(rhs), sizes.typed_data(),
                         static_cast<float*>(y->untyped_data()), rows, groups, k, n, transposed);
  } else {
    matmul<kHalfUnit>(pool, of<Half>(lhs), of<Half>(rhs), sizes.typed_data(),
                      static_cast<Half*>(y->untyped_data()), rows, groups, k, n, transposed);
  }
  return ffi::Error::Success();
}

void outer_of(ffi::ThreadPool& pool, const ffi::AnyBuffer& lhs, const ffi::AnyBuffer& dy,
              const int* sizes, const int* begins, long row, ffi::AnyBuffer& y) {
  long rows = lhs.dimensions()[0];
  long groups = y.dimensions()[0], d = y.dimensions()[1], f = y.dimensions()[2];
  if (lhs.element_type() == ffi::F32) {
    outer<Unit::kFloat>(pool, of<float>(lhs), of<float>(dy), sizes, begins, row,
                        static_cast<float*>(y.untyped_data()), rows, groups, d, f);
  } else if (y.element_type() == ffi::F32) {
    outer<kHalfUnit>(pool, of<Half>(lhs), of<Half>(dy), sizes, begins, row,
                     static_cast<float*>(y.untyped_data()), rows, groups, d, f);
  } else {
    outer<kHalfUnit>(pool, of<Half>(lhs), of<Half>(dy), sizes, begins, row,
                     static_cast<Half*>(y.untyped_data()), rows, groups, d, f);
  }
}

ffi::Error Outer(ffi::ThreadPool pool, ffi::AnyBuffer lhs, ffi::AnyBuffer dy,
                 ffi::Buffer<ffi::S32> sizes, ffi::Result<ffi::AnyBuffer> y) {
  outer_of(pool, lhs, dy, sizes.typed_data(), nullptr, 0, *y);
  return ffi::Error::Success();
}

ffi::Error OuterInto(ffi::ThreadPool pool, ffi::AnyBuffer total, ffi::AnyBuffer lhs,
                     ffi::AnyBuffer dy, ffi::Buffer<ffi::S32> sizes,
                     ffi::Buffer<ffi::S32> begins, ffi::Buffer<ffi::S32> row,
                     ffi::Result<ffi::AnyBuffer> y) {
  if (total.untyped_data() != y->untyped_data()) {
    std::memcpy(y->untyped_data(), total.untyped_data(), y->size_bytes());
  }
  outer_of(pool, lhs, dy, sizes.typed_data(), begins.typed_data(), row.typed_data()[0], *y);
  return ffi::Error::Success();
}

}  // namespace moe_jax

XLA_FFI_DEFINE_HANDLER_SYMBOL(moe_jax_matmul, moe_jax::Matmul,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>()
                                  .Attr<bool>("transposed"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(moe_jax_outer, moe_jax::Outer,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(moe_jax_outer_into, moe_jax::OuterInto,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::AnyBuffer>());
