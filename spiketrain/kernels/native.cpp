// The leaky scan on the processor: see spiketrain/kernels/leaky.py for the equations and native.py for the arguments.
//
// Compiled once for each rule and dtype: SURROGATE (its number in native.py), HARD, DETACH, STRICT, THROUGH and ELEMENT are macros.
// Tensors are [T,P,C,Q]. A "row" is what lies contiguous in memory: C channels where Q = 1, else the Q places of one channel.
// A row is cut into blocks of two vectors, which hide each other's latency; a block goes through all T steps while its potentials and
// gradients are in registers.
// Blocks are dealt out in fixed portions, so that sums are added in the same order each time.
// Built without contraction: u = decay*v + gain*y is rounded twice, as plain torch does it; else spikes would differ from it.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

// What is done for each block. A call would cost as much as the work, and what is passed by address would stay in memory.
#define INLINE __attribute__((always_inline)) inline

namespace {

typedef int64_t i64;

struct bf16 {
    uint16_t bits;
};

// ---- vectors of 64 bytes: the compiler makes of them what the processor has ----

template <class A> struct Vector;
template <> struct Vector<float> {
    typedef float type __attribute__((vector_size(64)));
    typedef int32_t mask __attribute__((vector_size(64)));
    static const int lanes = 16;
};
template <> struct Vector<double> {
    typedef double type __attribute__((vector_size(64)));
    typedef int64_t mask __attribute__((vector_size(64)));
    static const int lanes = 8;
};
template <class X> struct Wide {
    typedef float type;
};
template <> struct Wide<double> {
    typedef double type;
};

typedef Wide<ELEMENT>::type A;  // potentials, coefficients and sums of a block
typedef Vector<A>::type V;
const int L = Vector<A>::lanes, BLOCK = 2 * L;

typedef uint16_t Half __attribute__((vector_size(32)));
typedef uint32_t Word __attribute__((vector_size(64)));

inline V all(A x) { return x - V{}; }

inline V load(const A* from) {
    V x;
    std::memcpy(&x, from, sizeof(V));
    return x;
}
inline void store(V x, A* to) { std::memcpy(to, &x, sizeof(V)); }

inline V load(const bf16* from) {
#ifdef __AVX512F__  // GCC 12 makes five operations of the conversion below
    return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16);
#else
    Half x;
    std::memcpy(&x, from, sizeof(Half));
    return (V)(__builtin_convertvector(x, Word) << 16);
#endif
}
inline void store(Vector<float>::type x, bf16* to) {  // to the nearest, ties to even
#ifdef __AVX512BF16__
    const auto narrow = _mm512_cvtneps_pbh((__m512)x);
#else
    const Word bits = (Word)x, rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Half narrow = __builtin_convertvector((Word)(x == x) & rounded | (Word)(x != x) & 0x7fc0u, Half);
#endif
    std::memcpy(to, &narrow, sizeof(Half));
}

// past the caches, straight to memory: `to` is a multiple of the vector's size
inline void stream(V x, A* to) {
#ifdef __AVX512F__
    if (sizeof(A) == 4) return _mm512_stream_ps((float*)to, (__m512)x);
    return _mm512_stream_pd((double*)to, (__m512d)x);
#else
    store(x, to);
#endif
}
inline void stream(Vector<float>::type x, bf16* to) {
#ifdef __AVX512F__
    bf16 narrow[Vector<float>::lanes];
    store(x, narrow);
    __m256i bits;
    std::memcpy(&bits, narrow, sizeof(bits));
    _mm256_stream_si256((__m256i*)to, bits);
#else
    store(x, to);
#endif
}
inline void streamed() {  // before another thread reads what was
#ifdef __AVX512F__
    _mm_sfence();
#endif
}

// a·b + c, rounded once where the processor does that: for gradients alone, as spikes are to be those of plain torch
inline V fused(V a, V b, V c) {
#ifdef __AVX512F__
    if (sizeof(A) == 4) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
    return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#else
    return a * b + c;
#endif
}

// ---- which lanes of a vector: where the processor has registers of bits for that, one of them ----

#ifdef __AVX512F__
typedef std::conditional<L == 16, __mmask16, __mmask8>::type Lanes;
INLINE Lanes at_least(V x, V bound) {
    if (sizeof(A) == 4) return _mm512_cmp_ps_mask((__m512)x, (__m512)bound, _CMP_GE_OQ);
    return Lanes(_mm512_cmp_pd_mask((__m512d)x, (__m512d)bound, _CMP_GE_OQ));
}
INLINE Lanes above(V x, V bound) {
    if (sizeof(A) == 4) return _mm512_cmp_ps_mask((__m512)x, (__m512)bound, _CMP_GT_OQ);
    return Lanes(_mm512_cmp_pd_mask((__m512d)x, (__m512d)bound, _CMP_GT_OQ));
}
INLINE V pick(Lanes yes, V a, V b) {
    if (sizeof(A) == 4) return (V)_mm512_mask_blend_ps(__mmask16(yes), (__m512)b, (__m512)a);
    return (V)_mm512_mask_blend_pd(__mmask8(yes), (__m512d)b, (__m512d)a);
}
#else
typedef Vector<A>::mask Lanes;
INLINE Lanes at_least(V x, V bound) { return x >= bound; }
INLINE Lanes above(V x, V bound) { return x > bound; }
INLINE V pick(Lanes yes, V a, V b) { return yes ? a : b; }
#endif

// the first m lanes only where a row ends; FULL: there are as many as a vector has
template <bool FULL, class E> inline V load(const E* from, int m) {
    if (FULL || m >= L) return load(from);
    E padded[L] = {};
    std::memcpy(padded, from, sizeof(E) * std::max(m, 0));
    return load(padded);
}
template <bool FULL, class E> inline void store(V x, E* to, int m) {
    if (FULL || m >= L) return store(x, to);
    E padded[L];
    store(x, padded);
    std::memcpy(to, padded, sizeof(E) * std::max(m, 0));
}

