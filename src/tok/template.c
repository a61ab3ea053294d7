/* Which family of chat templates a carried one (Jinja) belongs to. It is not run: it is known by
 * the literals that every template of its family has, the opening of an answer among them. */
#include <string.h>

#include "tok/tok_int.h"

/* In needs, a line end is itself or the two letters \n, as strings of Jinja spell it. */
static const struct {
    const char *family, *needs[2];
} known[] = {
    {"gemma", {"<start_of_turn>model\n", "<end_of_turn>"}},
    {"gemma4", {"<|turn>model\n", "<turn|>"}},
    {"chatml", {"<|im_start|>assistant\n", "<|im_end|>"}},
    {"llama3", {"<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"}},
};
enum { N_KNOWN = sizeof known / sizeof *known };

/* Length of what `want` matches at s, or 0. */
static size_t match(const char *s, const char *want)
{
    const char *at = s;
    for (; *want; want++) {
        if (*want == '\n' && at[0] == '\\' && at[1] == 'n')
            at += 2;
        else if (*at == *want)
            at++;
        else
            return 0;
    }
    return (size_t)(at - s);
}

static int holds(const char *text, const char *want)
{
    for (; *text; text++)
        if (match(text, want)) return 1;
    return 0;
}

static const char *family_of(const char *text)
{
    for (int i = 0; i < N_KNOWN; i++)
        if (holds(text, known[i].needs[0]) && holds(text, known[i].needs[1]))
            return known[i].family;
    return NULL;
}

int kk_tok_chat_family(const struct kk_tok *t, const char **family, struct kk_err *err)
{
    char q[64];
    *family = NULL;
    if (!t->chat_template) return 0;
    *family = family_of(t->chat_template);
    if (*family) return 0;
    return kk_fail(err, KK_EUNSUPPORTED,
                   "the model's chat template is none of gemma, gemma4, chatml, llama3; it begins "
                   "'%s'",
                   kk__quote(q, t->chat_template, strcspn(t->chat_template, "\n")));
}
