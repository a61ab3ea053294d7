# What is built: the configuration, its flags and its libraries (CLI_PKGS: of the program alone).
# Nothing here runs pkg-config while make reads: `make deps` may have to install it first.
SAN   ?=
DEBUG ?=
CUDA  ?=

ifneq ($(filter-out asan ubsan tsan fuzz,$(SAN)),)
$(error SAN=$(SAN) is unknown: asan, ubsan, tsan or fuzz)
endif
ifeq ($(origin CC),default)
CC := $(if $(filter fuzz,$(SAN)),clang-14,gcc)
endif

config := $(or $(SAN),$(if $(DEBUG),debug,release))$(if $(CUDA),-cuda)
B      := build/$(config)
PKGS   := jansson libutf8proc libpcre2-8 sqlite3
CLI_PKGS := libedit grpc libprotobuf-c libevent libevent_pthreads

# $(call once,NAME,command): the output of a command, run when NAME is first used, and only then.
once = $(eval $1 := $(shell $2))$($1)
PKG_CFLAGS = $(call once,PKG_CFLAGS,pkg-config --cflags $(PKGS) $(CLI_PKGS))
PKG_LIBS   = $(call once,PKG_LIBS,pkg-config --libs $(PKGS))
# pkg-config names eighty libraries for grpc: the two that C calls are enough.
CLI_LIBS   = $(call once,CLI_LIBS,pkg-config --libs $(filter-out grpc,$(CLI_PKGS)); echo -lgrpc -lgpr)

# -DKK_MEM_GUARD: allocating inside a decode step aborts (base/mem.h).
OPT_release := -O3 -g
OPT_release-cuda := -O3 -g
OPT_debug   := -O0 -g3
CFLAGS      ?= $(or $(OPT_$(config)),-O1 -g)
SAN_asan    := -fsanitize=address,undefined
SAN_ubsan   := -fsanitize=undefined
SAN_tsan    := -fsanitize=thread
SAN_fuzz    := -fsanitize=fuzzer-no-link,address,undefined
GUARD_FLAGS := $(if $(filter release%,$(config)),,-DKK_MEM_GUARD)
ifneq ($(SAN),)
GUARD_FLAGS += $(SAN_$(SAN)) -fno-sanitize-recover=all -fno-omit-frame-pointer -Wno-maybe-uninitialized
endif

# Law 2 rests on -ffp-contract=off: a product and a sum are fused only where a kernel says so.
KKFLAGS = -std=c17 -D_GNU_SOURCE -Isrc -Iinclude -I$B/gen \
          -Wall -Wextra -Wshadow -Wstrict-prototypes -Wvla -Werror \
          -Wno-format-truncation $(if $(findstring clang,$(CC)),-Wno-unknown-warning-option) \
          -fno-math-errno -fno-trapping-math -ffp-contract=off -pthread $(PKG_CFLAGS)
LIBS    = $(PKG_LIBS) -lm -pthread

# Instruction sets, by file name. No other file gets any: which table runs is chosen at run time.
# Machines other than x86-64 run the scalar table; so does a fuzzer (instrumented, the others take a
# quarter of an hour to compile).
ARCH := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine 2>/dev/null || uname -m)))
ifeq ($(ARCH)$(filter fuzz,$(SAN)),x86_64)
KKFLAGS      += -DKK_X86
ISA_k_avx2   := -mavx2 -mfma -mf16c
ISA_q_avx2   := $(ISA_k_avx2)
ISA_k_avx512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c
ISA_k_avx512_bf16 := $(ISA_k_avx512) -mavx512bf16
ISA_q_avx512 := $(ISA_k_avx512)
ISA_q_vnni   := $(ISA_k_avx512) -mavx512vnni
else
ISA_ABSENT   := $(wildcard src/dev/cpu/k_avx*.c src/dev/cpu/q_avx*.c src/dev/cpu/q_vnni.c)
endif

# For a make run by a recipe: as many jobs as processors, unless the user chose.
JOBS = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc))

# CUDA=1: src/dev/cuda, for one compute capability; the runtime is linked statically, so that the
# program starts where there is no driver.
NVCC      ?= $(or $(shell command -v nvcc),/usr/local/cuda/bin/nvcc)
CUDA_ARCH ?= 90a
CUDA_HOME  = $(patsubst %/bin/,%,$(dir $(realpath $(NVCC))))
NVFLAGS    = -O3 -lineinfo -std=c++17 -gencode arch=compute_$(CUDA_ARCH),code=sm_$(CUDA_ARCH) \
             -fmad=false -Isrc -Iinclude -Xcompiler -Wall,-Wextra,-Wno-format-truncation -Werror all-warnings
# CUDA_STEP_PAGES=1: the one-kernel decode step takes sessions with rows in host memory (docs/adr/0031)
ifneq ($(CUDA_STEP_PAGES),)
KKFLAGS += -DKK_CUDA_STEP_PAGES
NVFLAGS += -DKK_CUDA_STEP_PAGES
endif
ifneq ($(CUDA),)
LIBS += -L$(CUDA_HOME)/lib64 -lcudart_static -ldl -lrt -lstdc++
endif
