// A step of Muon for a weight, with the matrix unit of x86 processors (AMX): see spiketrain/kernels/muon.py for the equations and arguments.
//
// A matrix of bfloat16 is cut into squares of 32 rows and 32 columns, of rows of 64 bytes: two tiles that lie in one piece, and the squares
// of the same rows one behind the other. For the second factor of a product X·Xᵀ each tile is there a second time, turned: its pairs of
// columns as rows. What is not a multiple of 32 is filled up with zeros, which stay zeros.

#include <algorithm>
#include <cmath>
#include <omp.h>
#include <utility>
#include <vector>

#include "unit.h"

namespace {

const i64 SQUARE = 2 * TILE;
const i64 NEAR = 12;             // columns of squares that are made and multiplied before the next ones: they stay in the second cache
const i64 PARTS = 4;             // of the columns, with sums of their own, at most
const i64 VALUES = WIDE * WIDE;  // of a square

struct Matrix {
    i64 rows, columns;  // in squares
    char *values, *turned;
    i64 some;           // columns of which there are turned squares at a time
    i64 at(i64 row, i64 column) const { return (row * columns + column) * SQUARE; }
    char* square(i64 row, i64 column) const { return values + at(row, column); }
    char* other(i64 row, i64 column) const { return turned + (row * some + column % some) * SQUARE; }
    i64 bytes() const { return rows * columns * SQUARE; }

    void turn(i64 row, i64 column, i64 tile) const {
        const char* const from = square(row, column) + tile * TILE;
        char* const to = other(row, column) + tile * TILE;
        __m512i lines[16];
        UNROLL for (int i = 0; i < 16; i++) lines[i] = _mm512_load_si512(from + i * LINE);
        transpose(lines);
        UNROLL for (int i = 0; i < 16; i++) _mm512_store_si512(to + i * LINE, lines[i]);
    }
    void turn(i64 row, i64 column) const { turn(row, column, 0), turn(row, column, 1); }
};

INLINE __m512 lower(__m512i words) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(words)), 16); }
INLINE __m512 upper(__m512i words) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(words, 1)), 16); }
INLINE __m512i narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
INLINE __m512 rounded(__m512 x) { return lower(narrow(x, x)); }

// ---- symmetric matrices: of 32×32 blocks of float32 there are those on and below the diagonal, [i(i+1)/2 + j] ----

i64 triangle(i64 rows) { return rows * (rows + 1) / 2; }

// Of the columns `begin` to `end` - 1 of x: their part of the blocks of X·Xᵀ in rows `first` to `last` - 1 and columns from `left` to
// `right` - 1, the first part or added to those before. A tile of them holds 16 rows and columns.
void gram(const Matrix& x, i64 begin, i64 end, bool more, i64 first, i64 last, i64 left, i64 right, char* sums) {
    for (i64 i = first; i < last; i++)
        for (i64 j = left; j < std::min(right, i + 1); j++) {
            char* const to = sums + (triangle(i) + j) * BLOCK;
            more ? load<true>(to) : clear<true>();
            for (i64 column = begin; column < end; column++) {
                const char *const rows = x.square(i, column), *const others = x.other(j, column);
                multiply<true, false, true>(rows, rows + TILE, others, others + TILE);
            }
            store<true>(to);
        }
}

// A block as the square (i, j) of a symmetric matrix, and as the square (j, i).
void put(const float* block, const Matrix& to, i64 i, i64 j, bool turned) {
    const auto row = [](const float* from) { return _mm512_load_ps(from); };
    char* const here = to.square(i, j);
    for (i64 half = 0; half < 2; half++)
        for (i64 r = 0; r < ROWS; r++) {
            const float* const from = block + half * VALUES / 2 + r * ROWS;
            _mm512_store_si512(here + (half * ROWS + r) * LINE, narrow(row(from), row(from + VALUES / 4)));
        }
    if (turned) to.turn(i, j);
    if (i == j) return;
    char* const there = to.square(j, i);
    for (i64 half = 0; half < 2; half++) {
        __m512i low[16], high[16];
        UNROLL for (int r = 0; r < 16; r++) {
            low[r] = (__m512i)row(block + half * VALUES / 4 + r * ROWS);
            high[r] = (__m512i)row(block + (half + 2) * VALUES / 4 + r * ROWS);
        }
        transpose(low), transpose(high);
        UNROLL for (int r = 0; r < 16; r++)
            _mm512_store_si512(there + (half * ROWS + r) * LINE, narrow((__m512)low[r], (__m512)high[r]));
    }
    if (turned) to.turn(j, i);
}

// ---- a weight, its gradient and momentum: [rows,columns], no more rows than columns, of these strides, of which one is 1 ----

