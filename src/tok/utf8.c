/* Characters: validation by the maximal-subpart rule (Unicode 3.9, "U+FFFD substitution", as
 * Python's errors="replace" and Rust's from_utf8_lossy do), properties, and GPT-2's byte spelling.
 */
#include <string.h>
#include <utf8proc.h>

#include "tok/tok_int.h"

/* Length announced by a lead byte and the range of its second byte; 0 for no lead byte. */
static int lead(u8 b, u8 *lo, u8 *hi)
{
    *lo = 0x80;
    *hi = 0xbf;
    if (b < 0x80) return 1;
    if (b < 0xc2 || b > 0xf4) return 0;
    if (b < 0xe0) return 2;
    if (b == 0xe0) *lo = 0xa0; /* no overlong forms */
    if (b == 0xed) *hi = 0x9f; /* no surrogates */
    if (b == 0xf0) *lo = 0x90;
    if (b == 0xf4) *hi = 0x8f; /* nothing above U+10FFFF */
    return b < 0xf0 ? 3 : 4;
}

int kk__utf8_step(const u8 *p, size_t n)
{
    u8 lo, hi;
    int len = lead(p[0], &lo, &hi);
    if (!len) return -1;
    for (int i = 1; i < len; i++) {
        if ((size_t)i == n) return 0;
        if (p[i] < lo || p[i] > hi) return -i;
        lo = 0x80;
        hi = 0xbf;
    }
    return len;
}

size_t kk__utf8_valid(const u8 *p, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t w;
        if (n - i >= 8 && (memcpy(&w, p + i, 8), !(w & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        int k = kk__utf8_step(p + i, n - i);
        if (k <= 0) break;
        i += (size_t)k;
    }
    return i;
}

unsigned kk__utf8_get(const u8 *p, uint32_t *cp)
{
    if (p[0] < 0x80) {
        *cp = p[0];
        return 1;
    }
    if (p[0] < 0xe0) {
        *cp = (uint32_t)(p[0] & 31) << 6 | (p[1] & 63);
        return 2;
    }
    if (p[0] < 0xf0) {
        *cp = (uint32_t)(p[0] & 15) << 12 | (uint32_t)(p[1] & 63) << 6 | (p[2] & 63);
        return 3;
    }
    *cp = (uint32_t)(p[0] & 7) << 18 | (uint32_t)(p[1] & 63) << 12 | (uint32_t)(p[2] & 63) << 6 |
          (p[3] & 63);
    return 4;
}

unsigned kk__utf8_put(u8 out[4], uint32_t cp)
{
    return (unsigned)utf8proc_encode_char((utf8proc_int32_t)cp, out);
}

int kk__utf8_repair(const u8 *p, size_t n, struct kk_buf *out)
{
    for (size_t i = 0; i < n;) {
        size_t k = kk__utf8_valid(p + i, n - i);
        int rc = kk_buf_append(out, p + i, k);
        if (rc) return rc;
        i += k;
        if (i == n) break;
        rc = kk_buf_append(out, "\xef\xbf\xbd", 3);
        if (rc) return rc;
        int bad = kk__utf8_step(p + i, n - i);
        i = bad ? i + (size_t)-bad : n; /* 0: the text ends inside a character */
    }
    return 0;
}

int kk__is_space(uint32_t c)
{
    if (c < 0x80) return c == ' ' || (c >= 9 && c <= 13);
    return c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 ||
           c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

int kk__is_numeric(uint32_t c)
{
    if (c < 0x80) return c >= '0' && c <= '9';
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k >= UTF8PROC_CATEGORY_ND && k <= UTF8PROC_CATEGORY_NO;
}

/* Alphabetic, Mark, Nd, Pc, Join_Control. utf8proc has no Alphabetic: it is letters, Nl, and of the
 * symbols the circled and squared letters. */
int kk__is_word(uint32_t c)
{
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    if (k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_NL) return 1;
    return k == UTF8PROC_CATEGORY_PC || c == 0x200c || c == 0x200d ||
           (c >= 0x24b6 && c <= 0x24e9) || (c >= 0x1f130 && c <= 0x1f149) ||
           (c >= 0x1f150 && c <= 0x1f169) || (c >= 0x1f170 && c <= 0x1f189);
}

/* Printable Latin-1 stands for itself; the other 68 bytes, in order, are U+0100 and up. */
static int self_spelled(uint32_t b)
{
    return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
}

uint32_t kk__byte_char(u8 b)
{
    if (self_spelled(b)) return b;
    if (b <= 0x20) return 0x100u + b;
    return b == 0xad ? 0x143 : 0x100u + 33 + (b - 0x7fu);
}

int kk__char_byte(uint32_t c)
{
    if (c < 0x100) return self_spelled(c) ? (int)c : -1;
    if (c <= 0x120) return (int)c - 0x100;
    if (c == 0x143) return 0xad;
    return c < 0x143 ? (int)(c - 0x121 + 0x7f) : -1;
}

const char *kk__quote(char out[64], const char *s, size_t len)
{
    size_t n = len < 40 ? len : 40, k = 0;
    if (n < len) /* not in the middle of a character */
        while (n && ((u8)s[n] & 0xc0) == 0x80) n--;
    for (; k < n; k++) out[k] = (u8)s[k] < 32 || s[k] == 127 ? '?' : s[k];
    memcpy(out + k, n < len ? "..." : "", n < len ? 4 : 1);
    return out;
}
