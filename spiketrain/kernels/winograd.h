// What the winograd_*.cpp share (see winograd.py for the equations): tiles of some pixels of y and those of x that they see; transforms;
// and products of matrices. Work goes to whichever thread is free, but the order in which a sum's terms are added does not depend on it.
//
// x is [N,H,W,C] in memory, y and grad are [N,H,W,K]; C and K are multiples of 16, or of 32. What is outside of an image is 0.

#ifndef WINOGRAD_H
#define WINOGRAD_H

#include <algorithm>
#include <cstring>

#include "shared.h"

const int WEIGHTS = 36;  // transformed ones of nine
const int PAD = 80;  // words between places, which else lie in the same few sets of the cache

// ---- algorithms: transforms of one line, from `from` apart by `in` to `to` apart by `out` ----

// Stride 1, forward and by x: F(4, 3). A line of a tile has MADE pixels of what is made, for which it sees SEEN of x, of which the first
// lies `BEFORE` the first made one's; the next tile sees them `STEP` further. SIDE places.
struct Same {
    static const int SIDE = 6, PLACES = SIDE * SIDE, SEEN = 6, STEP = 4, BEFORE = 1, MADE = 4;
    static constexpr float FACTOR = 1.0f / 16;  // of what `outputs` gives for two lines
    // Bᵀ of six pixels, which may be whole numbers
    template <class V> static INLINE void pixels(const V* d, int in, V* v, int out) {
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
    template <class V> static INLINE void taps(const V* g, int in, V* u, int out) {
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
    template <class V> static INLINE void outputs(const V* m, int in, V* y, int out) {
        const V near = m[in] + m[2 * in], apart = m[in] - m[2 * in], far = m[3 * in] + m[4 * in], apart2 = m[3 * in] - m[4 * in];
        y[0] = m[0] + near + 0.5f * far;
        y[out] = apart + apart2;
        y[2 * out] = near + 2.0f * far;
        y[3 * out] = apart + 4.0f * (apart2 + m[5 * in]);
    }
    // E of four gradients
    template <class V> static INLINE void gradients(const V* g, int in, V* v, int out) {
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
    template <class V> static INLINE void sums_to_taps(const V* m, int in, V* g, int out) {
        const V near = m[in] + m[2 * in], apart = m[in] - m[2 * in], far = m[3 * in] + m[4 * in], apart2 = m[3 * in] - m[4 * in];
        g[0] = m[0] * 0.25f - near * (1.0f / 3) + far * (1.0f / 6);
        g[out] = (apart2 - apart) * (1.0f / 3);
        g[2 * out] = near * (-1.0f / 3) + far * (2.0f / 3) + m[5 * in];
    }
};

// Stride 2. Every other pixel of x meets the outer taps, by F(4, 2) with five places, and those between meet the middle one, as they are
// (twice, to be of like size): four places more, whose weight is the same.
struct Strided {
    static const int SIDE = 9, PLACES = SIDE * SIDE;
    static constexpr float FACTOR = 1;
    template <class V> static INLINE void taps(const V* g, int in, V* u, int out) {
        const V a = g[0], c = g[2 * in];
        u[0] = a;
        u[out] = (a + c) * 0.5f;
        u[2 * out] = (c - a) * 0.5f;
        u[3 * out] = a * (1.0f / 3) + c * (2.0f / 3);
        u[4 * out] = c;
        u[5 * out] = g[in];
    }
    // F(4, 2): five pixels to five places, and these to four outputs
    template <class V> static INLINE void five(const V a, const V b, const V c, const V e, const V f, V* v, int out) {
        v[0] = 2 * (a - c) - b + e;
        v[out] = 2 * b + c - e;
        v[2 * out] = 2 * b - 3 * c + e;
        v[3 * out] = 2 * (e - b);
        v[4 * out] = 2 * (b - e) - c + f;
    }
    template <class V> static INLINE void four(const V* m, int in, V* y, int out) {
        const V third = m[2 * in] * (1.0f / 3), more = m[in] + third, less = m[in] - third, last = m[3 * in];
        y[0] = 0.5f * m[0] + more + 0.25f * last;
        y[out] = less + 0.5f * last;
        y[2 * out] = more + last;
        y[3 * out] = less + 2.0f * last + m[4 * in];
    }
};
struct Halving : Strided {  // forward
    static const int SEEN = 9, STEP = 8, BEFORE = 1, MADE = 4;
    template <class V> static INLINE void pixels(const V* d, int in, V* v, int out) {
        five(d[0], d[2 * in], d[4 * in], d[6 * in], d[8 * in], v, out);
        UNROLL for (int i = 0; i < 4; i++) v[(5 + i) * out] = 2 * d[(2 * i + 1) * in];
    }
    template <class V> static INLINE void outputs(const V* m, int in, V* y, int out) {
        four(m, in, y, out);
        UNROLL for (int i = 0; i < 4; i++) y[i * out] += 0.5f * m[(5 + i) * in];
    }
    template <class V> static INLINE void gradients(const V* g, int in, V* v, int out) {
        const V a = g[0], b = g[in], c = g[2 * in], e = g[3 * in];
        v[0] = a;
        v[out] = 0.5f * ((a + c) + (b + e));
        v[2 * out] = 0.5f * ((a + c) - (b + e));
        v[3 * out] = 0.125f * a + 0.25f * b + 0.5f * c + e;
        v[4 * out] = e;
        UNROLL for (int i = 0; i < 4; i++) v[(5 + i) * out] = g[i * in];
    }
    template <class V> static INLINE void sums_to_taps(const V* m, int in, V* g, int out) {
        const V second = m[2 * in] * (1.0f / 3), third = m[3 * in] * (2.0f / 3);
        g[0] = 0.5f * m[0] + m[in] - second + third;
        g[out] = 0.5f * m[5 * in];
        g[2 * out] = m[in] + second + 2.0f * third + m[4 * in];
    }
};
struct Doubling : Strided {  // by x, of y's gradient, which sees the taps mirrored
    static const int SEEN = 5, STEP = 4, BEFORE = 0, MADE = 8;
    template <class V> static INLINE void pixels(const V* d, int in, V* v, int out) {
        five(d[0], d[in], d[2 * in], d[3 * in], d[4 * in], v, out);
        UNROLL for (int i = 0; i < 4; i++) v[(5 + i) * out] = 2 * d[i * in];
    }
    template <class V> static INLINE void outputs(const V* m, int in, V* y, int out) {
        four(m, in, y + out, 2 * out);
        UNROLL for (int i = 0; i < 4; i++) y[2 * i * out] = 0.5f * m[(5 + i) * in];
    }
};
// Which of the transformed weights belongs to a place.
template <class F> inline int weight_of(int place) { return std::min(place / F::SIDE, 5) * 6 + std::min(place % F::SIDE, 5); }

// ---- tiles ----

struct Images {
    i64 N, H, W;
    i64 all() const { return N * H * W; }
};
struct Run {  // of pixels
    i64 first, behind;
};
struct Tile {
    i64 seen, made;  // its first pixels, of what all images have; the first of those seen may be one that is not there
    i64 sure;  // one that it sees and that is there
    unsigned rows, columns, made_rows, made_columns;  // which of them are inside of the image, a bit each
    bool sees(int i, int j) const { return rows >> i & columns >> j & 1; }
    bool makes(int i, int j) const { return made_rows >> i & made_columns >> j & 1; }
};
template <class F> struct Grid {
    Images seen, made;
    i64 down() const { return (made.H + F::MADE - 1) / F::MADE; }
    i64 across() const { return (made.W + F::MADE - 1) / F::MADE; }
    i64 tiles() const { return made.N * down() * across(); }
    static unsigned inside(i64 first, i64 size, int count) {
        return ((1u << std::min<i64>(count, size - first)) - 1) & ~((1u << std::max<i64>(0, -first)) - 1);
    }
    Tile tile(i64 t) const {
        const i64 image = t / (down() * across()), i = t / across() % down(), j = t % across();
        const i64 row = i * F::STEP - F::BEFORE, column = j * F::STEP - F::BEFORE, made_row = i * F::MADE, made_column = j * F::MADE;
        Tile at;
        at.seen = (image * seen.H + row) * seen.W + column, at.made = (image * made.H + made_row) * made.W + made_column;
        at.sure = at.seen + F::BEFORE * (seen.W + 1);
        at.rows = inside(row, seen.H, F::SEEN), at.columns = inside(column, seen.W, F::SEEN);
        at.made_rows = inside(made_row, made.H, F::MADE), at.made_columns = inside(made_column, made.W, F::MADE);
        return at;
    }
    Buffer<Tile> tiles(i64 first, i64 count) const {
        Buffer<Tile> found = buffer<Tile>(count);
        for (i64 t = 0; t < count; t++) found[t] = tile(first + t);
        return found;
    }
    // A run of pixels, in which all lie that tiles see first, or make.
    Run seen_by(const Tile& one, const Tile& last) const { return {one.sure, std::min(seen.all(), last.sure + F::STEP * seen.W)}; }
    Run made_by(const Tile& one, const Tile& last) const { return {one.made, std::min(made.all(), last.made + F::MADE * made.W)}; }
};

// Reads one of some parts of a run: in order, as memory is quicker read than here a line and there a line, where transforms need it.
template <class Element> void read(const Element* images, i64 channels, Run run, i64 part = 0, i64 parts = 1) {
    const i64 length = (run.behind - run.first) * channels;
    const volatile char* at = (const volatile char*)(images + run.first * channels + length * part / parts);
    const volatile char* const end = (const volatile char*)(images + run.first * channels + length * (part + 1) / parts);
    for (; at < end; at += 64) (void)*at;
}

// ---- transforms of a tile. load(x) is a V of channels from x on ----

// Bᵀ·d·B of the pixels that it sees, of images `width` wide with C channels, of what `load` takes from channel c on
template <class F, class Element, class Load, class V>
INLINE void transform_input(const Element* x, i64 width, i64 C, const Tile& at, i64 c, const Load& load, V* v) {
    const i64 row = width * C, first = at.seen * C + c;
    V h[F::SIDE * F::SEEN];
    UNROLL for (int j = 0; j < F::SEEN; j++) {
        V d[F::SEEN] = {};
        if (at.columns >> j & 1)
            UNROLL for (int i = 0; i < F::SEEN; i++)
                if (at.rows >> i & 1) d[i] = load(x + first + i * row + j * C);
        F::pixels(d, 1, h + j, F::SEEN);
    }
    UNROLL for (int i = 0; i < F::SIDE; i++) F::pixels(h + i * F::SEEN, 1, v + i * F::SIDE, 1);
}

// E·g·Eᵀ of the gradients by the pixels that it makes
template <class F, class Element, class Load, class V>
INLINE void transform_grad(const Element* grad, i64 width, i64 K, const Tile& at, i64 k, const Load& load, V* v) {
    const i64 row = width * K, first = at.made * K + k;
    V h[F::SIDE * F::MADE];
    UNROLL for (int j = 0; j < F::MADE; j++) {
        V g[F::MADE] = {};
        UNROLL for (int i = 0; i < F::MADE; i++)
            if (at.makes(i, j)) g[i] = load(grad + first + i * row + j * K);
        F::gradients(g, 1, h + j, F::MADE);
    }
    UNROLL for (int i = 0; i < F::SIDE; i++) F::gradients(h + i * F::MADE, 1, v + i * F::SIDE, 1);
}

// G·g·Gᵀ of nine taps
template <class F, class V> INLINE void transform_weight(const V* g, V* u) {
    V h[6 * 3];
    UNROLL for (int j = 0; j < 3; j++) F::taps(g + j, 3, h + j, 3);
    UNROLL for (int j = 0; j < 6; j++) F::taps(h + j * 3, 1, u + j * 6, 1);
}

// Aᵀ·m·A / FACTOR: the pixels that it makes, from the products
template <class F, class V> INLINE void transform_output(const V* m, V* y) {
    V h[F::MADE * F::SIDE];
    UNROLL for (int j = 0; j < F::SIDE; j++) F::outputs(m + j, F::SIDE, h + j, F::SIDE);
    UNROLL for (int i = 0; i < F::MADE; i++) F::outputs(h + i * F::SIDE, 1, y + i * F::MADE, 1);
}

// gw [3,3,C], the gradient by the weights of one channel of y, from sums of it by the transformed ones, [36,K,C] from that channel on:
// Dᵀ·sum·D. Ops: write(to, vectors) puts APART vectors of sums in the order of channels.
template <class F, class Ops> void taps_of(const float* sums, float* gw, i64 C, i64 K) {
    typedef typename Ops::V V;
    const int APART = Ops::APART;
    for (i64 c = 0; c < C; c += Ops::LANES * APART) {
        V out[9][APART];
        for (int a = 0; a < APART; a++) {
            V m[WEIGHTS], h[3 * 6], taps[9];
            UNROLL for (int p = 0; p < WEIGHTS; p++) std::memcpy(&m[p], sums + p * K * C + c + a * Ops::LANES, sizeof(V));
            UNROLL for (int j = 0; j < 6; j++) F::sums_to_taps(m + j, 6, h + j, 6);
            UNROLL for (int i = 0; i < 3; i++) F::sums_to_taps(h + i * 6, 1, taps + i * 3, 1);
            UNROLL for (int t = 0; t < 9; t++) out[t][a] = taps[t];
        }
        for (int t = 0; t < 9; t++) Ops::write(gw + t * C + c, out[t]);
    }
}

// ---- products of matrices ----

// R rows from `row` on of N vectors from `column` on of a·b over n steps. a: `across` apart from row to row, `along` from step to step; b:
// `wide` apart from step to step. Ops: In, what a step takes; Vector, of LANES sums, of which VECTORS a row stay in registers; By, a vector
// of b; by(b) and add(sums, a, b). What becomes of sums `to` says, an object with see(row, column), before they are made, and put(row,
// column, sums).
template <class Ops, int R, int N, class To>
__attribute__((noinline)) void some_rows(
    i64 row, const typename Ops::In* a, i64 across, i64 along, i64 column, const typename Ops::In* b, i64 wide, i64 n, const To& to) {
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) to.see(row + r, column + v * Ops::LANES);
    typename Ops::Vector sum[R][N];
    a += row * across, b += column;
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
        UNROLL for (int v = 0; v < N; v++) __asm__("" : "+v"(sum[r][v]));  // else the compiler may keep sums in memory
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int v = 0; v < N; v++) to.put(row + r, column + v * Ops::LANES, sum[r][v]);
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
// transform these together and then multiply, each other weights and channels, so that a sum's terms have the same order whatever the
// threads, and none waits for a slower one. Where all tiles are in these blocks, x is transformed once for all turns.
//
// Work: take_x and take_grad transform what lies in one or more vectors of channels of the tiles of a block; multiply, for WIDE channels of
// x and of y at a place, puts products where they belong, or adds them to what is there if `more`. C: channels of x; x, grad.
template <class F, class Ops, class Work>
void by_weight(Work& work, const Grid<F>& grid, float* sums, float* gw, i64 K, i64 turn, i64 block, i64 blocks, int threads) {
    const i64 C = work.C, together = Ops::LANES * Ops::APART, many = block * blocks, PARTS = 32;
#pragma omp parallel num_threads(threads)
    {
        const Buffer<float> scratch = buffer<float>(work.scratch());
        for (i64 start = 0; start < K; start += turn) {
            const i64 count = std::min(turn, K - start), panels = (count + Work::WIDE - 1) / Work::WIDE;
            for (i64 first = 0; first < grid.tiles(); first += many) {
                const i64 tiles = std::min(many, grid.tiles() - first), slots = (tiles + block - 1) / block;
                const i64 columns = grid.tiles() <= many && start > 0 ? 0 : C, groups = (columns + count) / together;
                const Buffer<Tile> at = grid.tiles(first, tiles);
                const auto size = [&](i64 slot) { return std::min(block, tiles - slot * block); };
                const Run seen = grid.seen_by(at[0], at[tiles - 1]), made = grid.made_by(at[0], at[tiles - 1]);
#pragma omp for schedule(dynamic)
                for (i64 i = 0; i < PARTS; i++) {
                    if (columns > 0) read(work.x, C, seen, i, PARTS);
                    if (count == K) read(work.grad, K, made, i, PARTS);
                }
#pragma omp for schedule(dynamic)
                for (i64 i = 0; i < slots * groups; i++) {
                    const i64 slot = i / groups, c = i % groups * together;
                    const Tile* const here = at.get() + slot * block;
                    if (c < columns)
                        work.take_x(here, size(slot), c, slot, scratch.get());
                    else
                        work.take_grad(here, size(slot), start, c - columns, count, slot, scratch.get());
                }
#pragma omp for schedule(dynamic, panels)
                for (i64 i = 0; i < WEIGHTS * panels; i++) {
                    const int weight = int(i / panels);
                    const i64 k = i % panels * Work::WIDE;
                    for (i64 c = 0; c < C; c += Work::WIDE) {
                        float* const to = sums + (weight * count + k) * C + c;
                        bool more = first > 0;
                        for (i64 slot = 0; slot < slots; slot++)
                            for (int p = 0; p < F::PLACES; p++)
                                if (weight_of<F>(p) == weight) work.multiply(p, k, count, c, size(slot), slot, to, more), more = true;
                    }
                }
            }
#pragma omp for schedule(static)
            for (i64 k = 0; k < count; k++) taps_of<F, Ops>(sums + Ops::at(k) * C, gw + (start + k) * 9 * C, C, count);
        }
    }
}

#endif
