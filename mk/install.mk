# Installation: the program, the one header (base/err.h, which it needs, put into it), the library
# and its pkg-config file.
PREFIX     ?= /usr/local
BINDIR     ?= $(PREFIX)/bin
INCLUDEDIR ?= $(PREFIX)/include
LIBDIR     ?= $(PREFIX)/lib

define KAKEYA_PC
prefix=$(PREFIX)
includedir=$(INCLUDEDIR)
libdir=$(LIBDIR)

Name: kakeya
Description: LLM inference engine for long-lived agents
Version: $(VERSION)
Requires.private: $(PKGS)
Cflags: -I$${includedir}
Libs: -L$${libdir} -lkakeya
Libs.private: -lm -pthread
endef
export KAKEYA_PC

install: all
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(INCLUDEDIR) $(DESTDIR)$(LIBDIR)/pkgconfig
	install -m 755 $B/kakeya $(DESTDIR)$(BINDIR)/kakeya
	@awk '/^#include "base\/err.h"/ { print "#ifdef __cplusplus\nextern \"C\" {\n#endif"; \
	          while ((getline line <"src/base/err.h") > 0) { \
	              sub(/_Noreturn/, "__attribute__((noreturn))", line); print line } \
	          print "#ifdef __cplusplus\n}\n#endif"; next } \
	      { print }' include/kakeya.h >$B/kakeya.h
	install -m 644 $B/kakeya.h $(DESTDIR)$(INCLUDEDIR)/kakeya.h
	install -m 644 $B/libkakeya.a $(DESTDIR)$(LIBDIR)/libkakeya.a
	@printf '%s\n' "$$KAKEYA_PC" >$B/kakeya.pc
	install -m 644 $B/kakeya.pc $(DESTDIR)$(LIBDIR)/pkgconfig/kakeya.pc

.PHONY: install
