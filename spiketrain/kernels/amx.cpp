// 3×3 convolutions (padding 1, stride 1 or 2) and 1×1 ones of bfloat16 with the matrix unit of x86 processors (AMX): see spiketrain/kernels/amx.py.
//
// x is [N,H,W,C] in memory, of bfloat16, or spikes as bits, or means of 2×2 spikes, which are bits; y and grad are [N,H,W,K]; K is a multiple of 32, and so is C where there are bits. What is outside of an
// image is 0. Two by two tiles of sums stay in registers (a "block" of 32 rows and 32 columns), so that each tile that is loaded is used twice.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <immintrin.h>
#include <omp.h>
#include <vector>

#include "unit.h"

namespace {

const i64 PATCH = 600 << 10, ENOUGH = 256;               // bytes of a patch; places that are worth the weights' way through the cache
const i64 LARGE = i64(16) << 20;                         // bytes of a result that has no use of the caches

// The first `many` of 32 values, and zeros.
INLINE __m512i first_of(i64 many, const bf16* from) { return _mm512_maskz_loadu_epi16((1u << many) - 1, from); }

// ---- what x is: a pixel of it gives 32 channels as bfloat16, from any on that is a multiple of 32; those that are none are zeros ----

struct Numbers {
    const bf16* at;
    i64 pixel;  // elements from one pixel to the next
    INLINE __m512i get(i64 c) const { return pixel - c < WIDE ? first_of(pixel - c, at + c) : line(at + c); }
    INLINE void ask(i64 c, i64 pixels) const { __builtin_prefetch(at + pixels * pixel + c); }  // memory, for what is so many further right
    INLINE void right(i64 pixels) { at += pixels * pixel; }
};
struct Spikes {
    const uint32_t* at;  // a word has 32 channels, from the lowest bit on
    i64 pixel;
    INLINE __m512i get(i64 c) const { return _mm512_maskz_set1_epi16(at[c / WIDE], 0x3f80); }
    INLINE void ask(i64, i64) const {}  // they are few
    INLINE void right(i64 pixels) { at += pixels * pixel; }
};
struct Means {
    const uint32_t* at;  // the upper left one of four
    i64 pixel, row;
    INLINE __m512i get(i64 c) const {
        const __m512i one = _mm512_set1_epi16(1), quarters = _mm512_set_epi64(0, 0, 0, 0, 0, 0, 0x3f80, 0x3f403f003e800000);
        const uint32_t* const up = at + c / WIDE;
        __m512i count = _mm512_maskz_set1_epi16(up[0], 1);
        count = _mm512_mask_add_epi16(count, up[pixel], count, one);
        count = _mm512_mask_add_epi16(count, up[row], count, one);
        count = _mm512_mask_add_epi16(count, up[row + pixel], count, one);
        return _mm512_permutexvar_epi16(count, quarters);
    }
    INLINE void ask(i64, i64) const {}
    INLINE void right(i64 pixels) { at += 2 * pixels * pixel; }
};

// Pixels of x. wide: columns of an image of x.
template <class P> P pixel_of(const void* x, i64 C, i64 wide, i64 number);
template <> Numbers pixel_of(const void* x, i64 C, i64, i64 number) { return {(const bf16*)x + number * C, C}; }
template <> Spikes pixel_of(const void* x, i64 C, i64, i64 number) { return {(const uint32_t*)x + number * (C / WIDE), C / WIDE}; }
template <> Means pixel_of(const void* x, i64 C, i64 wide, i64 number) {
    const i64 each = C / WIDE, row = 2 * wide * each;
    return {(const uint32_t*)x + number / wide * 2 * row + number % wide * 2 * each, each, row};
}

// ---- where pixels are ----

// What is made lies on a grid of rows and columns; each place sees pixels of x at `stride` times it and some more, a tap each.
struct Tap {
    int number, down, right;  // pixels from the place
    i64 at = 0;               // where what it sees of the first place lies in a patch, in lines
};
// Pixels `down` and `right` of some places, and of as many more rows and columns as taps need, in lines one behind the other.
struct Plane {
    int down, right;
    i64 rows, columns;
    i64 lines() const { return rows * columns; }
    // The first column that is inside of an image, and the one behind the last.
    i64 left(int stride) const { return std::max(0, (stride - 1 - right) / stride); }
    i64 behind(int stride, i64 width) const { return std::min(columns, (width - right + stride - 1) / stride); }
};
int mod(int a, int b) { return (a % b + b) % b; }

// Of a convolution with side × side taps (side is odd).
std::vector<Tap> taps_around(int side) {
    std::vector<Tap> found;
    for (int i = 0; i < side * side; i++) found.push_back({i, i / side - side / 2, i % side - side / 2});
    return found;
}

// Planes from which all taps of `rows` rows of a grid can be served, where these lie. MERGED: one plane for all columns, with more
// columns than the grid has; else one for each column of taps, so that places of several rows lie one behind the other.
std::vector<Plane> planes_of(std::vector<Tap>& taps, int stride, i64 rows, i64 columns, bool merged) {
    std::vector<Plane> planes;
    i64 lines = 0;
    std::vector<bool> done(taps.size());
    for (size_t first = 0; first < taps.size(); first++) {
        if (done[first]) continue;
        int up = taps[first].down, low = up, left = taps[first].right, right = left;
        const auto together = [&](const Tap& tap) {
            return mod(tap.down - taps[first].down, stride) == 0 && (merged || tap.right == taps[first].right);
        };
        for (const Tap& tap : taps)
            if (together(tap)) {
                up = std::min(up, tap.down), low = std::max(low, tap.down);
                left = std::min(left, tap.right), right = std::max(right, tap.right);
            }
        const Plane plane{up, left, rows + (low - up) / stride, columns + right - left};
        for (size_t i = first; i < taps.size(); i++)
            if (together(taps[i])) {
                taps[i].at = lines + (taps[i].down - up) / stride * plane.columns + taps[i].right - left;
                done[i] = true;
            }
        planes.push_back(plane);
        lines += plane.lines();
    }
    return planes;
}

struct Images {
    i64 N, H, W;
    i64 pixels() const { return H * W; }
};

// ---- y = x ∗ w ----

// Weights: the first tap of the first; elements from one output, input, tap to the next. `wide`: of float32, which are rounded.
struct Weights {
    const void* w;
    i64 to, from, tap, inputs;
    bool wide;
    // 32 of them: inputs of output k from c on, or outputs from k on of input c, whichever lie one behind the other.
    __m512i line(i64 k, i64 c, int number) const {
        const i64 at = k * to + c * from + number * tap, left = inputs - c;
        if (left < (from == 1 ? WIDE : 1)) {  // inputs that are none are zeros
            const i64 some = from == 1 ? left : 0;
            if (!wide) return first_of(some, (const bf16*)w + at);
            const float* const first = (const float*)w + at;
            return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(lanes(some - ROWS), first + ROWS), _mm512_maskz_loadu_ps(lanes(some), first));
        }
        if (!wide) {
            _mm_prefetch((const char*)((const bf16*)w + at + WIDE), _MM_HINT_T0);
            return ::line((const bf16*)w + at);
        }
        const float* const first = (const float*)w + at;
        _mm_prefetch((const char*)(first + WIDE), _MM_HINT_T0);
        _mm_prefetch((const char*)(first + WIDE + 16), _MM_HINT_T0);
        return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(first + 16), _mm512_loadu_ps(first));
    }
};

