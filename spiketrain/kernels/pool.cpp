// Max-pooling of currents, p×p pixels without overlap and P channels, channels last, and means of spikes: see spiketrain/kernels/pool.py.
//
// x is [N,H,W,P,C] in memory, out and which are [N,⌊H/p⌋,⌊W/p⌋,C]. which: the first of a window's P·p² values that is its maximum, counted
// piece by piece and row by row. As torch has it, a NaN is larger than any number. ELEMENT is a macro: bf16, float or double.

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#ifdef __AVX512BW__
#include <immintrin.h>
#endif

namespace {

typedef int64_t i64;

typedef uint16_t bf16;  // the upper half of a float

inline void set(float x, float* to) { *to = x; }
inline void set(float x, double* to) { *to = x; }
inline void set(float x, bf16* to) {  // which has all its digits
    uint32_t word;
    std::memcpy(&word, &x, sizeof(word));
    *to = uint16_t(word >> 16);
}

#if defined(__AVX512BW__)
constexpr i64 LINE = 64;  // of a vector
#elif defined(__AVX2__)
constexpr i64 LINE = 32;
#else
constexpr i64 LINE = 16;
#endif
constexpr i64 LANES = LINE / i64(sizeof(ELEMENT)), LARGE = 8 << 20, AHEAD = 1024;
typedef ELEMENT Values __attribute__((vector_size(LINE)));
typedef decltype(Values() > Values()) Integers;  // signed, as many
typedef std::remove_reference_t<decltype(Integers()[0])> Integer;
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

// The first n of them, then zeros.
template <class V, class T> inline V load(const T* from, i64 n) {
    V found{};
    std::memcpy(&found, from, n * sizeof(T));
    return found;
}

// Numbers below 256 as bytes, and back; compilers alone take them one by one.
#ifdef __AVX512BW__
template <i64 N> struct As;
template <> struct As<32> {
    static __m256i bytes(__m512i x) { return _mm512_cvtepi16_epi8(x); }
    static __m512i integers(__m256i x) { return _mm512_cvtepu8_epi16(x); }
};
template <> struct As<16> {
    static __m128i bytes(__m512i x) { return _mm512_cvtepi32_epi8(x); }
    static __m512i integers(__m128i x) { return _mm512_cvtepu8_epi32(x); }
};
template <> struct As<8> {
    static i64 bytes(__m512i x) { return _mm_cvtsi128_si64(_mm512_cvtepi64_epi8(x)); }
    static __m512i integers(i64 x) { return _mm512_cvtepu8_epi64(_mm_cvtsi64_si128(x)); }
};
inline Bytes narrow(Integers x) { return (Bytes)As<LANES>::bytes((__m512i)x); }
inline Integers widen(Bytes x) { return (Integers)As<LANES>::integers((decltype(As<LANES>::bytes(__m512i())))x); }
#else
inline Bytes narrow(Integers x) { return __builtin_convertvector(x, Bytes); }
inline Integers widen(Bytes x) { return __builtin_convertvector(x, Integers); }
#endif

// What is ordered as numbers are, and the greatest for a NaN where that is not told from it.
inline auto rank(Values x) {
    if constexpr (std::is_same_v<ELEMENT, bf16>) {
        const Integers size = (Integers)x & 0x7fff, number = (Integers)x < 0 ? -size : size;
        return size > 0x7f80 ? Integers{} + 0x7fff : number;
    } else
        return x;
}
typedef decltype(rank(Values())) Ranks;
inline Integers is_nan(Ranks x) {
    if constexpr (std::is_same_v<ELEMENT, bf16>)
        return x == 0x7fff;
    else
        return x != x;
}

struct Sizes {
    i64 N, H, W, C, p, P;
    i64 rows() const { return N * (H / p); }  // of windows
    i64 columns() const { return W / p; }
    i64 wide() const { return P * C; }
    // first element of a row of windows, of its first window, and from there to the window's value k
    i64 out(i64 row) const { return row * columns() * C; }
    i64 in(i64 row) const { return (row / (H / p) * H + row % (H / p) * p) * W * wide(); }
    i64 apart(i64 k) const { return (k % (p * p) / p * W + k % p) * wide() + k / (p * p) * C; }
    std::vector<i64> window() const {
        std::vector<i64> found;
        for (i64 k = 0; k < P * p * p; k++) found.push_back(apart(k));
        return found;
    }
};

// The maximum of `count` values in each of n lanes, and which it is. apart: from the first to each of them. The processor does not see
// by itself that a few rows are read at once, and is asked AHEAD of time.
inline void maximum(const ELEMENT* from, const i64* apart, int count, ELEMENT* out, uint8_t* which, i64 n) {
    __builtin_prefetch(from + AHEAD);
    Values best = load<Values>(from, n);
    Ranks greatest = rank(best);
    Integers at{};
    for (int k = 1; k < count; k++) {
        __builtin_prefetch(from + apart[k] + AHEAD);
        const Values value = load<Values>(from + apart[k], n);
        const Ranks place = rank(value);
        const Integers larger = (place > greatest) | is_nan(place);
        best = larger ? value : best;
        greatest = larger ? place : greatest;
        at = larger ? Integers{} + Integer(k) : at;
    }
    const Bytes bytes = narrow(at);
    std::memcpy(out, &best, n * sizeof(ELEMENT)), std::memcpy(which, &bytes, n);
}

// Where a value is the maximum its gradient, else nothing. PAST: past the caches, a whole line.
template <bool PAST> inline void give(const ELEMENT* grad, const uint8_t* which, int k, ELEMENT* gx, i64 n) {
    const Integers at = widen(load<Bytes>(which, n));
    const Values found = at == Integers{} + Integer(k) ? load<Values>(grad, n) : Values{};
#ifdef __AVX512BW__
    if (PAST) {
        _mm512_stream_si512((__m512i*)gx, (__m512i)found);
        return;
    }
#endif
    std::memcpy(gx, &found, n * sizeof(ELEMENT));
}

template <bool PAST> void backward(const ELEMENT* grad, const uint8_t* which, ELEMENT* gx, const Sizes& s, int threads) {
    const i64 rest = (s.W - s.columns() * s.p) * s.wide(), below = s.H % s.p * s.W * s.wide();  // what no window has
    const std::vector<i64> apart = s.window();
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (i64 row = 0; row < s.rows(); row++) {
        ELEMENT* const line = gx + s.in(row);
        for (i64 column = 0; column < s.columns(); column++) {
            const i64 from = s.out(row) + column * s.C;
            ELEMENT* const to = line + column * s.p * s.wide();
            for (int k = 0; k < int(apart.size()); k++) {
                i64 c = 0;
                for (; c + LANES <= s.C; c += LANES) give<PAST>(grad + from + c, which + from + c, k, to + apart[k] + c, LANES);
                if (c < s.C) give<false>(grad + from + c, which + from + c, k, to + apart[k] + c, s.C - c);
            }
        }
        for (i64 down = 0; down < s.p && rest; down++)
            std::memset(line + (down * s.W + s.columns() * s.p) * s.wide(), 0, rest * sizeof(ELEMENT));
        if (row % (s.H / s.p) == s.H / s.p - 1) std::memset(line + s.p * s.W * s.wide(), 0, below * sizeof(ELEMENT));
    }
}

}  // namespace

