/* S_t = diag(e^{g_t}) S_{t-1} + k_t v_t^T,  o_t = S_t^T q_t, in chunks of W steps:

       O = (Q start) S + scores(Q, K) V,   S <- keep S + (K end)^T V

   The backward pass computes the states of SPAN chunks again, from one that the forward pass has kept, and walks back
   over them with dS. It holds both transposed, (V, K), as its products want them. */

#include "decay.h"

#define SPAN (256 / W)

int64_t linear_attention_room(int64_t K, int64_t V, int64_t backward) {
    K = padded(K), V = padded(V);
    if (!backward) return DECAY_ROOM(K) + K * V + W * (4 * K + 2 * V + W);
    return DECAY_ROOM(K) + (SPAN + 2) * K * V + W * (6 * K + 4 * V + 2 * W);
}

void linear_attention_forward(int64_t B, int64_t H, int64_t T, const tensor *q, const tensor *k, const tensor *v,
                              const tensor *g, const tensor *o, const float *state, float *last, float *starts,
                              float *scratch, int64_t threads) {
    int64_t k_width = q->width, v_width = v->width, K = padded(k_width), V = padded(v_width), size = k_width * v_width;
    int64_t spans = (T + SPAN * W - 1) / (SPAN * W), rooms = linear_attention_room(k_width, v_width, 0);
#pragma omp parallel for if (threads > 1) num_threads(threads)
    for (int64_t worker = 0; worker < threads; worker++)
    for (int64_t i = worker; i < B * H; i += threads) {
        int64_t b = i / H, h = i % H;
        float *room = scratch + worker * rooms; /* the same for every head: it stays in the cache */
        decay d = decay_room(g, K, &room);
        float *S = take(&room, K * V), *Q = take(&room, W * K), *Ks = take(&room, W * K), *Vs = take(&room, W * V);
        float *Q_ = take(&room, W * K), *K_ = take(&room, W * K), *O = take(&room, W * V), *A = take(&room, W * W);
        matrix_in(S, V, K, state + i * size, k_width, v_width);
        for (int64_t t = 0; t < T; t += W) {
            int64_t n = least(W, T - t);
            if (starts && t % (SPAN * W) == 0)
                matrix_out(starts + (i * spans + t / (SPAN * W)) * size, S, V, k_width, v_width);
            rows_in(Q, K, q, b, h, t, n);
            rows_in(Ks, K, k, b, h, t, n);
            rows_in(Vs, V, v, b, h, t, n);
            decay_in(&d, g, b, h, t, n);
            scores(&d, Q, Ks, A, 0);
            product(W, V, K, scaled(&d, Q, d.start, Q_), K, 1, S, O, (how){0});
            product(W, V, W, A, W, 1, Vs, O, (how){.from = O, .lower = 1});
            product(K, V, W, scaled(&d, Ks, d.end, K_), 1, K, Vs, S, (how){.from = S, .keep = d.keep, .by_row = 1});
            rows_out(o, b, h, t, n, O, V);
        }
        matrix_out(last + i * size, S, V, k_width, v_width);
    }
}

/* dstate holds the gradient of the last state and receives that of the first. dg may be NULL. */
void linear_attention_backward(int64_t B, int64_t H, int64_t T, const tensor *q, const tensor *k, const tensor *v,
                               const tensor *g, const tensor *do_, const tensor *dq, const tensor *dk,
                               const tensor *dv, const tensor *dg, const float *starts, float *dstate, float *scratch,
                               int64_t threads) {
    int64_t k_width = q->width, v_width = v->width, K = padded(k_width), V = padded(v_width), size = k_width * v_width;
    int64_t spans = (T + SPAN * W - 1) / (SPAN * W), rooms = linear_attention_room(k_width, v_width, 1);
#pragma omp parallel for if (threads > 1) num_threads(threads)
    for (int64_t worker = 0; worker < threads; worker++)
    for (int64_t i = worker; i < B * H; i += threads) {
        int64_t b = i / H, h = i % H;
        float *room = scratch + worker * rooms; /* the same for every head: it stays in the cache */
        decay d = decay_room(g, K, &room);
        float *S = take(&room, SPAN * K * V), *dS = take(&room, K * V), *turned = take(&room, K * V);
        float *Q = take(&room, W * K), *Ks = take(&room, W * K), *Q_ = take(&room, W * K), *K_ = take(&room, W * K);
        float *dQ = take(&room, W * K), *dK = take(&room, W * K), *Vs = take(&room, W * V), *dO = take(&room, W * V);
        float *dV = take(&room, W * V), *V_ = take(&room, W * V), *A = take(&room, W * W), *dA = take(&room, W * W);
        matrix_in(turned, V, K, dstate + i * size, k_width, v_width);
        transpose(dS, turned, K, V);
        for (int64_t span = spans - 1; span >= 0; span--) {
            int64_t t0 = span * SPAN * W, chunks = least(SPAN, (T - t0 + W - 1) / W);
            matrix_in(turned, V, K, starts + (i * spans + span) * size, k_width, v_width);
            transpose(S, turned, K, V);
            for (int64_t c = 0; c + 1 < chunks; c++) {
                rows_in(Ks, K, k, b, h, t0 + c * W, W);
                rows_in(Vs, V, v, b, h, t0 + c * W, W);
                decay_in(&d, g, b, h, t0 + c * W, W);
                product(V, K, W, Vs, 1, V, scaled(&d, Ks, d.end, K_), S + (c + 1) * K * V,
                        (how){.from = S + c * K * V, .keep = d.keep});
            }
            for (int64_t c = chunks - 1; c >= 0; c--) {
                int64_t t = t0 + c * W, n = least(W, T - t);
                rows_in(Q, K, q, b, h, t, n);
                rows_in(Ks, K, k, b, h, t, n);
                rows_in(Vs, V, v, b, h, t, n);
                rows_in(dO, V, do_, b, h, t, n);
                decay_in(&d, g, b, h, t, n);
                scores(&d, Q, Ks, A, 0);
                transpose(V_, Vs, W, V);
                product(W, W, V, dO, V, 1, V_, dA, (how){0});
                transpose(turned, dS, V, K);
                product(W, V, K, scaled(&d, Ks, d.end, K_), K, 1, turned, dV, (how){0});
                product(W, V, W, A, 1, W, dO, dV, (how){.from = dV});
                product(W, K, V, dO, V, 1, S + c * K * V, dQ, (how){0});
                product(W, K, V, Vs, V, 1, dS, dK, (how){0});
                dQ = scaled(&d, dQ, d.start, dQ);
                dK = scaled(&d, dK, d.end, dK);
                if (dg) {
                    decay_grad_begin(&d);
                    read_grad(&d, Q, dQ);
                    leave_grad(&d, Ks, dK, S + c * K * V, dS, V);
                }
                scores_grad(&d, dA, A, Q, Ks, dQ, dK, 0);
                rows_out(dq, b, h, t, n, dQ, K);
                rows_out(dk, b, h, t, n, dK, K);
                rows_out(dv, b, h, t, n, dV, V);
                if (dg) decay_out(&d, dg, b, h, t, n);
                product(V, K, W, dO, 1, V, scaled(&d, Q, d.start, Q_), dS, (how){.from = dS, .keep = d.keep});
            }
        }
        transpose(turned, dS, V, K);
        matrix_out(dstate + i * size, turned, V, k_width, v_width);
    }
}