// [2,16 pairs of inputs,16 outputs] of 32 outputs from k on, 32 inputs from c on: two tiles of columns.
void pack(const Weights& weights, i64 k, i64 c, int tap, char* to) {
    if (weights.from == 1) {  // an output's inputs lie one behind the other
        for (int half = 0; half < 2; half++) {
            __m512i rows[16];
            UNROLL for (int i = 0; i < 16; i++) rows[i] = weights.line(k + 16 * half + i, c, tap);
            transpose(rows);
            UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(to + half * TILE + i * LINE, rows[i]);
        }
        return;
    }
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3,
                                         34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int i = 0; i < 16; i++) {
        const __m512i even = weights.line(k, c + 2 * i, tap), odd = weights.line(k, c + 2 * i + 1, tap);
        _mm512_store_si512(to + i * LINE, _mm512_permutex2var_epi16(even, low, odd));
        _mm512_store_si512(to + TILE + i * LINE, _mm512_permutex2var_epi16(even, high, odd));
    }
}

// Places of a grid that are made with the same taps, and where they go: every `step`th row and column of y from `down` and `right` on.
struct Phase {
    std::vector<Tap> taps;
    int down, right;
};

struct Convolution {
    const void* x;
    int form;             // of x: 0 Numbers, 1 Spikes, 2 Means
    i64 together, apart;  // so many of x's images lie one behind the other, and the next as many so many images from their first
    bf16* y;
    const bf16* plus;  // what is added to the result, or null: to so many images each
    i64 every;
    Images seen, made;
    i64 C, K, rows, columns;  // rows, columns: of the grid
    int stride, step;         // from a place to the next, in pixels of x, of y
    std::vector<Phase> phases;
    // Whether y is better written past the caches: it would not stay there, and a line that is only written need not be read.
    bool past() const {
        return made.N * made.pixels() * K * i64(sizeof(bf16)) >= LARGE && reinterpret_cast<uintptr_t>(y) % LINE == 0;
    }
};

// How it is cut into patches: some rows of an image, or some images, of some channels. A patch stays in the second cache, and is worth the
// weights' way through it.
class Cut {
    const Convolution& it;
    const std::vector<Tap> all;  // of all phases
    std::vector<Plane> planes_for(std::vector<Tap>& taps, i64 rows) const {
        return planes_of(taps, it.stride, rows, it.columns, it.stride == 1 && it.columns % ROWS == 0);
    }
    i64 lines_for(i64 rows) const {
        std::vector<Tap> taps = all;
        i64 lines = 0;
        for (const Plane& plane : planes_for(taps, rows)) lines += plane.lines();
        return lines;
    }
    static std::vector<Tap> taps_of(const std::vector<Phase>& phases) {
        std::vector<Tap> found;
        for (const Phase& phase : phases) found.insert(found.end(), phase.taps.begin(), phase.taps.end());
        return found;
    }

  public:
    const i64 deep, panels;               // of 32 channels: of x, of y
    i64 rows, group = 1, depth;           // of a patch: rows, images, of 32 channels
    std::vector<Plane> planes;            // of an image
    std::vector<std::vector<Tap>> taps;   // of each phase
    i64 lines, apart;                     // of an image; from 32 channels to the next
    i64 tiles, parts, images;             // tiles of an image's rows; patches of an image; groups of images

