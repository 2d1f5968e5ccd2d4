/* h_t = e^{dt_t A} h_{t-1} + (dt_t x_t) B_t^T,  y_t = h_t C_t + D x_t, with W channels in a vector.

   x, dt, y (B, T, D) and B, C (B, T, N) have strides; A is (N, D) here, and states are (B, N, D), both padded to whole
   vectors of channels, or more. States are written out once per SPAN tokens, and computed again between for the
   gradients, of which dB and dC need sums over channels: those stay vectors until all channels are in. */

#include "vec.h"

#define SPAN 32

/* One block of W channels over n tokens; `keep`: also e^{dt A} and h of every token, (n, N) vectors each. */
INLINE void walk(int64_t n, int64_t N, int64_t D, const vec *x, const vec *dt, const float *A, const float *B,
                 const float *C, vec *h, vec *y, vec *as, vec *hs, int keep) {
    for (int64_t t = 0; t < n; t++) {
        vec u = dt[t] * x[t], read = all(0);
        for (int64_t m = 0; m < N; m++) {
            vec a = vexp(dt[t] * get(A + m * D));
            h[m] = a * h[m] + u * B[t * N + m];
            if (keep) as[t * N + m] = a, hs[t * N + m] = h[m];
            else read += h[m] * C[t * N + m];
        }
        if (!keep) y[t] = read;
    }
}

INLINE void block_in(vec *to, const tensor *x, int64_t b, int64_t t, int64_t n, int64_t d) {
    int64_t width = least(W, x->width - d);
    for (int64_t i = 0; i < n; i++)
        row_in((float *)(to + i), x->data, b * x->b + (t + i) * x->t + d, (int)x->bf16, width, W);
}

INLINE void block_out(const tensor *x, int64_t b, int64_t t, int64_t n, int64_t d, const vec *from) {
    int64_t width = least(W, x->width - d);
    for (int64_t i = 0; i < n; i++)
        row_out(x->data, b * x->b + (t + i) * x->t + d, (int)x->bf16, (const float *)(from + i), width);
}

INLINE void small_in(float *to, const tensor *x, int64_t b, int64_t t, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        row_in(to + i * x->width, x->data, b * x->b + (t + i) * x->t, (int)x->bf16, x->width, x->width);
}

/* The first n of W numbers, and zeros. */
INLINE vec some(const float *x, int64_t n) {
    if (n == W) return get(x);
    vec v = all(0);
    memcpy(&v, x, 4 * n);
    return v;
}

/* Threads take rows and so many pieces of the channels; `room` numbers of scratch are each thread's piece's. */
void selective_scan_forward(int64_t batch, int64_t T, int64_t N, int64_t D, const tensor *x, const tensor *dt,
                            const float *A, const tensor *B, const tensor *C, const float *skip, float *state,
                            const tensor *y, float *starts, float *scratch, int64_t room, int64_t pieces,
                            int64_t threads) {
    int64_t blocks = (x->width + W - 1) / W, spans = (T + SPAN - 1) / SPAN;
#pragma omp parallel for if (threads > 1) num_threads(threads)
    for (int64_t i = 0; i < batch * pieces; i++) {
        int64_t b = i / pieces, from = blocks * (i % pieces) / pieces, to = blocks * (i % pieces + 1) / pieces;
        vec *h = (vec *)(scratch + i * room), *xs = h + N, *dts = xs + SPAN, *ys = dts + SPAN;
        float *Bs = (float *)(ys + SPAN), *Cs = Bs + SPAN * N;
        for (int64_t span = 0; span < spans; span++) {
            int64_t t = span * SPAN, n = least(SPAN, T - t);
            small_in(Bs, B, b, t, n);
            small_in(Cs, C, b, t, n);
            for (int64_t d = from * W; d < to * W; d += W) {
                float *S = state + b * N * D + d;
                for (int64_t m = 0; m < N; m++) h[m] = get(S + m * D);
                if (starts)
                    for (int64_t m = 0; m < N; m++) put(starts + ((b * spans + span) * N + m) * D + d, h[m]);
                block_in(xs, x, b, t, n, d);
                block_in(dts, dt, b, t, n, d);
                walk(n, N, D, xs, dts, A + d, Bs, Cs, h, ys, NULL, NULL, 0);
                for (int64_t j = 0; j < n; j++) ys[j] += xs[j] * get(skip + d);
                block_out(y, b, t, n, d, ys);
                for (int64_t m = 0; m < N; m++) put(S + m * D, h[m]);
            }
        }
    }
}

/* One token: x, dt, y (batch, D), B, C (batch, N), A (D, N), and states (batch, D, N) as the caller has them, dense
   float32. */
