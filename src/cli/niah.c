#include "cli/niah.h"

#include <stdio.h>
#include <string.h>

static const char *const prefixes[] = {"ALPHA",  "BETA", "GAMMA", "DELTA", "EPSILON",
                                       "ZETA",   "ETA",  "THETA", "IOTA",  "KAPPA",
                                       "ORCHID", "PINE", "MAPLE", "OAK",   "BIRCH"};
#define N_PREFIXES (sizeof prefixes / sizeof *prefixes)

static const char *const words[] = {
    "about",    "above",    "action",  "active",  "address",  "after",   "again",   "almost",
    "along",    "already",  "always",  "animal",  "answer",   "apple",   "area",    "around",
    "autumn",   "balance",  "basket",  "beach",   "before",   "begin",   "behind",  "bell",
    "below",    "between",  "bird",    "black",   "blue",     "board",   "boat",    "body",
    "bread",    "break",    "bridge",  "bright",  "bring",    "brother", "brown",   "build",
    "butter",   "button",   "camera",  "candle",  "carry",    "castle",  "center",  "chain",
    "chair",    "change",   "cheese",  "child",   "circle",   "city",    "clean",   "clear",
    "clock",    "close",    "cloud",   "coast",   "coffee",   "color",   "common",  "copper",
    "corner",   "cotton",   "count",   "country", "course",   "cover",   "cross",   "dance",
    "daughter", "deep",     "desert",  "detail",  "dinner",   "doctor",  "door",    "double",
    "dream",    "drive",    "early",   "earth",   "east",     "edge",    "eight",   "empty",
    "engine",   "enough",   "evening", "every",   "family",   "farm",    "father",  "field",
    "figure",   "finger",   "finish",  "fire",    "first",    "fish",    "floor",   "flower",
    "follow",   "force",    "forest",  "four",    "fresh",    "friend",  "front",   "fruit",
    "garden",   "gentle",   "glass",   "gold",    "grain",    "grass",   "green",   "ground",
    "group",    "guard",    "guide",   "hammer",  "hand",     "happy",   "harbor",  "head",
    "heart",    "heavy",    "hidden",  "high",    "hill",     "history", "holiday", "home",
    "honest",   "horse",    "hotel",   "hour",    "house",    "hundred", "island",  "jacket",
    "journey",  "kitchen",  "ladder",  "lake",    "language", "large",   "late",    "laugh",
    "leader",   "leaf",     "learn",   "left",    "letter",   "level",   "library", "light",
    "line",     "listen",   "little",  "long",    "lunch",    "machine", "market",  "meadow",
    "measure",  "middle",   "mirror",  "moment",  "money",    "month",   "moon",    "morning",
    "mother",   "mountain", "music",   "narrow",  "nature",   "needle",  "never",   "night",
    "noise",    "north",    "number",  "ocean",   "office",   "often",   "orange",  "order",
    "other",    "paint",    "paper",   "parent",  "part",     "pencil",  "people",  "pepper",
};
#define N_WORDS (sizeof words / sizeof *words)
_Static_assert(N_WORDS == KK_NIAH_MAX_KEYS, "one word per key");

int kk_niah_start(struct kk_niah *g, const struct kk_niah_opts *o, struct kk_err *err)
{
    if (o->lines_min < KK_NIAH_MIN_LINES || o->lines_max > KK_NIAH_MAX_LINES)
        return kk_fail(err, KK_EINVAL, "a haystack has %d to %d lines", KK_NIAH_MIN_LINES,
                       KK_NIAH_MAX_LINES);
    if (o->lines_min > o->lines_max)
        return kk_fail(err, KK_EINVAL, "least lines %d is more than most lines %d", o->lines_min,
                       o->lines_max);
    if (o->keys < 0 || o->keys > KK_NIAH_MAX_KEYS)
        return kk_fail(err, KK_EINVAL, "keys must be 0 to %d, not %d", KK_NIAH_MAX_KEYS, o->keys);
    g->opts = *o;
    kk_mt_seed(&g->rng, o->seed);
    return 0;
}

static void draw_code(struct kk_mt19937 *r, char out[24])
{
    const char *prefix = prefixes[kk_mt_below(r, N_PREFIXES)];
    snprintf(out, 24, "%s-%d", prefix, kk_mt_between(r, 1000, 9999));
}