    Cut(const Convolution& it, int threads)
        : it(it), all(taps_of(it.phases)), deep(wides(it.C)), panels(it.K / WIDE), rows(it.rows), depth(deep) {
        const auto bytes = [&] { return lines_for(rows) * LINE * depth; };
        while (rows > 1 && rows * it.columns > 2 * ENOUGH && bytes() > PATCH) rows = (rows + 1) / 2;
        const i64 wanted = std::max<i64>(1, ENOUGH / (rows * it.columns));
        while (depth % 2 == 0 && depth > 8 && wanted * bytes() > PATCH) depth /= 2;
        if (rows == it.rows) {
            const i64 most = std::min((2 * ENOUGH) / (rows * it.columns), (it.seen.N + threads - 1) / threads);
            group = std::max<i64>(1, std::min(PATCH / bytes(), most));
            if (group > 1 && (rows * it.columns + ROWS - 1) / ROWS % 2) group -= group % 2;  // a block has rows of two tiles
        }
        std::vector<Tap> placed = all;
        planes = planes_for(placed, rows), lines = lines_for(rows);
        apart = (group * lines + ROWS) | 1;
        tiles = (rows * it.columns + ROWS - 1) / ROWS, parts = (it.rows + rows - 1) / rows, images = (it.seen.N + group - 1) / group;
        auto tap = placed.begin();
        for (const Phase& phase : it.phases) {
            taps.emplace_back(tap, tap + i64(phase.taps.size()));
            tap += i64(phase.taps.size());
        }
    }
    i64 phases() const { return i64(taps.size()); }
    i64 blocks() const { return (group * tiles + 1) / 2; }
    i64 patch() const { return apart * depth * LINE; }
};

// Weights as tiles of columns, [phase][channels of a patch][panel][channel][tap].
class Packed {
    const Cut& cut;
    std::vector<i64> phases;
    char* const tiles;
    i64 one(i64 phase) const { return i64(cut.taps[phase].size()) * 2 * TILE; }  // of 32 inputs

  public:
    // tiles: for two bytes of each tap of each input of each output
    Packed(const Cut& cut, char* tiles) : cut(cut), tiles(tiles) {
        i64 bytes = 0;
        for (i64 phase = 0; phase < cut.phases(); phase++) phases.push_back(bytes), bytes += one(phase) * cut.deep * cut.panels;
    }
    char* at(i64 phase, i64 first, i64 panel) const {
        return tiles + phases[phase] + (first * cut.panels + panel * std::min(cut.depth, cut.deep - first)) * one(phase);
    }
    i64 works() const { return cut.deep * cut.panels; }
    void fill(const Weights& weights, i64 work) {
        const bool across = weights.from != 1;
        const i64 panel = across ? work % cut.panels : work / cut.deep, c = across ? work / cut.panels : work % cut.deep, first = c / cut.depth * cut.depth;
        for (i64 phase = 0; phase < cut.phases(); phase++) {
            char* to = at(phase, first, panel) + (c - first) * one(phase);
            for (const Tap& tap : cut.taps[phase]) pack(weights, panel * WIDE, c * WIDE, tap.number, to), to += 2 * TILE;
        }
    }
};

struct Patch {
    i64 image, row, images, rows, tiles;  // the first; how many; tiles of an image
    i64 first, channels;                  // of 32 channels
};

// Fills a patch: planes of its images, 32 channels after the other, row by row as they lie in memory.
template <class P> void copy(const Convolution& it, const Cut& cut, const Patch& patch, char* to) {
    for (i64 image = patch.image; image < patch.image + patch.images; image++)
        for (const Plane& plane : cut.planes) {
            for (i64 r = 0; r < plane.rows - (cut.rows - patch.rows); r++) {
                const i64 row = (patch.row + r) * it.stride + plane.down;
                const bool inside = row >= 0 && row < it.seen.H;
                const i64 left = inside ? plane.left(it.stride) : plane.columns;
                const i64 right = inside ? plane.behind(it.stride, it.seen.W) : plane.columns;
                const i64 number = (image / it.together * it.apart + image % it.together) * it.seen.pixels() + row * it.seen.W + left * it.stride + plane.right;
                for (i64 c = 0; c < patch.channels; c++) {
                    char* const out = to + (c * cut.apart + r * plane.columns) * LINE;
                    for (i64 q = 0; q < left; q++) _mm512_store_si512(out + q * LINE, _mm512_setzero_si512());
                    P from = inside ? pixel_of<P>(it.x, it.C, it.seen.W, number) : P{};
                    for (i64 q = left; q < right; q++, from.right(it.stride)) {
                        from.ask((patch.first + c) * WIDE, it.stride * it.seen.W);  // of the next row
                        _mm512_store_si512(out + q * LINE, from.get((patch.first + c) * WIDE));
                    }
                    for (i64 q = right; q < plane.columns; q++) _mm512_store_si512(out + q * LINE, _mm512_setzero_si512());
                }
            }
            to += plane.lines() * LINE;
        }
}

INLINE __m512 wide(const bf16* from) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16));
}

// Where a row of sums goes, in values from that of a patch's first, or -1; and what is added to it, from what is added to that.
struct Goal {
    i64 y, plus;
};
// A block of sums on its way to y, row by row: as the unit has not made it when the next one begins, that goes on meanwhile.
struct Done {
    const char* sums = nullptr;
    const Goal* goals = nullptr;
    bf16* y = nullptr;
    const bf16* plus = nullptr;
    bool past = false;
    i64 rows = 0, row = 0;
    INLINE void write(i64 behind) {
        for (behind = std::min(behind, rows); row < behind; row++) {
            const Goal goal = goals[row];
            if (goal.y < 0) continue;
            const char* const from = sums + row / ROWS * 2 * TILE + row % ROWS * LINE;
            __m512 low = _mm512_load_ps(from), high = _mm512_load_ps(from + TILE);
            if (plus) low += wide(plus + goal.plus), high += wide(plus + goal.plus + 16);
            const __m512i values = (__m512i)_mm512_cvtne2ps_pbh(high, low);
            if (past)
                _mm512_stream_si512((__m512i*)(y + goal.y), values);
            else
                _mm512_storeu_si512(y + goal.y, values);
        }
    }
};