struct Weight {
    float* weight;
    const float* grad;
    float* momentum;
    i64 rows, columns, down, right;

    // Goes through a square; work(at, to, some): 16 places from `at` on in memory and in the square, or those of the mask.
    template <class F> void through(i64 i, i64 j, F work) const {
        const i64 first = i * WIDE, column = j * WIDE, many = std::min(WIDE, rows - first), wide = std::min(WIDE, columns - column);
        const i64 lines = right == 1 ? many : wide, length = right == 1 ? wide : many;
        for (i64 line = 0; line < lines; line++)
            for (i64 half = 0; half < length; half += ROWS) {
                const i64 at = right == 1 ? (first + line) * down + column + half : (column + line) * right + first + half;
                work(at, line * WIDE + half, lanes(length - half));
            }
    }
};

// A square of float32 [32,32]: lines as they lie in memory.
struct alignas(64) Square {
    float values[VALUES];
    void exchange() {  // of rows and columns
        for (i64 r = 0; r < WIDE; r++)
            for (i64 c = 0; c < r; c++) std::swap(values[r * WIDE + c], values[c * WIDE + r]);
    }
};

struct Step {
    float momentum, nesterov, decay, rate;
};

// Momenta a step later, and what is to be made orthogonal.
struct Update {
    const Weight& w;
    const __m512 rest, nesterov;
    __m512 squares{};  // summed

    Update(const Weight& w, const Step& step) : w(w), rest(_mm512_set1_ps(1 - step.momentum)), nesterov(_mm512_set1_ps(step.nesterov)) {}
    INLINE __m512 of(i64 at, __mmask16 some) {
        const __m512 g = _mm512_maskz_loadu_ps(some, w.grad + at), before = _mm512_maskz_loadu_ps(some, w.momentum + at);
        const __m512 m = before + rest * (g - before), u = m + nesterov * (g - m);
        _mm512_mask_storeu_ps(w.momentum + at, some, m);
        squares += u * u;
        return u;
    }
};

// Rows of squares of x; returns the sum of their squares. Memory is read line by line, where rows are lines.
double begin(const Weight& w, const Step& step, const Matrix& x, i64 i) {
    Update update(w, step);
    for (i64 r = 0; w.right == 1 && r < WIDE; r++) {
        const i64 row = i * WIDE + r, wide = row < w.rows ? w.columns : 0;
        for (i64 j = 0; j < x.columns; j++) {
            const __m512 low = update.of(row * w.down + j * WIDE, lanes(wide - j * WIDE));
            const __m512 high = update.of(row * w.down + j * WIDE + ROWS, lanes(wide - j * WIDE - ROWS));
            _mm512_store_si512(x.square(i, j) + r * LINE, narrow(low, high));
        }
    }
    for (i64 j = 0; w.right != 1 && j < x.columns; j++) {
        Square made{};
        w.through(i, j, [&](i64 at, i64 to, __mmask16 some) { _mm512_store_ps(made.values + to, update.of(at, some)); });
        made.exchange();
        for (i64 r = 0; r < WIDE; r++) {
            const float* const from = made.values + r * WIDE;
            _mm512_store_si512(x.square(i, j) + r * LINE, narrow(_mm512_load_ps(from), _mm512_load_ps(from + ROWS)));
        }
    }
    return _mm512_reduce_add_ps(update.squares);
}

void scale(const Matrix& x, i64 i, i64 j, float by) {
    const __m512 factor = _mm512_set1_ps(by);
    for (i64 r = 0; r < WIDE; r++) {
        char* const at = x.square(i, j) + r * LINE;
        const __m512i words = _mm512_load_si512(at);
        _mm512_store_si512(at, narrow(factor * lower(words), factor * upper(words)));
    }
}

// The weight a step later, where x is a square of what was made orthogonal.
void end(const Weight& w, const Step& step, Square& x, i64 i, i64 j) {
    if (w.right != 1) x.exchange();
    const __m512 kept = _mm512_set1_ps(step.decay), rate = _mm512_set1_ps(step.rate);
    w.through(i, j, [&](i64 at, i64 from, __mmask16 some) {
        const __m512 before = _mm512_maskz_loadu_ps(some, w.weight + at);
        __builtin_prefetch(w.weight + at + WIDE * w.right, 1);  // the next square's
        _mm512_mask_storeu_ps(w.weight + at, some, kept * before - rate * _mm512_load_ps(x.values + from));
    });
}

