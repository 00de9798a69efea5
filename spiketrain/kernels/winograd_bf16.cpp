// 3×3 convolutions (stride 1, padding 1) in bfloat16 by Winograd's F(2×2, 3×3): see spiketrain/kernels/winograd.py for the equations.
//
// x is [N,H,W,C] in memory, y and grad are [N,H,W,K]; C and K are multiples of 16. A tile is 2×2 pixels of y and the 4×4 of x that they
// see; what is outside is 0. Tiles of all images are counted in one row and dealt to the threads in fixed portions, so that sums
// are added in the same order each time. A block of tiles goes through transform, products and transform while it is in the cache.
// A product is of pairs of bfloat16, added in float32 (VDPBF16PS). For processors with AVX512-BF16; others do not compile this.

#include <algorithm>
#include <cstring>
#include <immintrin.h>

#include "winograd.h"

namespace {

typedef uint16_t bf16;
typedef __m512 V;

#define UNROLL16 _Pragma("GCC unroll 16")
const int LANES = 16, WIDE = 64, PLACES = 16;  // WIDE: channels of y at a time

inline float wide(bf16 x) {
    const uint32_t word = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &word, sizeof(out));
    return out;
}
inline V load(const bf16* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
}
inline void store(bf16* to, V x) { _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x)); }

typedef Tiling<2> Sizes;
typedef Place<2> Tile;

// Bᵀ·d·B of the 4×4 pixels at a tile, 16 channels from c on.
inline void transform_input(const bf16* x, const Sizes& s, i64 C, const Tile& at, i64 c, V* out) {
    V d[4][4];
    UNROLL for (int i = 0; i < 4; i++) {
        const i64 row = at.row + i - 1;
        UNROLL for (int j = 0; j < 4; j++) {
            const i64 column = at.column + j - 1;
            const bool inside = row >= 0 && row < s.H && column >= 0 && column < s.W;
            d[i][j] = inside ? load(x + ((at.image * s.H + row) * s.W + column) * C + c) : _mm512_setzero_ps();
        }
    }
    UNROLL for (int j = 0; j < 4; j++) {
        const V a = d[0][j], b = d[1][j], e = d[2][j], f = d[3][j];
        d[0][j] = a - e, d[1][j] = b + e, d[2][j] = e - b, d[3][j] = b - f;
    }
    UNROLL for (int i = 0; i < 4; i++) {
        const V a = d[i][0], b = d[i][1], e = d[i][2], f = d[i][3];
        out[4 * i] = a - e, out[4 * i + 1] = b + e, out[4 * i + 2] = e - b, out[4 * i + 3] = b - f;
    }
}

// A·g·Aᵀ of the 2×2 pixels of a gradient at a tile, 16 channels from k on.
inline void transform_grad(const bf16* grad, const Sizes& s, i64 K, const Tile& at, i64 k, V* out) {
    V g[2][2], h[4][2];
    UNROLL for (int i = 0; i < 2; i++)
        UNROLL for (int j = 0; j < 2; j++) {
            const bool inside = at.row + i < s.H && at.column + j < s.W;
            g[i][j] = inside ? load(grad + ((at.image * s.H + at.row + i) * s.W + at.column + j) * K + k) : _mm512_setzero_ps();
        }
    UNROLL for (int j = 0; j < 2; j++) h[0][j] = g[0][j], h[1][j] = g[0][j] + g[1][j], h[2][j] = g[0][j] - g[1][j], h[3][j] = -g[1][j];
    UNROLL for (int i = 0; i < 4; i++) {
        out[4 * i] = h[i][0], out[4 * i + 1] = h[i][0] + h[i][1], out[4 * i + 2] = h[i][0] - h[i][1], out[4 * i + 3] = -h[i][1];
    }
}

// Aᵀ·m·A: the 2×2 pixels of y from 16 products, `apart` floats apart.
inline void transform_output(const float* m, i64 apart, V* out) {
    V h[2][4];
    UNROLL for (int j = 0; j < 4; j++) {
        const V a = _mm512_load_ps(m + j * apart), b = _mm512_load_ps(m + (4 + j) * apart);
        const V e = _mm512_load_ps(m + (8 + j) * apart), f = _mm512_load_ps(m + (12 + j) * apart);
        h[0][j] = a + b + e, h[1][j] = b - e - f;
    }
    UNROLL for (int i = 0; i < 2; i++) out[2 * i] = h[i][0] + h[i][1] + h[i][2], out[2 * i + 1] = h[i][1] - h[i][2] - h[i][3];
}

