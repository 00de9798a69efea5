// 3×3 convolutions (stride 1, padding 1) of bfloat16 by Winograd's F(4×4, 3×3) in whole numbers: see spiketrain/kernels/winograd.py for the
// equations and for why the numbers are whole.
//
// Transforms are in float32. What they give is multiplied by a scale, rounded to 16 bits, multiplied in pairs and added in 32 bits
// (VPDPWSSD). A scale is as great as it can be without a sum that overflows: |Σ v·u| ≤ ‖v‖·‖u‖, and both norms are held to NORM, or to
// NUMBER where a lane has a scale of its own. For processors with AVX512-VNNI; others do not compile this. A block of tiles goes through
// transform, products and transform while it is in the cache.

#include <cmath>
#include <immintrin.h>
#include <limits>

#include "winograd.h"

namespace {

typedef uint16_t bf16;
typedef __m512 V;
const int LANES = 16, WIDE = 64;  // WIDE: channels of a panel
const int PAD = 80;  // words between places, which else lie in the same few sets of the cache
const float NUMBER = 32700, NORM = 46000;  // NORM² is less than 2³¹, with room for what rounding adds

struct Ops {
    typedef ::V V;
    typedef bf16 Element;
    typedef uint32_t In;  // a pair
    typedef __m512i Vector, By;
    static const int LANES = ::LANES, VECTORS = 4;
    static V load(const bf16* from) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
    }
    static By by(const In* from) { return _mm512_loadu_si512(from); }
    static Vector add(Vector sum, In one, By by) { return _mm512_dpwssd_epi32(sum, _mm512_set1_epi32(one), by); }
};

inline void store(bf16* to, V x) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(x));
#else  // to the nearest, to even of two; NaN stays NaN
    const __m512i bits = _mm512_castps_si512(x), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i near = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __m512i out = _mm512_mask_mov_epi32(near, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
    _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16(out));
#endif
}

// The greatest magnitude of n vectors, lane by lane, as bits of float32: these are ordered as whole numbers, and NaN is the greatest.
inline __m512i greatest(const float* values, i64 n) {
    __m512i found = _mm512_setzero_si512();
    for (i64 i = 0; i < n; i++)
        found = _mm512_max_epu32(found, _mm512_and_si512(_mm512_load_si512(values + i * LANES), _mm512_set1_epi32(0x7fffffff)));
    return found;
}

// Sums of squares of transformed values, lane by lane, at each place.
struct Squares {
    V sums[PLACES] = {};
    void add(const V* places) {
        UNROLL for (int p = 0; p < PLACES; p++) sums[p] = _mm512_fmadd_ps(places[p], places[p], sums[p]);
    }
    // No less than the norm at any place, of the n times 36 values that were added; NaN where not all are finite.
    V norm(const float* values, i64 n) const {
        __m512i most = _mm512_setzero_si512();
        UNROLL for (int p = 0; p < PLACES; p++) most = _mm512_max_epu32(most, _mm512_castps_si512(sums[p]));
        const V squares = _mm512_castsi512_ps(most);
        const __mmask16 good = _mm512_cmp_ps_mask(squares, _mm512_set1_ps(1e-30f), _CMP_GE_OQ) &
                               _mm512_cmp_ps_mask(squares, _mm512_set1_ps(1e30f), _CMP_LE_OQ);
        if (good == 0xffff) return _mm512_sqrt_ps(squares);
        const __m512i top = greatest(values, n * PLACES);  // as squares are out of range
        const V above = _mm512_castsi512_ps(top) * _mm512_set1_ps(std::sqrt(float(n)));
        const __mmask16 finite = _mm512_cmplt_epu32_mask(top, _mm512_set1_epi32(0x7f800000));
        const V nan = _mm512_set1_ps(std::numeric_limits<float>::quiet_NaN());
        return _mm512_mask_sqrt_ps(_mm512_mask_mov_ps(nan, finite, above), good, squares);
    }
};

struct Scale {  // and its inverse, which is NaN where something is not finite (or so great that its transform is not)
    V by, back;
    // With which what has this norm has a norm of `most`. Whole, if that costs less than an eighth: whole numbers then stay whole. (Of the
    // operands of min and max the second is the one that is returned for NaN.)
    Scale(V norm, V most) {
        const V exact = _mm512_min_ps(most / norm, _mm512_set1_ps(1e37f));
        by = _mm512_mask_floor_ps(exact, _mm512_cmp_ps_mask(exact, _mm512_set1_ps(8), _CMP_GE_OQ), exact);
        back = _mm512_mask_mov_ps(_mm512_set1_ps(1) / by, _mm512_cmp_ps_mask(norm, norm, _CMP_UNORD_Q), norm);
    }
};

inline __m512i rounded(const float* from, V by) { return _mm512_cvtps_epi32(_mm512_load_ps(from) * by); }
inline void store16(int16_t* to, __m512i x) { _mm256_storeu_si256((__m256i*)to, _mm512_cvtsepi32_epi16(x)); }
// Pairs of a (lower half) and b.
inline __m512i join(__m512i a, __m512i b) { return _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16)); }

