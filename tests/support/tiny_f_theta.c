#include "tiny_f_theta.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { C = 48, TAPS = 2, RANK = 8, GD = 32 };

struct writer {
    char header[4096];
    size_t len, bytes;
};

static void tensor(struct writer *w, const char *name, int rows, int cols)
{
    size_t n = (size_t)rows * (size_t)(cols ? cols : 1) * sizeof(float);
    w->len += (size_t)snprintf(w->header + w->len, sizeof w->header - w->len,
                               "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%d", w->len ? "," : "{",
                               name, rows);
    if (cols)
        w->len += (size_t)snprintf(w->header + w->len, sizeof w->header - w->len, ",%d", cols);
    w->len += (size_t)snprintf(w->header + w->len, sizeof w->header - w->len,
                               "],\"data_offsets\":[%zu,%zu]}", w->bytes, w->bytes + n);
    w->bytes += n;
}

/* Layers 0 and 2 of tests/data/mini.json slide. */
size_t tiny_f_theta(unsigned char file[static TINY_F_THETA_MAX])
{
    struct writer w = {.len = 0};
    tensor(&w, "latent.weight", RANK, TAPS * C);
    tensor(&w, "latent.bias", RANK, 0);
    for (int l = 0; l < 4; l += 2)
        for (int v = 0; v < 2; v++) {
            char name[64];
            snprintf(name, sizeof name, "layers.%d.%c.weight", l, v ? 'v' : 'k');
            tensor(&w, name, GD, RANK);
            snprintf(name, sizeof name, "layers.%d.%c.bias", l, v ? 'v' : 'k');
            tensor(&w, name, GD, 0);
        }
    w.header[w.len++] = '}';
    if (8 + w.len + w.bytes > TINY_F_THETA_MAX) abort();
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)(w.len >> 8 * i);
    memcpy(file + 8, w.header, w.len);
    for (size_t i = 0; i < w.bytes / sizeof(float); i++) {
        float x = (float)(int)(i * 37 % 101) / 500.0f - 0.1f;
        memcpy(file + 8 + w.len + i * sizeof x, &x, sizeof x);
    }
    return 8 + w.len + w.bytes;
}
