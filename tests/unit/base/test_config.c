/* The option table: where a setting may come from, what is refused, what help says. */
#include "kk_test.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/config.h"
#include "base/progress.h"
#include "kakeya.h"

#define ARGS(...)                                                                                  \
    (int)(sizeof((char *[]){__VA_ARGS__}) / sizeof(char *)), (char *[])                            \
    {                                                                                              \
        __VA_ARGS__                                                                                \
    }

static int load(struct kk_config *c, enum kk_command cmd, struct kk_err *err, int argc,
                char *const *argv)
{
    return kk_config_load(c, cmd, "run", argc, argv, err);
}

static void test_flag_forms(void **state)
{
    (void)state;
    struct kk_config c;
    struct kk_err err;
    KK_ASSERT_OK(load(&c, KK_CMD_RUN, &err,
                      ARGS("--threads", "3", "--kv=s5", "-m", "x", "-n32", "--ignore-eos", "word",
                           "--json", "--stop=a", "--stop", "b", "--", "--not-an-option")),
                 &err);
    assert_int_equal(kk_config_int(&c, KK_OPT_THREADS), 3);
    assert_string_equal(kk_config_text(&c, KK_OPT_KV), "s5");
    assert_string_equal(kk_config_text(&c, KK_OPT_MODEL), "x");
    assert_int_equal(kk_config_int(&c, KK_OPT_N), 32);
    assert_int_equal(kk_config_int(&c, KK_OPT_IGNORE_EOS), 1);
    assert_string_equal(kk_config_text(&c, KK_OPT_JSON), "-");
    assert_int_equal(c.value[KK_OPT_STOP].n, 2);
    assert_string_equal(c.value[KK_OPT_STOP].text[1], "b");
    assert_int_equal(c.n_args, 2);
    assert_string_equal(c.args[0], "word");
    assert_string_equal(c.args[1], "--not-an-option");
    assert_false(kk_config_has(&c, KK_OPT_SEED));
    kk_config_release(&c);
}

static void test_precedence(void **state)
{
    (void)state;
    struct kk_config c;
    struct kk_err err;
    char flag[256];
    const char text[] = "# a comment\n\nthreads = 5\n  kv-window=17  \ntemp = 0.5\n"
                        "stop = \" end\"\nkeys = 3\ntop-k = 9\n";
    snprintf(flag, sizeof flag, "--config=%s", kk_test_file("a.conf", text, sizeof text - 1));
    setenv("KAKEYA_KV_WINDOW", "18", 1);
    setenv("KAKEYA_TEMP", "0.25", 1);
    setenv("KAKEYA_STOP", "x", 1);
    KK_ASSERT_OK(load(&c, KK_CMD_RUN, &err, ARGS(flag, "--temp", "0.125")), &err);
    assert_int_equal(c.origin[KK_OPT_PREFILL_CHUNK], KK_FROM_DEFAULT);
    assert_int_equal(kk_config_int(&c, KK_OPT_PREFILL_CHUNK), 512);
    assert_int_equal(c.origin[KK_OPT_THREADS], KK_FROM_FILE);
    assert_int_equal(kk_config_int(&c, KK_OPT_THREADS), 5);
    assert_int_equal(kk_config_int(&c, KK_OPT_TOP_K), 9);
    assert_int_equal(c.origin[KK_OPT_KV_WINDOW], KK_FROM_ENVIRONMENT);
    assert_int_equal(kk_config_int(&c, KK_OPT_KV_WINDOW), 18);
    assert_int_equal(c.origin[KK_OPT_TEMP], KK_FROM_FLAG);
    assert_true(kk_config_real(&c, KK_OPT_TEMP) == 0.125);
    assert_int_equal(c.value[KK_OPT_STOP].n, 1);
    assert_string_equal(c.value[KK_OPT_STOP].text[0], "x");
    unsetenv("KAKEYA_KV_WINDOW");
    unsetenv("KAKEYA_STOP");
    kk_config_release(&c);
    setenv("KAKEYA_TEMP", "hot", 1);
    KK_ASSERT_FAILS(load(&c, KK_CMD_RUN, &err, ARGS("--temp", "1")), KK_EUSAGE, &err,
                    "KAKEYA_TEMP: --temp: 'hot' is not a number from 0 to 100");
    unsetenv("KAKEYA_TEMP");
    KK_ASSERT_OK(load(&c, KK_CMD_RUN, &err, ARGS(flag)), &err);
    assert_string_equal(c.value[KK_OPT_STOP].text[0], " end");
    kk_config_release(&c);
}

