/* A server as a child of a bench: this same program, `serve`, on a free port of the loopback. */
#ifndef KK_CLI_CHILD_H
#define KK_CLI_CHILD_H

#include <jansson.h>
#include <sys/types.h>

#include "base/config.h"
#include "base/err.h"

struct kk_child {
    pid_t pid;     /* 0: none */
    json_t *ready; /* what it said when it was ready */
};

/* Start one with the options that c was given and `serve` has too, and wait until it is ready.
 * capacity: if the options do not say. KK_EIO if it ends before; its own words are on stderr. */
int kk_child_serve(struct kk_child *s, const struct kk_config *c, int capacity, struct kk_err *err);

int kk_child_alive(const struct kk_child *s);
/* A field of /proc/PID/status in MB: "VmRSS", "VmHWM"; 0 without a child. */
double kk_child_memory_mb(const struct kk_child *s, const char *field);

/* SIGTERM, and wait. KK_EIO if it ended badly. Safe on one that never ran. */
int kk_child_stop(struct kk_child *s, struct kk_err *err);

#endif
