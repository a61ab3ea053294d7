/* How many tokens to draft: the width that maximises expected tokens per second, and no more losses
 * than a purse allows (docs/adr/0027).
 *
 * With chance p that a draft is accepted (given those before it), a step of width w commits
 * 1 + p + .. + p^(w-1) tokens. It costs ratio[w] plain steps, measured, so the same code finds that
 * a step bound by weight reads takes 16 rows for little more than one, and that a step bound by
 * arithmetic does not. On a GPU the bytes that a step reads say it before any is measured.
 *
 * The unit of everything is one plain step. A draft that commits m tokens gains m - ratio[w]. All
 * sessions share one purse of gains, empty at first: every plain step pays in EARLY until START is
 * earned, ALLOWANCE after that; every draft its gain (a loss where drafting does not pay); and what
 * the drafter has to catch up with after a rest is a loss. A step drafts if that is expected to
 * pay; or as a probe, which the purse bears even if all of it is wrong. So however short an answer
 * is, and whatever the drafter, the text or the machine, EARLY of the time is the most that is
 * lost. */
#include "spec/spec.h"

#include <math.h>

enum { FIRST_REST = 16, LONGEST_REST = 512, TRIALS = 4 };

static const double EARLY = 0.04, START = 2, ALLOWANCE = 0.01, MOST = 6; /* of the purse */
static const double FIRST_GUESS = 0.6;            /* acceptance of a drafter not yet seen */
static const double FADE = 0.93, FADE_ALL = 0.98; /* memory of trials: a session's, the engine's */
static const double COMMON = 0.2;                 /* of a session's trial the engine's are worth */
static const double ROW = 0.03; /* of a plain step: a row more beside the bytes it reads */

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

/* Bound by arithmetic, a row more costs a step, and its draft as much. */
void kk_costs_init(struct kk_step_costs *c, int by_reading)
{
    *c = (struct kk_step_costs){.first = by_reading ? 1.75 : 3};
}

/* Experts of E that rows with A each go to, were every choice independent: they are fewer, for rows
 * of one text are alike. */
static double distinct(const struct kk_reading *r, int rows)
{
    const double miss = 1 - (double)r->active / r->experts;
    return r->experts * (1 - pow(miss, rows));
}

void kk_costs_expect(struct kk_step_costs *c, const struct kk_reading *r)
{
    for (int w = 2; w <= KK_MAX_WIDTH; w++) {
        double bytes = r->step + r->draft;
        if (r->experts > 0) bytes += r->expert * (distinct(r, w) - r->active);
        c->expected[w] = bytes / r->step + ROW * (w - 1);
    }
    c->expected[1] = 1;
}

/* 1 if the cost of a width is known: one measurement of a wide step may have been a stall, which
 * would keep it from being tried again. */
static int is_known(const struct kk_step_costs *c, int width)
{
    return c->seen[width] > (width > 2);
}

/* The nearest widths known below and above; 0 if none. */
static int known_below(const struct kk_step_costs *c, int width)
{
    while (width > 0 && !is_known(c, width)) width--;
    return width;
}

static int known_above(const struct kk_step_costs *c, int width)
{
    while (width <= KK_MAX_WIDTH && !is_known(c, width)) width++;
    return width <= KK_MAX_WIDTH ? width : 0;
}

static void pay(struct kk_step_costs *c, double steps)
{
    c->purse = fmin(c->purse + steps, MOST);
}

void kk_cost_note(struct kk_step_costs *c, int width, double seconds, int tokens)
{
    if (width < 1 || width > KK_MAX_WIDTH || seconds <= 0) return;
    if (width == 1) {
        const double share = c->earned < START || c->tried < TRIALS ? EARLY : ALLOWANCE;
        average(&c->plain, seconds, ++c->seen[1]);
        c->earned += share;
        pay(c, share);
    } else if (c->seen
                   [1]) { /* less than a plain step or more than two a row is no cost of a step */
        const double cost = clamp(seconds / c->plain, 1, 2 * width);
        average(&c->ratio[width], cost, ++c->seen[width]);
        pay(c, tokens - (is_known(c, width) ? c->ratio[width] : cost));
    }
}