// ---- a block: two vectors. Members and no array, since the compiler keeps arrays in memory ----

template <class T> struct Two {
    T lo, hi;
};
typedef Two<V> Pair;

template <class F, class... P> INLINE auto both(F f, P... p) { return Two<decltype(f(p.lo...))>{f(p.lo...), f(p.hi...)}; }
INLINE Pair operator+(Pair a, Pair b) { return {a.lo + b.lo, a.hi + b.hi}; }
INLINE Pair operator-(Pair a, Pair b) { return {a.lo - b.lo, a.hi - b.hi}; }
INLINE Pair operator*(Pair a, Pair b) { return {a.lo * b.lo, a.hi * b.hi}; }
INLINE Pair operator-(Pair a) { return {-a.lo, -a.hi}; }
INLINE Pair twice(V x) { return {x, x}; }
INLINE Pair fused(Pair a, Pair b, Pair c) { return {fused(a.lo, b.lo, c.lo), fused(a.hi, b.hi, c.hi)}; }
INLINE Pair choose(Two<Lanes> yes, Pair a, Pair b) { return {pick(yes.lo, a.lo, b.lo), pick(yes.hi, a.hi, b.hi)}; }

// Which lanes of a block are set, from the lowest bit on.
INLINE uint32_t bits(Two<Lanes> set) {
#if defined(__AVX512BW__)
    if (L == 16) return _mm512_kunpackw(set.hi, set.lo);
    return uint32_t(set.lo) | uint32_t(set.hi) << L;
#elif defined(__AVX512F__)
    return uint32_t(set.lo) | uint32_t(set.hi) << L;
#else
    uint32_t found = 0;
    for (int i = 0; i < L; i++) found |= uint32_t(set.lo[i] & 1) << i | uint32_t(set.hi[i] & 1) << (L + i);
    return found;
#endif
}

#ifdef __AVX512BF16__
template <class P> INLINE __m512i narrow(P x) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)x.hi, (__m512)x.lo); }
#endif
#ifdef __AVX512BW__
const uint16_t UPPER[2][32] = {
#define BOTH(i) 0, i
    {BOTH(0), BOTH(1), BOTH(2), BOTH(3), BOTH(4), BOTH(5), BOTH(6), BOTH(7), BOTH(8), BOTH(9), BOTH(10), BOTH(11), BOTH(12), BOTH(13),
     BOTH(14), BOTH(15)},
    {BOTH(16), BOTH(17), BOTH(18), BOTH(19), BOTH(20), BOTH(21), BOTH(22), BOTH(23), BOTH(24), BOTH(25), BOTH(26), BOTH(27), BOTH(28),
     BOTH(29), BOTH(30), BOTH(31)},
#undef BOTH
};
// 32 numbers of bf16 as two vectors: each becomes the upper half of a lane, by one operation a vector where loading them by halves takes two
template <class P> INLINE P widened(__m512i words) {
    const auto half = [words](int i) { return _mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_loadu_si512(UPPER[i]), words); };
    return {decltype(P::lo)(half(0)), decltype(P::hi)(half(1))};
}
#endif

// the first m elements
template <bool FULL, class E> INLINE Pair load_two(const E* from, int m) {
#ifdef __AVX512BW__
    if constexpr (FULL && sizeof(E) == 2) return widened<Pair>(_mm512_loadu_si512(from));
#endif
    return {load<FULL>(from, m), load<FULL>(from + L, m - L)};
}
template <bool FULL, class E> INLINE void store_two(Pair x, E* to, int m) {
#ifdef __AVX512BF16__  // which rounds two vectors at once
    if constexpr (FULL && sizeof(E) == 2) return _mm512_storeu_si512(to, narrow(x));
#endif
    store<FULL>(x.lo, to, m);
    store<FULL>(x.hi, to + L, m - L);
}
template <class E> INLINE void stream_two(Pair x, E* to) {
#ifdef __AVX512BF16__
    if constexpr (sizeof(E) == 2) return _mm512_stream_si512((__m512i*)to, narrow(x));
#endif
    stream(x.lo, to);
    stream(x.hi, to + L);
}
INLINE Pair rounded(Pair x) {  // as a result is
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
    if constexpr (sizeof(ELEMENT) == 2) return widened<Pair>(narrow(x));
#endif
    ELEMENT narrow[BLOCK];
    store_two<true>(x, narrow, BLOCK);
    return load_two<true>(narrow, BLOCK);
}

inline V absolute(V x) { return x < 0 ? -x : x; }

// 1/x. An approximation of 14 bits is enough for results of eight, where nothing is subtracted from it (as the sigmoid's slope does); with
// one step of Newton's it is within a rounding or two of float32, and twice as fast as a division.
inline V inverse(V x) {
#if defined(__AVX512F__)
    if (sizeof(A) == 4) {
        const V y = (V)_mm512_rcp14_ps((__m512)x);
        return sizeof(ELEMENT) == 2 && SURROGATE != 3 ? y : y * (2 - x * y);
    }
#endif
    return 1 / x;
}

// ---- the neuron ----

// e^x (Cephes' polynomial): within about one rounding of the standard library's, which has none for vectors
inline Vector<float>::type exponential(Vector<float>::type x) {
    typedef Vector<float>::type F;
    x = x > 88 ? F{} + 88 : x;
    x = x < -87 ? F{} - 87 : x;
    const float magic = 12582912.0f;  // its unit in the last place is 1
    const F n = (x * 1.44269504088896341f + magic) - magic;
    const F r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    F p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const F power = (F)((__builtin_convertvector(n, Vector<float>::mask) + 127) << 23);
    return (p * r * r + r + 1) * power;
}
inline Vector<double>::type exponential(Vector<double>::type x) {
    for (int i = 0; i < Vector<double>::lanes; i++) x[i] = std::exp(x[i]);
    return x;
}

