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
typedef int16_t Whole __attribute__((vector_size(64)));
const int LANES = 16, TWO = 2 * LANES, WIDE = 64;  // TWO: channels that lie in a vector of bfloat16; WIDE: of a panel
const i64 CACHE = 20 << 20;  // bytes that transformed tiles may take where all are kept
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
    // Sums have the even ones of TWO channels in one vector, the odd ones in the next. See `taps_of`.
    static const int APART = 2;
    static i64 at(i64 k) { return k / TWO * TWO + k % 2 * LANES + k % TWO / 2; }
    static void write(float* to, const V* sums) {
        const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        _mm512_storeu_ps(to, _mm512_permutex2var_ps(sums[0], low, sums[1]));
        _mm512_storeu_ps(to + LANES, _mm512_permutex2var_ps(sums[0], _mm512_add_epi32(low, _mm512_set1_epi32(8)), sums[1]));
    }
    static By by(const In* from) { return _mm512_loadu_si512(from); }
    static Vector add(Vector sum, In one, By by) { return _mm512_dpwssd_epi32(sum, _mm512_set1_epi32(one), by); }
};

// The even and the odd ones of TWO values.
struct Even {
    V operator()(const bf16* from) const { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(from), 16)); }
};
struct Odd {
    V operator()(const bf16* from) const {
        return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(from), _mm512_set1_epi32(0xffff0000)));
    }
};

// Four times TWO values, if they are 0, ¼, ½, ¾ or 1, as spikes and means of four spikes are; else a bit of `other` is set.
#define NONE 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
struct Quarters {
    __m512i* other;
    Whole operator()(const bf16* from) const {
        alignas(64) static const uint16_t values[TWO] = {NONE, 0, 0, 0x3e80, 0, 0x3f00, 0x3f40, 0x3f80, 0};  // by five bits that differ
        alignas(64) static const uint16_t whole[TWO] = {NONE, 0, 0, 1, 0, 2, 3, 4, 0};
        const __m512i value = _mm512_loadu_si512(from), key = _mm512_srli_epi16(value, 6);
        *other = _mm512_ternarylogic_epi32(*other, value, _mm512_permutexvar_epi16(key, _mm512_load_si512(values)), 0xf6);  // a | (b ^ c)
        return (Whole)_mm512_permutexvar_epi16(key, _mm512_load_si512(whole));
    }
};
inline bool none(__m512i x) { return !_mm512_test_epi32_mask(x, x); }

// Whether the TWO values of a tile's pixel from channel c on are quarters, which costs little to know.
inline bool may_be_quarters(const bf16* x, i64 C, const Tile& at, i64 c) {
    __m512i other{};
    Quarters{&other}(x + at.sure * C + c);
    return none(other);
}

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

// The greater of `found` and of a magnitude, lane by lane, as bits of float32: these are ordered as whole numbers, and NaN is the greatest.
inline __m512i greater(__m512i found, V value) {
    return _mm512_max_epu32(found, _mm512_and_si512(_mm512_castps_si512(value), _mm512_set1_epi32(0x7fffffff)));
}
// The greatest of n vectors.
inline __m512i greatest(const float* values, i64 n) {
    __m512i found = _mm512_setzero_si512();
    for (i64 i = 0; i < n; i++) found = greater(found, _mm512_load_ps(values + i * LANES));
    return found;
}

