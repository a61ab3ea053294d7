# Installation: the program with its manual page and completions (which it prints itself) and the
# embedded model, which it finds beside itself; the one header (base/err.h, which it needs, put into
# it), the library and its pkg-config file. Then what is made of that: a tarball, Debian packages.
PREFIX     ?= /usr/local
BINDIR     ?= $(PREFIX)/bin
INCLUDEDIR ?= $(PREFIX)/include
LIBDIR     ?= $(PREFIX)/lib
DATADIR    := $(PREFIX)/share
MODEL_FILES = $(shell cd models && find tiny -type f)

# $(call document,NAME,FILE): what `kakeya help --NAME` prints becomes DATADIR/FILE.
document = install -d $(DESTDIR)$(DATADIR)/$(dir $2) && \
           $B/kakeya help --$1 >$B/document && install -m 644 $B/document $(DESTDIR)$(DATADIR)/$2

define KAKEYA_PC
prefix=$(PREFIX)
includedir=$(INCLUDEDIR)
libdir=$(LIBDIR)

Name: kakeya
Description: LLM inference engine for long-lived agents
Version: $(VERSION)
Requires: $(PKGS)
Cflags: -I$${includedir}
Libs: -L$${libdir} -lkakeya -lm -pthread
endef
export KAKEYA_PC

install: all
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(INCLUDEDIR) $(DESTDIR)$(LIBDIR)/pkgconfig
	install -m 755 $B/kakeya $(DESTDIR)$(BINDIR)/kakeya
	@for f in $(MODEL_FILES); do \
	     install -D -m 644 models/$$f $(DESTDIR)$(DATADIR)/kakeya/models/$$f || exit 1; done
	@awk '/^#include "base\/err.h"/ { print "#ifdef __cplusplus\nextern \"C\" {\n#endif"; \
	          while ((getline line <"src/base/err.h") > 0) { \
	              print line } \
	          print "#ifdef __cplusplus\n}\n#endif"; next } \
	      { print }' include/kakeya.h >$B/kakeya.h
	install -m 644 $B/kakeya.h $(DESTDIR)$(INCLUDEDIR)/kakeya.h
	install -m 644 $B/libkakeya.a $(DESTDIR)$(LIBDIR)/libkakeya.a
	@printf '%s\n' "$$KAKEYA_PC" >$B/kakeya.pc
	install -m 644 $B/kakeya.pc $(DESTDIR)$(LIBDIR)/pkgconfig/kakeya.pc
	$(call document,man,man/man1/kakeya.1)
	$(call document,bash,bash-completion/completions/kakeya)
	$(call document,zsh,zsh/site-functions/_kakeya)
	$(call document,fish,fish/vendor_completions.d/kakeya.fish)

# build/bundle: the program, the shared libraries it needs and the embedded model in one folder, for
# Linux machines that have nothing but a C library (no older than this one's) and, with CUDA=1, the
# driver. bundle-tests: what tests/cuda/run.sh runs on a machine with a GPU, beside them.
BUNDLE := build/bundle
$B/kakeya-bundle: $(CLI_OBJ) $B/libserve.a $B/libkakeya.a
	$(CC) $(CFLAGS) $(GUARD_FLAGS) $(LDFLAGS) -s -Wl,-rpath,'$$ORIGIN/lib' -Wl,--disable-new-dtags \
	    -o $@ $^ $(CLI_LIBS) $(LIBS)

bundle: $B/kakeya-bundle
	tools/bundle.sh $(BUNDLE) $<
	@for f in $(MODEL_FILES); do install -D -m 644 models/$$f $(BUNDLE)/models/$$f || exit 1; done

ON_GPU     := properties snapshot runtime forks round memory
CUDA_TESTS := $(filter $B/tests/unit/dev/test_cuda_% $B/tests/unit/model/test_cuda_%,$(TESTS)) $(ON_GPU:%=$B/tests/unit/engine/test_%) \
              $(if $(CUDA),$B/bench/cuda_ops)
bundle-tests: bundle $(CUDA_TESTS)
	tools/bundle.sh $(BUNDLE) $(CUDA_TESTS)
	install -m 755 tests/cuda/run.sh $(BUNDLE)/run.sh
	install -D -m 644 -t $(BUNDLE)/tests/data tests/data/*.json
	sed -i 's/"global_head_dim": 24/"global_head_dim": 32/' $(BUNDLE)/tests/data/mini.json # whole 16s

# The tree as it was committed. The same commit gives the same bytes.
DIST := build/kakeya-$(VERSION).tar.gz
dist:
	@mkdir -p build
	git archive --format=tar --prefix=kakeya-$(VERSION)/ HEAD | gzip -9n >$(DIST)

# build/*.deb for this machine's architecture.
deb: all
	@MAKE='$(MAKE)' tools/deb.sh '$(VERSION)'

# In a bare Debian, made by debootstrap (root): the packages install and the program answers.
check-deb: deb
	tests/packaging/debootstrap.sh

.PHONY: install bundle bundle-tests dist deb check-deb
