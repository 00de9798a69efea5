// 3×3 convolutions (stride 1, padding 1) in float32 by Winograd's F(4×4, 3×3): see spiketrain/kernels/winograd.py for the equations.
//
// A block of tiles goes through transform, products and transform while it is in the cache. For x86 processors with AVX-512 or AVX2 and
// FMA: the compiler may contract products and sums.

#include "winograd.h"

namespace {

struct Ops {
#if defined(__AVX512F__)
    static const int LANES = 16, VECTORS = 4;
#else  // AVX2
    static const int LANES = 8, VECTORS = 2;
#endif
    typedef float V __attribute__((vector_size(LANES * sizeof(float))));
    typedef float Element, In;
    typedef V Vector, By;
    static V load(const float* from) {
        V x;
        std::memcpy(&x, from, sizeof(x));
        return x;
    }
    static V by(const float* from) { return load(from); }
    static V add(V sum, float one, V by) { return sum + one * by; }
};
typedef Ops::V V;
const int LANES = Ops::LANES, WIDE = LANES * Ops::VECTORS;  // channels of y at a time

inline void store(float* to, V x) { std::memcpy(to, &x, sizeof(x)); }

struct Add {  // to what is there in rows that are `apart`, if something is
    float* at;
    i64 apart;
    bool more;
    void see(i64 row, i64 column) const { __builtin_prefetch(at + row * apart + column, 1); }
    void put(i64 row, i64 column, V sums) const {
        float* const here = at + row * apart + column;
        store(here, more ? Ops::load(here) + sums : sums);
    }
};

}  // namespace

extern "C" {

// y = x ∗ w. u: the transformed weights [K/WIDE][36,C,WIDE], the last with what is left of K; most: tiles at a time.
void winograd_forward(const float* x, const float* u, float* y, i64 N, i64 H, i64 W, i64 C, i64 K, i64 most, int threads) {
    const Sizes s{N, H, W};
    const i64 block = std::min(most, (s.tiles() + threads - 1) / threads);
#pragma omp parallel num_threads(threads)
    {
        const Buffer<float> v = buffer<float>(PLACES * block * C), m = buffer<float>(PLACES * block * WIDE);
#pragma omp for schedule(dynamic)
        for (i64 first = 0; first < s.tiles(); first += block) {
            const i64 here = std::min(block, s.tiles() - first);
            for (i64 t = 0; t < here; t++) {
                const Tile at(s, first + t);
                for (i64 c = 0; c < C; c += LANES) {
                    V out[PLACES];
                    transform_input<Ops>(x, s, C, at, c, out);
                    UNROLL for (int p = 0; p < PLACES; p++) store(v.get() + (p * block + t) * C + c, out[p]);
                }
            }
            for (i64 k = 0; k < K; k += WIDE) {
                const i64 width = std::min<i64>(WIDE, K - k);
                for (int p = 0; p < PLACES; p++) {
                    const float *const a = v.get() + p * block * C, *const by = u + PLACES * C * k + p * C * width;
                    products<Ops>(here, a, C, 1, width, by, width, C, Store<Ops, float>{m.get() + p * block * WIDE, WIDE});
                }
                for (i64 t = 0; t < here; t++) {
                    const Tile at(s, first + t);
                    for (i64 c = 0; c < width; c += LANES) {
                        V in[PLACES], out[TILE * TILE];
                        UNROLL for (int p = 0; p < PLACES; p++) in[p] = Ops::load(m.get() + (p * block + t) * WIDE + c);
                        transform_output(in, out);
                        UNROLL for (int i = 0; i < TILE * TILE; i++) {
                            const i64 row = at.row + i / TILE, column = at.column + i % TILE;
                            if (row < H && column < W) store(y + ((at.image * H + row) * W + column) * K + k + c, out[i] * (1.0f / 16));
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
            V out[PLACES];
            transform_weight<Ops>(w + o * to + i * from, to, tap, out);
            UNROLL for (int p = 0; p < PLACES; p++) store(u + PLACES * ins * first + (p * ins + i) * width + o - first, out[p]);
        }
    }
}

// sums [parts,36,count,C] of the gradient by the transformed weights of `count` channels of y from `start` on, see `Share`.
void winograd_by_weight(
    const float* x, const float* grad, float* sums, i64 N, i64 H, i64 W, i64 C, i64 K, i64 start, i64 count, i64 block, int parts,
    int shares) {
    const Sizes s{N, H, W};
#pragma omp parallel for num_threads(parts * shares) schedule(static, 1)
    for (int thread = 0; thread < parts * shares; thread++) {
        const Share mine(s, C, count, sums, thread, parts, shares);
        const i64 from = start + mine.from, width = mine.width;
        const Buffer<float> v = buffer<float>(PLACES * block * C), g = buffer<float>(PLACES * block * width);
        for (i64 first = mine.tiles.first; first < mine.tiles.last; first += block) {
            const i64 tiles = std::min(block, mine.tiles.last - first);
            for (i64 t = 0; t < tiles; t++) {
                const Tile at(s, first + t);
                V out[PLACES];
                for (i64 c = 0; c < C; c += LANES) {
                    transform_input<Ops>(x, s, C, at, c, out);
                    UNROLL for (int p = 0; p < PLACES; p++) store(v.get() + (p * block + t) * C + c, out[p]);
                }
                for (i64 k = 0; k < width; k += LANES) {
                    transform_grad<Ops>(grad, s, K, at, from + k, out);
                    UNROLL for (int p = 0; p < PLACES; p++) store(g.get() + (p * block + t) * width + k, out[p]);
                }
            }
            for (int p = 0; p < PLACES; p++) {
                const float *const a = g.get() + p * block * width, *const by = v.get() + p * block * C;
                products<Ops>(width, a, 1, width, C, by, C, tiles, Add{mine.at + p * count * C, C, first > mine.tiles.first});
            }
        }
    }
}

// gw [count,3,3,C] from those sums.
void winograd_gradient(const float* sums, float* gw, i64 C, i64 count, int parts, int threads) {
    gradient_by_weight<Ops>(sums, gw, C, count, parts, threads);
}
}