void kk_take_in_note(struct kk_step_costs *c, int rows, double seconds, int late)
{
    const double each = seconds / rows;
    c->row = c->row > 0 ? c->row + (fmin(each, 2 * c->row) - c->row) / 4 : each;
    if (late && c->seen[1]) pay(c, -rows * fmin(each, c->row) / c->plain); /* more is a stall */
}

double kk_cost_of(const struct kk_step_costs *c, int width)
{
    if (width <= 1) return 1;
    int a = known_below(c, width), b = known_above(c, width);
    if (a == width) return c->ratio[a];
    double low = a > 1 ? c->ratio[a] : 1;
    if (a < 1) a = 1;
    if (b) return low + (c->ratio[b] - low) * (width - a) / (b - a);
    const double *e = c->expected;
    if (e[1] > 0) /* as expected, but for what was expected too much */
        return low + (e[width] - e[a]) * (a > 1 ? fmin(1, (low - 1) / (e[a] - 1)) : 1);
    if (a == 1) return 1 + (c->first - 1) * (width - 1);
    /* Beyond the widest known: half the slope of the last two, for some of it was the draft's fixed
     * cost; or none. What it is will be seen when it is tried. */
    int z = known_below(c, a - 1);
    double slope = (low - (z > 1 ? c->ratio[z] : 1)) / (a - (z ? z : 1));
    return low + fmax(slope / 2, 0) * (width - a);
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

void kk_width_init(struct kk_width *w, int pinned)
{
    *w = (struct kk_width){.pinned = pinned, .limit = 1, .backoff = FIRST_REST};
}

double kk_width_accept(const struct kk_width *w, const struct kk_step_costs *c)
{
    const double all = (c->right + FIRST_GUESS) / (c->tried + 1);
    const double weight = TRIALS + COMMON * c->tried;
    return (all * weight + w->right) / (weight + w->tried);
}

static int best_width(const struct kk_width *w, const struct kk_step_costs *c, int most)
{
    int best = 1;
    double p = kk_width_accept(w, c), best_rate = 1;
    for (int width = 2; width <= most; width++) {
        double rate = kk_expected_tokens(p, width) / kk_cost_of(c, width);
        if (rate > best_rate) {
            best_rate = rate;
            best = width;
        }
    }
    return best;
}

/* The widest that a purse bears when every draft of it is wrong */
static int borne(const struct kk_step_costs *c, double purse)
{
    int width = 1;
    while (width < KK_MAX_WIDTH && kk_cost_of(c, width + 1) - 1 <= purse) width++;
    return width;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* The widest that may be tried: borne, or earned by drafts accepted before; and no more than twice
 * as wide as what was measured, where nothing was expected. */
static int open_to(const struct kk_width *w, const struct kk_step_costs *c, double purse)
{
    const int safe = borne(c, purse), open = safe > w->limit ? safe : w->limit;
    return c->expected[1] > 0 ? open : least(open, 2 * known_below(c, KK_MAX_WIDTH));
}

int kk_width_choose(struct kk_width *w, const struct kk_step_costs *c, int most, int behind)
{
    most = least(most, KK_MAX_WIDTH);
    if (w->pinned) return least(w->pinned, most);
    if (most < 2 || c->seen[1] < 3) return 1; /* plain steps first: the unit of cost */
    if (w->off > 0) {
        w->off--;
        return 1;
    }
    const double purse = c->purse - behind * c->row / c->plain;
    const int best = best_width(w, c, least(open_to(w, c, purse), most));
    if (best > 1) return purse > 0 ? best : 1;
    return least(least(borne(c, purse), 2 + w->run), most); /* a probe, wider while it succeeds */
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
    w->limit = least(w->limit + accepted, KK_MAX_WIDTH);
    w->run = accepted < drafted ? 0 : least(w->run + accepted, KK_MAX_WIDTH);
    if (best_width(w, c, open_to(w, c, MOST)) > 1) {
        w->backoff = FIRST_REST;
    } else if (accepted < drafted) { /* it does not pay: rest, longer each time */
        w->off = w->backoff;
        w->backoff = least(2 * w->backoff, LONGEST_REST);
    }
}
