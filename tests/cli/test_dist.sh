#!/bin/bash
# make dist: the same commit gives the same bytes, and the tarball builds without git.
. tests/cli_lib.sh
if [ "${KK_CONFIG:-release}" != release ] || ! git rev-parse HEAD >/dev/null 2>&1; then
    skip "make dist" "release only, from a git checkout"
    done_testing
fi

version=$(sed -n 's/^#define KAKEYA_VERSION "\(.*\)"/\1/p' include/kakeya.h)
check "make dist" make -s dist DIST="$KK_TMP/a.tar.gz"
sleep 1
make -s dist DIST="$KK_TMP/b.tar.gz"
check "twice the same bytes" cmp "$KK_TMP/a.tar.gz" "$KK_TMP/b.tar.gz"
tar -xzf "$KK_TMP/a.tar.gz" -C "$KK_TMP"
tree=$KK_TMP/kakeya-$version
check "it holds what git has" test "$(cd "$tree" && find . -type f | wc -l)" -eq "$(git ls-tree -r HEAD | wc -l)"
check "it builds" make -s -C "$tree" -j2 SAN= CFLAGS=-O0 build/kakeya
check "it knows its commit" grep -qF "$(git rev-parse --short=12 HEAD)" <("$tree/build/kakeya" --version)
check "it runs" sh -c '"$1/build/kakeya" inspect "$1/models/tiny" >/dev/null' sh "$tree"
check "and runs its lint" sh -c 'cd "$1" && python3 tools/check_style.py >/dev/null' sh "$tree"
done_testing
