# Tests. Each tests/unit/**/test_*.c is one cmocka program: build/<config>/tests/unit/**/test_*.
# Each may use tests/support/*.c, the library, and the command line's files except main.c.
# A test of threads carries the words "kk-test: tsan" and is run under that sanitizer too.
TEST_SRC := $(wildcard tests/unit/*/test_*.c tests/unit/*/*/test_*.c)
ifeq ($(SAN),tsan)
TEST_SRC := $(if $(TEST_SRC),$(shell grep -l 'kk-test: tsan' $(TEST_SRC)))
endif
SUP_SRC  := $(wildcard tests/support/*.c)
TEST_OBJ := $(TEST_SRC:%.c=$B/%.o)
SUP_OBJ  := $(SUP_SRC:%.c=$B/%.o)
TESTS    := $(TEST_SRC:%.c=$B/%)
T        ?=

FAKE_OBJ := $B/tests/support/serve/fake_runtime.o

$(TEST_OBJ) $(SUP_OBJ) $(FAKE_OBJ): EXTRA_FLAGS := -Itests -Itests/support
# What serves is tested on a runtime without a model.
$(filter $B/tests/unit/serve/%,$(TESTS)): $(FAKE_OBJ)
$(TESTS): $B/%: $B/%.o $(SUP_OBJ) $B/libcli.a $B/libserve.a $B/libkakeya.a
	$(CC) $(CFLAGS) $(GUARD_FLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) -lcmocka $(CLI_LIBS) $(LIBS)

$B/libcli.a: $(filter-out %/main.o,$(CLI_OBJ)) $B/sources
	rm -f $@ && ar rcs $@ $(filter %.o,$^)

tests: $(TESTS) $(if $(CLI_SRC),$B/kakeya) $B/bench/tier

test: tests
	@python3 tests/run.py --config $(config) $(T)

# The tests that say "kk-test: soak", for about SOAK seconds each instead of one or two.
SOAK ?= 120
soak: tests
	@KK_SOAK=$(SOAK) python3 tests/run.py --config $(config) \
	    $$(grep -l 'kk-test: soak' $(TEST_SRC) tests/cli/*.sh)

lint:
	@python3 tests/run.py --lint

# Everything, in every configuration; the last line is "N passed, N failed, N skipped".
check:
	@tools/deps.sh build check
	@MAKE='$(MAKE)' python3 tests/run.py --check

-include $(TEST_OBJ:.o=.d) $(SUP_OBJ:.o=.d) $(FAKE_OBJ:.o=.d)
.SECONDARY: $(TEST_OBJ) $(SUP_OBJ) $(FAKE_OBJ)
.PHONY: tests test soak lint check
