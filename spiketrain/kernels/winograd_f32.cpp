// 3×3 convolutions (stride 1, padding 1) in float32 by Winograd's F(4×4, 3×3): see spiketrain/kernels/winograd.py for the equations.
//
// x is [N,H,W,C] in memory, y and grad are [N,H,W,K]; C and K are multiples of 16. A tile is 4×4 pixels of y and the 6×6 of x that they
// see; what is outside is 0. Tiles of all images are counted in one row and dealt to the threads in fixed portions, so that sums
// are added in the same order each time. A block of tiles goes through transform, products and transform while it is in the cache.
// For x86 processors with AVX-512 or AVX2 and FMA: the compiler may contract products and sums.

#include <algorithm>
#include <cstring>

#include "winograd.h"

namespace {

#if defined(__AVX512F__)
const int LANES = 16, VECTORS = 4;  // of a row of a product that stays in registers
#else  // AVX2
const int LANES = 8, VECTORS = 2;
#endif
typedef float V __attribute__((vector_size(LANES * sizeof(float))));
const int WIDE = LANES * VECTORS, SIDE = 6, PLACES = SIDE * SIDE, TILE = 4;

inline V load(const float* from) {
    V x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}
inline void store(float* to, V x) { std::memcpy(to, &x, sizeof(x)); }

typedef Tiling<TILE> Sizes;
typedef Place<TILE> Tile;

// ---- the transforms of one line, from `from` apart by `in` to `to` apart by `out` ----

// Bᵀ of six pixels
inline void pixels(const V* d, int in, V* v, int out) {
    const V a = d[0], b = d[in], c = d[2 * in], e = d[3 * in], f = d[4 * in], g = d[5 * in];
    const V even = f - 4.0f * c, odd = e - 4.0f * b, near = f - c, far = 2.0f * (e - b);
    v[0] = 4.0f * a - 5.0f * c + f;
    v[out] = even + odd;
    v[2 * out] = even - odd;
    v[3 * out] = near + far;
    v[4 * out] = near - far;
    v[5 * out] = 4.0f * b - 5.0f * e + g;
}
// A of four gradients
inline void gradients(const V* g, int in, V* v, int out) {
    const V a = g[0], b = g[in], c = g[2 * in], e = g[3 * in];
    const V even = a + c, odd = b + e, even2 = a + 4.0f * c, odd2 = 2.0f * b + 8.0f * e;
    v[0] = a;
    v[out] = even + odd;
    v[2 * out] = even - odd;
    v[3 * out] = even2 + odd2;
    v[4 * out] = even2 - odd2;
    v[5 * out] = e;
}
// Aᵀ of six products
inline void outputs(const V* m, int in, V* y, int out) {
    const V near = m[in] + m[2 * in], apart = m[in] - m[2 * in], far = m[3 * in] + m[4 * in], apart2 = m[3 * in] - m[4 * in];
    y[0] = m[0] + near + far;
    y[out] = apart + 2.0f * apart2;
    y[2 * out] = near + 4.0f * far;
    y[3 * out] = apart + 8.0f * apart2 + m[5 * in];
}
// G of three taps
inline void taps(const V* g, int in, V* u, int out) {
    const V a = g[0], b = g[in], c = g[2 * in];
    const V even = (a + c) * (-1.0f / 6), odd = b * (-1.0f / 6), even2 = a * (1.0f / 24) + c * (1.0f / 6), odd2 = b * (1.0f / 12);
    u[0] = a * 0.25f;
    u[out] = even + odd;
    u[2 * out] = even - odd;
    u[3 * out] = even2 + odd2;
    u[4 * out] = even2 - odd2;
    u[5 * out] = c;
}
// Gᵀ of six sums
inline void sums_to_taps(const V* m, int in, V* g, int out) {
    const V near = m[in] + m[2 * in], apart = m[in] - m[2 * in], far = m[3 * in] + m[4 * in], apart2 = m[3 * in] - m[4 * in];
    g[0] = m[0] * 0.25f - near * (1.0f / 6) + far * (1.0f / 24);
    g[out] = apart * (-1.0f / 6) + apart2 * (1.0f / 12);
    g[2 * out] = near * (-1.0f / 6) + far * (1.0f / 6) + m[5 * in];
}

// Bᵀ·d·B of the pixels at a tile, LANES channels from c on
inline void transform_input(const float* x, const Sizes& s, i64 C, const Tile& at, i64 c, V* v) {
    V d[PLACES], h[PLACES];
    for (int i = 0; i < SIDE; i++) {
        const i64 row = at.row + i - 1;
        for (int j = 0; j < SIDE; j++) {
            const i64 column = at.column + j - 1;
            const bool inside = row >= 0 && row < s.H && column >= 0 && column < s.W;
            d[i * SIDE + j] = inside ? load(x + ((at.image * s.H + row) * s.W + column) * C + c) : V{};
        }
    }
    for (int j = 0; j < SIDE; j++) pixels(d + j, SIDE, h + j, SIDE);
    for (int i = 0; i < SIDE; i++) pixels(h + i * SIDE, 1, v + i * SIDE, 1);
}

// A·g·Aᵀ of the gradients at a tile, LANES channels from k on
inline void transform_grad(const float* grad, const Sizes& s, i64 K, const Tile& at, i64 k, V* v) {
    V g[TILE * TILE], h[SIDE * TILE];
    for (int i = 0; i < TILE; i++)
        for (int j = 0; j < TILE; j++) {
            const bool inside = at.row + i < s.H && at.column + j < s.W;
            g[i * TILE + j] = inside ? load(grad + ((at.image * s.H + at.row + i) * s.W + at.column + j) * K + k) : V{};
        }
    for (int j = 0; j < TILE; j++) gradients(g + j, TILE, h + j, TILE);
    for (int i = 0; i < SIDE; i++) gradients(h + i * TILE, 1, v + i * SIDE, 1);
}

struct Ops {
    typedef float In;
    typedef V Vector, By;
    static const int LANES = ::LANES, VECTORS = ::VECTORS;
    static V load(const float* from) { return ::load(from); }
    static V add(V sum, float one, V by) { return sum + one * by; }
};

}  // namespace

