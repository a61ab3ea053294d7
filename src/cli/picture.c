#include "cli/picture.h"

#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "cli/gate.h"

/* Layout in SVG units. One column of bars a rung; one row of bars an arm. */
enum {
    WIDTH = 980,
    LEFT = 92,
    BAR = 17,
    GAP = 5,
    HEAD = 104,
    FOOT = 46,
    BYTES_W = 400,
    RATE_W = 180
};

static const char *const byte_kinds[4] = {"kv_device_bytes", "drafter_device_bytes",
                                          "kv_staging_bytes", "kv_host_bytes"};
static const char *const byte_names[4] = {"KV on the device", "drafter on the device",
                                          "staging (whole process)", "KV in host memory"};
static const char *const byte_colours[4] = {"#2b6cb0", "#dd6b20", "#a0aec0", "#d6bcfa"};

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

static double arm_bytes(const json_t *a)
{
    double sum = 0;
    for (int k = 0; k < 4; k++) sum += number(a, byte_kinds[k]);
    return sum;
}

/* The largest of a sum or a field over all arms of all rungs. */
static double most(const json_t *rungs, const char *field, const char *field2)
{
    double top = 0;
    size_t i;
    const json_t *r, *a;
    const char *name;
    json_array_foreach(rungs, i, r)
    {
        json_object_foreach(json_object_get(r, "arms"), name, a)
        {
            double x = field ? number(a, field) : arm_bytes(a);
            if (field2 && number(a, field2) > x) x = number(a, field2);
            if (x > top) top = x;
        }
    }
    return top > 0 ? top : 1;
}