// Sums of squares of transformed values, lane by lane, at each of so many places.
template <int PLACES> struct Squares {
    V sums[PLACES] = {};
    void add(const V* places) {
        UNROLL for (int p = 0; p < PLACES; p++) sums[p] = _mm512_fmadd_ps(places[p], places[p], sums[p]);
    }
    // No less than the norm at any place, of the n times PLACES values that were added; NaN where not all are finite. top(): `greatest` of
    // them.
    template <class F> V norm(i64 n, F top) const {
        __m512i most = _mm512_setzero_si512();
        UNROLL for (int p = 0; p < PLACES; p++) most = _mm512_max_epu32(most, _mm512_castps_si512(sums[p]));
        const V squares = _mm512_castsi512_ps(most);
        const __mmask16 good = _mm512_cmp_ps_mask(squares, _mm512_set1_ps(1e-30f), _CMP_GE_OQ) &
                               _mm512_cmp_ps_mask(squares, _mm512_set1_ps(1e30f), _CMP_LE_OQ);
        if (good == 0xffff) return _mm512_sqrt_ps(squares);
        const __m512i most_of_all = top();  // as squares are out of range
        const V above = _mm512_castsi512_ps(most_of_all) * _mm512_set1_ps(std::sqrt(float(n)));
        const __mmask16 finite = _mm512_cmplt_epu32_mask(most_of_all, _mm512_set1_epi32(0x7f800000));
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

inline __m512i rounded(V x, V by) { return _mm512_cvtps_epi32(x * by); }
inline __m512i rounded(const float* from, V by) { return rounded(_mm512_load_ps(from), by); }
// Pairs of a (lower half) and b.
inline __m512i join(__m512i a, __m512i b) { return _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16)); }

// LANES rows, `apart`, of TWO values: a vector of the first ones, of the second ones, ..., `next` from one to the next.
void columns(const bf16* rows, i64 apart, float* to, i64 next) {
    __m512i pairs[LANES];
    UNROLL for (int i = 0; i < LANES; i++) pairs[i] = _mm512_loadu_si512(rows + i * apart);
    transpose(pairs);
    UNROLL for (int i = 0; i < LANES; i++) {
        _mm512_store_si512(to + 2 * i * next, _mm512_slli_epi32(pairs[i], 16));
        _mm512_store_si512(to + (2 * i + 1) * next, _mm512_and_si512(pairs[i], _mm512_set1_epi32(0xffff0000)));
    }
}

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

struct Panels {  // of WIDE channels of `pairs` pairs of tiles, [places,width/WIDE,pairs,WIDE], the last with what is left of `width`
    i64 width, pairs;
    i64 place() const { return width * pairs + PAD; }
    i64 channels(i64 first) const { return std::min<i64>(WIDE, width - first); }
    i64 at(int p, i64 first) const { return p * place() + first * pairs; }  // first: the first channel of a panel
};

// Tiles of x as pairs, at `to`, of TWO channels from c on, if all are quarters, which then need no scale.
template <class F>
inline bool pairs_of_quarters(const bf16* x, i64 image_width, const Tile* at, i64 tiles, const Panels& panels, i64 c, uint32_t* to) {
    if (!may_be_quarters(x, panels.width, at[0], c)) return false;
    const i64 panel = c / WIDE * WIDE, wide = panels.channels(panel);
    for (i64 t = 0; t < tiles; t += 2) {
        Whole one[F::PLACES], two[F::PLACES] = {};
        __m512i other{};
        transform_input<F>(x, image_width, panels.width, at[t], c, Quarters{&other}, one);
        if (t + 1 < tiles) transform_input<F>(x, image_width, panels.width, at[t + 1], c, Quarters{&other}, two);
        if (!none(other)) return false;
        for (int p = 0; p < F::PLACES; p++) {
            uint32_t* const here = to + panels.at(p, panel) + t / 2 * wide + c - panel;
            _mm512_storeu_si512(here, join((__m512i)one[p], (__m512i)two[p]));
            _mm512_storeu_si512(here + LANES, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32((__m512i)one[p], 16), (__m512i)two[p]));
        }
    }
    return true;
}

