// The matrix unit of x86 processors (AMX): a tile is 16 rows of 64 bytes, and TDPBF16PS adds a product of tiles of bfloat16,
// [16,32]·[32,16], to a tile of float32. The second factor's rows hold pairs: its row i has its rows 2i and 2i + 1, column by column.
// Source: Intel, "Intel Architecture Instruction Set Extensions Programming Reference" (319433), chapter 3.

#ifndef UNIT_H
#define UNIT_H

#include <algorithm>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shared.h"

#if !defined(__AMX_BF16__) || !defined(__AVX512BF16__)
#error "a processor with AMX and AVX-512 is needed"
#endif

namespace {

typedef uint16_t bf16;

const i64 LINE = 64, TILE = 16 * LINE, BLOCK = 4 * TILE;  // bytes: of 32 values of bfloat16, of a tile, of a block of float32
const i64 ROWS = 16, WIDE = 32;                          // rows of a tile; values of bfloat16 in one of them

// The matrix unit of this thread, set to whole tiles. What it was set to before comes back at the end: other libraries rely on it.
class Unit {
    struct alignas(64) Setting {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t bytes[16] = {};
        uint8_t rows[16] = {};
    } before;

  public:
    Unit() {
        _tile_storeconfig(&before);
        Setting whole;
        for (int i = 0; i < 8; i++) whole.bytes[i] = LINE, whole.rows[i] = ROWS;
        __asm__ volatile("" : : "r"(&whole) : "memory");  // GCC knows of the first bytes only that they are read
        _tile_loadconfig(&whole);
    }
    ~Unit() {
        if (before.palette)
            _tile_loadconfig(&before);
        else
            _tile_release();
    }
    Unit(const Unit&) = delete;
};

// ---- a block of sums: tiles 0 to 3. Tiles 4 and 5 are rows, 6 and 7 columns ----

// GCC does not know that what loads a tile reads memory: what was written before a block begins has to be there.
INLINE void written() { __asm__ volatile("" : : : "memory"); }

template <bool BOTH> INLINE void clear() {
    written();
    _tile_zero(0); _tile_zero(1);
    if (BOTH) {
        _tile_zero(2); _tile_zero(3);
    }
}
template <bool BOTH> INLINE void load(const char* from) {
    written();
    _tile_loadd(0, from, LINE); _tile_loadd(1, from + TILE, LINE);
    if (BOTH) {
        _tile_loadd(2, from + 2 * TILE, LINE); _tile_loadd(3, from + 3 * TILE, LINE);
    }
}
template <bool BOTH> INLINE void store(char* to) {
    _tile_stored(0, to, LINE); _tile_stored(1, to + TILE, LINE);
    if (BOTH) {
        _tile_stored(2, to + 2 * TILE, LINE); _tile_stored(3, to + 3 * TILE, LINE);
    }
}
// passes: what is loaded is used once, and shall not take the place of what is to stay in the nearest cache.
#define TAKE(tile, passes, from)                 \
    if (passes)                                  \
        _tile_stream_loadd(tile, from, LINE);    \
    else                                         \
        _tile_loadd(tile, from, LINE)
// BOTH: there are rows of two tiles, not of one. ROWS_PASS, COLUMNS_PASS: as in TAKE.
template <bool BOTH, bool ROWS_PASS = false, bool COLUMNS_PASS = false>
INLINE void multiply(const char* rows, const char* more, const char* columns, const char* further) {
    TAKE(6, COLUMNS_PASS, columns);
    TAKE(4, ROWS_PASS, rows);
    _tile_dpbf16ps(0, 4, 6);
    TAKE(7, COLUMNS_PASS, further);
    _tile_dpbf16ps(1, 4, 7);
    if (!BOTH) return;
    TAKE(5, ROWS_PASS, more);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}
#undef TAKE

inline i64 wides(i64 n) { return (n + WIDE - 1) / WIDE; }  // so many times WIDE are n or more
INLINE __mmask16 lanes(i64 many) { return __mmask16((1u << std::max<i64>(0, std::min(ROWS, many))) - 1); }  // the first so many of sixteen
INLINE __m512i line(const bf16* from) { return _mm512_loadu_si512(from); }

}  // namespace

// Whether the system lets this process use the matrix unit.
extern "C" int amx_allowed() {
    const int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
}

#endif
