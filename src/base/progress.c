#include "base/progress.h"

#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"

enum { QUIET_NS = 300000000, STEP_NS = 100000000, LINE_MAX = 200, BAR = 24 };

void kk_progress_init(struct kk_progress *p)
{
    *p = (struct kk_progress){.terminal = isatty(STDERR_FILENO)};
}

static void rate_text(char *out, size_t cap, double per_s, enum kk_progress_unit unit)
{
    if (unit == KK_PROGRESS_BYTES)
        snprintf(out, cap, per_s >= 1e9 ? "%.2f GB/s" : "%.0f MB/s",
                 per_s >= 1e9 ? per_s * 1e-9 : per_s * 1e-6);
    else
        snprintf(out, cap, per_s >= 10 ? "%.0f %s/s" : "%.1f %s/s", per_s,
                 unit == KK_PROGRESS_TOKENS ? "tok" : "runs");
}

static void time_text(char *out, size_t cap, double s)
{
    if (s >= 3600)
        snprintf(out, cap, "%d h %02d min", (int)(s / 3600), (int)(s / 60) % 60);
    else if (s >= 60)
        snprintf(out, cap, "%d min %02d s", (int)s / 60, (int)s % 60);
    else
        snprintf(out, cap, "%.0f s", s);
}

int kk_progress_text(char *out, int cap, int columns, const char *what, uint64_t done,
                     uint64_t total, enum kk_progress_unit unit, double seconds)
{
    char bar[BAR + 1], rate[32] = "", left[32] = "";
    double part = total ? (double)done / (double)total : 0;
    int full = (int)(part * BAR);
    if (part > 1) part = 1;
    if (full > BAR) full = BAR;
    memset(bar, '.', BAR);
    memset(bar, '#', (size_t)full);
    bar[BAR] = 0;
    if (done && seconds > 0) {
        rate_text(rate, sizeof rate, (double)done / seconds, unit);
        time_text(left, sizeof left, seconds * (1 - part) / part);
    }
    int n = snprintf(out, (size_t)cap, "%s [%s] %3d %%%s%s%s%s", what, bar, (int)(100 * part),
                     *rate ? "  " : "", rate, *left ? "  ETA " : "", left);
    if (n >= cap) n = cap - 1;
    if (n > columns) out[n = columns > 0 ? columns : 0] = 0;
    return n;
}

static int columns(void)
{
    struct winsize w;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 1 ? w.ws_col - 1 : 79;
}

void kk_progress_show(struct kk_progress *p, const char *what, uint64_t done, uint64_t total,
                      enum kk_progress_unit unit)
{
    char line[LINE_MAX];
    if (!p->terminal) return;
    uint64_t now = kk_now_ns();
    if (!p->start_ns || done < p->last_done || strncmp(p->what, what, sizeof p->what - 1)) {
        kk_progress_clear(p);
        p->start_ns = now;
        snprintf(p->what, sizeof p->what, "%s", what);
    }
    p->last_done = done;
    if (done >= total) {
        kk_progress_clear(p);
        return;
    }
    if (now - p->start_ns < QUIET_NS || now - p->last_ns < STEP_NS) return;
    p->last_ns = now;
    int n = kk_progress_text(line, sizeof line, columns(), p->what, done, total, unit,
                             (double)(now - p->start_ns) * 1e-9);
    int wipe = p->drawn > n ? p->drawn - n : 0;
    fprintf(stderr, "\r%s%*s", line, wipe, "");
    fflush(stderr);
    p->drawn = n;
}

void kk_progress_clear(struct kk_progress *p)
{
    if (p->drawn) {
        fprintf(stderr, "\r%*s\r", p->drawn, "");
        fflush(stderr);
    }
    p->drawn = 0;
    p->start_ns = 0;
    p->last_done = 0;
}
