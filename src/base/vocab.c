#include "base/vocab.h"

#include "base/mem.h"

void kk_vocab_release(struct kk_vocab *v)
{
    kk_free(v->model);
    kk_free(v->pre);
    kk_free(v->token);
    kk_free(v->merge);
    kk_free(v->score);
    kk_free(v->type);
    kk_free(v->chat_template);
    *v = (struct kk_vocab){0};
}
