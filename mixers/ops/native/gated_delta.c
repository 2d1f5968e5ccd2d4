/* S_t = (I - k_t p_t^T) diag(e^{g_t}) S_{t-1} + k_t z_t^T,  o_t = S_t^T q_t, in chunks of W steps:

       (I + L) U = Z - (P start) S   with L = scores(P, K) below the diagonal
       O = (Q start) S + scores(Q, K) U,   S <- keep S + (K end)^T U

   U, what is really written, comes by substitution. The backward pass computes the states and U of SPAN chunks again,
   from a state that the forward pass has kept, and walks back over them with dS. */

#include "decay.h"

#define SPAN (64 / W) /* what is held of them fits into a cache */

/* U <- (I + L)^{-1} U, or with the transpose of L, from the last row up. */
APART void substitute(const float *L, float *U, int64_t V, int transposed) {
    for (int64_t v = 0; v < V; v += W) {
        vec u[W];
        for (int i = 0; i < W; i++) u[i] = get(U + i * V + v);
        if (!transposed)
            for (int i = 1; i < W; i++)
                for (int j = 0; j < i; j++) u[i] -= u[j] * L[i * W + j];
        else
            for (int j = W - 2; j >= 0; j--)
                for (int i = j + 1; i < W; i++) u[j] -= u[i] * L[i * W + j];
        for (int i = 0; i < W; i++) put(U + i * V + v, u[i]);
    }
}

int64_t gated_delta_room(int64_t K, int64_t V, int64_t backward) {
    K = padded(K), V = padded(V);
    if (!backward) return DECAY_ROOM(K) + K * V + W * (4 * K + 2 * V + W);
    return DECAY_ROOM(K) + (SPAN + 3) * K * V + W * (9 * K + (SPAN + 4) * V + 4 * W);
}

void gated_delta_forward(int64_t B, int64_t H, int64_t T, const tensor *q, const tensor *k, const tensor *p,
                         const tensor *z, const tensor *g, const tensor *o, const float *state, float *last,
                         float *starts, float *scratch, int64_t threads) {
    int64_t k_width = q->width, v_width = z->width, K = padded(k_width), V = padded(v_width), size = k_width * v_width;
    int64_t spans = (T + SPAN * W - 1) / (SPAN * W), rooms = gated_delta_room(k_width, v_width, 0);
#pragma omp parallel for if (threads > 1) num_threads(threads)
    for (int64_t worker = 0; worker < threads; worker++)
    for (int64_t i = worker; i < B * H; i += threads) {
        int64_t b = i / H, h = i % H;
        float *room = scratch + worker * rooms; /* the same for every head: it stays in the cache */
        decay d = decay_room(g, K, &room);
        float *S = take(&room, K * V), *Q = take(&room, W * K), *Ks = take(&room, W * K), *P = take(&room, W * K);
        float *X_ = take(&room, W * K), *U = take(&room, W * V), *O = take(&room, W * V), *A = take(&room, W * W);
        matrix_in(S, V, K, state + i * size, k_width, v_width);
        for (int64_t t = 0; t < T; t += W) {
            int64_t n = least(W, T - t);
            if (starts && t % (SPAN * W) == 0)
                matrix_out(starts + (i * spans + t / (SPAN * W)) * size, S, V, k_width, v_width);
            rows_in(Q, K, q, b, h, t, n);
            rows_in(Ks, K, k, b, h, t, n);
            rows_in(P, K, p, b, h, t, n);
            rows_in(U, V, z, b, h, t, n);
            decay_in(&d, g, b, h, t, n);
            scores(&d, P, Ks, A, 1);
            product(W, V, K, scaled(&d, P, d.start, X_), K, 1, S, U, (how){.from = U, .minus = 1});
            substitute(A, U, V, 0);
            scores(&d, Q, Ks, A, 0);
            product(W, V, K, scaled(&d, Q, d.start, X_), K, 1, S, O, (how){0});
            product(W, V, W, A, W, 1, U, O, (how){.from = O, .lower = 1});
            product(K, V, W, scaled(&d, Ks, d.end, X_), 1, K, U, S, (how){.from = S, .keep = d.keep, .by_row = 1});
            rows_out(o, b, h, t, n, O, V);
        }
        matrix_out(last + i * size, S, V, k_width, v_width);
    }
}

