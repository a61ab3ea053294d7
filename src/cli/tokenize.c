/* kakeya tokenize: text to ids and back. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#include "cli/common.h"

/* "5, 17 3" or "[5, 17, 3]". */
static int parse_ids(const char *text, struct kk_ids *out, struct kk_err *err)
{
    const char *at = text;
    for (;;) {
        while (*at && (isspace((unsigned char)*at) || *at == ',' || *at == '[' || *at == ']')) at++;
        if (!*at) return 0;
        char *end;
        unsigned long long v = strtoull(at, &end, 10);
        if (!isdigit((unsigned char)*at) || v > UINT32_MAX || isalpha((unsigned char)*end))
            return kk_fail(err, KK_EUSAGE,
                           "--decode: '%.24s' is no token id (give them as \"5,17,3\")", at);
        at = end;
        int rc = kk_ids_push(out, (uint32_t)v);
        if (rc) return kk_fail(err, rc, "out of memory for token ids");
    }
}

static json_t *report(const struct kk_cli *cli, const struct kk_ids *ids, const struct kk_buf *text)
{
    json_t *o = json_object(), *list = json_array(), *pieces = json_array();
    for (size_t i = 0; i < ids->n; i++) {
        const char *piece = kk_tok_text(cli->tok, ids->id[i]);
        json_array_append_new(list, json_integer(ids->id[i]));
        json_array_append_new(pieces, piece ? json_string(piece) : json_null());
    }
    json_object_set_new(o, "count", json_integer((json_int_t)ids->n));
    json_object_set_new(o, "ids", list);
    json_object_set_new(o, "tokens", pieces);
    json_object_set_new(o, "text", kk_cli_json_text(text->data, text->len));
    return o;
}

static void print_ids(const struct kk_cli *cli, const struct kk_ids *ids)
{
    for (size_t i = 0; i < ids->n; i++) {
        const char *piece = kk_tok_text(cli->tok, ids->id[i]);
        printf("%8u  %s\n", ids->id[i], piece ? piece : "");
    }
    fprintf(stderr, "kakeya: %zu tokens\n", ids->n);
}

int kk_cli_tokenize(struct kk_cli *cli, struct kk_err *err)
{
    struct kk_ids ids = {0};
    struct kk_buf text;
    kk_buf_init(&text, KK_CLI_TEXT_MAX);
    const char *decode = kk_config_text(&cli->cfg, KK_OPT_DECODE);
    int rc = kk_cli_no_words(cli, err);
    if (!rc && decode &&
        (kk_config_given(&cli->cfg, KK_OPT_PROMPT) || kk_config_given(&cli->cfg, KK_OPT_FILE)))
        rc = kk_fail(err, KK_EUSAGE, "--decode takes ids: leave out -p and -f");
    if (!rc) rc = decode ? parse_ids(decode, &ids, err) : kk_cli_text(cli, &text, err);
    if (!rc) rc = kk_cli_open_tok(cli, err);
    if (!rc) {
        rc = decode ? kk_tok_decode(cli->tok, ids.id, ids.n, 0, &text, err)
                    : kk_tok_encode(cli->tok, text.data, text.len, 1, &ids, err);
    }
    if (!rc && kk_cli_wants_text(cli)) {
        if (decode)
            printf("%s\n", text.data ? text.data : "");
        else
            print_ids(cli, &ids);
    }
    if (!rc) rc = kk_cli_report(cli, report(cli, &ids, &text), err);
    kk_buf_release(&text);
    kk_ids_release(&ids);
    return rc;
}
