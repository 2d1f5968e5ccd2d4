/* What the kernels share: vectors of W floats, small matrix products, and rows that go in and out of them.

   Scratch matrices are dense rows of floats, a multiple of W wide and aligned to 64 bytes, zero where the caller's
   tensors end: kernels know no remainders. Callers' rows are float32 or bfloat16, dense, at any distance. */

#ifndef VEC_H
#define VEC_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef W /* floats in a vector, as many as a register has: compilers keep wider ones in memory */
#ifdef __AVX512F__
#define W 16
#else
#define W 8
#endif
#endif

typedef float vec __attribute__((vector_size(4 * W)));
typedef float loose __attribute__((vector_size(4 * W), aligned(4), may_alias)); /* at any address */
typedef int32_t ints __attribute__((vector_size(4 * W)));
typedef uint32_t patterns __attribute__((vector_size(4 * W))); /* of bits: they may wrap around */

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline, unused)) /* inlined everywhere, these would take a minute to compile */

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#endif
#endif
#ifndef SHUFFLE
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ints){__VA_ARGS__})
#endif

/* What takes turns from the first halves of two vectors, and from their second halves. */
#if W == 16
#define LOW(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define HIGH(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#else
#define LOW(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define HIGH(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#endif

INLINE vec all(float x) { return (vec){0} + x; }
INLINE vec get(const float *x) { return *(const loose *)x; }
INLINE void put(float *x, vec v) { *(loose *)x = v; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t padded(int64_t n) { return (n + W - 1) / W * W; }

INLINE float sum(vec v) {
    for (int half = W / 2; half; half /= 2)
        for (int i = 0; i < half; i++) v[i] += v[i + half];
    return v[0];
}

/* a where the comparison held, b elsewhere. */
INLINE vec where(ints held, vec a, vec b) {
    ints x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    x = (held & x) | (~held & y);
    memcpy(&a, &x, sizeof a);
    return a;
}

/* e^x to 2 units in the last place, for what is between the smallest and the largest float: else 0 and infinity. */
INLINE vec vexp(vec x) {
    const vec magic = all(12582912.f); /* 1.5 * 2^23: adding it rounds to an integer, which the low bits then are */
    vec shifted = x * 1.44269504088896341f + magic, n = shifted - magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f; /* ln 2 in two parts */
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + (r + 1.f);
    patterns bits, power;
    memcpy(&bits, &p, sizeof bits);
    memcpy(&power, &shifted, sizeof power);
    bits += power << 23; /* p 2^n */
    memcpy(&p, &bits, sizeof p);
    p = where(x < -87.f, all(0.f), p);
    return where(x > 88.f, all(__builtin_inff()), p);
}

/* Rows in and out. `wide` is the scratch's width, and beyond n and width it becomes zero. */

INLINE void row_in(float *to, const void *from, int64_t at, int bf16, int64_t width, int64_t wide) {
    if (bf16) {
        const uint16_t *x = (const uint16_t *)from + at;
        for (int64_t i = 0; i < width; i++) {
            uint32_t bits = (uint32_t)x[i] << 16;
            memcpy(to + i, &bits, 4);
        }
    } else {
        const float *x = (const float *)from + at;
        int64_t i = 0;
        for (; i + W <= width; i += W) put(to + i, get(x + i));
        for (; i < width; i++) to[i] = x[i];
    }
    for (int64_t i = width; i < wide; i++) to[i] = 0;
}

INLINE void row_out(void *to, int64_t at, int bf16, const float *from, int64_t width) {
    if (!bf16) {
        memcpy((float *)to + at, from, 4 * width);
        return;
    }
    uint16_t *x = (uint16_t *)to + at;
    for (int64_t i = 0; i < width; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        int odd = from[i] != from[i]; /* not a number: rounding could make it infinite */
        x[i] = odd ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

/* A caller's tensor (B, H / group, T, width): strides in numbers, and whether it is bfloat16. */
typedef struct {
    void *data;
    int64_t b, h, t, width, bf16, group;
} tensor;

INLINE int64_t place(const tensor *x, int64_t b, int64_t h, int64_t t) {
    return b * x->b + h / x->group * x->h + t * x->t;
}

APART void rows_in(float *to, int64_t wide, const tensor *x, int64_t b, int64_t h, int64_t t, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        row_in(to + i * wide, x->data, place(x, b, h, t + i), (int)x->bf16, x->width, wide);
    memset(to + n * wide, 0, 4 * (W - n) * wide);
}

APART void rows_out(const tensor *x, int64_t b, int64_t h, int64_t t, int64_t n, const float *from, int64_t wide) {
    for (int64_t i = 0; i < n; i++)
        row_out(x->data, place(x, b, h, t + i), (int)x->bf16, from + i * wide, x->width);
}

/* Dense (rows, columns) of the caller, into and out of a scratch matrix. */
APART void matrix_in(float *to, int64_t wide, int64_t high, const float *from, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) row_in(to + i * wide, from, i * columns, 0, columns, wide);
    memset(to + rows * wide, 0, 4 * (high - rows) * wide);
}

APART void matrix_out(float *to, const float *from, int64_t wide, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * columns, from + i * wide, 4 * columns);
}

/* The transpose of W x W: log2 W times, each vector takes every other one of a pair's numbers. */
APART void transpose_block(float *to, int64_t to_wide, const float *from, int64_t wide) {
    vec x[W], y[W];
    for (int i = 0; i < W; i++) x[i] = get(from + i * wide);
    for (int pass = 1; pass < W; pass *= 2) {
        for (int i = 0; i < W / 2; i++) {
            y[2 * i] = LOW(x[i], x[i + W / 2]);
            y[2 * i + 1] = HIGH(x[i], x[i + W / 2]);
        }
        memcpy(x, y, sizeof x);
    }
    for (int i = 0; i < W; i++) put(to + i * to_wide, x[i]);
}

/* from (rows, columns) -> to (columns, rows), both dense. */
APART void transpose(float *to, const float *from, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i += W)
        for (int64_t j = 0; j < columns; j += W)
            transpose_block(to + j * rows + i, rows, from + i * columns + j, columns);
}