// A column of squares of X as second factor: pairs of its rows, [rows/32][2 tiles of columns][16 pairs][16 columns][2].
void pairs(const Matrix& x, i64 column, char* to) {
    alignas(64) uint16_t order[2][32];
    for (int i = 0; i < 32; i++) order[0][i] = uint16_t(i / 2 + i % 2 * 32), order[1][i] = uint16_t(order[0][i] + 16);
    const __m512i low = _mm512_load_si512(order[0]), high = _mm512_load_si512(order[1]);
    for (i64 i = 0; i < x.rows; i++, to += SQUARE) {
        const char* const from = x.square(i, column);
        for (i64 r = 0; r < ROWS; r++) {
            const __m512i a = _mm512_load_si512(from + 2 * r * LINE), b = _mm512_load_si512(from + (2 * r + 1) * LINE);
            _mm512_store_si512(to + r * LINE, _mm512_permutex2var_epi16(a, low, b));
            _mm512_store_si512(to + TILE + r * LINE, _mm512_permutex2var_epi16(a, high, b));
        }
    }
}

// Columns of squares of a·X + P·X, `first` to `behind` - 1, go to done(square's row, its column, row, columns 0 to 15, columns 16 to 31), row
// by row between the products of the next square, as the unit has not made a square when that begins.
template <class F> void apply(const Matrix& p, const Matrix& x, i64 first, i64 behind, float a, char* room, F done) {
    const i64 n = x.rows, due = (WIDE + n - 1) / n;  // due: rows after each product
    for (i64 column = first; column < behind; column++) pairs(x, column, room + (column - first) * n * SQUARE);
    alignas(64) float sums[2][VALUES];
    const __m512 factor = _mm512_set1_ps(a);
    i64 i = 0, column = 0, row = WIDE, turn = 0;  // of the square that is being written, and how many rows of it are
    const auto write = [&](i64 until) {
        const float* const made = sums[!turn];
        const char* const before = x.square(i, column);
        for (; row < std::min(until, WIDE); row++) {
            const float* const sum = made + row / ROWS * (VALUES / 2) + row % ROWS * ROWS;
            const __m512i words = _mm512_load_si512(before + row * LINE);
            __builtin_prefetch(before + (behind - first) * SQUARE + row * LINE);  // of the next columns
            done(i, column, row, factor * lower(words) + _mm512_load_ps(sum), factor * upper(words) + _mm512_load_ps(sum + VALUES / 4));
        }
    };
    for (i64 next = 0; next < n; next++)
        for (i64 there = first; there < behind; there++) {
            const char *const rows = p.square(next, 0), *const columns = room + (there - first) * n * SQUARE;
            clear<true>();
            for (i64 k = 0; k < n * SQUARE; k += SQUARE) {
                multiply<true, true>(rows + k, rows + k + TILE, columns + k, columns + k + TILE);
                write(row + due);
            }
            store<true>(reinterpret_cast<char*>(sums[turn]));
            written();
            i = next, column = there, row = 0, turn = !turn;
        }
    write(WIDE);
}

// Columns that are multiplied by P at a time: more than one where P does not stay in the second cache.
i64 few_of(i64 rows) { return rows > 16 ? 6 : 1; }
i64 parts_of(i64 columns) { return std::max<i64>(1, std::min(PARTS, columns / NEAR)); }

i64 bytes_of(i64 rows, i64 columns, int threads) {
    return SQUARE * rows * (columns + 3 * rows + threads * (few_of(rows) + NEAR)) + BLOCK * triangle(rows) * (parts_of(columns) + 1);
}

}  // namespace