extern "C" {

void pool_forward(const ELEMENT* x, ELEMENT* out, uint8_t* which, i64 N, i64 H, i64 W, i64 C, i64 p, i64 P, int threads) {
    const Sizes s{N, H, W, C, p, P};
    const std::vector<i64> apart = s.window();
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (i64 row = 0; row < s.rows(); row++)
        for (i64 column = 0; column < s.columns(); column++) {
            const ELEMENT* const from = x + s.in(row) + column * p * s.wide();
            const i64 to = s.out(row) + column * C;
            i64 c = 0;
            for (; c + LANES <= C; c += LANES) maximum(from + c, apart.data(), int(apart.size()), out + to + c, which + to + c, LANES);
            if (c < C) maximum(from + c, apart.data(), int(apart.size()), out + to + c, which + to + c, C - c);
        }
}

void pool_backward(const ELEMENT* grad, const uint8_t* which, ELEMENT* gx, i64 N, i64 H, i64 W, i64 C, i64 p, i64 P, int threads) {
    const Sizes s{N, H, W, C, p, P};
    const bool lines = C % LANES == 0 && reinterpret_cast<uintptr_t>(gx) % LINE == 0;
    (lines && N * H * W * P * C * i64(sizeof(ELEMENT)) >= LARGE ? backward<true> : backward<false>)(grad, which, gx, s, threads);
}

// The means of spikes, which are bits: bit i of word j is the spike 32j + i in the order of memory; C is a multiple of 32, P is 1.
void pool_spikes(const uint32_t* bits, ELEMENT* out, i64 N, i64 H, i64 W, i64 C, i64 p, i64 P, int threads) {
    const Sizes s{N, H, W, C, p, P};
    const float share = 1 / float(p * p);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (i64 row = 0; row < s.rows(); row++)
        for (i64 at = 0; at < s.columns() * C; at += 32) {
            int32_t count[32] = {};
            for (i64 k = 0; k < p * p; k++) {
                const uint32_t word = bits[(s.in(row) + s.apart(k) + at / C * p * C + at % C) / 32];
#pragma omp simd
                for (int i = 0; i < 32; i++) count[i] += (word >> i) & 1;
            }
            ELEMENT* const to = out + s.out(row) + at;
#pragma omp simd
            for (int i = 0; i < 32; i++) set(float(count[i]) * share, to + i);
        }
}
}
