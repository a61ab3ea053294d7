# kakeya: make, make demo, make check, make install. `make help` lists the rest.
CC      ?= gcc
SAN     ?=
config  := $(if $(SAN),$(SAN),release)
B       := build/$(config)
PKGS    := jansson libutf8proc libpcre2-8
CFLAGS  ?= -O3 -g
KKFLAGS := -std=c17 -D_GNU_SOURCE -Isrc -Iinclude -Wall -Wextra -Wshadow -Wstrict-prototypes -Wvla -Werror \
           -fno-math-errno -fno-trapping-math -ffp-contract=off -MMD -MP -pthread $(shell pkg-config --cflags $(PKGS))
LIBS    := $(shell pkg-config --libs $(PKGS)) -lm -pthread

LIB_SRC := $(filter-out src/cli/%,$(wildcard src/*/*.c src/*/*/*.c))
CLI_SRC := $(wildcard src/cli/*.c)
LIB_OBJ := $(LIB_SRC:%.c=$B/%.o)
CLI_OBJ := $(CLI_SRC:%.c=$B/%.o)

all: build/kakeya
build/kakeya: $B/kakeya
	cp $< $@
$B/kakeya: $(CLI_OBJ) $B/libkakeya.a
	$(CC) $(CFLAGS) -o $@ $^ $(LIBS)
$B/libkakeya.a: $(LIB_OBJ)
	rm -f $@ && ar rcs $@ $^
$B/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(KKFLAGS) $(CFLAGS) $(ISA_$(notdir $*)) -c -o $@ $<
ISA_k_avx2   := -mavx2 -mfma -mf16c
ISA_k_avx512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma
-include $(LIB_OBJ:.o=.d) $(CLI_OBJ:.o=.d)
clean:
	rm -rf build
.PHONY: all clean