extern "C" {

// y = x ∗ w. u: the transformed weights [K/WIDE][36,C,WIDE], the last with what is left of K; block: tiles at a time.
void winograd_forward(const float* x, const float* u, float* y, i64 N, i64 H, i64 W, i64 C, i64 K, i64 block, int threads) {
    const Sizes s{N, H, W};
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        const Buffer<float> v = buffer<float>(PLACES * block * C), m = buffer<float>(PLACES * block * WIDE);
        const Portion mine(s.tiles(), part, threads);
        for (i64 first = mine.first; first < mine.last; first += block) {
            const i64 here = std::min(block, mine.last - first);
            for (i64 t = 0; t < here; t++) {
                const Tile at(s, first + t);
                for (i64 c = 0; c < C; c += LANES) {
                    V out[PLACES];
                    transform_input(x, s, C, at, c, out);
                    for (int p = 0; p < PLACES; p++) store(v.get() + (p * block + t) * C + c, out[p]);
                }
            }
            for (i64 k = 0; k < K; k += WIDE) {
                const i64 width = std::min<i64>(WIDE, K - k);
                for (int p = 0; p < PLACES; p++) {
                    const float* const by = u + PLACES * C * k + p * C * width;
                    products<Ops>(here, v.get() + p * block * C, C, 1, by, width, C, m.get() + p * block * WIDE, WIDE, width, false);
                }
                for (i64 t = 0; t < here; t++) {
                    const Tile at(s, first + t);
                    for (i64 c = 0; c < width; c += LANES) {
                        V in[PLACES], h[TILE * SIDE], out[TILE * TILE];
                        for (int p = 0; p < PLACES; p++) in[p] = load(m.get() + (p * block + t) * WIDE + c);
                        for (int j = 0; j < SIDE; j++) outputs(in + j, SIDE, h + j, SIDE);
                        for (int i = 0; i < TILE; i++) outputs(h + i * SIDE, 1, out + i * TILE, 1);
                        for (int i = 0; i < TILE * TILE; i++) {
                            const i64 row = at.row + i / TILE, column = at.column + i % TILE;
                            if (row < H && column < W) store(y + ((at.image * H + row) * W + column) * K + k + c, out[i]);
                        }
                    }
                }
            }
        }
    }
}

