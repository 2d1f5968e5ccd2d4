/* What decay does inside a chunk of W steps, G_i = g_1 + ... + g_i:

       scores(x, y)_ij = sum_d x_id y_jd e^{G_id - G_jd}   for j <= i
       start_i = e^{G_i},  end_j = e^{G_C - G_j},  keep = e^{G_C}

   Differences of G are never formed: each factor is a product of steps e^g, so that any g <= 0 is right, -inf too. */

#ifndef DECAY_H
#define DECAY_H

#include "vec.h"

enum { NONE, SCALAR, CHANNEL };

typedef struct {
    int kind;
    int64_t K;
    float *a, *start, *end; /* (W, K), or with one number per head (W) */
    float *keep;            /* (K), or NULL without decay */
    float *P;               /* (W, W): e^{G_i - G_j}, 0 above the diagonal; not for CHANNEL */
    float *M;               /* (W, W): the gradient of P, times P */
    float *dg;              /* (W, K) */
    float *turned;          /* (K, W) */
} decay;

#define DECAY_ROOM(K) (5 * W * (K) + (K) + 2 * W * W)

APART decay decay_room(const tensor *g, int64_t K, float **room) {
    decay d = {.kind = !g ? NONE : g->width == 1 ? SCALAR : CHANNEL, .K = K};
    d.a = take(room, W * K), d.start = take(room, W * K), d.end = take(room, W * K);
    d.dg = take(room, W * K), d.turned = take(room, W * K), d.keep = g ? take(room, K) : NULL;
    d.P = take(room, W * W), d.M = take(room, W * W);
    for (int i = 0; i < W; i++)
        for (int j = 0; j < W; j++) d.P[i * W + j] = j <= i;
    return d;
}

APART void decay_in(decay *d, const tensor *g, int64_t b, int64_t h, int64_t t, int64_t n) {
    if (d->kind == SCALAR) {
        float raw[W] = {0}, start = 1;
        for (int64_t i = 0; i < n; i++) row_in(raw + i, g->data, place(g, b, h, t + i), (int)g->bf16, 1, 1);
        put(d->a, vexp(get(raw)));
        vec row = all(0);
        for (int i = 0; i < W; i++) {
            row *= d->a[i];
            row[i] = 1;
            put(d->P + i * W, row);
            d->start[i] = start *= d->a[i];
        }
        put(d->end, row);
        for (int64_t k = 0; k < d->K; k++) d->keep[k] = start;
    } else if (d->kind == CHANNEL) {
        rows_in(d->a, d->K, g, b, h, t, n);
        for (int64_t k = 0; k < d->K; k += W) {
            vec start = all(1), end = all(1);
            for (int i = 0; i < W; i++) {
                float *a = d->a + i * d->K + k;
                put(a, vexp(get(a)));
                put(d->start + i * d->K + k, start *= get(a));
            }
            put(d->keep + k, start);
            for (int i = W - 1; i >= 0; i--) {
                put(d->end + i * d->K + k, end);
                end *= get(d->a + i * d->K + k);
            }
        }
    }
}

/* x (W, K) times `start` or `end`; x itself without decay. */
APART float *scaled(const decay *d, float *x, const float *factor, float *out) {
    if (d->kind == NONE) return x;
    for (int i = 0; i < W; i++)
        for (int64_t k = 0; k < d->K; k += W) {
            vec f = d->kind == SCALAR ? all(factor[i]) : get(factor + i * d->K + k);
            put(out + i * d->K + k, get(x + i * d->K + k) * f);
        }
    return out;
}

/* A (W, W); strict: without the diagonal. */
APART void scores(const decay *d, const float *x, const float *y, float *A, int strict) {
    int64_t K = d->K;
    if (d->kind != CHANNEL) {
        transpose(d->turned, y, W, K);
        product(W, W, K, x, K, 1, d->turned, A, (how){0});
        for (int i = 0; i < W; i++) {
            vec row = get(A + i * W) * get(d->P + i * W);
            if (strict) row[i] = 0;
            put(A + i * W, row);
        }
        return;
    }
    vec parts[W], turned[W];
    for (int j = 0; j < W; j++) {
        for (int i = 0; i < W; i++) parts[i] = all(0);
        for (int64_t k = 0; k < K; k += W) {
            vec w = get(y + j * K + k);
            if (!strict) parts[j] += w * get(x + j * K + k);
            for (int i = j + 1; i < W; i++) {
                w *= get(d->a + i * K + k);
                parts[i] += w * get(x + i * K + k);
            }
        }
        turned[j] = sums(parts);
    }
    transpose_block(A, W, (float *)turned, W);
}

