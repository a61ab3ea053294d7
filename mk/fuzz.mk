# Fuzzing. Each tests/fuzz/fuzz_NAME.c is one libFuzzer program, built by clang in build/fuzz.
#   make fuzz [FUZZ="names"] [SECONDS=600]   each in turn; inputs kept in build/fuzz/corpus, findings in
#                                            build/fuzz/found; `make check` runs each for some seconds
FUZZ_SRC := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_BIN := $(FUZZ_SRC:%.c=$B/%)
FUZZ_SUP := $B/tests/fuzz/support.o $B/tests/support/tiny_f_theta.o
FUZZ_OBJ := $(FUZZ_SRC:%.c=$B/%.o) $B/tests/fuzz/support.o
FUZZ     ?=
SECONDS  ?= 600

$(FUZZ_OBJ): EXTRA_FLAGS := -Itests/fuzz -Itests/support
$(FUZZ_BIN): $B/%: $B/%.o $(FUZZ_SUP) $B/libkakeya.a
	$(CC) $(CFLAGS) $(GUARD_FLAGS) -fsanitize=fuzzer $(LDFLAGS) -o $@ $^ $(LIBS)

# Kernels see checked shapes and take nearly all of the time: plain.
ifeq ($(SAN),fuzz)
$B/src/dev/cpu/k_scalar.o $B/src/dev/cpu/q_scalar.o: GUARD_FLAGS := -DKK_MEM_GUARD -O2
endif

fuzzers: $(FUZZ_BIN)

fuzz:
	@tools/deps.sh build check
	@$(MAKE) --no-print-directory $(JOBS) -s SAN=fuzz fuzzers
	@python3 tests/fuzz/run.py --seconds $(SECONDS) $(FUZZ)

-include $(FUZZ_OBJ:.o=.d)
.SECONDARY: $(FUZZ_OBJ)
.PHONY: fuzz fuzzers
