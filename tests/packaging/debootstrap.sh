#!/bin/bash
# The packages of `make deb` in a bare Debian 12: they install with what they depend on, and the
# program runs without being told of a model. Needs root, debootstrap and a mirror (KK_MIRROR, or
# the http one that this machine's apt uses); takes minutes. Prints "ok - .." lines.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/cli_lib.sh
[ "$(id -u)" -eq 0 ] && command -v debootstrap >/dev/null || {
    skip "packages in a bare Debian" "needs root and debootstrap"
    done_testing
}
mirror=${KK_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep '^http:' | head -n 1)}
root=$KK_TMP/debian
trap 'umount "$root/proc" 2>/dev/null; rm -rf "$root"' EXIT
inside() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }

debootstrap --variant=minbase bookworm "$root" "$mirror" >"$KK_TMP/log" 2>&1 || {
    tail -n 5 "$KK_TMP/log"
    not_ok "debootstrap"
    done_testing
}
mount -t proc proc "$root/proc"
cp build/*.deb "$root/opt/"
inside apt-get -q update >/dev/null 2>&1
check "kakeya installs" inside sh -c \
    'apt-get -qy --no-install-recommends install /opt/kakeya_*.deb >/opt/log 2>&1 || { tail -5 /opt/log; exit 1; }'
check "it says what it is" inside sh -c 'kakeya --version | grep -q "^kakeya "'
check "it answers, without -m" inside sh -c '[ -n "$(kakeya run -p "def add(a, b):" -n 16 2>/dev/null)" ]'
check "its drafter is there" inside kakeya run -p "def f" -n 8 --draft /usr/share/kakeya/models/tiny/drafter
check "its manual is there" test -s "$root/usr/share/man/man1/kakeya.1.gz"
check "libkakeya-dev installs, with a compiler" inside sh -c \
    'apt-get -qy --no-install-recommends install gcc libc6-dev pkg-config /opt/libkakeya-dev_*.deb >/opt/log 2>&1 ||
     { tail -5 /opt/log; exit 1; }'
cat >"$root/opt/t.c" <<'C'
#include <kakeya.h>
int main(void)
{
    struct kk_engine *e = NULL;
    struct kk_engine_options o = kk_engine_defaults();
    o.model = "/usr/share/kakeya/models/tiny";
    int rc = kk_engine_open(&o, &e, NULL);
    kk_engine_close(e);
    return rc != 0;
}
C
check "a program builds against it and opens the model" inside sh -c \
    'cd /opt && gcc t.c $(pkg-config --cflags --libs kakeya) -o t && ./t'
check "kakeya is removed without a trace" inside sh -c \
    'apt-get -qy purge kakeya >/dev/null 2>&1 && [ ! -e /usr/bin/kakeya ] && [ ! -e /usr/share/kakeya ]'
done_testing
