/* How many tokens to draft: the width that maximises expected tokens per second, and no more losses
 * than a purse allows.
 *
 * With chance p that a draft is accepted (given those before it), a step of width w commits
 * 1 + p + .. + p^(w-1) tokens. It costs ratio[w] plain steps, measured, so the same code finds that
 * a step bound by weight reads takes 16 rows for little more than one, and that a step bound by
 * arithmetic does not.
 *
 * The unit of everything is one plain step. A draft that commits m tokens gains m - ratio[w]. All
 * sessions share one purse of gains: every plain step pays ALLOWANCE in, every draft its gain
 * (mostly a loss where drafting does not pay), and what the drafter has to catch up with after a
 * rest is a loss. Nothing is drafted that the purse cannot bear, so drafting costs at most START,
 * and ALLOWANCE of the time after that, whatever the drafter, the text or the machine. */
#include "spec/spec.h"

#include <math.h>

enum { FIRST_REST = 16, LONGEST_REST = 512, FIRST_WIDTH = 4, TRIALS = 4 };

static const double START = 2, MOST = 6, ALLOWANCE = 0.01; /* of the purse */
static const double FIRST_GUESS = 0.6;            /* acceptance of a drafter not yet seen */
static const double FADE = 0.93, FADE_ALL = 0.98; /* memory of trials: a session's, the engine's */

/* ---- costs -------------------------------------------------------------------------------- */

static double clamp(double x, double lo, double hi)
{
    return x < lo ? lo : x > hi ? hi : x;
}

/* A running mean that a stall of the machine does not carry away: the least of the first four, and
 * then no more than twice or half of what it was. */
static void average(double *mean, double x, int n)
{
    if (n <= 4)
        *mean = n == 1 ? x : fmin(*mean, x);
    else
        *mean += (clamp(x, 0.5 * *mean, 2 * *mean) - *mean) / 8;
}

void kk_cost_note(struct kk_step_costs *c, int width, double seconds)
{
    if (width < 1 || width > KK_MAX_WIDTH || seconds <= 0) return;
    if (width == 1) {
        if (!c->seen[1]++) c->purse = START;
        average(&c->plain, seconds, c->seen[1]);
        c->purse = fmin(c->purse + ALLOWANCE, MOST);
    } else if (c->seen
                   [1]) { /* less than a plain step or more than two a row is no cost of a step */
        average(&c->ratio[width], clamp(seconds / c->plain, 1, 2 * width), ++c->seen[width]);
    }
}

void kk_catch_up_note(struct kk_step_costs *c, double seconds)
{
    if (!c->seen[1]) return;
    double steps = clamp(seconds / c->plain, 0, KK_TAPS_HELD / 8.0); /* more is a stall */
    c->catch_up += (steps - c->catch_up) / 4;
    c->purse -= steps;
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
    if (width <= 1) return 1;
    int a = seen_below(c, width), b = seen_above(c, width);
    if (a == width) return c->ratio[a];
    double low = a > 1 ? c->ratio[a] : 1;
    if (a < 1) a = 1;
    if (b) return low + (c->ratio[b] - low) * (width - a) / (b - a);
    /* beyond the widest seen: the slope of the last two, at least flat */
    int z = seen_below(c, a - 1);
    double slope = a > 1 ? (low - (z > 1 ? c->ratio[z] : 1)) / (a - (z ? z : 1)) : 0;
    return low + fmax(slope, 0) * (width - a);
}

/* ---- choosing ----------------------------------------------------------------------------- */

double kk_expected_tokens(double p, int width)
{
    double sum = 0, power = 1;
    for (int i = 0; i < width; i++) {
        sum += power;
        power *= p;
    }
    return sum;
}

void kk_width_init(struct kk_width *w, int pinned, const struct kk_step_costs *c)
{
    *w = (struct kk_width){.pinned = pinned,
                           .guess = c->tried > 0 ? (c->right + FIRST_GUESS) / (c->tried + 1)
                                                 : FIRST_GUESS,
                           .limit = FIRST_WIDTH,
                           .backoff = FIRST_REST};
}

double kk_width_accept(const struct kk_width *w)
{
    return (w->guess * TRIALS + w->right) / (TRIALS + w->tried);
}

static int best_width(const struct kk_width *w, const struct kk_step_costs *c, int most)
{
    int best = 1;
    double p = kk_width_accept(w), best_rate = 1;
    for (int width = 2; width <= most; width++) {
        double rate = kk_expected_tokens(p, width) / kk_cost_of(c, width);
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
    if (most < 2 || c->seen[1] < 3) return 1; /* plain steps first: the unit of cost */
    if (!seen_above(c, 2)) return most < FIRST_WIDTH ? most : FIRST_WIDTH;
    if (w->off > 0) {
        w->off--;
        return 1;
    }
    int best = best_width(w, c, most < w->limit ? most : w->limit);
    if (best > 1) return c->purse > 0 ? best : 1;
    return c->purse >= kk_cost_of(c, 2) - 1 + c->catch_up ? 2 : 1; /* a probe */
}

static void count(double *right, double *tried, double fade, int drafted, int accepted)
{
    int trials = accepted < drafted ? accepted + 1 : accepted;
    for (int i = 0; i < trials; i++) {
        *right = *right * fade + (i < accepted);
        *tried = *tried * fade + 1;
    }
}

void kk_width_note(struct kk_width *w, struct kk_step_costs *c, int drafted, int accepted)
{
    if (drafted < 1) return;
    count(&w->right, &w->tried, FADE, drafted, accepted);
    count(&c->right, &c->tried, FADE_ALL, drafted, accepted);
    c->purse = fmin(c->purse + accepted + 1 - kk_cost_of(c, drafted + 1), MOST);
    w->limit += accepted;
    if (w->limit > KK_MAX_WIDTH) w->limit = KK_MAX_WIDTH;
    if (best_width(w, c, w->limit) > 1) {
        w->backoff = FIRST_REST;
    } else { /* it does not pay: rest before the next probe, longer each time */
        w->off = w->backoff;
        w->backoff = w->backoff * 2 < LONGEST_REST ? w->backoff * 2 : LONGEST_REST;
    }
}