static void test_bad_files(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } bad[] = {
        {"threads = 2\nthreads: 3\n", "b.conf:2: 'threads: 3' is not \"name = value\""},
        {"thread = 2", "b.conf:1: unknown option --thread: did you mean --threads?"},
        {"\n\nthreads = many\n", "b.conf:3: --threads: 'many' is not a whole number from 0 to 256"},
        {"config = other", "can only be a flag"},
        {"help = yes", "can only be a flag"},
    };
    struct kk_config c;
    struct kk_err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *path = kk_test_file("b.conf", bad[i].text, strlen(bad[i].text));
        KK_ASSERT_FAILS(load(&c, KK_CMD_RUN, &err, ARGS("--config", (char *)(size_t)path)),
                        KK_EUSAGE, &err, bad[i].words);
    }
    KK_ASSERT_FAILS(load(&c, KK_CMD_RUN, &err, ARGS("--config", "no/such")), KK_ENOENT, &err,
                    "--config: cannot open 'no/such'");
    const char *nul = kk_test_file("b.conf", "a\0b", 3);
    KK_ASSERT_FAILS(load(&c, KK_CMD_RUN, &err, ARGS("--config", (char *)(size_t)nul)), KK_EUSAGE,
                    &err, "not a text file");
}

static void test_bad_flags(void **state)
{
    (void)state;
    static const struct {
        char *argv[2];
        const char *words;
    } bad[] = {
        {{"--thread", "2"}, "unknown option --thread: did you mean --threads?"},
        {{"--ignore_eos", NULL}, "did you mean --ignore-eos?"},
        {{"--zzzzzzzzz", NULL}, "unknown option --zzzzzzzzz (kakeya run --help lists them)"},
        {{"-z", NULL}, "unknown option -z"},
        {{"--reps", "3"}, "--reps does not apply to 'kakeya run'"},
        {{"--threads", NULL}, "--threads needs a value: --threads N"},
        {{"-m", NULL}, "--model needs a value"},
        {{"--threads=", NULL}, "'' is not a whole number"},
        {{"--threads", "-1"}, "'-1' is not a whole number from 0 to 256"},
        {{"--threads", "9999999999999999999999"}, "is not a whole number"},
        {{"--threads", "2x"}, "'2x' is not"},
        {{"-n", "0"}, "--n: '0' is not a whole number, 1 or more"},
        {{"--temp", "nan"}, "'nan' is not a number from 0 to 100"},
        {{"--kv", "native2"}, "'native2' is not one of full, native, s5, restored, sinkwin"},
        {{"--ignore-eos=maybe", NULL}, "'maybe' is not yes or no"},
        {{"--stop", ""}, "--stop: '' is not a text that is not empty"},
        {{"--json=", NULL}, "--json: '' is not a file name"},
    };
    struct kk_config c;
    struct kk_err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        KK_ASSERT_FAILS(load(&c, KK_CMD_RUN, &err, bad[i].argv[1] ? 2 : 1, bad[i].argv), KK_EUSAGE,
                        &err, bad[i].words);
}

static void test_values(void **state)
{
    (void)state;
    static const struct kk_option size = {.name = "x", .type = KK_OPT_SIZE};
    struct kk_value v;
    struct kk_err err;
    static const struct {
        const char *text;
        int64_t bytes; /* -1: refused */
    } sizes[] = {{"0", 0},
                 {"4096", 4096},
                 {"64KiB", 65536},
                 {"16MiB", 16 << 20},
                 {"2gib", 2ll << 30},
                 {"1TiB", 1ll << 40},
                 {"9223372036854775807TiB", -1},
                 {"1K", -1},
                 {"-1", -1},
                 {"", -1},
                 {"1.5GiB", -1}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int rc = kk_option_parse(&size, sizes[i].text, &v, &err);
        assert_int_equal(rc, sizes[i].bytes < 0 ? KK_EUSAGE : 0);
        if (!rc) assert_int_equal(v.i, sizes[i].bytes);
    }
    const struct kk_option *lines = kk_option_at(KK_OPT_LINES);
    KK_ASSERT_OK(kk_option_parse(lines, "60,160,320", &v, &err), &err);
    assert_int_equal(v.n, 3);
    assert_int_equal(v.list[2], 320);
    static const char *const lists[] = {"", "60,", ",60", "60 70", "60,,70", "60,5"};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        KK_ASSERT_FAILS(kk_option_parse(lines, lists[i], &v, &err), KK_EUSAGE, &err,
                        "a list with commas");
    char many[200] = "60";
    for (int i = 0; i < KK_LIST_MAX; i++) strncat(many, ",60", sizeof many - strlen(many) - 1);
    KK_ASSERT_FAILS(kk_option_parse(lines, many, &v, &err), KK_EUSAGE, &err, "up to 32 numbers");
}