// Tiles as pairs, at `to`, of whatever transform(tile, places) gives for LANES channels, in columns from c on; back: the inverse scales of
// the channels; scratch [tiles,places,LANES].
template <int PLACES, class T>
void pairs_of_tiles(i64 tiles, const Panels& panels, i64 c, T transform, float* scratch, uint32_t* to, float* back) {
    const i64 panel = c / WIDE * WIDE, wide = panels.channels(panel);
    Squares<PLACES> squares;
    for (i64 t = 0; t < tiles; t++) {
        V* const out = (V*)(scratch + t * PLACES * LANES);
        transform(t, out);
        squares.add(out);
    }
    const Scale by(squares.norm(tiles, [&] { return greatest(scratch, tiles * PLACES); }), _mm512_set1_ps(NUMBER));
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

template <class F> struct Work {  // see `by_weight`
    static const int WIDE = ::WIDE;
    const bf16 *x, *grad;
    Grid<F> grid;
    i64 C, K, turn, block, of_x, of_grad;  // of_: words of a block
    Buffer<uint32_t> v, g;
    Buffer<float> by, back;  // inverse scales
    Work(const bf16* x, const bf16* grad, Grid<F> grid, i64 C, i64 K, i64 turn, i64 block, i64 blocks)
        : x(x), grad(grad), grid(grid), C(C), K(K), turn(turn), block(block), of_x(F::PLACES * Panels{C, block / 2}.place()),
          of_grad(F::PLACES * Panels{turn, block / 2}.place()), v(buffer<uint32_t>(blocks * of_x)), g(buffer<uint32_t>(blocks * of_grad)),
          by(buffer<float>(blocks * C)), back(buffer<float>(blocks * turn)) {}
    i64 scratch() const { return block * F::PLACES * LANES; }
    void take_x(const Tile* at, i64 tiles, i64 c, i64 slot, float* scratch) {
        const Panels panels{C, block / 2};
        uint32_t* const to = v.get() + slot * of_x;
        float* const scales = by.get() + slot * C;
        if (pairs_of_quarters<F>(x, grid.seen.W, at, tiles, panels, c, to)) {
            std::fill_n(scales + c, TWO, 0.25f);
            return;
        }
        const auto even = [&](i64 t, V* out) { transform_input<F>(x, grid.seen.W, C, at[t], c, Even(), out); };
        const auto odd = [&](i64 t, V* out) { transform_input<F>(x, grid.seen.W, C, at[t], c, Odd(), out); };
        pairs_of_tiles<F::PLACES>(tiles, panels, c, even, scratch, to, scales);
        pairs_of_tiles<F::PLACES>(tiles, panels, c + LANES, odd, scratch, to, scales);
    }
    void take_grad(const Tile* at, i64 tiles, i64 start, i64 k, i64 count, i64 slot, float* scratch) {
        const Panels panels{count, block / 2};
        const auto even = [&](i64 t, V* out) { transform_grad<F>(grad, grid.made.W, K, at[t], start + k, Even(), out); };
        const auto odd = [&](i64 t, V* out) { transform_grad<F>(grad, grid.made.W, K, at[t], start + k, Odd(), out); };
        pairs_of_tiles<F::PLACES>(tiles, panels, k, even, scratch, g.get() + slot * of_grad, back.get() + slot * turn);
        pairs_of_tiles<F::PLACES>(tiles, panels, k + LANES, odd, scratch, g.get() + slot * of_grad, back.get() + slot * turn);
    }
    void multiply(i64 p, i64 k, i64 count, i64 c, i64 tiles, i64 slot, float* to, bool more) {
        const Panels left{count, block / 2}, right{C, block / 2};
        const i64 rows = left.channels(k), columns = right.channels(c);
        const uint32_t *const a = g.get() + slot * of_grad + left.at(p, k), *const b = v.get() + slot * of_x + right.at(p, c);
        const Add add{to, C, by.get() + slot * C + c, back.get() + slot * turn + k, more};
        products<Ops>(rows, a, 1, rows, columns, b, columns, (tiles + 1) / 2, add);
    }
};

// Bᵀ·d·B of a tile in whole numbers, C channels at places that are `place` apart, and their inverse scale.
template <class F> float transformed(const bf16* x, i64 width, i64 C, const Tile& at, float* scratch, int16_t* v, i64 place) {
    const int PLACES = F::PLACES;
    if (may_be_quarters(x, C, at, 0)) {
        __m512i other{};
        for (i64 c = 0; c < C && none(other); c += TWO) {
            Whole out[PLACES];
            transform_input<F>(x, width, C, at, c, Quarters{&other}, out);
            UNROLL for (int p = 0; p < PLACES; p++) _mm512_storeu_si512(v + p * place + c, (__m512i)out[p]);
        }
        if (none(other)) return 0.25f;
    }
    Squares<PLACES> squares;
    for (i64 c = 0; c < C; c += TWO) {
        V* const out = (V*)(scratch + PLACES * c);
        transform_input<F>(x, width, C, at, c, Even(), out);
        squares.add(out);
        transform_input<F>(x, width, C, at, c, Odd(), out + PLACES);
        squares.add(out + PLACES);
    }
    const V norms = squares.norm(C / LANES, [&] { return greatest(scratch, C / LANES * PLACES); });
    const float top = std::max(_mm512_reduce_max_ps(norms), 1e-37f);
    const V share = norms * _mm512_set1_ps(1 / top);  // whose squares are not out of range
    const float norm = top * std::sqrt(_mm512_reduce_add_ps(share * share));
    const Scale by(_mm512_set1_ps(std::max(norm, top * (NORM / NUMBER))), _mm512_set1_ps(NORM));
    for (i64 c = 0; c < C; c += TWO)
        for (int p = 0; p < PLACES; p++) {
            const float* const even = scratch + PLACES * c + p * LANES;
            _mm512_storeu_si512(v + p * place + c, join(rounded(even, by.by), rounded(even + PLACES * LANES, by.by)));
        }
    return _mm512_cvtss_f32(by.back);
}

// Weights, and how they are transformed: into panels of WIDE outputs (the last of what is left), each [36,ins/2,WIDE] of pairs.
template <class F> struct Weights {
    const bf16* w;
    i64 outs, ins, to, from, tap;  // see `winograd_forward`
    i64 width(i64 first) const { return std::min<i64>(WIDE, outs - first); }
    i64 place(i64 first) const { return width(first) * (ins / 2) + PAD; }  // from one place to the next, in the panel of output `first`
    i64 panel() const { return WEIGHTS * (WIDE * (ins / 2) + PAD); }
    i64 scratch() const { return ins * 9 * LANES; }
    // LANES outputs from o on, into u, the panel that they are of; back: their inverse scales. They are transformed twice, as that is
    // quicker than to keep what comes of it.
    void transform(i64 o, float* taps, uint32_t* u, float* back) const {
        if (to == 1)
            for (i64 i = 0; i < ins; i++)
                for (int t = 0; t < 9; t++) _mm512_store_ps(taps + (i * 9 + t) * LANES, Ops::load(w + o + i * from + t * tap));
        else
            for (i64 i = 0; i < ins; i += TWO)
                for (int t = 0; t < 9; t++) columns(w + o * to + i + t * tap, to, taps + (i * 9 + t) * LANES, 9 * LANES);
        Squares<WEIGHTS> squares;
        __m512i top = _mm512_setzero_si512();
        for (i64 i = 0; i < ins; i++) {
            V out[WEIGHTS];
            transform_weight<F>((const V*)(taps + i * 9 * LANES), out);
            squares.add(out);
            UNROLL for (int p = 0; p < WEIGHTS; p++) top = greater(top, out[p]);
        }
        const V most = _mm512_castsi512_ps(top) * _mm512_set1_ps(NORM / NUMBER);
        const Scale by(_mm512_max_ps(most, squares.norm(ins, [&] { return top; })), _mm512_set1_ps(NORM));
        _mm512_storeu_ps(back, by.back);
        const i64 first = o / WIDE * WIDE;
        for (i64 i = 0; i < ins; i += 2) {
            V even[WEIGHTS], odd[WEIGHTS];
            transform_weight<F>((const V*)(taps + i * 9 * LANES), even);
            transform_weight<F>((const V*)(taps + (i + 1) * 9 * LANES), odd);
            uint32_t* const at = u + i / 2 * width(first) + o - first;
            UNROLL for (int p = 0; p < WEIGHTS; p++)
                _mm512_storeu_si512(at + p * place(first), join(rounded(even[p], by.by), rounded(odd[p], by.by)));
        }
    }
};

// Transformed tiles of x, at each place [tiles,C], which are `place` apart, and their inverse scales.
template <class F> struct Tiles {
    static const int PLACES = F::PLACES;
    i64 C, place;
    Buffer<int16_t> v;
    Buffer<float> back;
    Tiles(i64 tiles, i64 C) : C(C), place(tiles * C + PAD * 2), v(buffer<int16_t>(PLACES * place)), back(buffer<float>(tiles)) {}
    void transform(const bf16* x, i64 width, const Tile& at, i64 t, float* scratch) {
        back[t] = transformed<F>(x, width, C, at, scratch, v.get() + t * C, place) * F::FACTOR;
    }
    // Their pixels of y, which has `line` a line, in the panel of output k; u: that panel, back_u: its inverse scales; m
    // [places,tiles,WIDE], places PAD further apart.
    void outputs(const Tile* at, i64 first, i64 tiles, const Weights<F>& w, i64 k, const uint32_t* u, const float* back_u, int32_t* m,
                 bf16* y, i64 line) const {
        const i64 width = w.width(k), sums = tiles * WIDE + PAD;
        for (int p = 0; p < PLACES; p++) {
            const uint32_t* const a = (const uint32_t*)(v.get() + p * place + first * C);
            const uint32_t* const by = u + weight_of<F>(p) * w.place(k);
            products<Ops>(tiles, a, C / 2, 1, width, by, width, C / 2, Store<Ops, int32_t>{m + p * sums, WIDE});
        }
        for (i64 t = 0; t < tiles; t++)
            for (i64 c = 0; c < width; c += LANES) {
                V in[PLACES], out[F::MADE * F::MADE];
                UNROLL for (int p = 0; p < PLACES; p++) in[p] = _mm512_cvtepi32_ps(_mm512_load_si512(m + p * sums + t * WIDE + c));
                transform_output<F>(in, out);
                const V times = _mm512_loadu_ps(back_u + c) * _mm512_set1_ps(back[first + t]);
                bf16* const to = y + at[t].made * w.outs + k + c;
                UNROLL for (int i = 0; i < F::MADE; i++)
                    UNROLL for (int j = 0; j < F::MADE; j++)
                        if (at[t].makes(i, j)) store(to + (i * line + j) * w.outs, out[i * F::MADE + j] * times);
            }
    }
};

// Where there are many tiles: all weights are transformed, and then blocks of tiles go their way, each in the caches of a core.
template <class F> void by_tiles(const bf16* x, const Weights<F>& w, bf16* y, const Grid<F>& grid, i64 most, int threads) {
    const int PLACES = F::PLACES;
    const i64 block = std::min(most, (grid.tiles() + threads - 1) / threads);
    const Buffer<uint32_t> u = buffer<uint32_t>((w.outs + WIDE - 1) / WIDE * w.panel());
    const Buffer<float> back = buffer<float>(w.outs);
#pragma omp parallel num_threads(threads)
    {
        const Buffer<float> scratch = buffer<float>(std::max(w.scratch(), PLACES * w.ins));
        const Buffer<int32_t> m = buffer<int32_t>(PLACES * (block * WIDE + PAD));
        Tiles<F> tiles(block, w.ins);
#pragma omp for schedule(dynamic, 2)
        for (i64 o = 0; o < w.outs; o += LANES) w.transform(o, scratch.get(), u.get() + o / WIDE * w.panel(), back.get() + o);
#pragma omp for schedule(dynamic)
        for (i64 first = 0; first < grid.tiles(); first += block) {
            const i64 here = std::min(block, grid.tiles() - first);
            const Buffer<Tile> at = grid.tiles(first, here);
            read(x, w.ins, grid.seen_by(at[0], at[here - 1]));
            for (i64 t = 0; t < here; t++) tiles.transform(x, grid.seen.W, at[t], t, scratch.get());
            for (i64 k = 0; k < w.outs; k += WIDE)
                tiles.outputs(at.get(), 0, here, w, k, u.get() + k / WIDE * w.panel(), back.get() + k, m.get(), y, grid.made.W);
        }
    }
}

// Where there are few: all tiles are transformed, and then panels of weights go their way.
template <class F> void by_panels(const bf16* x, const Weights<F>& w, bf16* y, const Grid<F>& grid, i64 block, int threads) {
    const int PLACES = F::PLACES;
    const i64 count = grid.tiles();
    const Buffer<Tile> at = grid.tiles(0, count);
    Tiles<F> tiles(count, w.ins);
#pragma omp parallel num_threads(threads)
    {
        const Buffer<float> scratch = buffer<float>(std::max(w.scratch(), PLACES * w.ins)), back = buffer<float>(WIDE);
        const Buffer<int32_t> m = buffer<int32_t>(PLACES * (block * WIDE + PAD));
        const Buffer<uint32_t> u = buffer<uint32_t>(w.panel());
#pragma omp for schedule(dynamic, 4)
        for (i64 t = 0; t < count; t++) tiles.transform(x, grid.seen.W, at[t], t, scratch.get());
#pragma omp for schedule(dynamic)
        for (i64 k = 0; k < w.outs; k += WIDE) {
            for (i64 o = k; o < k + w.width(k); o += LANES) w.transform(o, scratch.get(), u.get(), back.get() + o - k);
            for (i64 first = 0; first < count; first += block)
                tiles.outputs(
                    at.get() + first, first, std::min(block, count - first), w, k, u.get(), back.get(), m.get(), y, grid.made.W);
        }
    }
}

template <class F>
void convolve(const bf16* x, const Weights<F>& w, bf16* y, const Grid<F>& grid, i64 most, int threads) {
    if (grid.tiles() <= w.outs && grid.tiles() * w.ins * F::PLACES * i64(sizeof(int16_t)) <= CACHE)
        by_panels(x, w, y, grid, most, threads);
    else
        by_tiles(x, w, y, grid, most, threads);
}

template <class F>
void gradient(
    const bf16* x, const bf16* grad, float* sums, float* gw, const Grid<F>& grid, i64 C, i64 K, i64 turn, i64 block, i64 blocks,
    int threads) {
    Work<F> work(x, grad, grid, C, K, turn, block, blocks);
    by_weight<F, Ops>(work, grid, sums, gw, K, turn, block, blocks, threads);
}

}  // namespace

