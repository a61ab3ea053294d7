#include "fuzz.h"

#include <unistd.h>

static char dir[256];
static const char *const made[] = {
    "config.json",   "model.safetensors",   "model.safetensors.index.json", "a.safetensors",
    "b.safetensors", "f_theta.safetensors", "f_theta_config.json",          "tokenizer.json"};

static void remove_dir(void)
{
    for (size_t i = 0; i < sizeof made / sizeof *made; i++) unlink(fuzz_path(made[i]));
    rmdir(dir);
}

const char *fuzz_dir(void)
{
    if (dir[0]) return dir;
    const char *base = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/kk-fuzz-XXXXXX", base && *base ? base : P_tmpdir);
    FUZZ_CHECK(mkdtemp(dir));
    atexit(remove_dir);
    return dir;
}

const char *fuzz_path(const char *name)
{
    static char path[8][512];
    static unsigned turn;
    char *p = path[turn++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", fuzz_dir(), name);
    return p;
}

const char *fuzz_file(const char *name, const void *data, size_t len)
{
    const char *path = fuzz_path(name);
    FILE *f = fopen(path, "wb");
    FUZZ_CHECK(f && fwrite(data, 1, len, f) == len);
    FUZZ_CHECK(!fclose(f));
    return path;
}

int fuzz_is_utf8(const char *text, size_t n)
{
    const unsigned char *s = (const unsigned char *)text;
    for (size_t i = 0; i < n;) {
        size_t k = s[i] < 0x80 ? 1 : s[i] < 0xc2 ? 0 : s[i] < 0xe0 ? 2 : s[i] < 0xf0 ? 3 : 4;
        if (!k || s[i] > 0xf4 || k > n - i) return 0;
        uint32_t c = k == 1 ? s[i] : s[i] & (0x7fu >> k);
        for (size_t j = 1; j < k; j++) {
            if ((s[i + j] & 0xc0) != 0x80) return 0;
            c = c << 6 | (s[i + j] & 0x3f);
        }
        if ((k == 3 && c < 0x800) || (c >= 0xd800 && c < 0xe000) || (k == 4 && c < 0x10000) ||
            c > 0x10ffff)
            return 0;
        i += k;
    }
    return 1;
}

void fuzz_failed(int rc, struct kk_err *err)
{
    FUZZ_CHECK(rc < 0 && strcmp(kk_errname(rc), "KK_E?"));
    FUZZ_CHECK(err->code == rc && err->msg[0]);
    for (const char *p = err->msg; *p; p++) FUZZ_CHECK((unsigned char)*p >= 32 && *p != 127);
    FUZZ_CHECK(fuzz_is_utf8(err->msg, strlen(err->msg)));
    *err = (struct kk_err){0};
}

static int keep(void *arg, uint32_t id)
{
    uint32_t **at = arg;
    *(*at)++ = id;
    return 0;
}

int fuzz_generate(struct kk_engine *e, uint32_t out[static FUZZ_TOKENS])
{
    struct kk_session *s = NULL;
    struct kk_sampling p = kk_sampling_defaults();
    struct kk_engine_info info;
    struct kk_err err = {0};
    uint32_t ids[60], *at = out;
    kk_engine_describe(e, &info);
    for (uint32_t i = 0; i < 60; i++) ids[i] = (i % 30 * 7 + 3) % (uint32_t)info.vocabulary;
    size_t n = info.ctx < 60 + FUZZ_TOKENS ? 1 : 60;
    int rc = kk_session_open(e, &s, &err);
    if (!rc) rc = kk_session_append(s, ids, n, &err);
    if (!rc) rc = kk_session_generate(s, &p, FUZZ_TOKENS, keep, &at, NULL, &err);
    if (rc) fuzz_failed(rc, &err);
    if (s) FUZZ_CHECK(!kk_session_check(s, &err));
    kk_session_close(s);
    return (int)(at - out);
}