struct Add {  // times the inverse scales of a row and a column, to what is there in rows that are `apart`, if something is
    float* at;
    i64 apart;
    const float *columns, *rows;
    bool more;
    void see(i64 row, i64 column) const { __builtin_prefetch(at + row * apart + column, 1); }
    void put(i64 row, i64 column, __m512i sums) const {
        float* const here = at + row * apart + column;
        const V times = _mm512_loadu_ps(columns + column) * _mm512_set1_ps(rows[row]);
        _mm512_storeu_ps(here, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), times, more ? _mm512_loadu_ps(here) : _mm512_setzero_ps()));
    }
};

struct Panels {  // of WIDE channels of `pairs` pairs of tiles, [36,width/WIDE,pairs,WIDE], the last with what is left of `width`
    i64 width, pairs;
    i64 place() const { return width * pairs + PAD; }
    i64 channels(i64 first) const { return std::min<i64>(WIDE, width - first); }
    i64 at(int p, i64 first) const { return p * place() + first * pairs; }  // first: the first channel of a panel
};

// Tiles from `first` on as pairs, at `to`; transform(tile, channel, places) gives LANES channels; back: the inverse scales of the channels;
// scratch [tiles,36,LANES].
template <class F> void pairs_of_tiles(i64 first, i64 tiles, const Panels& panels, F transform, float* scratch, uint32_t* to, float* back) {
    for (i64 c = 0; c < panels.width; c += LANES) {
        const i64 panel = c / WIDE * WIDE, wide = panels.channels(panel);
        Squares squares;
        for (i64 t = 0; t < tiles; t++) {
            V* const out = (V*)(scratch + t * PLACES * LANES);
            transform(first + t, c, out);
            squares.add(out);
        }
        const Scale by(squares.norm(scratch, tiles), _mm512_set1_ps(NUMBER));
        _mm512_storeu_ps(back + c, by.back);
        for (i64 t = 0; t < (tiles + 1) / 2; t++) {
            const bool both = 2 * t + 1 < tiles;  // else the pair's other half is 0
            for (int p = 0; p < PLACES; p++) {
                const float* const even = scratch + (2 * t * PLACES + p) * LANES;
                const __m512i odd = both ? rounded(even + PLACES * LANES, by.by) : _mm512_setzero_si512();
                _mm512_storeu_si512(to + panels.at(p, panel) + t * wide + c - panel, join(rounded(even, by.by), odd));
            }
        }
    }
}

}  // namespace

