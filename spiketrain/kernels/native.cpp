// The leaky scan on the processor: see spiketrain/kernels/leaky.py for the equations and native.py for the arguments.
//
// Compiled once for each rule and dtype: SURROGATE (its number in native.py), HARD, DETACH, STRICT, THROUGH and ELEMENT are macros.
// Tensors are [T,P,C,Q]. A "row" is what lies contiguous in memory: C channels where Q = 1, else the Q places of one channel.
// A row is cut into blocks of K vectors; a block goes through all T steps while its potentials and gradients are in registers.
// Blocks are dealt to the threads in fixed portions, so that sums are added in the same order each time.
// Built without contraction: u = decay*v + gain*y is rounded twice, as plain torch does it; else spikes would differ from it.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#include <omp.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

typedef int64_t i64;
const int K = 2;  // vectors of a block: two chains of operations hide each other's latency

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
typedef Vector<A>::mask Mask;
const int L = Vector<A>::lanes, BLOCK = K * L;

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
    Half x;
    std::memcpy(&x, from, sizeof(Half));
    return (V)(__builtin_convertvector(x, Word) << 16);
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

inline V rounded(V x) {  // as a result is
    ELEMENT narrow[L];
    store(x, narrow);
    return load(narrow);
}

inline V absolute(V x) { return x < 0 ? -x : x; }