// the slope of the surrogate at x = u - threshold, and the derivative by alpha of its primitive (functional.SURROGATES)
struct Slope {
    Pair alpha{}, flat{}, steep{};  // what is the same at every step; of atan: 1/slope = flat + steep·x²
    Slope() {}
    INLINE explicit Slope(Pair a) : alpha(a), flat(both(flattest, a)), steep(twice(all(A(M_PI * M_PI / 2))) * a) {}
    INLINE Pair operator()(Pair x) const { return both(at, x, alpha, flat, steep); }

    static INLINE V flattest(V a) {
        const V most = 2 / a, bound = all(A(1e30));  // of alpha 0 the slope is next to nothing, and no 0/0
        return most < bound ? most : bound;
    }
    static INLINE V at(V x, V a, V flat, V steep) {
#if SURROGATE == 0  // atan
        return inverse(fused(steep, x * x, flat));
#elif SURROGATE == 1  // qgate
        const V y = a - a * a * absolute(x);
        return y > 0 ? y : V{};
#elif SURROGATE == 2  // gate
        return absolute(x) * a < 1 ? all(1) : V{};
#elif SURROGATE == 3  // sigmoid
        const V y = inverse(1 + exponential(-a * x));
        return a * y * (1 - y);
#elif SURROGATE == 4  // straight_through
        return a;
#elif SURROGATE == 5  // relu
        return x > 0 ? a : V{};
#elif SURROGATE == 6  // triangle
        const V y = 1 - a * absolute(x);
        return y > 0 ? y : V{};
#elif SURROGATE == 7  // rectangle
        return 2 * a * absolute(x) < 1 ? a : V{};
#elif SURROGATE == 8  // superspike
        const V y = 1 + a * absolute(x);
        return inverse(y * y);
#endif
    }
};
inline V alpha_slope(V x, V a) {
#if SURROGATE == 0
    const V y = A(M_PI / 2) * a * x;
    return A(0.5) * x * inverse(1 + y * y);
#elif SURROGATE == 3
    const V y = inverse(1 + exponential(-a * x));
    return x * y * (1 - y);
#elif SURROGATE == 5
    return x > 0 ? x : V{};
#else
    return V{};
#endif
}

// a difference of floats is never rounded to zero: these are the signs of u − threshold
INLINE Lanes fires(V u, V threshold) { return STRICT ? above(u, threshold) : at_least(u, threshold); }
INLINE V after(V u, Lanes fired, V threshold) { return pick(fired, HARD ? V{} : u - threshold, u); }

// ---- where blocks are ----

const i64 LARGE = i64(16) << 20;  // bytes of a result that has no use of the caches any more when it is read

struct Shape {
    i64 T, P, C, Q;
    i64 row() const { return Q == 1 ? C : Q; }
    i64 step() const { return P * C * Q; }
    // Whether a result is better written past the caches: it would not stay there, and a line that is only written need not be read.
    bool past(const ELEMENT* result) const {
        const bool lines = row() * sizeof(ELEMENT) % 64 == 0 && reinterpret_cast<uintptr_t>(result) % 64 == 0;
        return lines && T * step() * i64(sizeof(ELEMENT)) >= LARGE;
    }
};

// Blocks one behind the other in memory: of one row and one channel where Q > 1, of whole rows where Q = 1.
struct Group {
    i64 at;       // first element within a step
    i64 channel;  // of the first element
    int length;   // elements of a block: BLOCK, or fewer at the end of a row
    i64 blocks;
};

class Groups {
    static const i64 MOST = 32;  // blocks of a group
    const Shape s;
    const i64 whole, rows, per_row;  // blocks of BLOCK elements in a row; rows of a unit; units of so many rows

  public:
    explicit Groups(const Shape& s)
        : s(s), whole(s.row() / BLOCK), rows(s.Q == 1 && s.C % BLOCK == 0 ? std::max<i64>(1, MOST / whole) : 1),
          per_row((s.Q == 1 ? (whole ? 1 : 0) : (whole + MOST - 1) / MOST) + (s.row() % BLOCK ? 1 : 0)) {}
    i64 units() const { return per_row * ((s.Q == 1 ? s.P + rows - 1 : s.P * s.C) / rows); }
    Group operator[](i64 unit) const {
        const i64 row = unit / per_row * rows, column = unit % per_row, first = row * s.row(), channel = s.Q == 1 ? 0 : row % s.C;
        if (s.Q == 1 && whole && column == 0) return Group{first, 0, BLOCK, whole * std::min(rows, s.P - row)};
        if (s.Q > 1 && column * MOST < whole)
            return Group{first + column * MOST * BLOCK, channel, BLOCK, std::min(MOST, whole - column * MOST)};
        const i64 done = whole * BLOCK;  // the end of a row
        return Group{first + done, s.Q == 1 ? done : channel, int(s.row() - done), 1};
    }
};

// sums of several kinds, a value a channel: in A over a few groups, then in double
class Sums {
    const Shape& s;
    const int kinds;
    int filled = 0;
    i64 channel = 0;
    const i64 wide;  // of a kind
    std::vector<A> part;
    A* const first;

  public:
    std::vector<double> total;
    Sums(const Shape& shape, int kinds)
        : s(shape), kinds(kinds), wide(s.Q == 1 ? (s.C + BLOCK - 1) / BLOCK * BLOCK : BLOCK), part(kinds * wide, A(0)), first(part.data()),
          total(kinds * shape.C, 0.0) {}
    INLINE void add(int kind, i64 channel, Pair x) {  // lanes behind the end of a row are zero
        A* const to = first + kind * wide + (s.Q == 1 ? channel : 0);
        store_two<true>(load_two<true>(to, BLOCK) + x, to, BLOCK);
    }
    void begins(const Group& group) {
        if (filled > 2048 || (s.Q > 1 && group.channel != channel)) flush();
        channel = group.channel;
        filled += int(group.blocks);
    }
    void flush() {
        for (int kind = 0; kind < kinds; kind++) {
            const A* from = first + kind * wide;
            double* to = total.data() + kind * s.C;
            if (s.Q == 1)
                for (i64 c = 0; c < s.C; c++) to[c] += from[c];
            else
                for (int j = 0; j < BLOCK; j++) to[channel] += from[j];
        }
        std::fill(part.begin(), part.end(), A(0));
        filled = 0;
    }
};