static int text(struct kk_buf *b, double x, double y, const char *style, const char *s)
{
    return kk_buf_printf(b, "<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, style, s);
}

static int rect(struct kk_buf *b, double x, double y, double w, double h, const char *fill)
{
    return kk_buf_printf(
        b, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x, y, w, h,
        fill);
}

static const char *megabytes(char buf[static 32], double bytes)
{
    snprintf(buf, 32, bytes < 1e6 ? "%.0f kB" : "%.2f MB", bytes < 1e6 ? bytes / 1e3 : bytes / 1e6);
    return buf;
}

/* One arm: stacked bytes, plain and drafted rate, recall. */
static int draw_arm(struct kk_buf *b, const char *name, const json_t *a, double y, double top_bytes,
                    double top_rate)
{
    char s[64], mb[32];
    double x = LEFT, rate_x = LEFT + BYTES_W + 90, recall_x = rate_x + RATE_W + 110;
    int rc = text(b, LEFT - 8, y + 12, "text-anchor=\"end\"", name);
    if (!json_is_object(a)) return rc ? rc : text(b, LEFT, y + 12, "fill=\"#a0aec0\"", "not run");
    for (int k = 0; !rc && k < 4; k++) {
        double w = number(a, byte_kinds[k]) / top_bytes * BYTES_W;
        rc = rect(b, x, y, w, BAR - 3, byte_colours[k]);
        x += w;
    }
    if (!rc) rc = text(b, x + 5, y + 12, "fill=\"#4a5568\"", megabytes(mb, arm_bytes(a)));
    double ar = number(a, "ar_tok_s"), fused = number(a, "fused_tok_s");
    if (!rc)
        rc = rect(b, rate_x, y, ar / top_rate * RATE_W, fused > 0 ? (BAR - 3) / 2.0 : BAR - 3,
                  "#2c7a7b");
    if (!rc && fused > 0)
        rc = rect(b, rate_x, y + (BAR - 3) / 2.0, fused / top_rate * RATE_W, (BAR - 3) / 2.0,
                  "#81e6d9");
    snprintf(s, sizeof s, fused > 0 ? "%.0f / %.0f" : "%.0f", ar, fused);
    if (!rc)
        rc = text(b, rate_x + (ar > fused ? ar : fused) / top_rate * RATE_W + 5, y + 12,
                  "fill=\"#4a5568\"", s);
    if (rc || json_is_null(json_object_get(a, "recall"))) return rc;
    snprintf(s, sizeof s, "%.2f", number(a, "recall"));
    return rc ? rc
              : text(b, recall_x, y + 12,
                     number(a, "recall") < 0.99 ? "fill=\"#c53030\"" : "fill=\"#2f855a\"", s);
}

static int draw_rung(struct kk_buf *b, const json_t *r, double y, double top_bytes, double top_rate)
{
    char s[96];
    snprintf(s, sizeof s, "%lld tokens of context",
             (long long)json_integer_value(json_object_get(r, "prompt_tokens")));
    int rc = text(b, LEFT, y - 6, "font-weight=\"bold\"", s);
    for (int k = 0; !rc && kk_scorecard_arms[k]; k++) {
        const char *name = kk_scorecard_arms[k];
        rc = draw_arm(b, name, json_object_get(json_object_get(r, "arms"), name),
                      y + k * (BAR + GAP), top_bytes, top_rate);
    }
    return rc;
}

static int draw_head(struct kk_buf *b, const json_t *report, double height)
{
    char s[160];
    double x = LEFT;
    int rc = kk_buf_printf(
        b,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %.0f\" width=\"%d\" "
        "height=\"%.0f\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" "
        "fill=\"#1a202c\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
        WIDTH, height, WIDTH, height);
    snprintf(s, sizeof s, "Bytes of one session by KV policy, counted by the allocator: %.60s",
             json_string_value(json_object_get(report, "model")));
    if (!rc) rc = text(b, 16, 24, "font-size=\"15\" font-weight=\"bold\"", s);
    for (int k = 0; !rc && k < 4; k++) {
        rc = rect(b, x, 36, 11, 11, byte_colours[k]);
        if (!rc) rc = text(b, x + 15, 46, "fill=\"#4a5568\"", byte_names[k]);
        x += 24 + 6 * (double)strlen(byte_names[k]);
    }
    if (!rc)
        rc = text(b, LEFT + BYTES_W + 90, HEAD - 30.0, "fill=\"#4a5568\"",
                  "tok/s, plain (dark) and drafted");
    return rc ? rc
              : text(b, LEFT + BYTES_W + 90 + RATE_W + 110, HEAD - 30.0, "fill=\"#4a5568\"",
                     "recall");
}

int kk_scorecard_picture(const json_t *report, struct kk_buf *svg)
{
    const json_t *rungs = json_object_get(report, "rungs"), *r;
    const double rung_h = 7 * (BAR + GAP) + 34;
    size_t i;
    double top_bytes = most(rungs, NULL, NULL), top_rate = most(rungs, "ar_tok_s", "fused_tok_s");
    double height = HEAD + rung_h * (double)json_array_size(rungs) + FOOT - 30;
    char s[200];
    int rc = draw_head(svg, report, height);
    json_array_foreach(rungs, i, r)
    {
        if (!rc) rc = draw_rung(svg, r, HEAD + rung_h * (double)i, top_bytes, top_rate);
    }
    snprintf(s, sizeof s, "%.60s, kakeya %.40s",
             json_string_value(json_object_get(report, "device")),
             json_string_value(json_object_get(report, "commit")));
    if (!rc) rc = text(svg, 16, height - 10, "font-size=\"10\" fill=\"#718096\"", s);
    return rc ? rc : kk_buf_puts(svg, "</svg>\n");
}

/* ---- agents -------------------------------------------------------------------------------- */

enum { COLUMN = 176, COLUMN_BAR = 84, ROW = 26, AGENTS_HEAD = 92 };

/* A column of bars: one field of a level, and a second one that is drawn lighter below it. */
static const struct {
    const char *title, *object, *field, *lighter; /* object: NULL: the level itself */
    double scale;
    const char *format;
} columns[] = {
    {"first token s, p50 / p99", "ttft_s", "p50", "p99", 1, "%.2f / %.2f"},
    {"between tokens ms, p50 / max", "inter_token_s", "p50", "max", 1e3, "%.1f / %.0f"},
    {"tokens a second, all agents", NULL, "tokens_per_s", NULL, 1, "%.0f"},
    {"KV of a session MB, device / host", NULL, "per_session_kv_bytes", "kv_host_bytes", 1e-6,
     "%.2f / %.2f"},
    {"server's memory MB", NULL, "server_rss_mb", NULL, 1, "%.0f"},
};
enum { N_COLUMNS = sizeof columns / sizeof *columns };

static double cell(const json_t *level, int column, int lighter)
{
    const char *field = lighter ? columns[column].lighter : columns[column].field;
    const json_t *o =
        columns[column].object ? json_object_get(level, columns[column].object) : level;
    return field ? number(o, field) * columns[column].scale : 0;
}

static int draw_cell(struct kk_buf *b, const json_t *level, int k, double y, double top)
{
    char s[64];
    double v[2] = {cell(level, k, 0), cell(level, k, 1)}, x = LEFT + k * (double)COLUMN;
    int rc = 0, two = columns[k].lighter != NULL;
    double height = two ? (ROW - 8) / 2.0 : ROW - 8;
    for (int i = 0; !rc && i <= two; i++)
        rc = rect(b, x, y + i * height, v[i] / top * COLUMN_BAR, height, i ? "#90cdf4" : "#2b6cb0");
        /* the format is one of the table's */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(s, sizeof s, columns[k].format, v[0], v[1]);
#pragma GCC diagnostic pop
    return rc ? rc
              : text(b, x + (v[0] > v[1] ? v[0] : v[1]) / top * COLUMN_BAR + 4, y + 13,
                     "font-size=\"11\" fill=\"#4a5568\"", s);
}

static int draw_column(struct kk_buf *b, const json_t *levels, int k)
{
    double top = 0;
    size_t i;
    const json_t *level;
    json_array_foreach(levels, i, level)
    {
        for (int l = 0; l < 2; l++)
            if (cell(level, k, l) > top) top = cell(level, k, l);
    }
    int rc = text(b, LEFT + k * (double)COLUMN, AGENTS_HEAD - 12,
                  "font-size=\"10\" fill=\"#4a5568\"", columns[k].title);
    json_array_foreach(levels, i, level)
    {
        if (!rc) rc = draw_cell(b, level, k, AGENTS_HEAD + (double)i * ROW, top > 0 ? top : 1);
    }
    return rc;
}

int kk_agents_picture(const json_t *report, struct kk_buf *svg)
{
    const json_t *levels = json_object_get(report, "results"), *level;
    const json_t *config = json_object_get(report, "config");
    const char *model = json_string_value(json_object_get(report, "model"));
    double height = AGENTS_HEAD + ROW * (double)json_array_size(levels) + FOOT;
    char s[200];
    size_t i;
    int rc = kk_buf_printf(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %.0f\" width=\"%d\" "
        "height=\"%.0f\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"12\" "
        "fill=\"#1a202c\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
        WIDTH, height, WIDTH, height);
    snprintf(s, sizeof s, "Agents at the same time: %.60s, %.0f tokens of context, %.0f generated",
             model ? model : "a server", number(config, "context_len"),
             number(config, "gen_tokens"));
    if (!rc) rc = text(svg, 16, 24, "font-size=\"15\" font-weight=\"bold\"", s);
    if (!rc)
        rc = text(svg, 16, 46, "fill=\"#4a5568\"",
                  "dark: the first of two values; light: the second");
    for (int k = 0; !rc && k < N_COLUMNS; k++) rc = draw_column(svg, levels, k);
    json_array_foreach(levels, i, level)
    {
        double n = number(level, "agents"), y = AGENTS_HEAD + (double)i * ROW + 13;
        int bad = number(level, "generate_ok") < n;
        snprintf(s, sizeof s, bad ? "%.0f (%.0f failed)" : "%.0f", n,
                 n - number(level, "generate_ok"));
        if (!rc)
            rc = text(svg, LEFT - 8, y,
                      bad ? "text-anchor=\"end\" fill=\"#c53030\"" : "text-anchor=\"end\"", s);
    }
    snprintf(s, sizeof s, "kakeya %.40s", json_string_value(json_object_get(report, "commit")));
    if (!rc) rc = text(svg, 16, height - 10, "font-size=\"10\" fill=\"#718096\"", s);
    return rc ? rc : kk_buf_puts(svg, "</svg>\n");
}