// G·g·Gᵀ of nine taps of 16 weights.
inline void transform_weight(const float (*g)[LANES], V* out) {
    const V half = _mm512_set1_ps(0.5f);
    V h[4][3];
    UNROLL for (int j = 0; j < 3; j++) {
        const V a = _mm512_load_ps(g[j]), b = _mm512_load_ps(g[3 + j]), e = _mm512_load_ps(g[6 + j]);
        h[0][j] = a, h[1][j] = (a + b + e) * half, h[2][j] = (a - b + e) * half, h[3][j] = e;
    }
    UNROLL for (int i = 0; i < 4; i++) {
        const V a = h[i][0], b = h[i][1], e = h[i][2];
        out[4 * i] = a, out[4 * i + 1] = (a + b + e) * half, out[4 * i + 2] = (a - b + e) * half, out[4 * i + 3] = e;
    }
}

// Gᵀ·m·G: the gradient by nine taps from the one by 16 transformed weights.
inline void transform_gradient(const V* m, V* out) {
    const V half = _mm512_set1_ps(0.5f);
    V h[3][4];
    UNROLL for (int j = 0; j < 4; j++) {
        const V even = (m[4 + j] + m[8 + j]) * half, odd = (m[4 + j] - m[8 + j]) * half;
        h[0][j] = m[j] + even, h[1][j] = odd, h[2][j] = even + m[12 + j];
    }
    UNROLL for (int i = 0; i < 3; i++) {
        const V even = (h[i][1] + h[i][2]) * half, odd = (h[i][1] - h[i][2]) * half;
        out[3 * i] = h[i][0] + even, out[3 * i + 1] = odd, out[3 * i + 2] = even + h[i][3];
    }
}

// Pairs of bfloat16, of a (lower half) and b.
inline __m512i join(V a, V b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

struct Ops {
    typedef uint32_t In;  // a pair
    typedef V Vector;
    typedef __m512bh By;
    static const int LANES = ::LANES, VECTORS = 4;
    static By load(const In* from) { return (By)_mm512_loadu_si512(from); }
    static V add(V sum, In one, By by) { return _mm512_dpbf16_ps(sum, (By)_mm512_set1_epi32(one), by); }
};

}  // namespace

