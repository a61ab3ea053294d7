#include "cli/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"

enum { ARGS_MAX = 64 };

struct args {
    char *list[ARGS_MAX + 1];
    int n, failed;
};

static void add(struct args *a, const char *name, const char *value)
{
    size_t n = strlen(name) + strlen(value) + 4;
    char *arg = a->n < ARGS_MAX ? kk_malloc(n) : NULL;
    if (!arg) {
        a->failed = 1;
        return;
    }
    snprintf(arg, n, "%s%s%s%s", *value ? "--" : "", name, *value ? "=" : "", value);
    a->list[a->n++] = arg;
}

/* The child has our environment, but a flag or a line of our file it must be told. */
static void build(struct args *a, const struct kk_config *c, int capacity)
{
    char number[16];
    add(a, "kakeya", "");
    add(a, "serve", "");
    add(a, "grpc", "127.0.0.1:0");
    add(a, "json", "-");
    for (int id = 0; id < KK_OPT_COUNT; id++) {
        const struct kk_option *o = kk_option_at((enum kk_option_id)id);
        int both = (o->commands & KK_CMD_SERVE) && (o->commands & KK_CMD_AGENTS);
        if (both && !o->flag_only && o->type != KK_OPT_REPORT && id != KK_OPT_CONFIG &&
            kk_config_given(c, (enum kk_option_id)id))
            add(a, o->name, c->value[id].text[0]);
    }
    snprintf(number, sizeof number, "%d", capacity);
    if (!kk_config_given(c, KK_OPT_CAPACITY)) add(a, "capacity", number);
    if (!kk_config_given(c, KK_OPT_MAX_CALLS) && capacity > 2048) {
        snprintf(number, sizeof number, "%d", 2 * capacity);
        add(a, "max-calls", number);
    }
}

static int start(struct kk_child *s, struct args *a, int out, struct kk_err *err)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
    int rc = posix_spawn(&s->pid, "/proc/self/exe", &actions, NULL, a->list, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (!rc) return 0;
    s->pid = 0;
    return kk_fail(err, KK_EIO, "cannot start a server: %s", strerror(rc));
}

int kk_child_serve(struct kk_child *s, const struct kk_config *c, int capacity, struct kk_err *err)
{
    struct args a = {.n = 0};
    int fd[2], rc;
    json_error_t why;
    build(&a, c, capacity);
    if (a.failed)
        rc = kk_fail(err, KK_ENOMEM, "out of memory for a server's options");
    else if (pipe2(fd, O_CLOEXEC))
        rc = kk_fail(err, KK_EIO, "cannot make a pipe: %m");
    else {
        rc = start(s, &a, fd[1], err);
        close(fd[1]);
        FILE *from = fdopen(fd[0], "r");
        if (!rc && from) s->ready = json_loadf(from, JSON_DISABLE_EOF_CHECK, &why);
        if (!rc && !s->ready)
            rc = kk_fail(err, KK_EIO, "the server ended before it was ready (it says why above)");
        if (from) fclose(from);
    }
    for (int i = 0; i < a.n; i++) kk_free(a.list[i]);
    if (rc) kk_child_stop(s, NULL);
    return rc;
}

int kk_child_alive(const struct kk_child *s)
{
    siginfo_t info = {0};
    return s->pid && !waitid(P_PID, (id_t)s->pid, &info, WEXITED | WNOHANG | WNOWAIT) &&
           !info.si_pid;
}

double kk_child_memory_mb(const struct kk_child *s, const char *field)
{
    char path[64], line[256];
    long long kb = 0;
    size_t n = strlen(field);
    if (!s->pid) return 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)s->pid);
    FILE *f = fopen(path, "re");
    while (f && !kb && fgets(line, sizeof line, f))
        if (!strncmp(line, field, n) && line[n] == ':') kb = strtoll(line + n + 1, NULL, 10);
    if (f) fclose(f);
    return (double)kb * 1024e-6;
}

int kk_child_stop(struct kk_child *s, struct kk_err *err)
{
    int status = 0;
    if (s->pid) {
        kill(s->pid, SIGTERM);
        while (waitpid(s->pid, &status, 0) < 0 && errno == EINTR) continue;
    }
    json_decref(s->ready);
    *s = (struct kk_child){0};
    if (!status) return 0;
    return kk_fail(err, KK_EIO, "the server ended with %s %d",
                   WIFSIGNALED(status) ? "signal" : "status",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}