extern "C" {

// y = x ∗ w. w: the first tap of the first weight; `to`, `from`, `tap` elements from one output, input, tap to the next, of which either
// `to` or `from` is one; most: tiles at a time. kind: 1, or 2 with a stride of two; -2: the gradient by x of such a one. H, W: of x, or of
// what is made, whichever is greater.
void winograd_forward(
    const bf16* x, const bf16* w, bf16* y, i64 N, i64 H, i64 W, i64 C, i64 K, i64 to, i64 from, i64 tap, i64 most, int kind, int threads) {
    const Images all{N, H, W}, half{N, (H + 1) / 2, (W + 1) / 2};
    if (kind == 1)
        convolve<Same>(x, {w, K, C, to, from, tap}, y, {all, all}, most, threads);
    else if (kind == 2)
        convolve<Halving>(x, {w, K, C, to, from, tap}, y, {all, half}, most, threads);
    else
        convolve<Doubling>(x, {w, K, C, to, from, tap}, y, {half, all}, most, threads);
}

// gw, see `by_weight`. block: an even number of tiles, for which a channel has one scale. H, W: of x.
void winograd_by_weight(
    const bf16* x, const bf16* grad, float* sums, float* gw, i64 N, i64 H, i64 W, i64 C, i64 K, i64 turn, i64 block, i64 blocks,
    int stride, int threads) {
    const Images all{N, H, W}, half{N, (H + 1) / 2, (W + 1) / 2};
    if (stride == 1)
        gradient<Same>(x, grad, sums, gw, {all, all}, C, K, turn, block, blocks, threads);
    else
        gradient<Halving>(x, grad, sums, gw, {all, half}, C, K, turn, block, blocks, threads);
}
}
