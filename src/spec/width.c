/* How many tokens to draft: the width that maximises expected tokens per second.
 *
 * With chance p that a draft is accepted (given those before it), a step of width w commits
 * 1 + p + .. + p^(w-1) tokens. Costs by width are measured, so the same code finds that a step
 * bound by weight reads takes 16 rows for little more than one, and that a step bound by arithmetic
 * does not. */
#include "spec/spec.h"

enum { FIRST_REST = 16, LONGEST_REST = 512 };

void kk_cost_note(struct kk_step_costs *c, int width, double seconds)
{
    if (width < 1 || width > KK_MAX_WIDTH) return;
    double old = c->seconds[width];
    int n = ++c->seen[width];
    if (n == 1)
        c->seconds[width] = seconds;
    else if (n < 16 || seconds < 4 * old) /* later, a stall of the machine is no cost of the step */
        c->seconds[width] = old + (seconds - old) / (n < 16 ? n : 16);
}

/* The nearest widths seen below and above; 0 if none. */
static int seen_below(const struct kk_step_costs *c, int width)
{
    while (width > 0 && !c->seen[width]) width--;
    return width;
}

static int seen_above(const struct kk_step_costs *c, int width)
{
    while (width <= KK_MAX_WIDTH && !c->seen[width]) width++;
    return width <= KK_MAX_WIDTH ? width : 0;
}

double kk_cost_of(const struct kk_step_costs *c, int width)
{
    int a = seen_below(c, width), b = seen_above(c, width);
    if (!a && !b) return 0;
    if (!a) return c->seconds[b];
    if (a == width) return c->seconds[a];
    if (b) return c->seconds[a] + (c->seconds[b] - c->seconds[a]) * (width - a) / (b - a);
    /* beyond the widest seen: the slope of the last two, at least flat */
    int z = seen_below(c, a - 1);
    double slope = z ? (c->seconds[a] - c->seconds[z]) / (a - z) : 0;
    return c->seconds[a] + (slope > 0 ? slope : 0) * (width - a);
}

void kk_width_init(struct kk_width *w, int pinned, const struct kk_step_costs *c)
{
    *w = (struct kk_width){.pinned = pinned,
                           .accept = c->accept > 0 ? c->accept : 0.6,
                           .backoff = c->rest > FIRST_REST ? c->rest : FIRST_REST,
                           .off = c->rest / 4};
}

double kk_expected_tokens(double p, int width)
{
    double sum = 0, power = 1;
    for (int i = 0; i < width; i++, power *= p) sum += power;
    return sum;
}

static int best_width(const struct kk_width *w, const struct kk_step_costs *c, int most)
{
    int best = 1;
    double best_rate = 0;
    for (int width = 1; width <= most; width++) {
        double cost = kk_cost_of(c, width);
        if (cost <= 0) continue;
        double rate = kk_expected_tokens(w->accept, width) / cost;
        if (rate > best_rate) {
            best_rate = rate;
            best = width;
        }
    }
    return best;
}

int kk_width_choose(struct kk_width *w, const struct kk_step_costs *c, int most)
{
    if (most > KK_MAX_WIDTH) most = KK_MAX_WIDTH;
    if (w->pinned) return w->pinned < most ? w->pinned : most;
    if (most == 1) return 1;
    /* a few steps of widths 1 and 4 first: without them there is nothing to compare */
    if (c->seen[1] < 3) return 1;
    if (!seen_above(c, 2)) return most < 4 ? most : 4;
    if (w->off > 0) {
        w->off--;
        return 1;
    }
    int best = best_width(w, c, most);
    if (w->rise > best) return w->rise < most ? w->rise : most;
    if (best > 1) return best;
    /* drafting does not pay: rest, then probe once with a short draft */
    w->off = w->backoff;
    w->backoff = w->backoff * 2 < LONGEST_REST ? w->backoff * 2 : LONGEST_REST;
    return 2;
}

/* `accepted` successes, and one failure unless all were accepted, into a running mean. */
static void update(double *mean, double weight, int drafted, int accepted)
{
    for (int i = 0; i < accepted; i++) *mean += (1.0 - *mean) * weight;
    if (accepted < drafted) *mean -= *mean * weight;
}

void kk_width_note(struct kk_width *w, struct kk_step_costs *c, int drafted, int accepted)
{
    if (drafted < 1) return;
    if (c->accept <= 0) c->accept = 0.6;
    update(&w->accept, 0.1, drafted, accepted);
    update(&c->accept, 0.02, drafted, accepted);
    w->rise = accepted == drafted ? 2 * (drafted + 1) : 0;
    if (w->rise > KK_MAX_WIDTH) w->rise = KK_MAX_WIDTH;
    if (w->rise) w->off = 0;
    if (accepted == drafted && drafted > 2) w->backoff = FIRST_REST;
    c->rest = w->off;
}