// In so many portions units are shared: more of them where there are many, so that a thread on a slower core takes fewer. A sum has a part
// of each portion, whichever thread it was, and so the same value each time.
int portions(i64 units, int threads) { return int(std::max<i64>(1, std::min<i64>(units, units < 1024 ? threads : 8 * threads))); }

// work(portion, first, last) of all portions of the units
template <class F> void in_parallel(i64 units, int threads, F work) {
    const int count = portions(units, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int i = 0; i < count; i++) work(i, units * i / count, units * (i + 1) / count);
}

void add_up(const std::vector<std::vector<double>>& parts, size_t n, double* out) {
    std::fill(out, out + n, 0.0);
    for (auto& part : parts)
        for (size_t i = 0; i < part.size(); i++) out[i] += part[i];
}

// lanes beyond the end of a row count for nothing
template <bool FULL> inline V within(V x, int m) {
    if (FULL || m >= L) return x;
    for (int i = std::max(m, 0); i < L; i++) x[i] = 0;
    return x;
}

// So many blocks and steps before it is needed memory is asked for a block: the processor itself looks ahead in fewer places than there are
// steps and tensors.
const i64 AHEAD = 32;

// A group and how to reach what belongs to its blocks; `enter` goes to one of them. FULL: they have BLOCK elements.
template <bool FULL> struct Reach {
    const Group group;
    const i64 channels, step, far;
    const bool lined;  // channels lie side by side: a vector has a value for each of its lanes
    i64 at, channel;   // of the block that was entered

    Reach(const Shape& s, const Group& group)
        : group(group), channels(s.C), step(s.step()), far(BLOCK * std::max<i64>(1, AHEAD / s.T)), lined(s.Q == 1), at(group.at - BLOCK),
          channel(group.channel - BLOCK) {}
    INLINE void enter() {
        at += BLOCK;
        channel = !lined ? group.channel : channel + BLOCK >= channels ? 0 : channel + BLOCK;
    }
    template <class E> INLINE Pair get(const E* from) const { return load_two<FULL>(from + at, group.length); }
    // Asks memory for what `get` will want after so many blocks.
    template <class E> INLINE void fetch(const E* from) const {
        const char* const line = reinterpret_cast<const char*>(from + at + far);
        for (int i = 0; i < BLOCK * int(sizeof(E)); i += 64) __builtin_prefetch(line + i);
    }
    template <class E> INLINE void put(Pair x, E* to, bool past = false) const {
        if (FULL && past) return stream_two(x, to + at);
        store_two<FULL>(x, to + at, group.length);
    }
    INLINE void put_spikes(Two<Lanes> fired, ELEMENT* to, bool past) const {
#ifdef __AVX512BW__
        if constexpr (FULL && sizeof(ELEMENT) == 2) {
            const __m512i spikes = _mm512_maskz_mov_epi16(bits(fired), _mm512_set1_epi16(0x3f80));
            return past ? _mm512_stream_si512((__m512i*)(to + at), spikes) : _mm512_storeu_si512(to + at, spikes);
        }
#endif
        put(choose(fired, twice(all(1)), Pair{}), to, past);
    }
    INLINE Pair zeros_behind(Pair x) const { return {within<FULL>(x.lo, group.length), within<FULL>(x.hi, group.length - L)}; }
    // one value a channel (count = C) or one for all (count = 1)
    INLINE Pair spread(const A* from, i64 count) const {
        if (count == 1) return twice(all(from[0]));
        return lined ? load_two<FULL>(from + channel, group.length) : twice(all(from[channel]));
    }
    // one a step and channel
    INLINE Pair of_step(const A* from, i64 t) const {
        from += t * channels + channel;
        return lined ? load_two<FULL>(from, group.length) : twice(all(*from));
    }
};

// Goes through units begin … end − 1; work(group, full) has full as a type, so that whole blocks have code of their own.
template <class F> inline void through(const Groups& groups, i64 begin, i64 end, F work) {
    for (i64 unit = begin; unit < end; unit++) {
        const Group group = groups[unit];
        if (group.length == BLOCK)
            work(group, std::true_type());
        else
            work(group, std::false_type());
    }
}

// ---- moments: sums of x − origin and (x − origin)², [T,2,C] ----

// steps first … last − 1 together: sums of x − origin and (x − origin)², [2,C]
void moments(const ELEMENT* x, const A* origin, double* out, i64 first, i64 last, const Shape& s, int threads) {
    const Groups groups(s);
    std::vector<std::vector<double>> parts(portions(groups.units(), threads));
    in_parallel(groups.units(), threads, [&](int portion, i64 begin, i64 end) {
        Sums sums(s, 2);
        through(groups, begin, end, [=, &s, &sums](const Group& group, auto full) {
            Reach<full.value> r(s, group);
            Pair middle{}, one{}, two{};
            sums.begins(group);
            for (i64 block = 0; block < group.blocks; block++) {
                r.enter();
                if (block == 0 || r.lined) middle = r.of_step(origin, 0);
                for (i64 t = first; t < last; t++) {
                    r.fetch(x + t * r.step);
                    const Pair d = r.get(x + t * r.step) - middle;
                    one = one + d;
                    two = fused(d, d, two);
                }
                if (!r.lined && block + 1 < group.blocks) continue;
                sums.add(0, r.channel, r.zeros_behind(one));
                sums.add(1, r.channel, r.zeros_behind(two));
                one = two = Pair{};
            }
        });
        sums.flush();
        parts[portion] = std::move(sums.total);
    });
    add_up(parts, 2 * s.C, out);
}

