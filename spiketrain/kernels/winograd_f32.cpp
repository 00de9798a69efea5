// 3×3 convolutions (stride 1, padding 1) in float32 by Winograd's F(4×4, 3×3): see spiketrain/kernels/winograd.py for the equations.
//
// A block of tiles goes through transform, products and transform while it is in the cache. For x86 processors with AVX-512 or AVX2 and
// FMA: the compiler may contract products and sums.

#include "winograd.h"

namespace {

const int PLACES = Same::PLACES;

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
    static const int APART = 1;
    static i64 at(i64 k) { return k; }  // see `taps_of`
    static void write(float* to, const V* sums) { std::memcpy(to, sums, sizeof(V)); }
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

struct Work {  // see `by_weight`; v [blocks,36,block,C], g [blocks,36,block,turn], whose places are PAD further apart
    static const int WIDE = ::WIDE;
    const float *x, *grad;
    i64 width, C, K, turn, of_x, of_grad;  // width: of images; of_: from one place to the next
    Buffer<float> v, g;
    Work(const float* x, const float* grad, i64 width, i64 C, i64 K, i64 turn, i64 block, i64 blocks)
        : x(x), grad(grad), width(width), C(C), K(K), turn(turn), of_x(block * C + PAD), of_grad(block * turn + PAD),
          v(buffer<float>(blocks * PLACES * of_x)), g(buffer<float>(blocks * PLACES * of_grad)) {}
    i64 scratch() const { return 0; }
    void take_x(const Tile* at, i64 tiles, i64 c, i64 slot, float*) {
        for (i64 t = 0; t < tiles; t++) {
            V out[PLACES];
            transform_input<Same>(x, width, C, at[t], c, Ops::load, out);
            UNROLL for (int p = 0; p < PLACES; p++) store(v.get() + (slot * PLACES + p) * of_x + t * C + c, out[p]);
        }
    }
    void take_grad(const Tile* at, i64 tiles, i64 start, i64 k, i64, i64 slot, float*) {
        for (i64 t = 0; t < tiles; t++) {
            V out[PLACES];
            transform_grad<Same>(grad, width, K, at[t], start + k, Ops::load, out);
            UNROLL for (int p = 0; p < PLACES; p++) store(g.get() + (slot * PLACES + p) * of_grad + t * turn + k, out[p]);
        }
    }
    void multiply(i64 p, i64 k, i64 count, i64 c, i64 tiles, i64 slot, float* to, bool more) {
        const float *const a = g.get() + (slot * PLACES + p) * of_grad + k, *const by = v.get() + (slot * PLACES + p) * of_x + c;
        products<Ops>(std::min<i64>(WIDE, count - k), a, 1, turn, std::min<i64>(WIDE, C - c), by, C, tiles, Add{to, C, more});
    }
};

}  // namespace

extern "C" {

// y = x ∗ w. w: the first tap of the first weight; `to`, `from`, `tap` elements from one output, input, tap to the next; most: tiles at a
// time.
void winograd_forward(
    const float* x, const float* w, float* y, i64 N, i64 H, i64 W, i64 C, i64 K, i64 to, i64 from, i64 tap, i64 most,
    int /* stride 1 */, int threads) {
    const Grid<Same> grid{{N, H, W}, {N, H, W}};
    const i64 block = std::min(most, (grid.tiles() + threads - 1) / threads);
    const Buffer<float> transformed = buffer<float>(PLACES * C * K);  // [K/WIDE][36,C,WIDE], the last with what is left of K
    float* const u = transformed.get();
#pragma omp parallel num_threads(threads)
    {
        const Buffer<float> v = buffer<float>(PLACES * block * C), m = buffer<float>(PLACES * block * WIDE);
#pragma omp for schedule(dynamic)
        for (i64 o = 0; o < K; o += LANES) {
            const i64 first = o / WIDE * WIDE, width = std::min<i64>(WIDE, K - first);
            for (i64 i = 0; i < C; i++) {
                V g[9], out[PLACES];
                for (int t = 0; t < 9; t++)
                    for (int lane = 0; lane < LANES; lane++) g[t][lane] = w[(o + lane) * to + i * from + t * tap];
                transform_weight<Same>(g, out);
                UNROLL for (int p = 0; p < PLACES; p++) store(u + PLACES * C * first + (p * C + i) * width + o - first, out[p]);
            }
        }
#pragma omp for schedule(dynamic)
        for (i64 first = 0; first < grid.tiles(); first += block) {
            const i64 here = std::min(block, grid.tiles() - first);
            for (i64 t = 0; t < here; t++) {
                const Tile at = grid.tile(first + t);
                for (i64 c = 0; c < C; c += LANES) {
                    V out[PLACES];
                    transform_input<Same>(x, W, C, at, c, Ops::load, out);
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
                    const Tile at = grid.tile(first + t);
                    for (i64 c = 0; c < width; c += LANES) {
                        V in[PLACES], out[Same::MADE * Same::MADE];
                        UNROLL for (int p = 0; p < PLACES; p++) in[p] = Ops::load(m.get() + (p * block + t) * WIDE + c);
                        transform_output<Same>(in, out);
                        float* const to = y + at.made * K + k + c;
                        UNROLL for (int i = 0; i < Same::MADE; i++)
                            UNROLL for (int j = 0; j < Same::MADE; j++)
                                if (at.makes(i, j)) store(to + (i * W + j) * K, out[i * Same::MADE + j] * Same::FACTOR);
                    }
                }
            }
        }
    }
}

// gw, see `by_weight`
void winograd_by_weight(
    const float* x, const float* grad, float* sums, float* gw, i64 N, i64 H, i64 W, i64 C, i64 K, i64 turn, i64 block, i64 blocks,
    int /* stride 1 */, int threads) {
    Work work(x, grad, W, C, K, turn, block, blocks);
    by_weight<Same, Ops>(work, {{N, H, W}, {N, H, W}}, sums, gw, K, turn, block, blocks, threads);
}
}
