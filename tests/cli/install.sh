#!/bin/bash
# make install: what is installed is enough to build and run a program against.
. tests/cli_lib.sh
if [ "${KK_CONFIG:-release}" != release ]; then
    skip "make install" "release only"
    done_testing
fi

P=$KK_TMP/prefix
check "make install PREFIX" make -s install PREFIX="$P"
check "the program runs" sh -c '"$1" --help >/dev/null' sh "$P/bin/kakeya"
check "it finds its own model" sh -c '"$1" run -p "def add(a, b):" -n 8 2>/dev/null | grep -q .' sh "$P/bin/kakeya"
check "and says where from" sh -c \
    '"$1" run --print-config -p x | grep -Eq "^model .*/share/kakeya/models/tiny +default$"' sh "$P/bin/kakeya"

cat >"$KK_TMP/t.c" <<'C'
#include <kakeya.h>
#include <stdio.h>
int main(void)
{
    struct kk_err err = {0};
    struct kk_engine *e = NULL;
    struct kk_engine_options o = kk_engine_defaults();
    o.model = "no such model";
    int rc = kk_engine_open(&o, &e, &err);
    printf("%s %s\n", kk_errname(rc), err.msg);
    return rc == KK_OK;
}
C
export PKG_CONFIG_PATH=$P/lib/pkgconfig
# shellcheck disable=SC2046
check "a program builds with pkg-config" ${CC:-gcc} -std=c17 -Wall -Werror -o "$KK_TMP/t" "$KK_TMP/t.c" \
    $(pkg-config --cflags --libs kakeya)
check "and runs" sh -c '"$1" | grep -q "^KK_E"' sh "$KK_TMP/t"
check "the header is C++ too" sh -c 'command -v g++ >/dev/null || exit 0
    echo "#include <kakeya.h>" | g++ -fsyntax-only -x c++ -I"$1/include" -' sh "$P"
check "its version is the header's" \
    grep -qx "#define KAKEYA_VERSION \"$(pkg-config --modversion kakeya)\"" "$P/include/kakeya.h"

check "make install DESTDIR" make -s install DESTDIR="$KK_TMP/stage" PREFIX=/usr
for f in bin/kakeya include/kakeya.h lib/libkakeya.a lib/pkgconfig/kakeya.pc share/man/man1/kakeya.1 \
    share/bash-completion/completions/kakeya share/zsh/site-functions/_kakeya \
    share/fish/vendor_completions.d/kakeya.fish \
    share/kakeya/models/tiny/model.safetensors share/kakeya/models/tiny/drafter/config.json; do
    check "DESTDIR holds $f" test -s "$KK_TMP/stage/usr/$f"
done
check "the .pc file does not name DESTDIR" sh -c 'grep -q ^prefix=/usr$ "$1" &&
    ! grep -q stage "$1"' sh "$KK_TMP/stage/usr/lib/pkgconfig/kakeya.pc"
done_testing
