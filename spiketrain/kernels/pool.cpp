// Max-pooling of currents, p×p pixels without overlap and P channels, channels last, and means of spikes: see spiketrain/kernels/pool.py.
//
// x is [N,H,W,P,C] in memory, out and which are [N,⌊H/p⌋,⌊W/p⌋,C]. which: the first of a window's P·p² values that is its maximum, counted
// piece by piece and row by row. As torch has it, a NaN is larger than any number. ELEMENT is a macro: bf16, float or double.

#include <cstdint>
#include <cstring>

namespace {

typedef int64_t i64;

typedef uint16_t bf16;  // the upper half of a float

inline float wide(bf16 x) {
    const uint32_t word = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &word, sizeof(out));
    return out;
}
inline float wide(float x) { return x; }
inline double wide(double x) { return x; }

inline void set(float x, float* to) { *to = x; }
inline void set(float x, double* to) { *to = x; }
inline void set(float x, bf16* to) {  // which has all its digits
    uint32_t word;
    std::memcpy(&word, &x, sizeof(word));
    *to = uint16_t(word >> 16);
}

struct Sizes {
    i64 N, H, W, C, p, P;
    i64 rows() const { return N * (H / p); }  // of windows
    i64 columns() const { return W / p; }
    i64 wide() const { return P * C; }
    // first element of a row of windows, and of pixel k of its first window
    i64 out(i64 row) const { return row * columns() * C; }
    i64 in(i64 row, i64 k) const { return ((row / (H / p) * H + row % (H / p) * p + k / p) * W + k % p) * wide(); }
};

}  // namespace

extern "C" {

void pool_forward(const ELEMENT* x, ELEMENT* out, uint8_t* which, i64 N, i64 H, i64 W, i64 C, i64 p, i64 P, int threads) {
    const Sizes s{N, H, W, C, p, P};
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (i64 row = 0; row < s.rows(); row++) {
        for (i64 column = 0; column < s.columns(); column++) {
            ELEMENT* const best = out + s.out(row) + column * C;
            uint8_t* const at = which + s.out(row) + column * C;
            std::memcpy(best, x + s.in(row, 0) + column * p * s.wide(), C * sizeof(ELEMENT));
            std::memset(at, 0, C);
            for (i64 k = 1; k < P * p * p; k++) {
                const ELEMENT* const from = x + s.in(row, k % (p * p)) + column * p * s.wide() + k / (p * p) * C;
                const uint8_t here = uint8_t(k);
#pragma omp simd simdlen(32)
                for (i64 c = 0; c < C; c++) {
                    const auto value = wide(from[c]);
                    const bool larger = value > wide(best[c]) || value != value;
                    best[c] = larger ? from[c] : best[c];
                    at[c] = larger ? here : at[c];
                }
            }
        }
    }
}

void pool_backward(const ELEMENT* grad, const uint8_t* which, ELEMENT* gx, i64 N, i64 H, i64 W, i64 C, i64 p, i64 P, int threads) {
    const Sizes s{N, H, W, C, p, P};
    const i64 rest = (W - s.columns() * p) * s.wide(), below = (H - H / p * p) * W * s.wide();  // what no window has
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (i64 row = 0; row < s.rows(); row++) {
        for (i64 k = 0; k < p * p; k += p) {
            ELEMENT* const line = gx + s.in(row, k);
            for (i64 column = 0; column < s.columns(); column++) {
                const ELEMENT* const from = grad + s.out(row) + column * C;
                const uint8_t* const at = which + s.out(row) + column * C;
                for (i64 i = 0; i < p * P; i++) {
                    ELEMENT* const to = line + column * p * s.wide() + i * C;
                    const uint8_t here = uint8_t(i % P * p * p + k + i / P);
#pragma omp simd simdlen(32)
                    for (i64 c = 0; c < C; c++) to[c] = at[c] == here ? from[c] : ELEMENT(0);
                }
            }
            std::memset(line + s.columns() * p * s.wide(), 0, rest * sizeof(ELEMENT));
        }
        if (row % (H / p) == H / p - 1) std::memset(gx + s.in(row, 0) + p * W * s.wide(), 0, below * sizeof(ELEMENT));
    }
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
                const uint32_t word = bits[(s.in(row, k) + at / C * p * C + at % C) / 32];
#pragma omp simd
                for (int i = 0; i < 32; i++) count[i] += (word >> i) & 1;
            }
            ELEMENT* const to = out + s.out(row) + at;
#pragma omp simd
            for (int i = 0; i < 32; i++) set(float(count[i]) * share, to + i);
        }
}
}