extern "C" {

// Bytes of room that muon_step needs.
i64 muon_room(i64 rows, i64 columns, int threads) {
    return bytes_of(wides(std::min(rows, columns)), wides(std::max(rows, columns)), threads);
}

// weight, grad, buffer: [rows,columns], dense. coefficients: [iterations,3], of one iteration or more. room: so many bytes, at a multiple of 64.
void muon_step(float* weight, const float* grad, float* buffer, i64 rows, i64 columns, double momentum, int nesterov, double safety,
               double least, const double* coefficients, i64 iterations, double decay, double rate, char* room, int threads) {
    const bool tall = rows > columns;
    const Weight w{weight, grad, buffer, tall ? columns : rows, tall ? rows : columns, tall ? 1 : columns, tall ? columns : 1};
    const i64 n = wides(w.rows), m = wides(w.columns), blocks = triangle(n);
    const Matrix x{n, m, room, nullptr, NEAR};
    room += x.bytes();
    const Matrix a{n, n, room, room + n * n * SQUARE, n};
    room += 2 * a.bytes();
    const Matrix p{n, n, room, nullptr, 0};
    room += p.bytes();
    const i64 parts = parts_of(m), few = few_of(n);
    // A² is made in groups of so many rows and columns, which stay in the second cache
    const i64 side = std::max<i64>(2, std::min<i64>(8, n / 4)), groups = (n + side - 1) / side;
    char* const sums = room;
    room += parts * blocks * BLOCK;
    char* const squared = room;
    room += blocks * BLOCK;
    const Step step{float(momentum), nesterov ? float(1 - momentum) : 0.0f, float(decay), float(rate)};
    std::vector<double> lengths(n);
    float factor = 1;

#pragma omp parallel num_threads(threads)
    {
        const Unit unit;
        char* const mine = room + omp_get_thread_num() * n * (few + NEAR) * SQUARE;
        const Matrix here{n, m, x.values, mine + few * n * SQUARE, NEAR};
        // make(first, behind) makes columns of X. X·Xᵀ in so many parts, each by one thread, whatever others do: sums are the same each time
        const auto products = [=](auto make) {
#pragma omp for schedule(dynamic)
            for (i64 part = 0; part < parts; part++) {
                const i64 first = m * part / parts, last = m * (part + 1) / parts;
                for (i64 some = first; some < last; some += NEAR) {
                    const i64 behind = std::min(some + NEAR, last);
                    for (i64 column = some; column < behind; column += few) make(column, std::min(column + few, behind));
                    gram(here, some, behind, some > first, 0, n, 0, n, sums + part * blocks * BLOCK);
                }
            }
        };
        const auto each = [=](auto work) {  // work(block, i, j)
#pragma omp for schedule(dynamic)
            for (i64 k = 0; k < n * n; k++)
                if (k % n <= k / n) work(triangle(k / n) + k % n, k / n, k % n);
        };

#pragma omp for schedule(dynamic)
        for (i64 i = 0; i < n; i++) lengths[i] = begin(w, step, x, i);
#pragma omp single
        {
            double sum = 0;
            for (double length : lengths) sum += length;
            factor = float(1 / std::max(safety * std::sqrt(sum), least));
        }
        products([=](i64 first, i64 behind) {
            for (i64 column = first; column < behind; column++)
                for (i64 i = 0; i < n; i++) scale(here, i, column, factor), here.turn(i, column);
        });

        for (i64 k = 0; k < iterations; k++) {
            const float first = float(coefficients[3 * k]), second = float(coefficients[3 * k + 1]), third = float(coefficients[3 * k + 2]);
            each([=](i64 block, i64 i, i64 j) {
                float* const sum = reinterpret_cast<float*>(sums + block * BLOCK);
                for (i64 part = 1; part < parts; part++) {
                    const float* const more = reinterpret_cast<const float*>(sums + (part * blocks + block) * BLOCK);
                    for (i64 v = 0; v < VALUES; v++) sum[v] += more[v];
                }
                // that b·A + c·A² is one of the same A: the errors of both nearly cancel out
                for (i64 v = 0; v < VALUES; v += ROWS) _mm512_store_ps(sum + v, rounded(_mm512_load_ps(sum + v)));
                put(sum, a, i, j, true);
            });
#pragma omp for schedule(dynamic)
            for (i64 group = 0; group < groups * groups; group++) {
                const i64 i = group / groups * side, j = group % groups * side;
                gram(a, 0, n, false, i, std::min(i + side, n), j, std::min(j + side, n), squared);
            }
            each([=](i64 block, i64 i, i64 j) {
                const float* const once = reinterpret_cast<const float*>(sums + block * BLOCK);
                float* const sum = reinterpret_cast<float*>(squared + block * BLOCK);
                for (i64 v = 0; v < VALUES; v++) sum[v] = second * once[v] + third * sum[v];
                put(sum, p, i, j, false);
            });
            if (k < iterations - 1) {
                products([=](i64 begin, i64 behind) {
                    apply(p, x, begin, behind, first, mine, [=](i64 i, i64 column, i64 row, __m512 low, __m512 high) {
                        _mm512_store_si512(here.square(i, column) + row * LINE, narrow(low, high));
                        if (row % ROWS == ROWS - 1) here.turn(i, column, row / ROWS);
                    });
                });
                continue;
            }
#pragma omp for schedule(dynamic)
            for (i64 begin = 0; begin < m; begin += few) {
                Square made;
                apply(p, x, begin, std::min(begin + few, m), first, mine, [&](i64 i, i64 column, i64 row, __m512 low, __m512 high) {
                    _mm512_store_ps(made.values + row * WIDE, low), _mm512_store_ps(made.values + row * WIDE + ROWS, high);
                    if (row == WIDE - 1) end(w, step, made, i, column);
                });
            }
        }
    }
}
}