// A thread's part of a convolution: patches, as long as there are any.
class Maker {
    const Convolution& it;
    const Cut& cut;
    const Packed& weights;
    std::atomic<i64>& next;
    const bool weights_pass;  // so that the patch stays near, which is seen nine times; a panel's weights come from the second cache
    const Buffer<char> patch, sums;
    std::vector<i64> bases;  // of tiles, in lines of the patch
    std::vector<Goal> goals;
    i64 y = 0, plus = 0;             // of the patch's first place, in values from the first of all
    std::array<i64, 3> known{};      // of which form the patch is that bases and goals are of
    Done done;

    // The patch behind `now`: of other channels, or of other images. False: there is none.
    bool advance(Patch& now) {
        now.first += cut.depth;
        if (now.first >= cut.deep) {
            const i64 task = next++;
            if (task >= cut.images * cut.parts) return false;
            now.image = task / cut.parts * cut.group, now.row = task % cut.parts * cut.rows;
            now.images = std::min(cut.group, it.seen.N - now.image), now.rows = std::min(cut.rows, it.rows - now.row);
            now.tiles = (now.rows * it.columns + ROWS - 1) / ROWS, now.first = 0;
        }
        now.channels = std::min(cut.depth, cut.deep - now.first);
        return true;
    }

    // Goals are of the patch's first row: those of the patch before, where that was of the same form.
    void set_goals(const Patch& now) {
        const i64 all = it.made.pixels(), row = now.row * it.step * it.made.W, image = now.image % it.every;
        y = (now.image * all + row) * it.K, plus = (image * all + row) * it.K;
        const std::array<i64, 3> form{now.images, std::min(now.rows * it.step, it.made.H - now.row * it.step),
                                      it.plus ? std::min(now.images, it.every - image) : 0};  // images; rows of y; those before `plus` begins anew
        if (form == known) return;
        known = form;
        const i64 pitch = cut.planes[0].columns;
        for (i64 n = 0; n < now.images; n++)
            for (i64 t = 0; t < now.tiles; t++)
                bases[n * now.tiles + t] = n * cut.lines + t * ROWS / it.columns * pitch + t * ROWS % it.columns;
        for (i64 phase = 0; phase < cut.phases(); phase++)
            for (i64 n = 0; n < now.images; n++)
                for (i64 place = 0; place < now.tiles * ROWS; place++) {
                    const i64 down = place / it.columns * it.step + it.phases[phase].down;
                    const i64 column = place % it.columns * it.step + it.phases[phase].right;
                    const bool there = place < now.rows * it.columns && down < form[1] && column < it.made.W;
                    const i64 pixel = down * it.made.W + column, added = (image + n) % it.every - image;
                    goals[goal_of(phase, n * now.tiles) + place] =
                        there ? Goal{(n * all + pixel) * it.K, (added * all + pixel) * it.K} : Goal{-1, 0};
                }
    }
    i64 goal_of(i64 phase, i64 tile) const { return (phase * cut.group * cut.tiles + tile) * ROWS; }

    // BOTH: there are rows of two tiles, at a and at b. PASS: the weights pass the nearest cache.
    template <bool BOTH, bool PASS>
    INLINE void block(const Patch& now, const std::vector<Tap>& taps, const char* a, const char* b, const char* by, char* to) {
        if (now.first > 0)
            load<BOTH>(to);
        else
            clear<BOTH>();
        const i64 products = now.channels * i64(taps.size());
        const i64 part = (2 * ROWS << 16) / std::max<i64>(1, products) + 1;  // what is written after each, in 2⁻¹⁶ of a row
        i64 due = 0;
        for (i64 c = 0; c < now.channels; c++, a += cut.apart * LINE, b += cut.apart * LINE)
            for (const Tap& tap : taps) {
                multiply<BOTH, false, PASS>(a + tap.at * LINE, b + tap.at * LINE, by, by + TILE);
                by += 2 * TILE;
                done.write((due += part) >> 16);
            }
        if (taps.empty()) done.write(2 * ROWS);
        store<BOTH>(to);
    }

    template <bool PASS> void make(const Patch& now) {
        const i64 tiles = now.images * now.tiles;
        const bool last = now.first + now.channels == cut.deep, past = it.past();
        i64 turn = 0;
        for (i64 phase = 0; phase < cut.phases(); phase++)
            for (i64 panel = 0; panel < cut.panels; panel++)
                for (i64 t = 0; t < tiles; t += 2, turn = !turn) {
                    const i64 number = (phase * cut.panels + panel) * cut.blocks() + t / 2;
                    char* const to = sums.get() + (cut.depth < cut.deep ? number : turn) * BLOCK;
                    const char *const a = patch.get() + bases[t] * LINE, *const by = weights.at(phase, now.first, panel);
                    if (t + 1 < tiles)
                        block<true, PASS>(now, cut.taps[phase], a, patch.get() + bases[t + 1] * LINE, by, to);
                    else
                        block<false, PASS>(now, cut.taps[phase], a, a, by, to);
                    if (!last) continue;
                    done = Done{to, goals.data() + goal_of(phase, t), it.y + y + panel * WIDE,
                                it.plus ? it.plus + plus + panel * WIDE : nullptr,
                                past, std::min<i64>(2, tiles - t) * ROWS};
                }
        done.write(2 * ROWS);
    }