inline V inverse(V x) {  // 1/x; with an approximation and one step of Newton's, within a rounding or two, it is twice as fast
#if defined(__AVX512F__)
    if (sizeof(A) == 4) {
        const V y = (V)_mm512_rcp14_ps((__m512)x);
        return y * (2 - x * y);
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

// slope of the surrogate at x = u - threshold, and the derivative by alpha of its primitive (functional.SURROGATES)
inline V slope(V x, V a) {
#if SURROGATE == 0  // atan
    const V y = A(M_PI / 2) * a * x;
    return A(0.5) * a * inverse(1 + y * y);
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

inline Mask fires(V u, V threshold) { return STRICT ? u - threshold > 0 : u - threshold >= 0; }
inline V after(V u, Mask fired, V threshold) { return HARD ? (fired ? V{} : u) : (fired ? u - threshold : u); }

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
    std::vector<A> part;

  public:
    std::vector<double> total;
    Sums(const Shape& shape, int kinds) : s(shape), kinds(kinds), part(kinds * width(), A(0)), total(kinds * shape.C, 0.0) {}
    i64 width() const { return s.Q == 1 ? (s.C + BLOCK - 1) / BLOCK * BLOCK : BLOCK; }
    void add(int kind, i64 channel, int k, V x) {  // lanes behind the end of a row are zero
        A* to = part.data() + kind * width() + (s.Q == 1 ? channel : 0) + k * L;
        store(load(to) + x, to);
    }
    void begins(const Group& group) {
        if (filled > 2048 || (s.Q > 1 && group.channel != channel)) flush();
        channel = group.channel;
        filled += int(group.blocks);
    }
    void flush() {
        for (int kind = 0; kind < kinds; kind++) {
            const A* from = part.data() + kind * width();
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

template <class F> void in_parallel(i64 units, int threads, F work) {
    threads = int(std::max<i64>(1, std::min<i64>(threads, units)));
#pragma omp parallel num_threads(threads)
    {
        const i64 me = omp_get_thread_num(), all = omp_get_num_threads();
        work(int(me), units * me / all, units * (me + 1) / all);
    }
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

// A group and how to reach what belongs to its blocks; `enter` goes to one of them. FULL: they have BLOCK elements.
template <bool FULL> struct Reach {
    const Group group;
    const i64 channels, step;
    const bool lined;  // channels lie side by side: a vector has a value for each of its lanes
    i64 at, channel;   // of the block that was entered

    Reach(const Shape& s, const Group& group)
        : group(group), channels(s.C), step(s.step()), lined(s.Q == 1), at(group.at - BLOCK), channel(group.channel - BLOCK) {}
    void enter() {
        at += BLOCK;
        channel = !lined ? group.channel : channel + BLOCK >= channels ? 0 : channel + BLOCK;
    }
    int left(int k) const { return group.length - k * L; }
    template <class E> V get(const E* from, int k) const { return load<FULL>(from + at + k * L, left(k)); }
    template <class E> void put(V x, E* to, int k) const { store<FULL>(x, to + at + k * L, left(k)); }
    template <class E> void put(V x, E* to, int k, bool past) const {
        if (FULL && past) return stream(x, to + at + k * L);
        put(x, to, k);
    }
    V zeros_behind(V x, int k) const { return within<FULL>(x, left(k)); }
    // one value a channel (count = C) or one for all (count = 1)
    V spread(const A* from, i64 count, int k) const {
        if (count == 1) return all(from[0]);
        return lined ? load<FULL>(from + channel + k * L, left(k)) : all(from[channel]);
    }
    V of_step(const A* from, i64 t, int k) const { return spread(from + t * channels, channels == 1 ? 1 : channels, k); }
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
    std::vector<std::vector<double>> parts(threads);
    in_parallel(groups.units(), threads, [&](int me, i64 begin, i64 end) {
        Sums sums(s, 2);
        through(groups, begin, end, [=, &s, &sums](const Group& group, auto full) {
            Reach<full.value> r(s, group);
            V middle[K], one[K] = {}, two[K] = {};
            sums.begins(group);
            for (i64 block = 0; block < group.blocks; block++) {
                r.enter();
                if (block == 0 || r.lined)
                    for (int k = 0; k < K; k++) middle[k] = r.of_step(origin, 0, k);
                for (i64 t = first; t < last; t++) {
#pragma GCC unroll 2
                    for (int k = 0; k < K; k++) {
                        const V d = r.get(x + t * r.step, k) - middle[k];
                        one[k] += d;
                        two[k] += d * d;
                    }
                }
                if (!r.lined && block + 1 < group.blocks) continue;
                for (int k = 0; k < K; k++) {
                    sums.add(0, r.channel, k, r.zeros_behind(one[k], k));
                    sums.add(1, r.channel, k, r.zeros_behind(two[k], k));
                    one[k] = two[k] = V{};
                }
            }
        });
        sums.flush();
        parts[me] = std::move(sums.total);
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

// A group of a neuron layer. LINE: y = scale·x + shift, else y = x.
template <bool FULL, bool LINE> struct Layer : Reach<FULL> {
    const Arguments& a;
    const ELEMENT* const x;
    const i64 x_step;
    const A *const rest_v, *const scales, *const shifts;
    const bool per_step, same[4];  // same: a coefficient that all channels share
    V decay[K], gain[K], threshold[K], alpha[K], scale[K], shift[K];

    Layer(const Shape& s, const Arguments& a, const Group& group)
        : Reach<FULL>(s, group), a(a), x(a.x), x_step(a.x_step), rest_v(a.v), scales(a.scale), shifts(a.shift), per_step(a.S > 1),
          same{a.count[0] == 1, a.count[1] == 1, a.count[2] == 1, a.count[3] == 1} {}
    void enter(bool first) {
        Reach<FULL>::enter();
        if (!first && !this->lined) return;
#pragma GCC unroll 2
        for (int k = 0; k < K; k++) {
            if (first || !same[0]) decay[k] = this->spread(a.coefficient[0], a.count[0], k);
            if (first || !same[1]) gain[k] = this->spread(a.coefficient[1], a.count[1], k);
            if (first || !same[2]) threshold[k] = this->spread(a.coefficient[2], a.count[2], k);
            if (first || !same[3]) alpha[k] = this->spread(a.coefficient[3], a.count[3], k);
            if (LINE) line(0, k);
        }
    }
    void line(i64 t, int k) {
        scale[k] = this->of_step(scales, t, k);
        shift[k] = this->of_step(shifts, t, k);
    }
    V input(i64 t, int k) const { return this->get(x + t * x_step, k); }
    V current(i64 t, int k) {
        if (!LINE) return input(t, k);
        if (per_step) line(t, k);
        return scale[k] * input(t, k) + shift[k];
    }
    V rest(int k) const { return rest_v ? this->get(rest_v, k) : V{}; }
};

template <bool LINE> void forward(const Arguments& a, ELEMENT* spikes, A* v_last, const Shape& s, int threads) {
    const Groups groups(s);
    in_parallel(groups.units(), threads, [&](int, i64 begin, i64 end) {
        ELEMENT* const out = spikes;
        A* const last = v_last;
        const i64 T = s.T;
        const bool past = out != a.x && s.past(out);
        through(groups, begin, end, [=, &a, &s](const Group& group, auto full) {
            Layer<full.value, LINE> b(s, a, group);
            for (i64 block = 0; block < group.blocks; block++) {
                b.enter(block == 0);
                V v[K];
                for (int k = 0; k < K; k++) v[k] = b.rest(k);
                for (i64 t = 0; t < T; t++) {
#pragma GCC unroll 2
                    for (int k = 0; k < K; k++) {
                        const V u = b.decay[k] * v[k] + b.gain[k] * b.current(t, k);
                        const Mask fired = fires(u, b.threshold[k]);
                        b.put(fired ? all(1) : V{}, out + t * b.step, k, past);
                        v[k] = after(u, fired, b.threshold[k]);
                    }
                }
                if (last)
                    for (int k = 0; k < K; k++) b.put(v[k], last, k);
            }
        });
        streamed();
    });
}

struct Back {
    const ELEMENT* grad_s;
    const A *grad_v, *mean;    // grad_v: by the last potential, or null; mean: [S,C], for norm_sums
    const A* line[3];               // gx = line[0]·gy + line[1]·x + line[2], [S,C]; null: gx = gy
    ELEMENT* gx;                    // null: sums only; with norm_sums gy, for through_norm; it may be x, of which it takes the place
    A* gv;                     // by the first potential, or null
    double* coefficient_sums;  // [4,C] for decay, gain, threshold, alpha, or null
    double* norm_sums;         // [S,2,C]: Σgy and Σgy·(x − mean), or null
};

inline V through_line(V gy, V x, V scale, V slope, V shift) { return scale * gy + (slope * x + shift); }

// What is asked for is a parameter of the template, so that what is not leaves no trace in the loops.
template <bool LINE, bool COEFFICIENTS, bool NORMS> class Backward {
    static const bool WRITES = !NORMS;  // gx needs the norm's sums first: what is written with them is gy
    const Shape& s;
    const Arguments& a;
    const Back to;
    const bool constant, over, past;  // over: gx takes the place of x
    Sums sums;
    std::vector<V> potentials;

  public:
    Backward(const Shape& s, const Arguments& a, const Back& to)
        : s(s), a(a), to(to), constant(a.x_step == 0 && s.T > 1), over(to.gx == a.x), past(to.gx && !constant && !over && s.past(to.gx)),
          sums(s, (COEFFICIENTS ? 4 : 0) + (NORMS ? int(2 * a.S) : 0)), potentials(s.T * K) {}

    std::vector<double> run(const Groups& groups, i64 begin, i64 end) {
        through(groups, begin, end, [&](const Group& group, auto full) {
            Layer<full.value, LINE> b(s, a, group);
            if (COEFFICIENTS || NORMS) sums.begins(group);
            Line line;
            for (i64 block = 0; block < group.blocks; block++) {
                b.enter(block == 0);
                if (block == 0 || b.lined)
                    for (int k = 0; k < K; k++) statistics(b, 0, k, line);
                one(b, line);
            }
        });
        sums.flush();
        streamed();
        return std::move(sums.total);
    }

  private:
    static const int FIRST = COEFFICIENTS ? 4 : 0;  // kind of the norm's first sum
    struct Line {
        V factor[3][K], mean[K];
    };

    template <class B> void one(B& b, Line& line) {
        const i64 T = s.T;
        const Back to = this->to;
        V* const us = potentials.data();
        V v[K], lam[K], whole[K] = {}, bias[K] = {}, weight[K] = {};
        for (int k = 0; k < K; k++) v[k] = b.rest(k);
        for (i64 t = 0; t < T; t++) {  // the potentials again
#pragma GCC unroll 2
            for (int k = 0; k < K; k++) {
                const V u = b.decay[k] * v[k] + b.gain[k] * b.current(t, k);
                us[t * K + k] = u;
                v[k] = after(u, fires(u, b.threshold[k]), b.threshold[k]);
            }
        }
        for (int k = 0; k < K; k++) lam[k] = to.grad_v ? b.get(to.grad_v, k) : V{};
        for (i64 t = T - 1; t >= 0; t--) {
#pragma GCC unroll 2
            for (int k = 0; k < K; k++) {
                const V u = us[t * K + k], x = u - b.threshold[k];
                const Mask fired = fires(u, b.threshold[k]);
                V e = b.get(to.grad_s + t * b.step, k);
                if (!DETACH) e -= HARD ? lam[k] * u : lam[k] * b.threshold[k];
                const V h = e * slope(x, b.alpha[k]);
                const V gu = (HARD ? (fired ? V{} : lam[k]) : lam[k]) + h;
                const V gy = b.gain[k] * gu;
                if (COEFFICIENTS) learn(b, t, k, gu, e, h, x, lam[k], fired);
                lam[k] = THROUGH ? b.decay[k] * gu : V{};
                if (b.per_step) statistics(b, t, k, line);
                if (NORMS) {
                    const V apart = gy * (b.input(t, k) - line.mean[k]);
                    if (b.per_step) {
                        sums.add(int(FIRST + 2 * t), b.channel, k, b.zeros_behind(gy, k));
                        sums.add(int(FIRST + 2 * t + 1), b.channel, k, b.zeros_behind(apart, k));
                    } else {
                        bias[k] += gy, weight[k] += apart;
                    }
                    if (to.gx) b.put(gy, to.gx + t * b.step, k, past);
                }
                if (!WRITES) continue;
                V g = gy;
                if (constant) {
                    g = whole[k] += LINE && b.per_step ? line.factor[0][k] * gy : gy;
                    if (t > 0) continue;
                }
                if (LINE && over) {
                    g = through_line(rounded(gy), b.input(t, k), line.factor[0][k], line.factor[1][k], line.factor[2][k]);
                } else if (LINE) {
                    if (!(constant && b.per_step)) g = line.factor[0][k] * g;
                    g = g + line.factor[1][k] * b.input(t, k) + line.factor[2][k];
                }
                b.put(g, to.gx + (constant ? 0 : t * b.step), k, past);
            }
        }
        for (int k = 0; k < K; k++) {
            if (NORMS && !b.per_step) {
                sums.add(FIRST, b.channel, k, b.zeros_behind(bias[k], k));
                sums.add(FIRST + 1, b.channel, k, b.zeros_behind(weight[k], k));
            }
            if (to.gv) b.put(lam[k], to.gv, k);
        }
    }

    template <class B> void statistics(const B& b, i64 t, int k, Line& line) const {
        if (NORMS) line.mean[k] = b.of_step(to.mean, t, k);
        if (WRITES && LINE)
            for (int i = 0; i < 3; i++) line.factor[i][k] = b.of_step(to.line[i], t, k);
    }

    template <class B> void learn(B& b, i64 t, int k, V gu, V e, V h, V x, V lam, Mask fired) {
        V before = b.rest(k);
        if (t > 0) {
            const V u = potentials[(t - 1) * K + k];
            before = after(u, fires(u, b.threshold[k]), b.threshold[k]);
        }
        const V reset = HARD ? V{} : (fired ? lam : V{});
        const V terms[4] = {gu * before, gu * b.current(t, k), -h - reset, e * alpha_slope(x, b.alpha[k])};
        for (int i = 0; i < 4; i++) sums.add(i, b.channel, k, b.zeros_behind(terms[i], k));
    }
};

// gx, which holds gy, becomes line[0]·gy + line[1]·x + line[2]
void through_norm(const ELEMENT* x, ELEMENT* gx, const A* const* line, i64 S, const Shape& s, int threads) {
    const Groups groups(s);
    in_parallel(groups.units(), threads, [&](int, i64 begin, i64 end) {
        through(groups, begin, end, [=, &s](const Group& group, auto full) {
            Reach<full.value> r(s, group);
            V factor[3][K];
            for (i64 block = 0; block < group.blocks; block++) {
                r.enter();
                for (i64 t = 0; t < s.T; t++) {
                    if (S > 1 || (t == 0 && (block == 0 || r.lined)))
                        for (int k = 0; k < K; k++)
                            for (int i = 0; i < 3; i++) factor[i][k] = r.of_step(line[i], S > 1 ? t : 0, k);
#pragma GCC unroll 2
                    for (int k = 0; k < K; k++) {
                        const V gy = r.get(gx + t * r.step, k);
                        r.put(through_line(gy, r.get(x + t * r.step, k), factor[0][k], factor[1][k], factor[2][k]), gx + t * r.step, k);
                    }
                }
            }
        });
    });
}

template <bool LINE, bool COEFFICIENTS, bool NORMS> void backward(const Arguments& a, const Back& to, const Shape& s, int threads) {
    std::vector<std::vector<double>> parts(threads);
    const Groups groups(s);
    in_parallel(groups.units(), threads, [&](int me, i64 begin, i64 end) {
        parts[me] = Backward<LINE, COEFFICIENTS, NORMS>(s, a, to).run(groups, begin, end);
    });
    const size_t coefficients = COEFFICIENTS ? 4 * s.C : 0, norms = NORMS ? 2 * a.S * s.C : 0;
    std::vector<double> all(coefficients + norms);
    add_up(parts, all.size(), all.data());
    if (COEFFICIENTS) std::copy(all.begin(), all.begin() + coefficients, to.coefficient_sums);
    if (NORMS) std::copy(all.begin() + coefficients, all.end(), to.norm_sums);
}

}  // namespace

extern "C" {

// [T,2,C] of each step by itself, or [1,2,C]
void spike_moments(const ELEMENT* x, const A* origin, double* out, int per_step, i64 T, i64 P, i64 C, i64 Q, int threads) {
    const Shape s{T, P, C, Q};
    if (!per_step) return moments(x, origin, out, 0, T, s, threads);
    for (i64 t = 0; t < T; t++) moments(x, origin, out + t * 2 * C, t, t + 1, s, threads);
}

void spike_forward(const Arguments* a, ELEMENT* spikes, A* v_last, i64 T, i64 P, i64 C, i64 Q, int threads) {
    (a->scale ? forward<true> : forward<false>)(*a, spikes, v_last, Shape{T, P, C, Q}, threads);
}

void spike_backward(const Arguments* a, const Back* to, i64 T, i64 P, i64 C, i64 Q, int threads) {
    const bool learned = to->coefficient_sums;
    const auto run = to->norm_sums ? (learned ? backward<true, true, true> : backward<true, false, true>)
                     : a->scale    ? (learned ? backward<true, true, false> : backward<true, false, false>)
                                   : (learned ? backward<false, true, false> : backward<false, false, false>);
    run(*a, *to, Shape{T, P, C, Q}, threads);
}

void spike_through_norm(const ELEMENT* x, ELEMENT* gx, const A* scale, const A* slope, const A* shift, i64 S, i64 T, i64 P, i64 C, i64 Q,
                        int threads) {
    const A* const line[3] = {scale, slope, shift};
    through_norm(x, gx, line, S, Shape{T, P, C, Q}, threads);
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
