/* The commands: one table behind dispatch, help, the manual page and the completions of shells. */
#ifndef KK_CLI_COMMANDS_H
#define KK_CLI_COMMANDS_H

#include "base/buf.h"
#include "base/config.h"
#include "cli/common.h"

struct kk_cli_command {
    const char *name; /* "bench niah" is two words */
    enum kk_command id;
    kk_cli_fn *fn;
    const char *usage, *summary;
};

/* The i-th command, or NULL after the last. */
const struct kk_cli_command *kk_cli_command_at(int i);

/* "niah" of "bench niah"; NULL for a command of one word. */
const char *kk_cli_bench_name(const struct kk_cli_command *c);

/* What can be typed in a chat beside messages: the i-th command, or NULL after the last. */
struct kk_cli_chat_command {
    const char *name, *arg, *help; /* an arg in brackets may be left out; NULL: none */
};
const struct kk_cli_chat_command *kk_cli_chat_command_at(int i);
extern const char kk_cli_chat_keys[]; /* and what keys do; lines */

/* What `kakeya help --NAME` prints: "man" (the page kakeya.1), "bash", "zsh", "fish" (completions).
 * Appended to out. KK_EUSAGE for another name; KK_ENOMEM. */
int kk_cli_document(const char *name, struct kk_buf *out, struct kk_err *err);

/* Parts of it: 0 or a kk_buf code. */
int kk_cli_manual(struct kk_buf *out);
int kk_cli_complete_bash(struct kk_buf *out);
int kk_cli_complete_zsh(struct kk_buf *out);
int kk_cli_complete_fish(struct kk_buf *out);

#endif