/* dstate holds the gradient of the last state and receives that of the first. dg may be NULL. */
void gated_delta_backward(int64_t B, int64_t H, int64_t T, const tensor *q, const tensor *k, const tensor *p,
                          const tensor *z, const tensor *g, const tensor *do_, const tensor *dq, const tensor *dk,
                          const tensor *dp, const tensor *dz, const tensor *dg, const float *starts, float *dstate,
                          float *scratch, int64_t threads) {
    int64_t k_width = q->width, v_width = z->width, K = padded(k_width), V = padded(v_width), size = k_width * v_width;
    int64_t spans = (T + SPAN * W - 1) / (SPAN * W), rooms = gated_delta_room(k_width, v_width, 1);
#pragma omp parallel for if (threads > 1) num_threads(threads)
    for (int64_t worker = 0; worker < threads; worker++)
    for (int64_t i = worker; i < B * H; i += threads) {
        int64_t b = i / H, h = i % H;
        float *room = scratch + worker * rooms; /* the same for every head: it stays in the cache */
        decay d = decay_room(g, K, &room);
        float *S = take(&room, SPAN * K * V), *dS = take(&room, K * V), *St = take(&room, K * V);
        float *dSt = take(&room, K * V), *Q = take(&room, W * K), *Ks = take(&room, W * K), *P = take(&room, W * K);
        float *Q_ = take(&room, W * K), *P_ = take(&room, W * K), *K_ = take(&room, W * K), *dQ = take(&room, W * K);
        float *dK = take(&room, W * K), *dP = take(&room, W * K), *U = take(&room, SPAN * W * V);
        float *U_ = take(&room, W * V), *dO = take(&room, W * V), *dZ = take(&room, W * V), *A = take(&room, W * W);
        float *L = take(&room, W * W), *dA = take(&room, W * W), *dL = take(&room, W * W);
        matrix_in(dS, V, K, dstate + i * size, k_width, v_width);
        for (int64_t span = spans - 1; span >= 0; span--) {
            int64_t t0 = span * SPAN * W, chunks = least(SPAN, (T - t0 + W - 1) / W);
            matrix_in(S, V, K, starts + (i * spans + span) * size, k_width, v_width);
            for (int64_t c = 0; c < chunks; c++) {
                int64_t t = t0 + c * W, n = least(W, T - t);
                float *Sc = S + c * K * V, *Uc = U + c * W * V;
                rows_in(Ks, K, k, b, h, t, n);
                rows_in(P, K, p, b, h, t, n);
                rows_in(Uc, V, z, b, h, t, n);
                decay_in(&d, g, b, h, t, n);
                scores(&d, P, Ks, L, 1);
                product(W, V, K, scaled(&d, P, d.start, P_), K, 1, Sc, Uc, (how){.from = Uc, .minus = 1});
                substitute(L, Uc, V, 0);
                if (c + 1 < chunks)
                    product(K, V, W, scaled(&d, Ks, d.end, K_), 1, K, Uc, Sc + K * V,
                            (how){.from = Sc, .keep = d.keep, .by_row = 1});
            }
            for (int64_t c = chunks - 1; c >= 0; c--) {
                int64_t t = t0 + c * W, n = least(W, T - t);
                float *Uc = U + c * W * V;
                rows_in(Q, K, q, b, h, t, n);
                rows_in(Ks, K, k, b, h, t, n);
                rows_in(P, K, p, b, h, t, n);
                rows_in(dO, V, do_, b, h, t, n);
                decay_in(&d, g, b, h, t, n);
                scores(&d, Q, Ks, A, 0);
                scores(&d, P, Ks, L, 1);
                product(W, V, K, scaled(&d, Ks, d.end, K_), K, 1, dS, dZ, (how){0});
                product(W, V, W, A, 1, W, dO, dZ, (how){.from = dZ});
                substitute(L, dZ, V, 1);
                transpose(U_, Uc, W, V);
                product(W, W, V, dO, V, 1, U_, dA, (how){0});
                product(W, W, V, dZ, V, 1, U_, dL, (how){.minus = 1});
                transpose(St, S + c * K * V, K, V);
                transpose(dSt, dS, K, V);
                product(W, K, V, dO, V, 1, St, dQ, (how){0});
                product(W, K, V, dZ, V, 1, St, dP, (how){.minus = 1});
                product(W, K, V, Uc, V, 1, dSt, dK, (how){0});
                dQ = scaled(&d, dQ, d.start, dQ);
                dP = scaled(&d, dP, d.start, dP);
                dK = scaled(&d, dK, d.end, dK);
                if (dg) {
                    decay_grad_begin(&d);
                    read_grad(&d, Q, dQ);
                    read_grad(&d, P, dP);
                    leave_grad(&d, Ks, dK, St, dSt, V);
                }
                scores_grad(&d, dA, A, Q, Ks, dQ, dK, 0);
                scores_grad(&d, dL, L, P, Ks, dP, dK, 1);
                rows_out(dq, b, h, t, n, dQ, K);
                rows_out(dk, b, h, t, n, dK, K);
                rows_out(dp, b, h, t, n, dP, K);
                rows_out(dz, b, h, t, n, dZ, V);
                if (dg) decay_out(&d, dg, b, h, t, n);
                product(K, V, W, scaled(&d, Q, d.start, Q_), 1, K, dO, dS, (how){.from = dS, .keep = d.keep, .by_row = 1});
                product(K, V, W, scaled(&d, P, d.start, P_), 1, K, dZ, dS, (how){.from = dS, .minus = 1});
            }
        }
        matrix_out(dstate + i * size, dS, V, k_width, v_width);
    }
}
