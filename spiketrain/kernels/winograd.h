// What the winograd_*.cpp share (see winograd.py for the equations): tiles of 4×4 pixels of y, which see 6×6 of x; their transforms; and
// products of matrices. Work goes to whichever thread is free, but the order in which a sum's terms are added does not depend on it.
//
// x is [N,H,W,C] in memory, y and grad are [N,H,W,K]; C and K are multiples of 16, or of 32. What is outside of an image is 0.

#ifndef WINOGRAD_H
#define WINOGRAD_H

#include <algorithm>
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
    T* const found = static_cast<T*>(std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64));
    if (!found) std::abort();
    return Buffer<T>(found);
}

#define UNROLL _Pragma("GCC unroll 36")
#define INLINE __attribute__((always_inline)) inline

const int TILE = 4, SIDE = 6, PLACES = SIDE * SIDE;
const int PAD = 80;  // words between places, which else lie in the same few sets of the cache

struct Sizes {  // of N images of H×W pixels
    i64 N, H, W;
    i64 down() const { return (H + TILE - 1) / TILE; }
    i64 across() const { return (W + TILE - 1) / TILE; }
    i64 tiles() const { return N * down() * across(); }
};

struct Tile {
    i64 pixel;  // of y, its first: of what all images have
    unsigned rows, columns;  // of the six of x that it sees, a bit each: which are inside of the image
    Tile(const Sizes& s, i64 t) {
        const i64 image = t / (s.down() * s.across()), row = t / s.across() % s.down() * TILE, column = t % s.across() * TILE;
        pixel = (image * s.H + row) * s.W + column, rows = inside(row, s.H), columns = inside(column, s.W);
    }
    static unsigned inside(i64 first, i64 size) { return (1u << std::min<i64>(SIDE, size - first + 1)) - 1 - (first == 0); }
    bool has(int i, int j) const { return rows >> (i + 1) & columns >> (j + 1) & 1; }  // whether a pixel of y is inside
};
inline Buffer<Tile> tiles_from(const Sizes& s, i64 first, i64 count) {
    Buffer<Tile> found = buffer<Tile>(count);
    for (i64 t = 0; t < count; t++) found[t] = Tile(s, first + t);
    return found;
}

// ---- transforms of one line, from `from` apart by `in` to `to` apart by `out` ----

// Bᵀ of six pixels, which may be whole numbers
template <class V> INLINE void pixels(const V* d, int in, V* v, int out) {
    const V a = d[0], b = d[in], c = d[2 * in], e = d[3 * in], f = d[4 * in], g = d[5 * in];
    const V even = f - 4 * c, odd = e - 4 * b, near = 2 * (f - c), far = 4 * (e - b);
    v[0] = 4 * a - 5 * c + f;
    v[out] = even + odd;
    v[2 * out] = even - odd;
    v[3 * out] = near + far;
    v[4 * out] = near - far;
    v[5 * out] = 4 * b - 5 * e + g;
}
// G of three taps
template <class V> INLINE void taps(const V* g, int in, V* u, int out) {
    const V a = g[0], b = g[in], c = g[2 * in];
    const V even = (a + c) * (-2.0f / 3), odd = b * (-2.0f / 3), even2 = a * (1.0f / 6) + c * (2.0f / 3), odd2 = b * (1.0f / 3);
    u[0] = a;
    u[out] = even + odd;
    u[2 * out] = even - odd;
    u[3 * out] = even2 + odd2;
    u[4 * out] = even2 - odd2;
    u[5 * out] = c;
}
// 4·Aᵀ of six products
template <class V> INLINE void outputs(const V* m, int in, V* y, int out) {
    const V near = m[in] + m[2 * in], apart = m[in] - m[2 * in], far = m[3 * in] + m[4 * in], apart2 = m[3 * in] - m[4 * in];
    y[0] = m[0] + near + 0.5f * far;
    y[out] = apart + apart2;
    y[2 * out] = near + 2.0f * far;
    y[3 * out] = apart + 4.0f * (apart2 + m[5 * in]);
}
// E of four gradients
template <class V> INLINE void gradients(const V* g, int in, V* v, int out) {
    const V a = g[0], b = g[in], c = g[2 * in], e = g[3 * in];
    const V even = 0.5f * (a + c), odd = 0.5f * (b + e), even2 = 0.125f * a + 0.5f * c, odd2 = 0.25f * b + e;
    v[0] = a;
    v[out] = even + odd;
    v[2 * out] = even - odd;
    v[3 * out] = even2 + odd2;
    v[4 * out] = even2 - odd2;
    v[5 * out] = e;
}
// Dᵀ of six sums
template <class V> INLINE void sums_to_taps(const V* m, int in, V* g, int out) {
    const V near = m[in] + m[2 * in], apart = m[in] - m[2 * in], far = m[3 * in] + m[4 * in], apart2 = m[3 * in] - m[4 * in];
    g[0] = m[0] * 0.25f - near * (1.0f / 3) + far * (1.0f / 6);
    g[out] = (apart2 - apart) * (1.0f / 3);
    g[2 * out] = near * (-1.0f / 3) + far * (2.0f / 3) + m[5 * in];
}

// ---- transforms of a tile. load(x) is a V of channels from x on ----

// Bᵀ·d·B of the pixels of x at a tile, of what `load` takes from channel c on
template <class Element, class Load, class V>
INLINE void transform_input(const Element* x, const Sizes& s, i64 C, const Tile& at, i64 c, const Load& load, V* v) {
    const i64 row = s.W * C, first = (at.pixel - s.W - 1) * C + c;
    V h[PLACES];
    UNROLL for (int j = 0; j < SIDE; j++) {
        V d[SIDE] = {};
        if (at.columns >> j & 1)
            UNROLL for (int i = 0; i < SIDE; i++)
                if (at.rows >> i & 1) d[i] = load(x + first + i * row + j * C);
        pixels(d, 1, h + j, SIDE);
    }
    UNROLL for (int i = 0; i < SIDE; i++) pixels(h + i * SIDE, 1, v + i * SIDE, 1);
}

// E·g·Eᵀ of the gradients at a tile, of what `load` takes from channel k on
template <class Element, class Load, class V>
INLINE void transform_grad(const Element* grad, const Sizes& s, i64 K, const Tile& at, i64 k, const Load& load, V* v) {
    const i64 row = s.W * K, first = at.pixel * K + k;
    V h[SIDE * TILE];
    UNROLL for (int j = 0; j < TILE; j++) {
        V g[TILE] = {};
        UNROLL for (int i = 0; i < TILE; i++)
            if (at.has(i, j)) g[i] = load(grad + first + i * row + j * K);
        gradients(g, 1, h + j, TILE);
    }
    UNROLL for (int i = 0; i < SIDE; i++) gradients(h + i * TILE, 1, v + i * SIDE, 1);
}

// G·g·Gᵀ of nine taps
template <class V> INLINE void transform_weight(const V* g, V* u) {
    V h[SIDE * 3];
    UNROLL for (int j = 0; j < 3; j++) taps(g + j, 3, h + j, 3);
    UNROLL for (int j = 0; j < SIDE; j++) taps(h + j * 3, 1, u + j * SIDE, 1);
}

// 16·Aᵀ·m·A: the 4×4 pixels of y from the products at a tile
template <class V> inline void transform_output(const V* m, V* y) {
    V h[TILE * SIDE];
    UNROLL for (int j = 0; j < SIDE; j++) outputs(m + j, SIDE, h + j, SIDE);
    UNROLL for (int i = 0; i < TILE; i++) outputs(h + i * SIDE, 1, y + i * TILE, 1);
}

// gw [3,3,C], the gradient by the weights of one channel of y, from sums of it by the transformed ones, [36,K,C] from that channel on:
// Dᵀ·sum·D. Ops: write(to, vectors) puts APART vectors of sums in the order of channels.
template <class Ops> void taps_of(const float* sums, float* gw, i64 C, i64 K) {
    typedef typename Ops::V V;
    const int APART = Ops::APART;
    for (i64 c = 0; c < C; c += Ops::LANES * APART) {
        V out[9][APART];
        for (int a = 0; a < APART; a++) {
            V m[PLACES], h[3 * SIDE], taps[9];
            UNROLL for (int p = 0; p < PLACES; p++) std::memcpy(&m[p], sums + p * K * C + c + a * Ops::LANES, sizeof(V));
            UNROLL for (int j = 0; j < SIDE; j++) sums_to_taps(m + j, SIDE, h + j, SIDE);
            UNROLL for (int i = 0; i < 3; i++) sums_to_taps(h + i * SIDE, 1, taps + i * 3, 1);
            UNROLL for (int t = 0; t < 9; t++) out[t][a] = taps[t];
        }
        for (int t = 0; t < 9; t++) Ops::write(gw + t * C + c, out[t]);
    }
}

// ---- products of matrices ----

// sums [R rows, N vectors] of a·b over n steps. a: `across` apart from row to row, `along` from step to step; b: `wide` apart from step to
// step. Ops: In, what a step takes; Vector, of LANES sums, of which VECTORS a row stay in registers; By, a vector of b; by(b) and
// add(sums, a, b). A function of its own, as the compiler else keeps sums in memory.
template <class Ops, int R, int N>
__attribute__((noinline)) void product(
    const typename Ops::In* a, i64 across, i64 along, const typename Ops::In* b, i64 wide, i64 n, typename Ops::Vector* sums) {
    typename Ops::Vector sum[R][N];
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) sum[r][v] = typename Ops::Vector{};
    for (i64 i = 0; i < n; i++) {
        typename Ops::By by[N];
        UNROLL for (int v = 0; v < N; v++) by[v] = Ops::by(b + i * wide + v * Ops::LANES);
        UNROLL for (int r = 0; r < R; r++) {
            const typename Ops::In one = a[r * across + i * along];
            UNROLL for (int v = 0; v < N; v++) sum[r][v] = Ops::add(sum[r][v], one, by[v]);
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) sums[r * N + v] = sum[r][v];
}

// What becomes of sums `to` says, an object with see(row, column), before they are made, and put(row, column, sums).
template <class Ops, int R, int N, class To>
void some_rows(
    i64 row, const typename Ops::In* a, i64 across, i64 along, i64 column, const typename Ops::In* b, i64 wide, i64 n, const To& to) {
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) to.see(row + r, column + v * Ops::LANES);
    typename Ops::Vector sums[R * N];
    product<Ops, R, N>(a + row * across, across, along, b + column, wide, n, sums);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) to.put(row + r, column + v * Ops::LANES, sums[r * N + v]);
}

template <class Ops, int N, class To>
void rows(
    i64 count, const typename Ops::In* a, i64 across, i64 along, i64 column, const typename Ops::In* b, i64 wide, i64 n, const To& to) {
    i64 r = 0;
    for (; r + 6 <= count; r += 6) some_rows<Ops, 6, N>(r, a, across, along, column, b, wide, n, to);
    for (; r + 2 <= count; r += 2) some_rows<Ops, 2, N>(r, a, across, along, column, b, wide, n, to);
    if (r < count) some_rows<Ops, 1, N>(r, a, across, along, column, b, wide, n, to);
}

// The same of `count` rows and `width` columns, a multiple of LANES.
template <class Ops, class To>
void products(
    i64 count, const typename Ops::In* a, i64 across, i64 along, i64 width, const typename Ops::In* b, i64 wide, i64 n, const To& to) {
    i64 c = 0;
    for (; c + Ops::VECTORS * Ops::LANES <= width; c += Ops::VECTORS * Ops::LANES)
        rows<Ops, Ops::VECTORS>(count, a, across, along, c, b, wide, n, to);
    for (; c < width; c += Ops::LANES) rows<Ops, 1>(count, a, across, along, c, b, wide, n, to);
}

template <class Ops, class T> struct Store {  // in rows that are `apart`
    T* at;
    i64 apart;
    void see(i64, i64) const {}
    void put(i64 row, i64 column, typename Ops::Vector sums) const { std::memcpy(at + row * apart + column, &sums, sizeof(sums)); }
};

// ---- the gradient by the weights ----

// gw [K,3,3,C]. sums [36,turn,C] are of `turn` channels of y, which take turns. Tiles come in `blocks` blocks of `block`: all threads
// transform these together and then multiply, each other places and channels, so that a sum's terms have the same order whatever the
// threads, and none waits for a slower one. Where all tiles are in these blocks, x is transformed once for all turns.
//
// Work: take_x and take_grad transform what lies in one or more vectors of channels of the tiles of a block; multiply, for WIDE channels of
// x and of y at place p, puts products where they belong, or adds them to what is there if `more`. C: channels of x.
template <class Ops, class Work>
void by_weight(Work& work, float* sums, float* gw, const Sizes& s, i64 K, i64 turn, i64 block, i64 blocks, int threads) {
    const i64 C = work.C, together = Ops::LANES * Ops::APART, many = block * blocks;
#pragma omp parallel num_threads(threads)
    {
        const Buffer<float> scratch = buffer<float>(work.scratch());
        for (i64 start = 0; start < K; start += turn) {
            const i64 count = std::min(turn, K - start), panels = (count + Work::WIDE - 1) / Work::WIDE;
            for (i64 first = 0; first < s.tiles(); first += many) {
                const i64 tiles = std::min(many, s.tiles() - first), slots = (tiles + block - 1) / block;
                const i64 columns = s.tiles() <= many && start > 0 ? 0 : C, groups = (columns + count) / together;
                const Buffer<Tile> at = tiles_from(s, first, tiles);
                const auto size = [&](i64 slot) { return std::min(block, tiles - slot * block); };
#pragma omp for schedule(dynamic)
                for (i64 i = 0; i < slots * groups; i++) {
                    const i64 slot = i / groups, c = i % groups * together;
                    const Tile* const here = at.get() + slot * block;
                    if (c < columns)
                        work.take_x(here, size(slot), c, slot, scratch.get());
                    else
                        work.take_grad(here, size(slot), start, c - columns, count, slot, scratch.get());
                }
#pragma omp for schedule(dynamic)
                for (i64 i = 0; i < PLACES * panels; i++) {
                    const i64 p = i / panels, k = i % panels * Work::WIDE;
                    for (i64 c = 0; c < C; c += Work::WIDE)
                        for (i64 slot = 0; slot < slots; slot++)
                            work.multiply(p, k, count, c, size(slot), slot, sums + (p * count + k) * C + c, first > 0 || slot > 0);
                }
            }
#pragma omp for schedule(static)
            for (i64 k = 0; k < count; k++) taps_of<Ops>(sums + Ops::at(k) * C, gw + (start + k) * 9 * C, C, count);
        }
    }
}

#endif