/* dx and dy get the gradients of `scores` added, and d->M or d->dg that of g. Of dA, what `scores` makes zero is not
   looked at. */
APART void scores_grad(decay *d, float *dA, const float *A, const float *x, const float *y, float *dx, float *dy,
                        int strict) {
    int64_t K = d->K;
    if (d->kind != CHANNEL) {
        for (int i = 0; i < W; i++) {
            vec row = get(dA + i * W), m = row * get(A + i * W);
            row *= get(d->P + i * W);
            if (strict) row[i] = 0;
            put(dA + i * W, row);
            if (d->kind == SCALAR) put(d->M + i * W, get(d->M + i * W) + m);
        }
        product(W, K, W, dA, W, 1, y, dx, (how){.from = dx, .lower = 1});
        product(W, K, W, dA, 1, W, x, dy, (how){.from = dy});
        return;
    }
    for (int64_t k = 0; k < K; k += W)
        for (int j = 0; j < W; j++) {
            vec w[W], r = all(0);
            w[j] = get(y + j * K + k);
            for (int i = j + 1; i < W; i++) w[i] = w[i - 1] * get(d->a + i * K + k);
            for (int i = W - 1; i > j; i--) {
                int64_t at = i * K + k;
                float dA_ij = dA[i * W + j];
                r += get(x + at) * dA_ij;
                put(dx + at, get(dx + at) + w[i] * dA_ij);
                put(d->dg + at, get(d->dg + at) + w[i] * r);
                r *= get(d->a + at);
            }
            if (!strict) {
                r += get(x + j * K + k) * dA[j * W + j];
                put(dx + j * K + k, get(dx + j * K + k) + w[j] * dA[j * W + j]);
            }
            put(dy + j * K + k, get(dy + j * K + k) + r);
        }
}

INLINE void decay_grad_begin(decay *d) {
    memset(d->dg, 0, 4 * W * d->K);
    memset(d->M, 0, 4 * W * W);
}

/* Adds what the reads owe, dx from `start`: step i's read has seen all decays up to i. */
APART void read_grad(decay *d, const float *x, const float *dx) {
    for (int64_t k = 0; k < d->K; k += W) {
        vec later = all(0);
        for (int i = W - 1; i >= 0; i--) {
            int64_t at = i * d->K + k;
            later += get(x + at) * get(dx + at);
            put(d->dg + at, get(d->dg + at) + later);
        }
    }
}

/* What the writes owe, dy from `end`: step j's write will see those after j. And what the state owes: S and dS at the
   chunk's start and end, (V, K) both. */
APART void leave_grad(decay *d, const float *y, const float *dy, const float *S, const float *dS, int64_t V) {
    for (int64_t k = 0; k < d->K; k += W) {
        vec owed[4] = {all(0), all(0), all(0), all(0)};
        for (int64_t v = 0; v < V; v += 4)
            for (int i = 0; i < 4; i++) owed[i] += get(S + (v + i) * d->K + k) * get(dS + (v + i) * d->K + k);
        vec earlier = (owed[0] + owed[1] + owed[2] + owed[3]) * get(d->keep + k);
        for (int i = 0; i < W; i++) {
            int64_t at = i * d->K + k;
            put(d->dg + at, get(d->dg + at) + earlier);
            earlier += get(y + at) * get(dy + at);
        }
    }
}

APART void decay_out(decay *d, const tensor *dg, int64_t b, int64_t h, int64_t t, int64_t n) {
    if (d->kind == CHANNEL) rows_out(dg, b, h, t, n, d->dg, d->K);
    if (d->kind != SCALAR) return;
    float total[W];
    vec below = all(0); /* sum of M over rows from i on: pairs j < i <= row have the decay of step i between them */
    for (int i = W - 1; i >= 0; i--) {
        vec own = all(0), pairs;
        for (int64_t k = 0; k < d->K; k += W) own += get(d->dg + i * d->K + k);
        pairs = below += get(d->M + i * W);
        for (int j = i; j < W; j++) pairs[j] = 0;
        total[i] = sum(own + pairs);
    }
    rows_out(dg, b, h, t, n, total, 1);
}

#endif