// u: G·w·Gᵀ, as `winograd_forward` takes it. w: the first tap of the first weight; `to`, `from`, `tap` elements from one output, input, tap
// to the next.
void winograd_weights(const float* w, float* u, i64 outs, i64 ins, i64 to, i64 from, i64 tap, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 o = 0; o < outs; o += LANES) {
        const i64 first = o / WIDE * WIDE, width = std::min<i64>(WIDE, outs - first);
        for (i64 i = 0; i < ins; i++) {
            V g[9], h[SIDE * 3], out[PLACES];
            for (int t = 0; t < 9; t++) {
                float line[LANES];
                for (int lane = 0; lane < LANES; lane++) line[lane] = w[(o + lane) * to + i * from + t * tap];
                g[t] = load(line);
            }
            for (int j = 0; j < 3; j++) taps(g + j, 3, h + j, 3);
            for (int j = 0; j < SIDE; j++) taps(h + j * 3, 1, out + j * SIDE, 1);
            for (int p = 0; p < PLACES; p++) store(u + PLACES * ins * first + (p * ins + i) * width + o - first, out[p]);
        }
    }
}

// sums [threads,36,K,C]: each thread's sums of the gradient by the transformed weights.
void winograd_by_weight(const float* x, const float* grad, float* sums, i64 N, i64 H, i64 W, i64 C, i64 K, i64 block, int threads) {
    const Sizes s{N, H, W};
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        const Buffer<float> v = buffer<float>(PLACES * block * C), g = buffer<float>(PLACES * block * K);
        const Portion mine(s.tiles(), part, threads);
        float* const here = sums + part * PLACES * C * K;
        if (mine.first == mine.last) std::memset(here, 0, PLACES * C * K * sizeof(float));
        for (i64 first = mine.first; first < mine.last; first += block) {
            const i64 tiles = std::min(block, mine.last - first);
            for (i64 t = 0; t < tiles; t++) {
                const Tile at(s, first + t);
                V out[PLACES];
                for (i64 c = 0; c < C; c += LANES) {
                    transform_input(x, s, C, at, c, out);
                    for (int p = 0; p < PLACES; p++) store(v.get() + (p * block + t) * C + c, out[p]);
                }
                for (i64 k = 0; k < K; k += LANES) {
                    transform_grad(grad, s, K, at, k, out);
                    for (int p = 0; p < PLACES; p++) store(g.get() + (p * block + t) * K + k, out[p]);
                }
            }
            for (int p = 0; p < PLACES; p++) {
                const float *const from = g.get() + p * block * K, *const by = v.get() + p * block * C;
                products<Ops>(K, from, 1, K, by, C, tiles, here + p * K * C, C, C, first > mine.first);
            }
        }
    }
}

// gw [K,3,3,C] from the threads' sums [threads,36,K,C]: Gᵀ·(their sum)·G.
void winograd_gradient(const float* sums, float* gw, i64 C, i64 K, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 k = 0; k < K; k++) {
        for (i64 c = 0; c < C; c += LANES) {
            V m[PLACES], h[3 * SIDE], out[9];
            for (int p = 0; p < PLACES; p++) {
                m[p] = load(sums + (p * K + k) * C + c);
                for (int t = 1; t < threads; t++) m[p] += load(sums + ((t * PLACES + p) * K + k) * C + c);
            }
            for (int j = 0; j < SIDE; j++) sums_to_taps(m + j, SIDE, h + j, SIDE);
            for (int i = 0; i < 3; i++) sums_to_taps(h + i * SIDE, 1, out + i * 3, 1);
            for (int t = 0; t < 9; t++) store(gw + (k * 9 + t) * C + c, out[t]);
        }
    }
}
}
