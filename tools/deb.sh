#!/bin/bash
# tools/deb.sh VERSION: build/kakeya_VERSION_ARCH.deb (program, manual, embedded model) and
# build/libkakeya-dev_VERSION_ARCH.deb (library, header), from what `make install` installs. Run by
# `make deb`. What the program depends on is what dpkg-shlibdeps finds in it.
set -eu
version=$1
for tool in dpkg-deb dpkg-shlibdeps strip; do
    command -v $tool >/dev/null || {
        echo "deb: no $tool here: apt-get install dpkg-dev binutils" >&2
        exit 1
    }
done
arch=$(dpkg --print-architecture)
multiarch=$(dpkg-architecture -qDEB_HOST_MULTIARCH)
epoch=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y include/kakeya.h)
export SOURCE_DATE_EPOCH=$epoch # dpkg-deb: the same tree gives the same package
top=build/deb
rm -rf $top
mkdir -p $top/all $top/debian
${MAKE:-make} --no-print-directory -s install DESTDIR=$top/all PREFIX=/usr \
    LIBDIR=/usr/lib/$multiarch >/dev/null

cat >$top/debian/control <<C
Source: kakeya

Package: kakeya
Architecture: any
C

# pack NAME SECTION DEPENDS SUMMARY TEXT FILE...: one package of those files of the installation.
pack() {
    local name=$1 section=$2 depends=$3 summary=$4 text=$5 root=$top/$1
    shift 5
    for f in "$@"; do
        mkdir -p "$root/$(dirname "$f")"
        cp -r "$top/all/$f" "$root/$f"
    done
    local doc=$root/usr/share/doc/$name
    mkdir -p "$doc" "$root/DEBIAN"
    {
        printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n'
        printf 'Upstream-Name: kakeya\n\nFiles: *\nCopyright: %s\nLicense: Expat\n' \
            "$(sed -n 's/^Copyright (c) //p' LICENSE)"
        sed -e '1,4d' -e 's/^$/./' -e 's/^/ /' LICENSE
    } >"$doc/copyright"
    {
        printf 'kakeya (%s) unstable; urgency=medium\n\n  * See the project'"'"'s CHANGELOG.md.\n\n' "$version"
        printf ' -- %s  %s\n' "$maintainer" "$(date -u -R -d "@$epoch")"
    } | gzip -9n >"$doc/changelog.gz"
    cat >"$root/DEBIAN/control" <<C
Package: $name
Version: $version
Architecture: $arch
Maintainer: $maintainer
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: $depends
Section: $section
Priority: optional
Description: $summary
$text
C
    (cd "$root" && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum >DEBIAN/md5sums)
    find "$root" -type d -exec chmod 755 {} +
    find "$root" -exec touch -h -d "@$epoch" {} +
    dpkg-deb --root-owner-group -b "$root" "build/${name}_${version}_$arch.deb" >&2
}

maintainer="${DEBFULLNAME:-The kakeya authors} <${DEBEMAIL:-kakeya@localhost.localdomain}>"
strip --strip-unneeded --remove-section=.comment --remove-section=.note $top/all/usr/bin/kakeya
strip --strip-debug $top/all/usr/lib/$multiarch/libkakeya.a
gzip -9n $top/all/usr/share/man/man1/kakeya.1
depends=$(cd $top && dpkg-shlibdeps -O all/usr/bin/kakeya 2>/dev/null | sed -n 's/^shlibs:Depends=//p')
[ -n "$depends" ] || {
    echo "deb: dpkg-shlibdeps found no dependencies of the program" >&2
    exit 1
}

pack kakeya misc "$depends" "language model engine for sessions that live long" \
    " Runs language models for agents whose conversations live long: a conversation
 is resumed at any time without reading its history again, and takes a fixed
 number of device bytes however long it grows. A small model is included." \
    usr/bin usr/share/man usr/share/bash-completion usr/share/zsh usr/share/fish usr/share/kakeya
# The packages that hold a library's pkg-config file are those to build against it with.
needs=$(for p in $(sed -n 's/^Requires: *//p' $top/all/usr/lib/$multiarch/pkgconfig/kakeya.pc); do
    dpkg -S "*/$p.pc" | head -n 1 | cut -d: -f1
done | sort -u | paste -sd, | sed 's/,/, /g')
pack libkakeya-dev libdevel "$needs" "language model engine for sessions that live long (library)" \
    " The static library of kakeya, with its header and pkg-config file." \
    usr/include usr/lib
