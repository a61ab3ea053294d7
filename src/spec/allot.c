/* Drafting for several sessions in one step: which of them may draft, and how much.
 *
 * A step of R rows costs base + slope * R, fitted to the steps run. A draft of session i that would
 * be its d-th is accepted with chance accept_i^d. Rows go to the likeliest draft, one by one,
 * as long as that raises the tokens expected per second. */
#include "spec/spec.h"

#define DECAY 0.98
enum { PROBE_FIRST = 4, PROBE = 64 };

void kk_row_cost_note(struct kk_row_costs *c, int rows, double seconds)
{
    double r = rows;
    c->n = c->n * DECAY + 1;
    c->r = c->r * DECAY + r;
    c->t = c->t * DECAY + seconds;
    c->rr = c->rr * DECAY + r * r;
    c->rt = c->rt * DECAY + r * seconds;
}

int kk_row_cost_fit(const struct kk_row_costs *c, double *base, double *slope)
{
    double spread = c->n * c->rr - c->r * c->r;
    if (c->n < 4 || spread < 0.01 * c->n * c->n) return 0;
    *slope = (c->n * c->rt - c->r * c->t) / spread;
    *base = (c->t - *slope * c->r) / c->n;
    if (*slope <= 0) *slope = 1e-9;
    return *base + *slope > 0;
}

static int likeliest(const double *gain, const int *width, const int *most, int B)
{
    int best = -1;
    for (int i = 0; i < B; i++)
        if (width[i] < most[i] && (best < 0 || gain[i] > gain[best])) best = i;
    return best;
}

void kk_allot(struct kk_row_costs *c, const double *accept, const int *most, int B, int extra,
              double *gain, int *width)
{
    double base, slope;
    int drafted = 0;
    for (int i = 0; i < B; i++) {
        width[i] = 1;
        gain[i] = accept[i];
    }
    c->rounds++;
    if (kk_row_cost_fit(c, &base, &slope)) {
        double tokens = B, cost = base + slope * B;
        for (int i; extra > 0 && (i = likeliest(gain, width, most, B)) >= 0; extra--, drafted++) {
            if ((tokens + gain[i]) * cost <= tokens * (cost + slope)) break;
            tokens += gain[i];
            cost += slope;
            gain[i] *= accept[i];
            width[i]++;
        }
        if (drafted || c->rounds % PROBE) return;
        int i = (int)(c->rounds / PROBE % B); /* what a session accepts changes: ask one */
        if (most[i] > 1 && extra > 0) width[i] = 2;
    } else if (c->rounds % PROBE_FIRST == 0) {
        for (int i = 0; i < B && extra > 0; i++)
            if (most[i] > 1) {
                width[i] = 2;
                extra--;
            }
    }
}
