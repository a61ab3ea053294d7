/* Typed reads from jansson values, with one-line errors that name the key. Parsing rejects
 * duplicate keys, bad UTF-8, trailing junk and depth over 2048 (jansson's own limits).
 * Values are in libc's memory, not mem.h's: a jansson 2.14 that runs out of it loses characters or
 * asserts, so failing its allocations in tests would test nothing of ours. */
#ifndef KK_BASE_JSON_H
#define KK_BASE_JSON_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* Parse a file of at most max bytes; *out is a new reference (json_decref). */
int kk_json_load(const char *path, size_t max, json_t **out, struct kk_err *err);

/* Parse len bytes; what names the source in messages. */
int kk_json_parse(const char *text, size_t len, const char *what, json_t **out, struct kk_err *err);

/* obj[key] as an integer in [min, max]. A missing or null key leaves *out (the default) unless
 * `required`. Wrong type or out of range: KK_EFORMAT naming key, value and bounds. */
int kk_json_int(const json_t *obj, const char *key, int64_t min, int64_t max, int required,
                int64_t *out, struct kk_err *err);
int kk_json_real(const json_t *obj, const char *key, double min, double max, int required,
                 double *out, struct kk_err *err);
int kk_json_bool(const json_t *obj, const char *key, int required, int *out, struct kk_err *err);
/* *out borrows from obj. */
int kk_json_str(const json_t *obj, const char *key, int required, const char **out,
                struct kk_err *err);

#endif