// ---- forward and backward ----

struct Arguments {
    const ELEMENT* x;
    i64 x_step;              // elements from one step of x to the next: 0 where x is the same at every step
    const A* v;              // potential before the first step, or null
    const A *scale, *shift;  // [S,C], or null
    i64 S;
    const A* coefficient[4];  // decay, gain, threshold, alpha
    i64 count[4];             // 1 or C values of each
};

// What a block of neurons is given at a step. Loops take a copy of it, which the compiler keeps in registers.
template <bool LINE> struct Given {
    Pair decay, gain, threshold, scale, shift;
    INLINE Pair current(Pair x) const { return LINE ? scale * x + shift : x; }
    INLINE Pair potential(Pair x, Pair v) const { return decay * v + gain * current(x); }
    INLINE Two<Lanes> fired(Pair u) const { return both(fires, u, threshold); }
    INLINE Pair reset(Pair u) const { return both(after, u, fired(u), threshold); }
};

// A group of a neuron layer. LINE: y = scale·x + shift, else y = x.
template <bool FULL, bool LINE> struct Layer : Reach<FULL> {
    const Arguments& a;
    const ELEMENT* const x;
    const i64 x_step;
    const A *const rest_v, *const scales, *const shifts;
    const bool per_step, varied;  // varied: from block to block coefficients are others
    Given<LINE> given{};
    Pair alpha{};

    Layer(const Shape& s, const Arguments& a, const Group& group)
        : Reach<FULL>(s, group), a(a), x(a.x), x_step(a.x_step), rest_v(a.v), scales(a.scale), shifts(a.shift), per_step(a.S > 1),
          varied(this->lined && a.count[0] * a.count[1] * a.count[2] * a.count[3] > 1) {}
    INLINE void enter(bool first) {
        Reach<FULL>::enter();
        if (!first && !this->lined) return;
        if (first || varied) {
            given.decay = this->spread(a.coefficient[0], a.count[0]);
            given.gain = this->spread(a.coefficient[1], a.count[1]);
            given.threshold = this->spread(a.coefficient[2], a.count[2]);
            alpha = this->spread(a.coefficient[3], a.count[3]);
        }
        if (LINE) line(given, 0);
    }
    INLINE void line(Given<LINE>& to, i64 t) const {
        to.scale = this->of_step(scales, t);
        to.shift = this->of_step(shifts, t);
    }
    INLINE Pair input(i64 t) const { return this->get(x + t * x_step); }
    INLINE Pair rest() const { return rest_v ? this->get(rest_v) : Pair{}; }
};

// PACKED: spikes are wanted as bits, in the order of memory; there are blocks of 32 elements only.
template <bool LINE, bool PACKED>
void forward(const Arguments& a, ELEMENT* spikes, uint32_t* packed, A* v_last, const Shape& s, int threads) {
    const Groups groups(s);
    in_parallel(groups.units(), threads, [&](int, i64 begin, i64 end) {
        ELEMENT* const out = spikes;
        uint32_t* const words = packed;
        A* const last = v_last;
        const i64 T = s.T;
        const bool past = out && out != a.x && s.past(out);
        through(groups, begin, end, [=, &a, &s](const Group& group, auto full) {
            Layer<full.value, LINE> b(s, a, group);
            for (i64 block = 0; block < group.blocks; block++) {
                b.enter(block == 0);
                Given<LINE> given = b.given;
                Pair v = b.rest();
                for (i64 t = 0; t < T; t++) {
                    if (LINE && b.per_step) b.line(given, t);
                    b.fetch(b.x + t * b.x_step);
                    const Pair u = given.potential(b.input(t), v);
                    const Two<Lanes> fired = given.fired(u);
                    if (PACKED)
                        words[(t * b.step + b.at) / 32] = bits(fired);
                    else
                        b.put_spikes(fired, out + t * b.step, past);
                    v = both(after, u, fired, given.threshold);
                }
                if (last) b.put(v, last);
            }
        });
        streamed();
    });
}

struct Back {
    const ELEMENT* grad_s;
    i64 grad_step;             // elements from one step of it to the next
    i64 width, factor, means;  // where it is by fewer pixels made of images so wide (channels last), means over factor × factor of theirs or
                               // every factor-th of every factor-th row; else 0
    const A *grad_v, *mean;    // grad_v: by the last potential, or null; mean: [S,C], for norm_sums
    const A* line[3];          // gx = line[0]·gy + line[1]·x + line[2], [S,C]; null: gx = gy
    ELEMENT* gx;               // null: sums only; with norm_sums gy, for through_norm; it may be x, of which it takes the place
    i64 gx_step;               // elements from one step of it to the next; where x is the same at every step there is one only
    A* gv;                     // by the first potential, or null
    double* coefficient_sums;  // [4,C] for decay, gain, threshold, alpha, or null
    double* norm_sums;         // [S,2,C]: Σgy and Σgy·(x − mean), or null

    struct Made {
        bool any;
        i64 at;
    };
    // Whether anything is made of the pixel of an element, and the way from this one's place in a step to that: the factor divides sides.
    Made made(i64 element, i64 channels) const {
        const i64 pixel = element / channels, row = pixel / width, column = pixel % width;
        return {means || (row % factor == 0 && column % factor == 0),
                (row / factor * (width / factor) + column / factor - pixel) * channels};
    }
};

struct Line {  // through a norm: scale·gy + slope·x + shift
    Pair scale, slope, shift;
    INLINE Pair operator()(Pair gy, Pair x) const { return fused(scale, gy, fused(slope, x, shift)); }
    template <class R> INLINE static Line of(const R& r, const A* const* lines, i64 t) {
        return {r.of_step(lines[0], t), r.of_step(lines[1], t), r.of_step(lines[2], t)};
    }
};