/* The table's defaults are the library's. */
static void test_defaults_agree(void **state)
{
    (void)state;
    struct kk_config c;
    struct kk_err err;
    struct kk_engine_options o = kk_engine_defaults();
    KK_ASSERT_OK(load(&c, KK_CMD_RUN, &err, 0, NULL), &err);
    assert_int_equal(kk_config_int(&c, KK_OPT_THREADS), o.threads);
    assert_string_equal(kk_config_text(&c, KK_OPT_CPU_ISA), o.cpu_isa);
    assert_string_equal(kk_config_text(&c, KK_OPT_ACT), o.act);
    assert_string_equal(kk_config_text(&c, KK_OPT_KV), o.kv);
    assert_string_equal(kk_config_text(&c, KK_OPT_KV_TYPE), o.kv_type);
    assert_int_equal(kk_config_int(&c, KK_OPT_KV_SINKS), o.kv_sinks);
    assert_int_equal(kk_config_int(&c, KK_OPT_KV_WINDOW), o.kv_window);
    assert_int_equal(kk_config_int(&c, KK_OPT_PREFILL_CHUNK), o.prefill_chunk);
    assert_int_equal(kk_config_int(&c, KK_OPT_CTX), o.ctx);
    assert_int_equal(kk_config_int(&c, KK_OPT_DRAFT_WIDTH), o.draft_width);
    assert_int_equal(kk_config_int(&c, KK_OPT_DRAFT_DEVICE), o.draft_device);
    assert_string_equal(kk_config_text(&c, KK_OPT_DRAFT), o.draft);
    assert_int_equal(kk_config_int(&c, KK_OPT_KV_DEVICE), o.kv_device);
    assert_int_equal(kk_config_int(&c, KK_OPT_KV_HOST), o.kv_host);
    assert_int_equal(kk_config_int(&c, KK_OPT_KV_STAGING), o.kv_staging);
    kk_config_release(&c);
}

static void test_help_lists_every_option(void **state)
{
    (void)state;
    for (unsigned cmd = 1; cmd & KK_CMD_ALL; cmd <<= 1) {
        struct kk_buf b;
        kk_buf_init(&b, 1 << 20);
        assert_int_equal(kk_config_help((enum kk_command)cmd, &b), 0);
        for (int id = 0; id < KK_OPT_COUNT; id++) {
            const struct kk_option *o = kk_option_at((enum kk_option_id)id);
            char name[64];
            if (o->letter) snprintf(name, sizeof name, "-%c", o->letter);
            if (!o->letter) snprintf(name, sizeof name, "      --%s", o->name);
            if (o->commands & cmd) assert_non_null(strstr(b.data, name));
            if (o->commands & cmd) assert_non_null(strstr(b.data, o->group));
        }
        for (char *line = b.data; *line;) {
            size_t n = strcspn(line, "\n");
            assert_true(n <= 100);
            line += n + (line[n] != 0);
        }
        kk_buf_release(&b);
    }
}

/* No command has two options of one name or letter. */
static void test_names_are_unique(void **state)
{
    (void)state;
    for (int a = 0; a < KK_OPT_COUNT; a++)
        for (int b = 0; b < a; b++) {
            const struct kk_option *x = kk_option_at((enum kk_option_id)a);
            const struct kk_option *y = kk_option_at((enum kk_option_id)b);
            if (!(x->commands & y->commands)) continue;
            assert_string_not_equal(x->name, y->name);
            if (x->letter) assert_int_not_equal(x->letter, y->letter);
        }
}

static void test_print_config(void **state)
{
    (void)state;
    struct kk_config c;
    struct kk_err err;
    struct kk_buf b;
    kk_buf_init(&b, 1 << 20);
    KK_ASSERT_OK(load(&c, KK_CMD_PLAN, &err, ARGS("--kv", "full")), &err);
    assert_int_equal(kk_config_print(&c, &b), 0);
    assert_non_null(strstr(b.data, "kv               full                     flag\n"));
    assert_non_null(strstr(b.data, "threads          0                        default\n"));
    assert_non_null(strstr(b.data, "model            -                        unset\n"));
    assert_null(strstr(b.data, "temp"));
    kk_buf_release(&b);
    kk_config_release(&c);
}

static void test_edit_distance(void **state)
{
    (void)state;
    assert_int_equal(kk_edit_distance("", ""), 0);
    assert_int_equal(kk_edit_distance("temp", "temp"), 0);
    assert_int_equal(kk_edit_distance("tmep", "temp"), 1);
    assert_int_equal(kk_edit_distance("temp", "tem"), 1);
    assert_int_equal(kk_edit_distance("kitten", "sitting"), 3);
    assert_int_equal(kk_edit_distance("abc", ""), 3);
}

static void test_progress_text(void **state)
{
    (void)state;
    char s[200];
    kk_progress_text(s, sizeof s, 100, "loading", 50, 100, KK_PROGRESS_TOKENS, 2);
    assert_string_equal(s, "loading [############............]  50 %  25 tok/s  ETA 2 s");
    assert_int_equal(kk_progress_text(s, sizeof s, 10, "loading", 5, 10, KK_PROGRESS_BYTES, 1), 10);
    assert_string_equal(s, "loading [#");
    kk_progress_text(s, sizeof s, 100, "x", 0, 0, KK_PROGRESS_ITEMS, 0);
    assert_string_equal(s, "x [........................]   0 %");
    kk_progress_text(s, sizeof s, 100, "x", 1000000000, 8000000000, KK_PROGRESS_BYTES, 600);
    assert_non_null(strstr(s, "2 MB/s  ETA 1 h 10 min"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flag_forms),
        cmocka_unit_test(test_precedence),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_bad_flags),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_defaults_agree),
        cmocka_unit_test(test_help_lists_every_option),
        cmocka_unit_test(test_names_are_unique),
        cmocka_unit_test(test_print_config),
        cmocka_unit_test(test_edit_distance),
        cmocka_unit_test(test_progress_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