  public:
    Maker(const Convolution& it, const Cut& cut, const Packed& weights, std::atomic<i64>& next)
        : it(it), cut(cut), weights(weights), next(next), weights_pass(cut.depth > 1 && cut.depth <= 8),
          patch(buffer<char>(cut.patch())),
          sums(buffer<char>(cut.depth < cut.deep ? cut.phases() * cut.panels * cut.blocks() * BLOCK : 2 * BLOCK)),
          bases(cut.group * cut.tiles), goals(cut.phases() * cut.group * cut.tiles * ROWS) {
        std::memset(patch.get(), 0, cut.patch());  // what no place sees is finite
    }
    void run() {
        Patch now{};
        for (now.first = cut.deep; advance(now);) {
            (it.form == 2 ? copy<Means> : it.form == 1 ? copy<Spikes> : copy<Numbers>)(it, cut, now, patch.get());
            if (now.first == 0) set_goals(now);
            weights_pass ? make<true>(now) : make<false>(now);
        }
    }
};

void convolve(const Convolution& it, const Weights& weights, char* room, int threads) {
    const Cut cut(it, threads);
    Packed packed(cut, room);
    std::atomic<i64> next{0};
#pragma omp parallel num_threads(threads)
    {
        const Unit unit;
#pragma omp for schedule(static)
        for (i64 i = 0; i < packed.works(); i++) packed.fill(weights, i);
        Maker(it, cut, packed, next).run();
    }
}

// ---- the gradient by the weights ----

// 32 lines `apart`, 32 values of each: two tiles of rows, of 16 channels with 32 places each. The first has the channels 0 to 3, 8
// to 11, ..., as has the first of two lines of pairs; the second those between.
INLINE void turn(const bf16* const* lines, i64 k, char* first, char* second) {
    __m512i low[16], high[16];
    UNROLL for (int i = 0; i < 16; i++) {
        const __m512i a = line(lines[2 * i] + k), b = line(lines[2 * i + 1] + k);
        low[i] = _mm512_unpacklo_epi16(a, b), high[i] = _mm512_unpackhi_epi16(a, b);
    }
    transpose(low);
    UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(first + i * LINE, low[i]);
    transpose(high);
    UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(second + i * LINE, high[i]);
}

const i64 STEPS = 32;             // tiles of places of a strip, about
const i64 SEEN = 24;              // tiles of a column of taps that stay in the nearest cache
const i64 SUMS = i64(16) << 20;   // bytes of sums
const i64 NEAR = i64(300) << 10;  // bytes of those that stay in the second cache while several chunks are added up
const i64 TURNED = i64(1) << 20;  // bytes of transposed gradients of such chunks

