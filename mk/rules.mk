# How files are made. Sources are found by wildcard; src/cli is the program, src/serve its transports,
# the rest the library.
LIB_SRC   := $(filter-out src/cli/% src/serve/% $(ISA_ABSENT) $(if $(CUDA),src/dev/cuda_absent.c), \
                 $(wildcard src/*/*.c src/*/*/*.c))
CUDA_SRC  := $(if $(CUDA),$(wildcard src/dev/cuda/*.cu))
SERVE_SRC := $(wildcard src/serve/*.c)
CLI_SRC   := $(wildcard src/cli/*.c)
PROTO     := kakeya/v1/runtime grpc/health/v1/health
PROTO_H   := $(PROTO:%=$B/gen/%.pb-c.h)
LIB_OBJ   := $(LIB_SRC:%.c=$B/%.o) $(CUDA_SRC:%.cu=$B/%.o)
SERVE_OBJ := $(SERVE_SRC:%.c=$B/%.o)
PROTO_OBJ := $(PROTO:%=$B/gen/%.pb-c.o)
CLI_OBJ   := $(CLI_SRC:%.c=$B/%.o)

$B/kakeya: $(CLI_OBJ) $B/libserve.a $B/libkakeya.a
	$(CC) $(CFLAGS) $(GUARD_FLAGS) $(LDFLAGS) -o $@ $^ $(CLI_LIBS) $(LIBS)

$B/libkakeya.a: $(LIB_OBJ) $B/sources
	rm -f $@ && ar rcs $@ $(LIB_OBJ)

$B/libserve.a: $(SERVE_OBJ) $(PROTO_OBJ) $B/sources
	rm -f $@ && ar rcs $@ $(SERVE_OBJ) $(PROTO_OBJ)

# Messages, from their .proto. What protoc-c writes is not held to our warnings.
$B/gen/%.pb-c.c $B/gen/%.pb-c.h: proto/%.proto tools/protoc-gen-c-optional
	@mkdir -p $(@D)
	protoc --plugin=protoc-gen-c=tools/protoc-gen-c-optional -Iproto --c_out=$B/gen $<
$(PROTO_OBJ): %.o: %.c $B/flags
	$(CC) $(CFLAGS) $(GUARD_FLAGS) -I$B/gen -c -o $@ $<
$(SERVE_OBJ): | $(PROTO_H)

# Bench programs: one file each over the library's insides.
$B/bench/gemm $B/bench/attn $B/bench/load $B/bench/cuda_ops: $B/bench/floor.o
$B/bench/%: $B/bench/%.o $B/libkakeya.a
	$(CC) $(CFLAGS) $(GUARD_FLAGS) $(LDFLAGS) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS)

# A removed file leaves the archive.
$B/sources: FORCE
	@mkdir -p $(@D)
	@echo '$(sort $(LIB_SRC) $(CUDA_SRC) $(SERVE_SRC) $(CLI_SRC))' >$@.new
	@cmp -s $@.new $@ && rm -f $@.new || mv -f $@.new $@

$B/%.o: %.c $B/flags | $B/gen/kk_build.h
	@mkdir -p $(@D)
	$(CC) $(KKFLAGS) $(CFLAGS) $(GUARD_FLAGS) $(ISA_$(notdir $*)) $(EXTRA_FLAGS) -MMD -MP -c -o $@ $<

$B/%.o: %.cu $B/flags
	@mkdir -p $(@D)
	$(NVCC) $(NVFLAGS) -MMD -MP -MF $(@:.o=.d) -c -o $@ $<

cuda-objects: $(CUDA_SRC:%.cu=$B/%.o)

# Everything that decides what an object holds. Rewritten, and all rebuilt, only when it changes.
$B/flags: FORCE
	@mkdir -p $(@D)
	@command -v pkg-config >/dev/null && pkg-config --exists $(PKGS) $(CLI_PKGS) || \
	    { echo "make: one of $(PKGS) $(CLI_PKGS) not found through pkg-config: 'make deps' installs them" >&2; exit 1; }
	@printf '%s\n' '$(if $(CUDA),$(NVCC) $(NVFLAGS))' '$(CC) $(KKFLAGS) $(CFLAGS) $(GUARD_FLAGS) $(LDFLAGS) $(CLI_LIBS) $(LIBS)' \
	    '$(foreach f,k_avx2 k_avx512 k_avx512_bf16 q_avx2 q_avx512 q_vnni,$f: $(ISA_$f))' >$@.new
	@cmp -s $@.new $@ && rm -f $@.new || mv -f $@.new $@

# Version, commit and flags, for the files that include "kk_build.h" (reports say what made them).
$B/gen/kk_build.h: FORCE
	@mkdir -p $(@D)
	@commit=$$(sed -n 's/^commit = \([0-9a-f]\{12\}\).*/\1/p' mk/commit); \
	 if [ -e .git ]; then commit=$$(git rev-parse --short=12 HEAD 2>/dev/null); \
	     git diff --quiet HEAD -- src include 2>/dev/null || commit=$$commit-dirty; fi; \
	 : "$${commit:=unknown}"; \
	 printf '#define %s "%s"\n' KK_VERSION '$(VERSION)' KK_COMMIT "$$commit" KK_CONFIG '$(config)' \
	     KK_CFLAGS '$(CFLAGS)' >$@.new
	@cmp -s $@.new $@ && rm -f $@.new || mv -f $@.new $@

-include $(LIB_OBJ:.o=.d) $(SERVE_OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(wildcard $B/bench/*.d)
FORCE:
.PHONY: FORCE cuda-objects
.DELETE_ON_ERROR:
