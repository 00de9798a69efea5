// What the winograd_*.cpp share (see winograd.py for the equations): tiles of 4×4 pixels of y, which see 6×6 of x; their transforms; and
// products of matrices. Forward, a block of tiles goes to whichever thread is free; sums over tiles are of fixed portions, so that they are
// added in the same order each time.
//
// x is [N,H,W,C] in memory, y and grad are [N,H,W,K]; C and K are multiples of 16. What is outside of an image is 0.

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

const int TILE = 4, SIDE = 6, PLACES = SIDE * SIDE;

struct Sizes {  // of N images of H×W pixels
    i64 N, H, W;
    i64 down() const { return (H + TILE - 1) / TILE; }
    i64 across() const { return (W + TILE - 1) / TILE; }
    i64 tiles() const { return N * down() * across(); }
};

struct Tile {  // its image and its first pixel of y
    i64 image, row, column;
    Tile(const Sizes& s, i64 t)
        : image(t / (s.down() * s.across())), row(t / s.across() % s.down() * TILE), column(t % s.across() * TILE) {}
};

struct Portion {  // of n, one of `parts`
    i64 first, last;
    Portion(i64 n, int part, int parts) : first(n * part / parts), last(n * (part + 1) / parts) {}
};

// What a thread does of the gradient by the weights of `count` channels of y: sums [parts,36,count,C] are over `parts` portions of the
// tiles, and each is the work of `shares` threads, which have `width` channels from `from` on, at `at`. Sums over no tiles are 0 then.
struct Share {
    Portion tiles;
    i64 from, width;
    float* at;
    Share(const Sizes& s, i64 C, i64 count, float* sums, int thread, int parts, int shares) : tiles(s.tiles(), thread / shares, parts) {
        const Portion sixteens(count / 16, thread % shares, shares);
        from = sixteens.first * 16, width = sixteens.last * 16 - from;
        at = sums + (thread / shares * PLACES * count + from) * C;
        for (int p = 0; p < PLACES && tiles.first == tiles.last; p++) std::memset(at + p * count * C, 0, width * C * sizeof(float));
    }
};

// ---- transforms of one line, from `from` apart by `in` to `to` apart by `out` ----

// Bᵀ of six pixels
template <class V> inline void pixels(const V* d, int in, V* v, int out) {
    const V a = d[0], b = d[in], c = d[2 * in], e = d[3 * in], f = d[4 * in], g = d[5 * in];
    const V even = f - 4.0f * c, odd = e - 4.0f * b, near = 2.0f * (f - c), far = 4.0f * (e - b);
    v[0] = 4.0f * a - 5.0f * c + f;
    v[out] = even + odd;
    v[2 * out] = even - odd;
    v[3 * out] = near + far;
    v[4 * out] = near - far;
    v[5 * out] = 4.0f * b - 5.0f * e + g;
}
// G of three taps
template <class V> inline void taps(const V* g, int in, V* u, int out) {
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
template <class V> inline void outputs(const V* m, int in, V* y, int out) {
    const V near = m[in] + m[2 * in], apart = m[in] - m[2 * in], far = m[3 * in] + m[4 * in], apart2 = m[3 * in] - m[4 * in];
    y[0] = m[0] + near + 0.5f * far;
    y[out] = apart + apart2;
    y[2 * out] = near + 2.0f * far;
    y[3 * out] = apart + 4.0f * (apart2 + m[5 * in]);
}
// E of four gradients
template <class V> inline void gradients(const V* g, int in, V* v, int out) {
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
template <class V> inline void sums_to_taps(const V* m, int in, V* g, int out) {
    const V near = m[in] + m[2 * in], apart = m[in] - m[2 * in], far = m[3 * in] + m[4 * in], apart2 = m[3 * in] - m[4 * in];
    g[0] = m[0] * 0.25f - near * (1.0f / 3) + far * (1.0f / 6);
    g[out] = (apart2 - apart) * (1.0f / 3);
    g[2 * out] = near * (-1.0f / 3) + far * (2.0f / 3) + m[5 * in];
}

// ---- transforms of a tile. Ops: V, LANES of float32; Element, of x; load(Element*), LANES of them as V ----

// Bᵀ·d·B of the pixels of x at a tile, LANES channels from c on
template <class Ops>
inline void transform_input(const typename Ops::Element* x, const Sizes& s, i64 C, const Tile& at, i64 c, typename Ops::V* v) {
    typename Ops::V d[PLACES], h[PLACES];
    UNROLL for (int i = 0; i < SIDE; i++) {
        const i64 row = at.row + i - 1;
        UNROLL for (int j = 0; j < SIDE; j++) {
            const i64 column = at.column + j - 1;
            const bool inside = row >= 0 && row < s.H && column >= 0 && column < s.W;
            d[i * SIDE + j] = inside ? Ops::load(x + ((at.image * s.H + row) * s.W + column) * C + c) : typename Ops::V{};
        }
    }
    UNROLL for (int j = 0; j < SIDE; j++) pixels(d + j, SIDE, h + j, SIDE);
    UNROLL for (int i = 0; i < SIDE; i++) pixels(h + i * SIDE, 1, v + i * SIDE, 1);
}

// E·g·Eᵀ of the gradients at a tile, LANES channels from k on
template <class Ops>
inline void transform_grad(const typename Ops::Element* grad, const Sizes& s, i64 K, const Tile& at, i64 k, typename Ops::V* v) {
    typename Ops::V g[TILE * TILE], h[SIDE * TILE];
    UNROLL for (int i = 0; i < TILE; i++)
        UNROLL for (int j = 0; j < TILE; j++) {
            const bool inside = at.row + i < s.H && at.column + j < s.W;
            g[i * TILE + j] = inside ? Ops::load(grad + ((at.image * s.H + at.row + i) * s.W + at.column + j) * K + k) : typename Ops::V{};
        }
    UNROLL for (int j = 0; j < TILE; j++) gradients(g + j, TILE, h + j, TILE);
    UNROLL for (int i = 0; i < SIDE; i++) gradients(h + i * TILE, 1, v + i * SIDE, 1);
}

// G·g·Gᵀ of the nine taps of LANES weights, of which the first tap of the first lies at w; see `winograd_weights`
template <class Ops> inline void transform_weight(const typename Ops::Element* w, i64 to, i64 tap, typename Ops::V* u) {
    typename Ops::V g[9], h[SIDE * 3];
    UNROLL for (int t = 0; t < 9; t++) {
        typename Ops::Element line[Ops::LANES];
        for (int lane = 0; lane < Ops::LANES; lane++) line[lane] = w[lane * to + t * tap];
        g[t] = Ops::load(line);
    }
    UNROLL for (int j = 0; j < 3; j++) taps(g + j, 3, h + j, 3);
    UNROLL for (int j = 0; j < SIDE; j++) taps(h + j * 3, 1, u + j * SIDE, 1);
}

// 16·Aᵀ·m·A: the 4×4 pixels of y from the products at a tile
template <class V> inline void transform_output(const V* m, V* y) {
    V h[TILE * SIDE];
    UNROLL for (int j = 0; j < SIDE; j++) outputs(m + j, SIDE, h + j, SIDE);
    UNROLL for (int i = 0; i < TILE; i++) outputs(h + i * SIDE, 1, y + i * TILE, 1);
}

// gw [K,3,3,C], the gradient by the weights, from sums of it by the transformed ones, [parts,36,K,C]: Dᵀ·(the parts' sum)·D
template <class Ops> void gradient_by_weight(const float* sums, float* gw, i64 C, i64 K, int parts, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 k = 0; k < K; k++) {
        for (i64 c = 0; c < C; c += Ops::LANES) {
            typename Ops::V m[PLACES], h[3 * SIDE], out[9];
            UNROLL for (int p = 0; p < PLACES; p++) {
                std::memcpy(&m[p], sums + (p * K + k) * C + c, sizeof(m[p]));
                for (int part = 1; part < parts; part++) {
                    typename Ops::V more;
                    std::memcpy(&more, sums + ((part * PLACES + p) * K + k) * C + c, sizeof(more));
                    m[p] += more;
                }
            }
            UNROLL for (int j = 0; j < SIDE; j++) sums_to_taps(m + j, SIDE, h + j, SIDE);
            UNROLL for (int i = 0; i < 3; i++) sums_to_taps(h + i * SIDE, 1, out + i * 3, 1);
            UNROLL for (int t = 0; t < 9; t++) std::memcpy(gw + (k * 9 + t) * C + c, &out[t], sizeof(out[t]));
        }
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

#endif