/* The reference's document: the order of the draws is part of it. */
static int plain(struct kk_niah *g, struct kk_buf *b, struct kk_niah_sample *s)
{
    s->lines = kk_mt_between(&g->rng, g->opts.lines_min, g->opts.lines_max);
    draw_code(&g->rng, s->answer);
    s->insert_at = kk_mt_between(&g->rng, 4, s->lines - 4);
    int rc = 0;
    for (int i = 0; i < s->lines && rc == 0; i++) {
        if (i == s->insert_at)
            rc = kk_buf_printf(b, "\nIMPORTANT: the secret code is %s.\n\n", s->answer);
        if (rc == 0)
            rc = kk_buf_printf(b,
                               "Note %04d: this paragraph is unrelated padding and does not "
                               "contain the answer.\n",
                               i);
    }
    return rc ? rc : kk_buf_puts(b, "Question: what is the secret code? Answer:");
}

/* The facts of one keyed document: fact i follows at[i] padding lines. */
struct facts {
    uint32_t word[KK_NIAH_MAX_KEYS];
    char code[KK_NIAH_MAX_KEYS][24];
    int at[KK_NIAH_MAX_KEYS];
};

/* Distinct words, distinct codes: a right answer can come from one fact only. */
static void draw_facts(struct kk_mt19937 *r, int n, int lines, struct facts *f)
{
    for (uint32_t i = 0; i < N_WORDS; i++) f->word[i] = i;
    kk_mt_shuffle(r, f->word, N_WORDS);
    for (int i = 0; i < n; i++) {
        int fresh;
        do {
            draw_code(r, f->code[i]);
            fresh = 1;
            for (int k = 0; k < i; k++) fresh &= strcmp(f->code[k], f->code[i]) != 0;
        } while (!fresh);
        f->at[i] = kk_mt_between(r, 0, lines);
    }
}

/* "\n" and 4 to 10 words, each after a space, and a full stop. */
static int padding_line(struct kk_mt19937 *r, struct kk_buf *b)
{
    int rc = kk_buf_putc(b, '\n');
    for (int n = kk_mt_between(r, 4, 10); n-- && rc == 0;)
        rc = kk_buf_printf(b, " %s", words[kk_mt_below(r, N_WORDS)]);
    return rc ? rc : kk_buf_putc(b, '.');
}

static int keyed(struct kk_niah *g, struct kk_buf *b, struct kk_niah_sample *s)
{
    struct facts f;
    int n = g->opts.keys, rc = 0;
    s->lines = kk_mt_between(&g->rng, g->opts.lines_min, g->opts.lines_max);
    draw_facts(&g->rng, n, s->lines, &f);
    int asked = (int)kk_mt_below(&g->rng, (uint32_t)n);
    for (int line = 0; line <= s->lines && rc == 0; line++) {
        for (int i = 0; i < n && rc == 0; i++)
            if (f.at[i] == line)
                rc = kk_buf_printf(b, "\nIMPORTANT: the secret code for %s is %s.",
                                   words[f.word[i]], f.code[i]);
        if (rc == 0 && line < s->lines) rc = padding_line(&g->rng, b);
    }
    s->insert_at = f.at[asked];
    snprintf(s->answer, sizeof s->answer, "%s", f.code[asked]);
    snprintf(s->word, sizeof s->word, "%s", words[f.word[asked]]);
    if (rc) return rc;
    return kk_buf_printf(b, "\nQuestion: what is the secret code for %s? Answer:", s->word);
}

int kk_niah_next(struct kk_niah *g, struct kk_buf *prompt, struct kk_niah_sample *out,
                 struct kk_err *err)
{
    *out = (struct kk_niah_sample){0};
    kk_buf_reset(prompt);
    int rc = g->opts.keys ? keyed(g, prompt, out) : plain(g, prompt, out);
    if (rc) return kk_fail(err, rc, "document of %d lines: %s", out->lines, kk_strerror(rc));
    return 0;
}

int kk_niah_hit(const struct kk_niah_sample *s, const char *text)
{
    return strstr(text, s->answer) != NULL;
}

int kk_niah_exact(const struct kk_niah_sample *s, const char *text)
{
    size_t n = strlen(s->answer);
    text += strspn(text, " \t");
    if (strncmp(text, s->answer, n) != 0) return 0;
    text += n;
    text += strspn(text, " \t\r");
    return *text == 0 || *text == '\n';
}