void selective_scan_step(int64_t batch, int64_t D, int64_t N, const float *x, const float *dt, const float *A,
                         const float *B, const float *C, const float *skip, const float *state, float *last, float *y) {
    for (int64_t i = 0; i < batch * D; i++) {
        vec read = all(0);
        for (int64_t m = 0; m < N; m += W) {
            int64_t at = i / D * N + m, n = least(W, N - m);
            vec h = some(state + i * N + m, n) * vexp(some(A + i % D * N + m, n) * dt[i]);
            h += some(B + at, n) * (dt[i] * x[i]);
            read += h * some(C + at, n);
            memcpy(last + i * N + m, &h, 4 * n);
        }
        y[i] = sum(read) + skip[i % D] * x[i];
    }
}

/* dstate holds the gradient of the last state and receives that of the first. dA (pieces..., N, D) and dskip are each
   piece's own sums; dB and dC are float32 (batch * pieces, T, N). */
void selective_scan_backward(int64_t batch, int64_t T, int64_t N, int64_t D, const tensor *x, const tensor *dt,
                             const float *A, const tensor *B, const tensor *C, const float *skip, const float *starts,
                             const tensor *dy, const tensor *dx, const tensor *ddt, float *dA, float *dB, float *dC,
                             float *dskip, float *dstate, float *scratch, int64_t room, int64_t pieces,
                             int64_t threads) {
    int64_t blocks = (x->width + W - 1) / W, spans = (T + SPAN - 1) / SPAN;
#pragma omp parallel for if (threads > 1) num_threads(threads)
    for (int64_t i = 0; i < batch * pieces; i++) {
        int64_t b = i / pieces, from = blocks * (i % pieces) / pieces, to = blocks * (i % pieces + 1) / pieces;
        vec *h = (vec *)(scratch + i * room), *xs = h + N, *dts = xs + SPAN, *dys = dts + SPAN;
        vec *dxs = dys + SPAN, *ddts = dxs + SPAN, *carry = ddts + SPAN, *first = carry + N;
        vec *as = first + N, *hs = as + SPAN * N, *dBs = hs + SPAN * N, *dCs = dBs + SPAN * N;
        float *Bs = (float *)(dCs + SPAN * N), *Cs = Bs + SPAN * N;
        for (int64_t span = spans - 1; span >= 0; span--) {
            int64_t t0 = span * SPAN, n = least(SPAN, T - t0);
            small_in(Bs, B, b, t0, n);
            small_in(Cs, C, b, t0, n);
            memset(dBs, 0, sizeof(vec) * n * N);
            memset(dCs, 0, sizeof(vec) * n * N);
            for (int64_t d = from * W; d < to * W; d += W) {
                float *dS = dstate + b * N * D + d, *dA_ = dA + b * N * D + d, *dD = dskip + b * D + d;
                for (int64_t m = 0; m < N; m++) {
                    h[m] = first[m] = get(starts + ((b * spans + span) * N + m) * D + d);
                    carry[m] = get(dS + m * D);
                }
                block_in(xs, x, b, t0, n, d);
                block_in(dts, dt, b, t0, n, d);
                block_in(dys, dy, b, t0, n, d);
                walk(n, N, D, xs, dts, A + d, Bs, Cs, h, NULL, as, hs, 1);
                for (int64_t t = n - 1; t >= 0; t--) {
                    vec u = dts[t] * xs[t], du = all(0), rate = all(0);
                    for (int64_t m = 0; m < N; m++) {
                        vec l = dys[t] * Cs[t * N + m] + carry[m], a = as[t * N + m];
                        vec r = l * a * (t ? hs[(t - 1) * N + m] : first[m]); /* the gradient of dt A */
                        carry[m] = l * a;
                        dCs[t * N + m] += dys[t] * hs[t * N + m];
                        dBs[t * N + m] += l * u;
                        du += l * Bs[t * N + m];
                        rate += r * get(A + m * D + d);
                        put(dA_ + m * D, get(dA_ + m * D) + r * dts[t]);
                    }
                    dxs[t] = du * dts[t] + dys[t] * get(skip + d);
                    ddts[t] = rate + du * xs[t];
                    put(dD, get(dD) + dys[t] * xs[t]);
                }
                block_out(dx, b, t0, n, d, dxs);
                block_out(ddt, b, t0, n, d, ddts);
                for (int64_t m = 0; m < N; m++) put(dS + m * D, carry[m]);
            }
            for (int64_t j = 0; j < n * N; j++) {
                dB[(i * T + t0) * N + j] = sum(dBs[j]);
                dC[(i * T + t0) * N + j] = sum(dCs[j]);
            }
        }
    }
}