// What is asked for is a parameter of the template, so that what is not leaves no trace in the loops. With the norm's sums (NORMS), which
// gx needs first, it is gy that is written. FEWER: the gradient is by fewer pixels.
template <bool LINE, bool COEFFICIENTS, bool NORMS, bool FEWER> class Backward {
    const Shape& s;
    const Arguments& a;
    const Back to;
    const bool constant, past;
    Sums sums;
    std::vector<Pair> potentials;
    Back::Made made{true, 0};  // of this row's pixel

  public:
    Backward(const Shape& s, const Arguments& a, const Back& to)
        : s(s), a(a), to(to), constant(a.x_step == 0 && s.T > 1), past(to.gx && to.gx != a.x && !constant && s.past(to.gx)),
          sums(s, (COEFFICIENTS ? 4 : 0) + (NORMS ? int(2 * a.S) : 0)), potentials(s.T) {}

    std::vector<double> run(const Groups& groups, i64 begin, i64 end) {
        through(groups, begin, end, [&](const Group& group, auto full) {
            Layer<full.value, LINE> b(s, a, group);
            if (COEFFICIENTS || NORMS) sums.begins(group);
            Statistics found{};
            for (i64 block = 0; block < group.blocks; block++) {
                b.enter(block == 0);
                if (block == 0 || b.lined) statistics(b, 0, found);
                if (block == 0 || b.varied) found.slope = Slope(b.alpha);
                if (FEWER && (block == 0 || b.channel == 0)) made = to.made(b.at, s.C);
                one(b, found);
            }
        });
        sums.flush();
        streamed();
        return std::move(sums.total);
    }

  private:
    static const int FIRST = COEFFICIENTS ? 4 : 0;  // kind of the norm's first sum
    struct Statistics {
        Line line;
        Pair mean;
        Slope slope;
    };

    template <class B> INLINE void one(B& b, Statistics& found) {
        const i64 T = s.T;
        const Back to = this->to;
        Pair* const us = potentials.data();
        const ELEMENT* const grad_s = FEWER ? to.grad_s + made.at : to.grad_s;
        const bool any = !FEWER || made.any;
        const Pair share = twice(all(FEWER && to.means ? A(1) / A(to.factor * to.factor) : A(1)));
        Pair v = b.rest(), lam = to.grad_v ? b.get(to.grad_v) : Pair{}, whole{}, bias{}, weight{};
        Given<LINE> given = b.given;
        for (i64 t = 0; t < T; t++) {  // the potentials again
            if (LINE && b.per_step) b.line(given, t);
            b.fetch(b.x + t * b.x_step);
            b.fetch(grad_s + t * to.grad_step);
            const Pair u = us[t] = given.potential(b.input(t), v);
            v = given.reset(u);
        }
        for (i64 t = T - 1; t >= 0; t--) {
            const Pair u = us[t], x = u - given.threshold;
            const Two<Lanes> fired = given.fired(u);
            Pair e = any ? b.get(grad_s + t * to.grad_step) : Pair{};
            if (FEWER) e = e * share;
            if (!DETACH) e = e - (HARD ? lam * u : lam * given.threshold);
            const Pair slope = found.slope(x), gu = fused(e, slope, HARD ? choose(fired, Pair{}, lam) : lam), gy = given.gain * gu;
            if (COEFFICIENTS) {
                if (LINE && b.per_step) b.line(given, t);
                learn(b, given, t, gu, e, e * slope, x, lam, fired);
            }
            lam = THROUGH ? given.decay * gu : Pair{};
            if (b.per_step) statistics(b, t, found);
            if (NORMS) {
                const Pair apart = b.input(t) - found.mean;
                if (b.per_step) {
                    sums.add(int(FIRST + 2 * t), b.channel, b.zeros_behind(gy));
                    sums.add(int(FIRST + 2 * t + 1), b.channel, b.zeros_behind(gy * apart));
                } else {
                    bias = bias + gy, weight = fused(gy, apart, weight);
                }
                if (constant) whole = whole + gy;
                if (to.gx && !constant) b.put(gy, to.gx + t * to.gx_step, past);
                if (to.gx && constant && t == 0) b.put(whole, to.gx);
            } else if (!constant) {
                b.put(LINE ? found.line(rounded(gy), b.input(t)) : gy, to.gx + t * to.gx_step, past);  // rounded as what waits in gx is
            } else {
                whole = whole + (LINE && b.per_step ? found.line.scale * gy : gy);
                if (t > 0) continue;
                const Pair g = LINE && !b.per_step ? found.line.scale * whole : whole;
                b.put(LINE ? g + found.line.slope * b.input(t) + found.line.shift : g, to.gx, past);
            }
        }
        if (NORMS && !b.per_step) {
            sums.add(FIRST, b.channel, b.zeros_behind(bias));
            sums.add(FIRST + 1, b.channel, b.zeros_behind(weight));
        }
        if (to.gv) b.put(lam, to.gv);
    }

    template <class B> INLINE void statistics(const B& b, i64 t, Statistics& found) const {
        if (NORMS) found.mean = b.of_step(to.mean, t);
        if (!NORMS && LINE) found.line = Line::of(b, to.line, t);
    }

    template <class B> INLINE void learn(B& b, const Given<LINE>& given, i64 t, Pair gu, Pair e, Pair h, Pair x, Pair lam, Two<Lanes> fired) {
        Pair before = b.rest();
        if (t > 0) before = given.reset(potentials[t - 1]);
        const Pair reset = HARD ? Pair{} : choose(fired, lam, Pair{});
        sums.add(0, b.channel, b.zeros_behind(gu * before));
        sums.add(1, b.channel, b.zeros_behind(gu * given.current(b.input(t))));
        sums.add(2, b.channel, b.zeros_behind(-h - reset));
        sums.add(3, b.channel, b.zeros_behind(e * both(alpha_slope, x, b.alpha)));
    }
};

