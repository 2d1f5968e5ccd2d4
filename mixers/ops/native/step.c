/* One token: S <- diag(e^g) S + k u^T,  o = S^T q, where u is v, or z - (diag(e^g) S)^T p where p is given.

   q, k, p (BH, K), v (BH, V), g (BH, 1 or K) or NULL, S and last (BH, K, V): all dense float32. */

#include "vec.h"

#include <math.h>

void step(int64_t BH, int64_t K, int64_t V, const float *q, const float *k, const float *p, const float *v,
          const float *g, int64_t g_width, const float *S, float *last, float *o) {
    for (int64_t i = 0; i < BH; i++) {
        const float *restrict from = S + i * K * V, *restrict q_ = q + i * K, *restrict k_ = k + i * K;
        float *restrict to = last + i * K * V, *restrict u = o + i * V; /* o is u's place until it is read */
        float a = g ? expf(g[i * g_width]) : 1;
        memcpy(u, v + i * V, 4 * V);
        for (int64_t j = 0; p && j < K; j++) {
            float recalled = p[i * K + j] * (g && g_width > 1 ? expf(g[i * K + j]) : a);
            for (int64_t m = 0; m < V; m++) u[m] -= recalled * from[j * V + m];
        }
        for (int64_t j = 0; j < K; j++) {
            float keep = g && g_width > 1 ? expf(g[i * K + j]) : a, key = k_[j];
            for (int64_t m = 0; m < V; m++) to[j * V + m] = keep * from[j * V + m] + key * u[m];
        }
        memset(u, 0, 4 * V);
        for (int64_t j = 0; j < K; j++) {
            float read = q_[j];
            for (int64_t m = 0; m < V; m++) u[m] += read * to[j * V + m];
        }
    }
}
