/* h_t = a_t h_{t-1} + b_t, real or complex, and its adjoint, in one pass each: memory is the limit.

   b, h and their gradients are dense (B, T, C); a and dh have strides a_b, a_t, and a_c of 0 or 1, in numbers. */

#include "vec.h"

typedef struct {
    const float *data;
    int64_t t, c;
} spread;

/* out = conj?(a) h + b for n numbers, a repeated where its step is 0. */
INLINE void step(int is_complex, int conjugate, float *restrict out, const float *restrict a, int64_t a_c,
                 const float *restrict h, const float *restrict b, int64_t b_c, int64_t n) {
    if (!is_complex) {
        for (int64_t i = 0; i < n; i++) out[i] = a[i * a_c] * h[i] + b[i * b_c];
        return;
    }
    float sign = conjugate ? -1.f : 1.f;
    for (int64_t i = 0; i < n; i++) {
        float re = a[2 * i * a_c], im = sign * a[2 * i * a_c + 1], x = h[2 * i], y = h[2 * i + 1];
        out[2 * i] = re * x - im * y + b[2 * i * b_c];
        out[2 * i + 1] = re * y + im * x + b[2 * i * b_c + 1];
    }
}

/* out = x conj(y) */
INLINE void times(int is_complex, float *restrict out, const float *restrict x, const float *restrict y, int64_t n) {
    if (!is_complex) {
        for (int64_t i = 0; i < n; i++) out[i] = x[i] * y[i];
        return;
    }
    for (int64_t i = 0; i < n; i++) {
        float a = x[2 * i], b = x[2 * i + 1], c = y[2 * i], d = y[2 * i + 1];
        out[2 * i] = a * c + b * d;
        out[2 * i + 1] = b * c - a * d;
    }
}

/* Constant strides let the compiler use vectors. */
INLINE void steps(int is_complex, int conjugate, float *out, const float *a, int64_t a_c, const float *h,
                  const float *b, int64_t b_c, int64_t n) {
    if (a_c && b_c) step(is_complex, conjugate, out, a, 1, h, b, 1, n);
    else if (a_c) step(is_complex, conjugate, out, a, 1, h, b, 0, n);
    else if (b_c) step(is_complex, conjugate, out, a, 0, h, b, 1, n);
    else step(is_complex, conjugate, out, a, 0, h, b, 0, n);
}

INLINE void forward(int z, int64_t T, int64_t C, spread a, const float *b, const float *state, float *h, int64_t n) {
    for (int64_t t = 0; t < T; t++)
        steps(z == 2, 0, h + z * t * C, a.data + z * t * a.t, a.c, t ? h + z * (t - 1) * C : state, b + z * t * C, 1, n);
}

/* db_t = dh_t + conj(a_{t+1}) db_{t+1},  da_t = db_t conj(h_{t-1}) */
INLINE void backward(int z, int64_t T, int64_t C, spread a, const float *h, const float *state, spread dh,
                     const float *dlast, float *da, float *db, float *dstate, int64_t n) {
    static const float one[2] = {1, 0}, nothing[2] = {0, 0};
    for (int64_t t = T - 1; t >= 0; t--) {
        const float *coming = dh.data + z * t * dh.t;
        if (t == T - 1) steps(z == 2, 0, db + z * t * C, one, 0, dlast, coming, dh.c, n);
        else steps(z == 2, 1, db + z * t * C, a.data + z * (t + 1) * a.t, a.c, db + z * (t + 1) * C, coming, dh.c, n);
        times(z == 2, da + z * t * C, db + z * t * C, t ? h + z * (t - 1) * C : state, n);
    }
    steps(z == 2, 1, dstate, a.data, a.c, db, nothing, 0, n);
}

/* Threads take rows, and ranges of channels. */
typedef struct {
    int64_t row, c, n;
} piece;

INLINE int64_t pieces(int64_t C, int64_t threads) { return threads > 1 ? least(8, (C + W - 1) / W) : 1; }

INLINE piece cut(int64_t i, int64_t pieces, int64_t C) {
    int64_t size = padded((C + pieces - 1) / pieces), c = i % pieces * size;
    return (piece){i / pieces, c, least(size, C - c)};
}

void scan_forward(int64_t z, int64_t B, int64_t T, int64_t C, const float *a, int64_t a_b, int64_t a_t, int64_t a_c,
                  const float *b, const float *state, float *h, float *last, int64_t threads) {
    int64_t many = pieces(C, threads);
#pragma omp parallel for if (threads > 1) num_threads(threads)
    for (int64_t i = 0; i < B * many; i++) {
        piece p = cut(i, many, C);
        if (p.n <= 0) continue;
        spread part = {a + z * (p.row * a_b + p.c * a_c), a_t, a_c};
        int64_t at = z * (p.row * T * C + p.c), first = z * (p.row * C + p.c);
        if (z == 1) forward(1, T, C, part, b + at, state + first, h + at, p.n);
        else forward(2, T, C, part, b + at, state + first, h + at, p.n);
        memcpy(last + first, h + at + z * (T - 1) * C, 4 * z * p.n);
    }
}

void scan_backward(int64_t z, int64_t B, int64_t T, int64_t C, const float *a, int64_t a_b, int64_t a_t, int64_t a_c,
                   const float *h, const float *state, const float *dh, int64_t dh_b, int64_t dh_t, int64_t dh_c,
                   const float *dlast, float *da, float *db, float *dstate, int64_t threads) {
    int64_t many = pieces(C, threads);
#pragma omp parallel for if (threads > 1) num_threads(threads)
    for (int64_t i = 0; i < B * many; i++) {
        piece p = cut(i, many, C);
        if (p.n <= 0) continue;
        spread part = {a + z * (p.row * a_b + p.c * a_c), a_t, a_c};
        spread coming = {dh + z * (p.row * dh_b + p.c * dh_c), dh_t, dh_c};
        int64_t at = z * (p.row * T * C + p.c), first = z * (p.row * C + p.c);
        if (z == 1)
            backward(1, T, C, part, h + at, state + first, coming, dlast + first, da + at, db + at, dstate + first, p.n);
        else
            backward(2, T, C, part, h + at, state + first, coming, dlast + first, da + at, db + at, dstate + first, p.n);
    }
}