// gx, which holds gy, becomes line[0]·gy + line[1]·x + line[2], and `more` (or null) besides
template <bool MORE>
void through_norm(const ELEMENT* x, ELEMENT* gx, const ELEMENT* more, const A* const* line, i64 S, const Shape& s, int threads) {
    const Groups groups(s);
    in_parallel(groups.units(), threads, [&](int, i64 begin, i64 end) {
        through(groups, begin, end, [=, &s](const Group& group, auto full) {
            Reach<full.value> r(s, group);
            Line through{};
            for (i64 block = 0; block < group.blocks; block++) {
                r.enter();
                for (i64 t = 0; t < s.T; t++) {
                    if (S > 1 || (t == 0 && (block == 0 || r.lined))) through = Line::of(r, line, S > 1 ? t : 0);
                    r.fetch(gx + t * r.step);
                    r.fetch(x + t * r.step);
                    const Pair g = through(r.get(gx + t * r.step), r.get(x + t * r.step));
                    r.put(MORE ? g + r.get(more + t * r.step) : g, gx + t * r.step);
                }
            }
        });
    });
}

template <bool LINE, bool COEFFICIENTS, bool NORMS, bool FEWER = false> void backward(const Arguments& a, const Back& to, const Shape& s, int threads) {
    const Groups groups(s);
    std::vector<std::vector<double>> parts(portions(groups.units(), threads));
    in_parallel(groups.units(), threads, [&](int portion, i64 begin, i64 end) {
        parts[portion] = Backward<LINE, COEFFICIENTS, NORMS, FEWER>(s, a, to).run(groups, begin, end);
    });
    const size_t coefficients = COEFFICIENTS ? 4 * s.C : 0, norms = NORMS ? 2 * a.S * s.C : 0;
    std::vector<double> all(coefficients + norms);
    add_up(parts, all.size(), all.data());
    if (COEFFICIENTS) std::copy(all.begin(), all.begin() + coefficients, to.coefficient_sums);
    if (NORMS) std::copy(all.begin() + coefficients, all.end(), to.norm_sums);
}

}  // namespace