extern "C" {

// y = x ∗ w. u: the transformed weights [K/WIDE][16,C/2,WIDE] of pairs, the last with what is left of K; block: tiles at a time.
void winograd_forward(const bf16* x, const uint32_t* u, bf16* y, i64 N, i64 H, i64 W, i64 C, i64 K, i64 block, int threads) {
    const Sizes s{N, H, W};
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        const Buffer<bf16> v = buffer<bf16>(PLACES * block * C);
        const Buffer<float> m = buffer<float>(PLACES * block * WIDE);
        const Portion mine(s.tiles(), part, threads);
        for (i64 first = mine.first; first < mine.last; first += block) {
            const i64 here = std::min(block, mine.last - first);
            for (i64 t = 0; t < here; t++) {
                const Tile at(s, first + t);
                for (i64 c = 0; c < C; c += LANES) {
                    V out[PLACES];
                    transform_input(x, s, C, at, c, out);
                    UNROLL16 for (int p = 0; p < PLACES; p++) store(v.get() + (p * block + t) * C + c, out[p]);
                }
            }
            for (i64 k = 0; k < K; k += WIDE) {
                const i64 width = std::min<i64>(WIDE, K - k);
                for (int p = 0; p < PLACES; p++) {
                    const uint32_t *const a = (const uint32_t*)(v.get() + p * block * C), *const by = u + (PLACES * k + p * width) * (C / 2);
                    products<Ops>(here, a, C / 2, 1, by, width, C / 2, m.get() + p * block * WIDE, WIDE, width, false);
                }
                for (i64 t = 0; t < here; t++) {
                    const Tile at(s, first + t);
                    for (i64 c = 0; c < width; c += LANES) {
                        V out[4];
                        transform_output(m.get() + t * WIDE + c, block * WIDE, out);
                        UNROLL for (int i = 0; i < 4; i++) {
                            const i64 row = at.row + i / 2, column = at.column + i % 2;
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
void winograd_weights(const bf16* w, uint32_t* u, i64 outs, i64 ins, i64 to, i64 from, i64 tap, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 o = 0; o < outs; o += LANES) {
        const i64 first = o / WIDE * WIDE, width = std::min<i64>(WIDE, outs - first);
        for (i64 i = 0; i < ins; i += 2) {
            V both[2][PLACES];
            for (int half = 0; half < 2; half++) {
                alignas(64) float g[9][LANES];
                for (int t = 0; t < 9; t++)
                    for (int lane = 0; lane < LANES; lane++) g[t][lane] = wide(w[(o + lane) * to + (i + half) * from + t * tap]);
                transform_weight(g, both[half]);
            }
            uint32_t* const at = u + PLACES * first * (ins / 2) + i / 2 * width + o - first;
            UNROLL16 for (int p = 0; p < PLACES; p++) _mm512_storeu_si512(at + p * (ins / 2) * width, join(both[0][p], both[1][p]));
        }
    }
}

// sums [threads,16,K,C]: each thread's sums of the gradient by the transformed weights; block: an even number of tiles.
void winograd_by_weight(const bf16* x, const bf16* grad, float* sums, i64 N, i64 H, i64 W, i64 C, i64 K, i64 block, int threads) {
    const Sizes s{N, H, W};
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int part = 0; part < threads; part++) {
        const Buffer<uint32_t> v = buffer<uint32_t>(PLACES * block / 2 * C), g = buffer<uint32_t>(PLACES * block / 2 * K);
        const Portion mine(s.tiles(), part, threads);
        float* const here = sums + part * PLACES * C * K;
        if (mine.first == mine.last) std::memset(here, 0, PLACES * C * K * sizeof(float));
        for (i64 first = mine.first; first < mine.last; first += block) {
            const i64 tiles = std::min(block, mine.last - first), half = (tiles + 1) / 2;
            for (i64 t = 0; t < half; t++) {
                const bool both = 2 * t + 1 < tiles;  // else the pair's other half is 0
                const Tile even(s, first + 2 * t), odd(s, first + 2 * t + both);
                V a[PLACES], b[PLACES] = {};
                for (i64 c = 0; c < C; c += LANES) {
                    transform_input(x, s, C, even, c, a);
                    if (both) transform_input(x, s, C, odd, c, b);
                    UNROLL16 for (int p = 0; p < PLACES; p++) _mm512_store_si512(v.get() + (p * block / 2 + t) * C + c, join(a[p], b[p]));
                }
                for (i64 k = 0; k < K; k += LANES) {
                    transform_grad(grad, s, K, even, k, a);
                    if (both) transform_grad(grad, s, K, odd, k, b);
                    UNROLL16 for (int p = 0; p < PLACES; p++) _mm512_store_si512(g.get() + (p * block / 2 + t) * K + k, join(a[p], b[p]));
                }
            }
            for (int p = 0; p < PLACES; p++) {
                const uint32_t *const from = g.get() + p * block / 2 * K, *const by = v.get() + p * block / 2 * C;
                products<Ops>(K, from, 1, K, by, C, half, here + p * K * C, C, C, first > mine.first);
            }
        }
    }
}

// gw [K,3,3,C] from the threads' sums [threads,16,K,C]: Gᵀ·(their sum)·G.
void winograd_gradient(const float* sums, float* gw, i64 C, i64 K, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 k = 0; k < K; k++) {
        for (i64 c = 0; c < C; c += LANES) {
            V m[PLACES], out[9];
            UNROLL16 for (int p = 0; p < PLACES; p++) {
                m[p] = _mm512_load_ps(sums + (p * K + k) * C + c);
                for (int t = 1; t < threads; t++) m[p] += _mm512_load_ps(sums + ((t * PLACES + p) * K + k) * C + c);
            }
            transform_gradient(m, out);
            UNROLL16 for (int t = 0; t < 9; t++) _mm512_store_ps(gw + (k * 9 + t) * C + c, out[t]);
        }
    }
}
}