/* The sums of W vectors, as one vector: halves are added, then quarters, and so on. */
INLINE vec sums(vec *x) {
#pragma GCC unroll 4
    for (int half = W / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; i++) x[i] = LOW(x[i], x[i + half]) + HIGH(x[i], x[i + half]);
    return x[0];
}

/* C (M, N) = keep * from + A B, in tiles that stay in registers. A's number (i, k) is at A[i * ai + k * ak], so that a
   transposed A costs nothing; from: NULL for zero, or (M, N), C itself perhaps; keep: NULL for one, or a number per
   row (by_row) or per column of C. lower: A's numbers above the diagonal are zero. minus: - A B. */
typedef struct {
    const float *from, *keep;
    int by_row, lower, minus;
} how;

INLINE void tile(int rows, int vectors, int64_t depth, const float *A, int64_t ai, int64_t ak, const float *B,
                 int64_t N, float *C, how way) {
    vec acc[16];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) {
            vec start = way.from ? get(way.from + i * N + j * W) : all(0);
            if (way.keep) start *= way.by_row ? all(way.keep[i]) : get(way.keep + j * W);
            acc[i * vectors + j] = way.minus ? -start : start;
        }
    for (int64_t k = 0; k < depth; k++) {
        vec b[4];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) b[j] = get(B + k * N + j * W);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vec a = all(A[i * ai + k * ak]);
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) acc[i * vectors + j] += a * b[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            put(C + i * N + j * W, way.minus ? -acc[i * vectors + j] : acc[i * vectors + j]);
}

INLINE void tiles(int rows, int vectors, int64_t M, int64_t K, const float *A, int64_t ai, int64_t ak, const float *B,
                  int64_t N, float *C, how way) {
    for (int64_t i = 0; i < M; i += rows) {
        how here = way;
        if (way.from) here.from = way.from + i * N;
        if (way.keep && way.by_row) here.keep = way.keep + i;
        tile(rows, vectors, way.lower ? least(K, i + rows) : K, A + i * ai, ai, ak, B, N, C + i * N, here);
    }
}

APART void product(int64_t M, int64_t N, int64_t K, const float *A, int64_t ai, int64_t ak, const float *B, float *C,
                   how way) {
    for (int64_t j = 0; j < N;) {
        how here = way;
        if (way.from) here.from = way.from + j;
        if (way.keep && !way.by_row) here.keep = way.keep + j;
        if (W == 16 && N - j >= 4 * W) {
            tiles(4, 4, M, K, A, ai, ak, B + j, N, C + j, here);
            j += 4 * W;
        } else if (W == 8 && (N - j == 3 * W || N - j >= 5 * W)) {
            tiles(4, 3, M, K, A, ai, ak, B + j, N, C + j, here);
            j += 3 * W;
        } else if (N - j >= 2 * W) {
            tiles(W / 2, 2, M, K, A, ai, ak, B + j, N, C + j, here);
            j += 2 * W;
        } else {
            tiles(W, 1, M, K, A, ai, ak, B + j, N, C + j, here);
            j += W;
        }
    }
}

INLINE float *take(float **room, int64_t n) {
    float *mine = *room;
    *room += n;
    return mine;
}

#endif
