/* Characters, inside src/tok only: UTF-8, properties, GPT-2's byte spelling. */
#ifndef KK_TOK_UTF8_INT_H
#define KK_TOK_UTF8_INT_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"

typedef unsigned char u8;

/* The character at p [n >= 1 bytes]: its length if well-formed; 0 if the n bytes are only the
 * beginning of one; -k if the first k bytes are ill-formed (k is the maximal subpart: one
 * U+FFFD). */
int kk__utf8_step(const u8 *p, size_t n);
/* Bytes at the start of p that are well-formed. */
size_t kk__utf8_valid(const u8 *p, size_t n);
/* Decode one character of valid UTF-8; returns its length. */
unsigned kk__utf8_get(const u8 *p, uint32_t *cp);
unsigned kk__utf8_put(u8 out[4], uint32_t cp);
/* Append p with every ill-formed part as U+FFFD. 0 or a kk_buf code. */
int kk__utf8_repair(const u8 *p, size_t n, struct kk_buf *out);

int kk__is_space(uint32_t cp);   /* White_Space */
int kk__is_numeric(uint32_t cp); /* Nd, Nl, No */
int kk__is_word(uint32_t cp);    /* \w of UTS 18 */

/* GPT-2's byte spelling: byte -> character, character -> byte or -1. */
uint32_t kk__byte_char(u8 b);
int kk__char_byte(uint32_t cp);

/* Text of a file in a message: at most 40 bytes, control characters as '?'. Returns out. */
const char *kk__quote(char out[64], const char *s, size_t len);

#endif
