/* A tokenizer's tables as a model file carries them (GGUF's tokenizer.* keys): what `file` reads
 * and `tok` makes a tokenizer of, neither knowing the other. */
#ifndef KK_BASE_VOCAB_H
#define KK_BASE_VOCAB_H

#include <stddef.h>
#include <stdint.h>

enum kk_token_type { /* GGUF's numbers; those in between mean nothing here */
                     KK_TOKEN_NORMAL = 1,
                     KK_TOKEN_UNKNOWN = 2,
                     KK_TOKEN_CONTROL = 3,
                     KK_TOKEN_USER = 4,
                     KK_TOKEN_UNUSED = 5,
                     KK_TOKEN_BYTE = 6
};

struct kk_text { /* len bytes of anything, not NUL-terminated */
    const char *s;
    size_t len;
};

struct kk_vocab {
    char *model, *pre; /* "llama", "gpt2", ..; which pre-tokenizer: NULL if not said. Owned */
    struct kk_text *token, *merge; /* [n], [n_merges]; the lists owned, the texts borrowed */
    float *score;                  /* [n] or NULL; owned */
    int32_t *type;                 /* [n]; owned */
    size_t n, n_merges;
    int64_t unknown;      /* id, or -1 */
    int add_space_prefix; /* a text begins with a space of its own */
    char *chat_template;  /* owned; NULL if there is none */
};

/* Start from {0}; releasing twice is fine. */
void kk_vocab_release(struct kk_vocab *v);

#endif