extern "C" {

// Mean and biased variance by channel, [S,C/rows], of each step by itself (S = T) or of all (S = 1). rows: as in native.py.
void spike_moments(const ELEMENT* x, double* mean, double* var, int per_step, i64 rows, i64 T, i64 P, i64 C, i64 Q, int threads) {
    const Shape s{T, P, C, Q};
    const i64 channels = C / rows, last = (C + BLOCK - 1) / BLOCK * BLOCK;
    std::vector<A> origin(last);  // near the values, so that no digits are lost in the squares
    for (i64 c = 0; c < C; c++) {
        const ELEMENT* const from = x + c * Q;
        A first;
        if constexpr (sizeof(ELEMENT) == 2) {
            const uint32_t word = uint32_t(reinterpret_cast<const uint16_t&>(*from)) << 16;
            std::memcpy(&first, &word, sizeof(word));
        } else {
            std::memcpy(&first, from, sizeof(first));
        }
        origin[c] = first;
    }
    std::vector<double> sums(2 * C);
    const i64 steps = per_step ? 1 : T;
    const double n = double(P * Q * steps), share = 1.0 / double(rows);
    for (i64 t = 0; t < T; t += steps) {
        moments(x, origin.data(), sums.data(), t, t + steps, s, threads);
        for (i64 c = 0; c < channels; c++) {
            double all = 0, around = 0;
            for (i64 row = c; row < C; row += channels) all += origin[row] + sums[row] / n;
            all *= share;
            for (i64 row = c; row < C; row += channels) {
                const double far = sums[row] / n, apart = origin[row] + far - all;
                around += std::max(sums[C + row] / n - far * far, 0.0) + apart * apart;
            }
            mean[c] = all, var[c] = around * share;
        }
        mean += channels, var += channels;
    }
}

// A batch norm by these statistics [means,C] as scale and shift, and its mean and rstd, [S,C] each, S the larger of means and weights: of
// weight and bias there are [weights,C]. running, spread: running statistics [C] that are updated, or null; unbias: n/(n − 1).
void spike_affine(const double* mean, const double* var, const A* weight, const A* bias, double eps, A* four, i64 means, i64 weights, i64 C,
                  A* running, A* spread, i64* updates, double momentum, double unbias) {
    const i64 S = std::max(means, weights);
    for (i64 s = 0; s < S; s++)
        for (i64 c = 0; c < C; c++) {
            const i64 found = (means > 1 ? s * C : 0) + c, row = (weights > 1 ? s * C : 0) + c;
            const double rstd = 1 / std::sqrt(var[found] + eps), scale = weight[row] * rstd;
            A* const to = four + s * C + c;
            to[0] = A(scale), to[S * C] = A(bias[row] - mean[found] * scale), to[2 * S * C] = A(mean[found]), to[3 * S * C] = A(rstd);
        }
    if (updates) ++*updates;
    const auto toward = [m = A(momentum)](A from, A to) { return m < A(0.5) ? from + m * (to - from) : to - (to - from) * (1 - m); };
    for (i64 i = 0; running && i < means * C; i++) {
        const i64 c = i % C;
        running[c] = toward(running[c], A(mean[i])), spread[c] = toward(spread[c], A(var[i] * unbias));
    }
}

// The gradients by a norm's bias and weight, [2,S,C], twice, of Σgy and Σgy·(x − mean) [S,2,rows·C].
void spike_norm_sums(const double* sums, const A* rstd, double* exact, A* found, i64 rows, i64 S, i64 C) {
    for (i64 s = 0; s < S; s++, sums += 2 * rows * C)
        for (i64 c = 0; c < C; c++) {
            const i64 at = s * C + c;
            double bias = 0, weight = 0;
            for (i64 row = 0; row < rows; row++) bias += sums[row * C + c], weight += sums[(rows + row) * C + c];
            weight *= rstd[at];
            exact[at] = bias, exact[S * C + at] = weight;
            found[at] = A(bias), found[S * C + at] = A(weight);
        }
}

// scale, slope and shift [S,rows·C] each of gx = scale·gy + slope·x + shift, of Σgy and Σgy·x̂ over n values: exact, [2,S,C]. shared: there
// is [2,1,C] for all S, and through is the norm's without its weight.
void spike_norm_line(const double* exact, double n, const A* scale, const A* through, const A* mean, const A* rstd, A* line, int shared,
                     i64 rows, i64 S, i64 C) {
    for (i64 s = 0; s < S; s++)
        for (i64 c = 0; c < C; c++) {
            const i64 at = s * C + c, sum = shared ? c : at, sums = shared ? C : S * C;
            const double slope = -double(through[at] * rstd[at]) * (exact[sums + sum] / n);
            const double shift = -double(through[at]) * (exact[sum] / n) - slope * double(mean[at]);
            for (i64 row = 0; row < rows; row++) {
                A* const to = line + (s * rows + row) * C + c;
                to[0] = scale[at], to[S * rows * C] = A(slope), to[2 * S * rows * C] = A(shift);
            }
        }
}

// spikes or bits is null
void spike_forward(const Arguments* a, ELEMENT* spikes, uint32_t* bits, A* v_last, i64 T, i64 P, i64 C, i64 Q, int threads) {
    const auto run = a->scale ? (bits ? forward<true, true> : forward<true, false>) : (bits ? forward<false, true> : forward<false, false>);
    run(*a, spikes, bits, v_last, Shape{T, P, C, Q}, threads);
}

void spike_backward(const Arguments* a, const Back* to, i64 T, i64 P, i64 C, i64 Q, int threads) {
    const bool learned = to->coefficient_sums;
    auto run = to->norm_sums ? (learned ? backward<true, true, true> : backward<true, false, true>)
               : a->scale    ? (learned ? backward<true, true, false> : backward<true, false, false>)
                             : (learned ? backward<false, true, false> : backward<false, false, false>);
    if (to->width)
        run = to->norm_sums ? (learned ? backward<true, true, true, true> : backward<true, false, true, true>)
              : a->scale    ? (learned ? backward<true, true, false, true> : backward<true, false, false, true>)
                            : (learned ? backward<false, true, false, true> : backward<false, false, false, true>);
    run(*a, *to, Shape{T, P, C, Q}, threads);
}

void spike_through_norm(const ELEMENT* x, ELEMENT* gx, const ELEMENT* more, const A* scale, const A* slope, const A* shift, i64 S, i64 T,
                        i64 P, i64 C, i64 Q, int threads) {
    const i64 step = P * C * Q, few = 4;  // steps at a time: they often lie in the same sets of the caches, which hold eight lines
    for (i64 t = 0; t < T; t += few) {
        const i64 at = S > 1 ? t * C : 0;
        const A* const line[3] = {scale + at, slope + at, shift + at};
        const Shape some{std::min(few, T - t), P, C, Q};
        if (more)
            through_norm<true>(x + t * step, gx + t * step, more + t * step, line, S, some, threads);
        else
            through_norm<false>(x + t * step, gx + t * step, nullptr, line, S, some, threads);
    }
}

// Sum of T steps of n elements, `apart` elements from one to the next.
void spike_over_steps(const ELEMENT* x, i64 apart, ELEMENT* sum, i64 T, i64 n, int threads) {
    const Shape s{T, 1, 1, n};
    const Groups groups(s);
    in_parallel(groups.units(), threads, [&](int, i64 begin, i64 end) {
        through(groups, begin, end, [=, &s](const Group& group, auto full) {
            Reach<full.value> r(s, group);
            for (i64 block = 0; block < group.blocks; block++) {
                r.enter();
                Pair total{};
                for (i64 t = 0; t < T; t++) {
                    r.fetch(x + t * apart);
                    total = total + r.get(x + t * apart);
                }
                r.put(total, sum);
            }
        });
    });
}

// bit i of byte j is the spike 8j + i
void spike_pack(const ELEMENT* spikes, uint8_t* bits, i64 n, int threads) {
    in_parallel((n + 7) / 8, threads, [&](int, i64 begin, i64 end) {
        for (i64 i = begin; i < end; i++) {
            uint8_t byte = 0;
            const int most = int(std::min<i64>(8, n - 8 * i));
            for (int k = 0; k < most; k++) {
                ELEMENT none{};
                byte |= uint8_t(std::memcmp(&spikes[8 * i + k], &none, sizeof(ELEMENT)) != 0) << k;
            }
            bits[i] = byte;
        }
    });
}

i64 spike_count(const uint8_t* bits, i64 n, int threads) {
    std::atomic<i64> count{0};
    in_parallel((n + 7) / 8, threads, [&](int, i64 begin, i64 end) {
        i64 found = 0;
        for (; begin % 8 && begin < end; begin++) found += __builtin_popcount(bits[begin]);
        for (; begin + 8 <= end; begin += 8) {
            uint64_t eight;
            std::memcpy(&eight, bits + begin, 8);
            found += __builtin_popcountll(eight);
        }
        for (; begin < end; begin++) found += __builtin_popcount(bits[begin]);
        count += found;
    });
    return count;
}

void spike_unpack(const uint8_t* bits, ELEMENT* spikes, i64 n, int threads) {
    ELEMENT of_byte[256][8] = {}, ones[L];
    store(all(1), ones);
    for (int byte = 0; byte < 256; byte++)
        for (int k = 0; k < 8; k++)
            if ((byte >> k) & 1) of_byte[byte][k] = ones[0];
    in_parallel((n + 7) / 8, threads, [&](int, i64 begin, i64 end) {
        for (i64 i = begin; i < end; i++) std::memcpy(spikes + 8 * i, of_byte[bits[i]], sizeof(ELEMENT) * std::min<i64>(8, n - 8 * i));
    });
}
}