extern "C" {

// y = x ∗ w. u: the transformed weights [K/WIDE][36,C/2,WIDE] of pairs, the last with what is left of K, then the inverse scale of each of
// the K; most: tiles at a time.
void winograd_forward(const bf16* x, const uint32_t* u, bf16* y, i64 N, i64 H, i64 W, i64 C, i64 K, i64 most, int threads) {
    const Sizes s{N, H, W};
    const i64 block = std::min(most, (s.tiles() + threads - 1) / threads);
    const float* const back = (const float*)(u + PLACES * (C / 2) * K);
#pragma omp parallel num_threads(threads)
    {
        const i64 place = block * C + PAD * 2, sums = block * WIDE + PAD;  // from one place to the next
        const Buffer<int16_t> v = buffer<int16_t>(PLACES * place);
        const Buffer<int32_t> m = buffer<int32_t>(PLACES * sums);
        const Buffer<float> scratch = buffer<float>(PLACES * C), backs = buffer<float>(block);
#pragma omp for schedule(dynamic)
        for (i64 first = 0; first < s.tiles(); first += block) {
            const i64 here = std::min(block, s.tiles() - first);
            for (i64 t = 0; t < here; t++) {
                const Tile at(s, first + t);
                Squares squares;
                for (i64 c = 0; c < C; c += LANES) {
                    V* const out = (V*)(scratch.get() + PLACES * c);
                    transform_input<Ops>(x, s, C, at, c, out);
                    squares.add(out);
                }
                const V norms = squares.norm(scratch.get(), C / LANES);
                const float top = std::max(_mm512_reduce_max_ps(norms), 1e-37f);
                const V share = norms * _mm512_set1_ps(1 / top);  // whose squares are not out of range
                const float norm = top * std::sqrt(_mm512_reduce_add_ps(share * share));
                const Scale by(_mm512_set1_ps(std::max(norm, top * (NORM / NUMBER))), _mm512_set1_ps(NORM));
                backs[t] = _mm512_cvtss_f32(by.back) * (1.0f / 16);
                for (i64 c = 0; c < C; c += LANES)
                    for (int p = 0; p < PLACES; p++)
                        store16(v.get() + p * place + t * C + c, rounded(scratch.get() + PLACES * c + p * LANES, by.by));
            }
            for (i64 k = 0; k < K; k += WIDE) {
                const i64 width = std::min<i64>(WIDE, K - k);
                for (int p = 0; p < PLACES; p++) {
                    const uint32_t *const a = (const uint32_t*)(v.get() + p * place), *const by = u + (PLACES * k + p * width) * (C / 2);
                    products<Ops>(here, a, C / 2, 1, width, by, width, C / 2, Store<Ops, int32_t>{m.get() + p * sums, WIDE});
                }
                for (i64 t = 0; t < here; t++) {
                    const Tile at(s, first + t);
                    for (i64 c = 0; c < width; c += LANES) {
                        V in[PLACES], out[TILE * TILE];
                        const int32_t* const from = m.get() + t * WIDE + c;
                        UNROLL for (int p = 0; p < PLACES; p++) in[p] = _mm512_cvtepi32_ps(_mm512_load_si512(from + p * sums));
                        transform_output(in, out);
                        const V times = _mm512_loadu_ps(back + k + c) * _mm512_set1_ps(backs[t]);
                        UNROLL for (int i = 0; i < TILE * TILE; i++) {
                            const i64 row = at.row + i / TILE, column = at.column + i % TILE;
                            if (row < H && column < W) store(y + ((at.image * H + row) * W + column) * K + k + c, out[i] * times);
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
    float* const back = (float*)(u + PLACES * (ins / 2) * outs);
#pragma omp parallel num_threads(threads)
    {
        const Buffer<float> scratch = buffer<float>(ins * PLACES * LANES);
#pragma omp for schedule(static)
        for (i64 o = 0; o < outs; o += LANES) {
            const i64 first = o / WIDE * WIDE, width = std::min<i64>(WIDE, outs - first);
            Squares squares;
            for (i64 i = 0; i < ins; i++) {
                V* const out = (V*)(scratch.get() + i * PLACES * LANES);
                transform_weight<Ops>(w + o * to + i * from, to, tap, out);
                squares.add(out);
            }
            const V top = _mm512_castsi512_ps(greatest(scratch.get(), ins * PLACES)) * _mm512_set1_ps(NORM / NUMBER);
            const Scale by(_mm512_max_ps(top, squares.norm(scratch.get(), ins)), _mm512_set1_ps(NORM));
            _mm512_storeu_ps(back + o, by.back);
            for (i64 i = 0; i < ins; i += 2)
                for (int p = 0; p < PLACES; p++) {
                    const float* const even = scratch.get() + (i * PLACES + p) * LANES;
                    uint32_t* const at = u + (PLACES * first + p * width) * (ins / 2) + i / 2 * width + o - first;
                    _mm512_storeu_si512(at, join(rounded(even, by.by), rounded(even + PLACES * LANES, by.by)));
                }
        }
    }
}

// sums [parts,36,count,C] of the gradient by the transformed weights of `count` channels of y from `start` on, see `Share`. block: an even
// number of tiles, for which a channel has one scale.
void winograd_by_weight(
    const bf16* x, const bf16* grad, float* sums, i64 N, i64 H, i64 W, i64 C, i64 K, i64 start, i64 count, i64 block, int parts,
    int shares) {
    const Sizes s{N, H, W};
#pragma omp parallel for num_threads(parts * shares) schedule(static, 1)
    for (int thread = 0; thread < parts * shares; thread++) {
        const Share mine(s, C, count, sums, thread, parts, shares);
        const i64 from = start + mine.from, width = mine.width;
        const Panels of_x{C, block / 2}, of_grad{width, block / 2};
        const Buffer<uint32_t> v = buffer<uint32_t>(PLACES * of_x.place()), g = buffer<uint32_t>(PLACES * of_grad.place());
        const Buffer<float> scratch = buffer<float>(block * PLACES * LANES), by = buffer<float>(C), back = buffer<float>(width);
        for (i64 first = mine.tiles.first; first < mine.tiles.last; first += block) {
            const i64 tiles = std::min(block, mine.tiles.last - first), steps = (tiles + 1) / 2;
            const auto from_x = [&](i64 t, i64 c, V* out) { transform_input<Ops>(x, s, C, Tile(s, t), c, out); };
            const auto from_grad = [&](i64 t, i64 k, V* out) { transform_grad<Ops>(grad, s, K, Tile(s, t), from + k, out); };
            pairs_of_tiles(first, tiles, of_x, from_x, scratch.get(), v.get(), by.get());
            pairs_of_tiles(first, tiles, of_grad, from_grad, scratch.get(), g.get(), back.get());
            for (int p = 0; p < PLACES; p++)
                for (i64 c = 0; c < C; c += WIDE)
                    for (i64 k = 0; k < width; k += WIDE) {
                        const i64 rows = of_grad.channels(k), columns = of_x.channels(c);
                        const Add to{mine.at + (p * count + k) * C + c, C, by.get() + c, back.get() + k, first > mine.tiles.first};
                        products<Ops>(rows, g.get() + of_grad.at(p, k), 1, rows, columns, v.get() + of_x.at(p, c), columns, steps, to);
                    }
        }
    }
}

// gw [count,3,3,C] from those sums.
void winograd_gradient(const float* sums, float* gw, i64 C, i64 count, int parts, int threads) {
    gradient_by_weight<Ops>(sums, gw, C, count, parts, threads);
}
}