// What a thread needs to add up the gradient by the weights of some channels over some images. P: a pixel of x.
//
// Sums run over places in any order, as long as it is the same for both factors. A strip is some rows of a few images side by side, whose
// rows fill whole tiles of 32 places, so that what a tap of the next row sees is what this one's saw, a row of tiles later: a column of
// three taps takes two tiles from memory for three products.
template <class P> class Adder {
    const P origin;
    const bf16* const grad;
    const Images seen, made;
    const i64 K, deep, panels;  // all outputs; of channels and outputs here, times WIDE
    const int stride, side;
    const i64 row_of_x;             // from a row to the next
    const std::vector<bf16> zeros;  // for a pixel of either
    i64 images = 1;                 // of a strip, side by side
    i64 across, rows;               // tiles of a strip's row, and rows
    i64 strips;                     // of a chunk
    std::vector<Tap> taps;
    std::vector<Plane> planes;      // of a strip, in places
    i64 lines = 0;                  // of its pairs
    i64 apart;                      // from a chunk's pairs of 16 channels to the next, in lines
    i64 some, chunks;               // channels (times WIDE) whose sums are near; chunks at a time
    std::vector<i64> made_at;       // of each place of a row: the way from the row's first value in grad
    std::vector<i64> seen_at;       // [plane, place]: the same in x, or -1 where it sees none
    std::vector<decltype(P::at)> pixels;
    Buffer<char> pairs, turned;

    struct Strip {
        i64 image, images, row, rows;  // the first; how many
    };

  public:
    Adder(const void* x, const bf16* grad, Images seen, Images made, i64 most, i64 C, i64 K, i64 deep, i64 panels, int stride, int side)
        : origin(pixel_of<P>(x, C, seen.W, 0)), grad(grad), seen(seen), made(made), K(K), deep(deep), panels(panels), stride(stride),
          side(side), row_of_x(pixel_of<P>(x, C, seen.W, seen.W).at - origin.at), zeros(std::max(C, K) + 2 * row_of_x, 0),
          taps(taps_around(side)) {
        const auto tiles = [&](i64 n) { return (n * made.W + 31) / 32; };
        for (i64 n = 2; n <= std::min<i64>(most, 32); n++)  // that fewer of the places are none
            if (16 * tiles(images) * n > 17 * tiles(n) * images) images = n;
        across = tiles(images);
        const i64 most_rows = std::max<i64>(8, STEPS / across), parts = (made.H + most_rows - 1) / most_rows;
        rows = (made.H + parts - 1) / parts;
        planes = planes_of(taps, stride, rows, 32 * across, false);
        i64 tiles_seen = 0;
        for (const Plane& plane : planes) tiles_seen += plane.lines() / 32;
        strips = std::max<i64>(1, side * SEEN / tiles_seen);
        for (Tap& tap : taps) tap.at /= 2;
        P next = origin;
        next.right(1);
        const i64 column_of_x = next.at - origin.at;
        for (i64 place = 0; place < 32 * across; place++)
            made_at.push_back((place / made.W * made.pixels() + place % made.W) * K);
        for (const Plane& plane : planes) {
            lines += plane.lines() / 2;
            for (i64 place = 0; place < 32 * across; place++) {
                const i64 column = place % made.W * stride + plane.right;
                const bool there = place < images * made.W && column >= 0 && column < seen.W;
                seen_at.push_back(there ? place / made.W * seen.H * row_of_x + column * column_of_x : -1);
            }
        }
        pixels.resize(32 * across);
        apart = (strips * lines) | 1;
        some = std::min(deep, std::max<i64>(1, NEAR / (panels * of_all() * BLOCK)));
        chunks = some == deep ? 1 : std::max<i64>(1, TURNED / size());
        pairs = buffer<char>(2 * some * apart * LINE);
        turned = buffer<char>(chunks * size());
    }

    // The sums [deep,panels,taps] of blocks over the images first to last - 1, of the channels of x from c on.
    void run(i64 first, i64 last, i64 c, char* sums) {
        const i64 parts = (made.H + rows - 1) / rows, strips_here = (last - first + images - 1) / images * parts;
        const i64 all = (strips_here + strips - 1) / strips;
        const auto strip = [&](i64 number) {
            const i64 image = first + number / parts * images, row = number % parts * rows;
            return Strip{image, std::min(images, last - image), row, std::min(rows, made.H - row)};
        };
        const auto chunk = [&](i64 number) {
            std::vector<Strip> found;
            for (i64 i = number * strips; i < std::min(strips_here, (number + 1) * strips); i++) found.push_back(strip(i));
            return found;
        };
        for (i64 start = 0; start < all; start += chunks) {
            const i64 behind = std::min(all, start + chunks);
            for (i64 number = start; number < behind; number++) take_grad(chunk(number), turned.get() + (number - start) * size());
            for (i64 from = 0; from < deep; from += some) {
                const i64 channels = std::min(some, deep - from);
                for (i64 number = start; number < behind; number++) {
                    const std::vector<Strip> here = chunk(number);
                    take_pairs(here, c + from * WIDE, channels);
                    multiply_all(here, turned.get() + (number - start) * size(), channels, sums + from * panels * of_all() * BLOCK,
                                 number > 0);
                }
            }
        }
    }

  private:
    i64 steps() const { return strips * rows * across; }      // tiles of places of a chunk
    i64 size() const { return 2 * panels * steps() * TILE; }  // of its transposed gradient
    i64 of_all() const { return i64(taps.size()); }           // taps
    // Pairs of places, [channels,2,strip,plane,row,places/2], 16 channels of both: the first line has those of `turn`'s first tile.
    void take_pairs(const std::vector<Strip>& chunk, i64 first, i64 channels) {
        const auto nothing = (decltype(P::at))zeros.data();
        P even = origin, odd = origin;
        char* to = pairs.get();
        for (const Strip& strip : chunk) {
            const i64 *at = seen_at.data(), there = strip.images * made.W;  // there: places of a row
            for (const Plane& plane : planes) {
                for (i64 r = 0; r < plane.rows; r++) {
                    const i64 row = (strip.row + r) * stride + plane.down;
                    const i64 behind = row < 0 || row >= seen.H ? 0 : there;
                    const auto start = origin.at + (strip.image * seen.H + row) * row_of_x;
                    for (i64 place = 0; place < plane.columns; place++)
                        pixels[place] = place < behind && at[place] >= 0 ? start + at[place] : nothing;
                    for (i64 c = 0; c < channels; c++) {
                        char* out = to + 2 * c * apart * LINE;
                        for (i64 place = 0; place < plane.columns; place += 2, out += LINE) {
                            even.at = pixels[place], odd.at = pixels[place + 1];
                            const __m512i one = even.get(first + c * WIDE), two = odd.get(first + c * WIDE);
                            _mm512_store_si512(out, _mm512_unpacklo_epi16(one, two));
                            _mm512_store_si512(out + apart * LINE, _mm512_unpackhi_epi16(one, two));
                        }
                    }
                    to += plane.columns / 2 * LINE;
                }
                at += plane.columns;
            }
        }
    }
    void take_grad(const std::vector<Strip>& chunk, char* to) const {
        for (const Strip& strip : chunk) {
            const bf16* from = grad + (strip.image * made.pixels() + strip.row * made.W) * K;
            const i64 there = strip.images * made.W;
            for (i64 r = 0; r < rows; r++, from += made.W * K)
                for (i64 j = 0; j < across; j++, to += TILE) {
                    if (r >= strip.rows) continue;
                    const bf16* lines[32];
                    for (i64 p = 0; p < 32; p++) lines[p] = 32 * j + p < there ? from + made_at[32 * j + p] : zeros.data();
                    for (i64 panel = 0; panel < panels; panel++) {
                        for (i64 p = 0; p < 32; p++) __builtin_prefetch(lines[p] + 64 * K + panel * WIDE);  // to be there two steps later
                        char* const tile = to + 2 * panel * steps() * TILE;
                        turn(lines, panel * WIDE, tile, tile + steps() * TILE);
                    }
                }
        }
    }
    // more: there are sums already.
    void multiply_all(const std::vector<Strip>& chunk, const char* gradients, i64 channels, char* sums, bool more) const {
        for (i64 c = 0; c < channels; c++) {
            const char* const columns = pairs.get() + 2 * c * apart * LINE;
            char* const here = sums + c * panels * of_all() * BLOCK;
            for (i64 k = 0; side == 1 && k < panels; k++) one_tap(chunk, gradients + 2 * k * steps() * TILE, columns, here + k * BLOCK, more);
            for (int half = 0; side == 3 && half < 2; half++)
                for (int column = 0; column < 3; column++)
                    for (i64 k = 0; k < 2 * panels; k++) {
                        const auto sum = [&](i64 k) { return here + (k / 2 * of_all() + column) * BLOCK + (2 * (k % 2) + half) * TILE; };
                        three_taps(chunk, gradients + k * steps() * TILE, columns + half * apart * LINE, column, sum(k), sum(k + 1), more);
                    }
        }
    }
    void one_tap(const std::vector<Strip>& chunk, const char* rows_of, const char* columns, char* sum, bool more) const {
        if (more)
            load<true>(sum);
        else
            clear<true>();
        for (const Strip& strip : chunk) {
            for (i64 s = 0; s < strip.rows * across; s++) {
                const char *const a = rows_of + s * TILE, *const b = columns + s * TILE;
                multiply<true>(a, a + steps() * TILE, b, b + apart * LINE);
            }
            rows_of += rows * across * TILE, columns += lines * LINE;
        }
        store<true>(sum);
    }
    // Of 16 outputs and 16 channels: the three taps of a column, whose sums lie three blocks apart. next: the sums that follow.
    void three_taps(const std::vector<Strip>& chunk, const char* a, const char* b, int column, char* sum, const char* next, bool more) const {
        const i64 below = 3 * BLOCK, row = across * TILE;
        const char *up = b + taps[column].at * LINE, *middle = b + taps[3 + column].at * LINE;
        written();
        if (more) {
            _tile_loadd(0, sum, LINE); _tile_loadd(1, sum + below, LINE); _tile_loadd(2, sum + 2 * below, LINE);
        } else {
            _tile_zero(0); _tile_zero(1); _tile_zero(2);
        }
        i64 done = 0;
        const auto prefetch = [&] {  // next's, a quarter of a tile at a time
            if (done >= 12) return;
            const char* const from = next + done / 4 * below + done % 4 * 4 * LINE;
            UNROLL for (int i = 0; i < 4; i++) __builtin_prefetch(from + i * LINE, 1);
            done++;
        };
        for (const Strip& strip : chunk) {
            for (i64 j = 0; j < across; j++) {
                const char *rows_of = a + j * TILE, *seen_by = up + j * TILE, *seen_by_middle = middle + j * TILE;
                const char* const behind = rows_of + strip.rows * row;
                _tile_loadd(4, seen_by, LINE);
                if (stride == 1) {
                    _tile_loadd(5, seen_by + row, LINE);
// What the upper taps see moves on: a tile is the lower tap's, then the middle one's, then the upper one's.
#define ROW(upper, between, lower)                                                       \
    prefetch();                                                                          \
    _tile_loadd(3, rows_of, LINE); _tile_loadd(lower, seen_by + 2 * row, LINE);          \
    _tile_dpbf16ps(0, 3, upper); _tile_dpbf16ps(1, 3, between); _tile_dpbf16ps(2, 3, lower); \
    seen_by += row, rows_of += row;                                                      \
    if (rows_of == behind) break
                    for (;;) {
                        ROW(4, 5, 6);
                        ROW(5, 6, 4);
                        ROW(6, 4, 5);
                    }
#undef ROW
                } else {
#define ROW(upper, lower)                                                                \
    prefetch();                                                                          \
    _tile_loadd(3, rows_of, LINE); _tile_loadd(6, seen_by_middle, LINE); _tile_loadd(lower, seen_by + row, LINE); \
    _tile_dpbf16ps(0, 3, upper); _tile_dpbf16ps(1, 3, 6); _tile_dpbf16ps(2, 3, lower);       \
    seen_by += row, seen_by_middle += row, rows_of += row;                               \
    if (rows_of == behind) break
                    for (;;) {
                        ROW(4, 5);
                        ROW(5, 4);
                    }
#undef ROW
                }
            }
            a += rows * row, up += lines * LINE, middle += lines * LINE;
        }
        _tile_stored(0, sum, LINE); _tile_stored(1, sum + below, LINE); _tile_stored(2, sum + 2 * below, LINE);
    }
};

