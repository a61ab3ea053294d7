/* Conversations as token ids: the chat templates of Gemma, Gemma 4, ChatML and Llama 3.
 *
 *     struct kk_chat c;
 *     rc = kk_chat_init(&c, tok, "auto", &err);
 *     rc = kk_chat_turn(&c, history, n, system, text, len, &ids, &err);    append these, generate,
 *     kk_chat_ends(&c, id)                                                   until this is true
 *
 * A template is chosen by the one that comes with the model (in its GGUF, its directory), known by
 * how it opens an answer and ends a turn, else by the control tokens ("markers") that the tokenizer
 * has:
 *
 *     family   markers, all of them needed              a conversation of two turns
 *     gemma    <bos> <start_of_turn> <end_of_turn>      <bos>[user\nHi][model\nYo][user\n..
 *     gemma4   <bos> <|turn> <turn|> <|channel>         <bos>[system\nS][user\nHi][model\nYo][..
 *              <channel|>
 *     chatml   <|im_start|> <|im_end|>                  [system\nS][user\nHi][assistant\nYo][..
 *     llama3   <|begin_of_text|> <|start_header_id|>    <bos>[system|\n\nS][user|\n\nHi][..
 *              <|end_header_id|> <|eot_id|>
 *
 * where [ ] are the markers of a turn and | ends a header. BOS is part of a template: nobody adds
 * one. Gemma has no system turn: the message stands before the first words of the user. Gemma 4's
 * model turns begin with an empty thought (<|channel>thought\n<channel|>): answers without
 * thinking. Gemma and Llama 3 trim the text of a turn, as their published templates do. Left out:
 * the date that Llama 3.1 and Qwen 2.5's default system message, which say what the caller did not.
 *
 * Text is text: a marker typed by a user is encoded as its letters. Ids equal those of Hugging
 * Face's apply_chat_template (tests/golden/chat). */
#ifndef KK_TOK_CHAT_H
#define KK_TOK_CHAT_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "tok/tok.h"

enum { KK_CHAT_MARKS = 5, KK_CHAT_STOPS = 4 };

struct kk_chat {
    const struct kk_tok *tok; /* borrowed */
    const char *family;       /* "gemma" */
    const struct kk_chat_form *form;
    uint32_t mark[KK_CHAT_MARKS]; /* ids of form's markers */
    uint32_t stop[KK_CHAT_STOPS]; /* ids that end an answer; the end of a turn is the first */
    int n_stop;
    int by_markers; /* "auto", and the model brings no template: say so */
};

/* family: "auto", or a name of the table above. KK_EUNSUPPORTED, saying what was looked for: the
 * tokenizer lacks a marker of the family named or carried; "auto": the template carried is of no
 * family (its first line is shown), or none is, and the tokenizer has the markers of no family, or
 * of more than one. */
int kk_chat_init(struct kk_chat *c, const struct kk_tok *t, const char *family, struct kk_err *err);

/* Append to out what comes after history [n] when the user says text [len] and the model is to
 * answer. An empty history begins a conversation, with BOS and the system message (NULL: none;
 * ignored later). An answer that was cut off is ended first. On failure out is as before. */
int kk_chat_turn(const struct kk_chat *c, const uint32_t *history, size_t n, const char *system,
                 const char *text, size_t len, struct kk_ids *out, struct kk_err *err);

/* 1 if id ends an answer. */
int kk_chat_ends(const struct kk_chat *c, uint32_t id);

#endif
