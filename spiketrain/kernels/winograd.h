// What the winograd_*.cpp share (see winograd.py): tiles of M×M pixels of all images in one row, dealt to threads in fixed portions, memory
// for what is made of them, and products of matrices.

#ifndef WINOGRAD_H
#define WINOGRAD_H

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

typedef int64_t i64;

struct Free {
    void operator()(void* p) const { std::free(p); }
};
template <class T> using Buffer = std::unique_ptr<T[], Free>;
template <class T> Buffer<T> buffer(i64 n) {
    return Buffer<T>(static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64)));
}

template <int M> struct Tiling {  // of N images of H×W pixels
    i64 N, H, W;
    i64 down() const { return (H + M - 1) / M; }
    i64 across() const { return (W + M - 1) / M; }
    i64 tiles() const { return N * down() * across(); }
};

template <int M> struct Place {  // of a tile: its image and its first pixel of y
    i64 image, row, column;
    Place(const Tiling<M>& s, i64 t) : image(t / (s.down() * s.across())), row(t / s.across() % s.down() * M), column(t % s.across() * M) {}
};

struct Portion {  // of n tiles, one of `parts`
    i64 first, last;
    Portion(i64 n, int part, int parts) : first(n * part / parts), last(n * (part + 1) / parts) {}
};

#define UNROLL _Pragma("GCC unroll 8")

// c[R rows, N vectors] (+)= Σ over n steps of a·b. a: `across` apart from row to row, `along` from step to step; b: `wide` apart from step to
// step; c: `apart` from row to row. Ops: In, what a step takes; Vector, of LANES sums, of which VECTORS a row stay in registers; By, a
// vector of b; load(b) and add(sums, a, b).
template <class Ops, int R, int N>
void product(const typename Ops::In* a, i64 across, i64 along, const typename Ops::In* b, i64 wide, i64 n, float* c, i64 apart, bool add) {
    typename Ops::Vector sum[R][N];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) {
            sum[r][v] = typename Ops::Vector{};
            if (add) std::memcpy(&sum[r][v], c + r * apart + v * Ops::LANES, sizeof(sum[r][v]));
        }
    for (i64 i = 0; i < n; i++) {
        typename Ops::By by[N];
        UNROLL for (int v = 0; v < N; v++) by[v] = Ops::load(b + i * wide + v * Ops::LANES);
        UNROLL for (int r = 0; r < R; r++) {
            const typename Ops::In one = a[r * across + i * along];
            UNROLL for (int v = 0; v < N; v++) sum[r][v] = Ops::add(sum[r][v], one, by[v]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) std::memcpy(c + r * apart + v * Ops::LANES, &sum[r][v], sizeof(sum[r][v]));
}

template <class Ops, int N>
void rows(i64 count, const typename Ops::In* a, i64 across, i64 along, const typename Ops::In* b, i64 wide, i64 n, float* c, i64 apart, bool add) {
    i64 r = 0;
    for (; r + 6 <= count; r += 6) product<Ops, 6, N>(a + r * across, across, along, b, wide, n, c + r * apart, apart, add);
    for (; r + 2 <= count; r += 2) product<Ops, 2, N>(a + r * across, across, along, b, wide, n, c + r * apart, apart, add);
    if (r < count) product<Ops, 1, N>(a + r * across, across, along, b, wide, n, c + r * apart, apart, add);
}

// The same of `count` rows and `width` columns, a multiple of LANES.
template <class Ops>
void products(
    i64 count, const typename Ops::In* a, i64 across, i64 along, const typename Ops::In* b, i64 wide, i64 n, float* c, i64 apart, i64 width,
    bool add) {
    i64 k = 0;
    for (; k + Ops::VECTORS * Ops::LANES <= width; k += Ops::VECTORS * Ops::LANES)
        rows<Ops, Ops::VECTORS>(count, a, across, along, b + k, wide, n, c + k, apart, add);
    for (; k < width; k += Ops::LANES) rows<Ops, 1>(count, a, across, along, b + k, wide, n, c + k, apart, add);
}

#endif
