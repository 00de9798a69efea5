// What the C++ of convolutions shares: memory, and the transposition of vectors.

#ifndef SHARED_H
#define SHARED_H

#include <cstdint>
#include <cstdlib>
#include <memory>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef int64_t i64;

#define UNROLL _Pragma("GCC unroll 81")
#define INLINE __attribute__((always_inline)) inline

struct Free {
    void operator()(void* p) const { std::free(p); }
};
template <class T> using Buffer = std::unique_ptr<T[], Free>;
template <class T> Buffer<T> buffer(i64 n) {  // at a multiple of a page where it is large, else of a line of the cache
    const i64 bytes = n * sizeof(T), unit = bytes < 4096 ? 64 : 4096;
    T* const found = static_cast<T*>(std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit));
    if (!found) std::abort();
    return Buffer<T>(found);
}

#ifdef __AVX512F__
// Sixteen rows of sixteen values of 32 bits become columns.
INLINE void transpose(__m512i* a) {
    __m512i b[16];
    UNROLL for (int i = 0; i < 16; i += 2)
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    UNROLL for (int i = 0; i < 16; i += 4)
        UNROLL for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
            a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
        }
    // a[i + j] has in its quarters the columns j, 4 + j, 8 + j, 12 + j of rows i to i + 3
    UNROLL for (int j = 0; j < 4; j++) {
        const __m512i low = _mm512_shuffle_i32x4(a[j], a[4 + j], 0x88), high = _mm512_shuffle_i32x4(a[j], a[4 + j], 0xdd);
        const __m512i low2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0x88), high2 = _mm512_shuffle_i32x4(a[8 + j], a[12 + j], 0xdd);
        b[j] = _mm512_shuffle_i32x4(low, low2, 0x88), b[8 + j] = _mm512_shuffle_i32x4(low, low2, 0xdd);
        b[4 + j] = _mm512_shuffle_i32x4(high, high2, 0x88), b[12 + j] = _mm512_shuffle_i32x4(high, high2, 0xdd);
    }
    UNROLL for (int i = 0; i < 16; i++) a[i] = b[i];
}
#endif

#endif