// Of the outputs `first` to `behind` - 1: sums [deep,panels,taps] of blocks, in so many parts that lie `size` apart, in the order of channels; left: channels of
// x from gw's first on.
void in_order(const char* sums, i64 parts, i64 size, i64 deep, i64 panels, int taps, i64 first, i64 behind, i64 C,
              i64 left, float* gw) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (i64 k = first; k < behind; k++)
        for (int t = 0; t < taps; t++)
            for (i64 c = 0; c < deep; c++) {
                const i64 within = k % WIDE, half = within / 4 % 2, row = within / 8 * 4 + within % 4;
                const char* from = sums + ((c * panels + k / WIDE) * taps + t) * BLOCK + half * 2 * TILE + row * LINE;
                __m512 a = _mm512_load_ps(from), b = _mm512_load_ps(from + TILE);
                for (i64 part = 1; part < parts; part++) {
                    from += size;
                    a += _mm512_load_ps(from), b += _mm512_load_ps(from + TILE);
                }
                float* const to = gw + (k * taps + t) * C + c * WIDE;
                _mm512_mask_storeu_ps(to, lanes(left - c * WIDE), _mm512_permutex2var_ps(a, low, b));
                _mm512_mask_storeu_ps(to + ROWS, lanes(left - c * WIDE - ROWS), _mm512_permutex2var_ps(a, high, b));
            }
}

