# Checks that take minutes, or compilers that a build does not need.

# clang-tidy (.clang-tidy) and cppcheck (tools/cppcheck.txt) over src. The vector tables are left out
# of clang-tidy: with them it takes twice as long.
TIDY_SRC = $(filter-out src/dev/cpu/k_avx% src/dev/cpu/q_%,$(LIB_SRC) $(SERVE_SRC) $(CLI_SRC))
analyze: $B/gen/kk_build.h $(PROTO_H)
	@printf '%s\n' $(TIDY_SRC) | xargs -P$(shell nproc) -n4 sh -c 'clang-tidy --quiet "$$@" -- $(KKFLAGS) \
	    -Wno-unknown-warning-option 2>/dev/null' tidy
	@cppcheck -q -j$(shell nproc) --std=c11 --enable=warning,performance,portability --inline-suppr \
	    --suppressions-list=tools/cppcheck.txt --error-exitcode=1 -DKK_X86 -Isrc -Iinclude -I$B/gen src
	@echo "analyze: clean"

# Every source file of the library through a compiler for 64-bit ARM, which has none of the x86
# tables. Compiled, not linked: only the libraries' headers are borrowed from this machine.
ARM_CC  := aarch64-linux-gnu-gcc
ARM_HDR := build/arm64/include
check-arm:
	@command -v $(ARM_CC) >/dev/null || { echo 'check-arm: apt-get install gcc-aarch64-linux-gnu \
	    libc6-dev-arm64-cross' >&2; exit 1; }
	@mkdir -p $(ARM_HDR)
	@for h in $$(cd /usr/include && ls jansson*.h pcre2.h utf8proc.h sqlite3.h); do \
	    ln -sf /usr/include/$$h $(ARM_HDR)/; done
	@$(MAKE) --no-print-directory -s $(JOBS) CC=$(ARM_CC) B=build/arm64 \
	    PKG_CFLAGS='-isystem $(ARM_HDR)' SAN= DEBUG= arm-objects
	@echo "check-arm: every file of the library compiles"
arm-objects: $(LIB_OBJ)

.PHONY: analyze check-arm arm-objects