// How the gradient by the weights is shared.
struct Shares {
    const i64 deep, panels, size;  // size: bytes of all sums
    i64 parts = 1, slices = 1;     // of images, each with its sums; of the channels of x
    Shares(i64 images, i64 C, i64 K, int taps, int threads) 
        : deep(wides(C)), panels(K / WIDE), size(deep * panels * taps * BLOCK) {
        while (parts < 8 && 2 * parts * size <= SUMS && 2 * parts <= images) parts *= 2;
        while (parts * slices < 2 * threads && deep % (2 * slices) == 0 && (parts * slices < threads || deep / slices > 8)) slices *= 2;
    }
    bool own() const { return parts == 1; }  // a thread's sums of a slice are whole, and it needs no more than those of one
    i64 room(int threads) const { return own() ? threads * (size / slices) : parts * size; }
};

// sums: room for them
template <class P>
void by_weight(const void* x, const bf16* grad, float* gw, char* sums, Images seen, Images made, i64 C, i64 K, int stride, int side,
               int threads) {
    const int taps = side * side;
    const Shares shares(seen.N, C, K, taps, threads);
    const i64 deep = shares.deep, panels = shares.panels, size = shares.size, parts = shares.parts, slices = shares.slices;
    const i64 some = deep / slices, slice_size = size / slices;
    const bool own = shares.own();
#pragma omp parallel num_threads(threads)
    {
        const Unit unit;
        Adder<P> adder(x, grad, seen, made, (seen.N + parts - 1) / parts, C, K, some, panels, stride, side);
        char* const mine = sums + omp_get_thread_num() * slice_size;
#pragma omp for schedule(dynamic)
        for (i64 i = 0; i < parts * slices; i++) {
            const i64 part = i / slices, slice = i % slices;
            char* const to = own ? mine : sums + part * size + slice * slice_size;
            adder.run(seen.N * part / parts, seen.N * (part + 1) / parts, slice * some * WIDE, to);
            if (own) in_order(to, 1, 0, some, panels, taps, 0, K, C, C - slice * some * WIDE, gw + slice * some * WIDE);
        }
#pragma omp for schedule(static)
        for (i64 panel = 0; panel < (own ? 0 : panels); panel++)
            in_order(sums, parts, size, deep, panels, taps, panel * WIDE, (panel + 1) * WIDE, C, C, gw);
    }
}

}  // namespace

extern "C" {

// y = x ∗ w. form, together, apart: see Convolution. w: the first tap of the first weight; `to`, `from`, `tap` elements from one output, input, tap to the next, of which either
// `to` or `from` is one; wide: whether it is float32. plus, if not null, is added: it has `every` images, of which one is added to every so
// many of y's. kind: 1, or 2 with a stride of two; -2: the gradient by x of such a one. H, W: of x, or of what is made, whichever is
// greater. side: of the taps, 3 or 1. room: 2·side²·C·K bytes, C rounded up to 32s, at a multiple of 64.
void amx_forward(
    const void* x, int form, i64 together, i64 apart, const void* w, bf16* y, char* room, i64 N, i64 H, i64 W, i64 C, i64 K, i64 to, i64 from, i64 tap, const bf16* plus, i64 every,
    int wide, int kind, int side, int threads) {
    const Images all{N, H, W}, half{N, (H + 1) / 2, (W + 1) / 2};
    const std::vector<Tap> taps = taps_around(side);
    Convolution it{x, form, together, apart, y, plus, every, kind < 0 ? half : all, kind == 2 ? half : all, C, K, 0, 0, kind == 2 ? 2 : 1, kind < 0 ? 2 : 1, {}};
    const Images& grid = kind == 1 ? all : half;
    it.rows = grid.H, it.columns = grid.W;
    if (kind > 0) {
        it.phases.push_back({taps, 0, 0});
    } else
        // an even row of x sees a row of y's gradient by the middle taps, an odd one sees two by the others
        for (int phase = 0; phase < 4; phase++) {
            const int down = phase / 2, right = phase % 2;
            std::vector<Tap> some;
            for (const Tap& tap : taps)
                if (mod(tap.down, 2) == down && mod(tap.right, 2) == right) some.push_back({tap.number, tap.down > 0, tap.right > 0});
            it.phases.push_back({some, down, right});
        }
    convolve(it, Weights{w, to, from, tap, C, wide != 0}, room, threads);
}

// Bytes of room that amx_by_weight needs.
i64 amx_room(i64 N, i64 C, i64 K, int side, int threads) { return Shares(N, C, K, side * side, threads).room(threads); }

// gw [K,side,side,C]. H, W: of x; form: as in Convolution; room: so many bytes, at a multiple of 64.
void amx_by_weight(
    const void* x, int form, const bf16* grad, float* gw, char* room, i64 N, i64 H, i64 W, i64 C, i64 K, int stride, int side,
    int threads) {
    const Images all{N, H, W}, half{N, (H + 1) / 2, (W + 1) / 2};
    const Images& made = stride == 1 ? all : half;
    (form == 2 ? by_weight<Means> : form == 1 ? by_weight<Spikes> : by_weight<Numbers>)(x, grad, gw, room, all, made, C, K, stride, side, threads);
}
}
