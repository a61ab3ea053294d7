#!/bin/bash
# tools/deps.sh build|check...: install the Debian packages that are missing for building, or for
# checking. Says nothing and does nothing when all are there. Elsewhere than on Debian it only says
# what it did not find. What is tested is the thing itself, not the package: a compiler or a library
# that came another way is as good.
set -u

installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }
library() { pkg-config --exists "$1" 2>/dev/null; }
has_grpcio() { /usr/bin/python3 -c 'import grpc, google.protobuf'; }
compiles() { echo '#include <stdio.h>' | "${CC:-gcc}" -E - >/dev/null 2>&1; }

fuzzes() {
    echo 'int LLVMFuzzerTestOneInput(const char *p, unsigned long n) { return !p && n; }' |
        clang-14 -fsanitize=fuzzer,address -x c - -o /dev/null 2>/dev/null
}

missing=()
# need PACKAGE COMMAND...: PACKAGE is missing unless COMMAND succeeds or dpkg has it.
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || installed "$package" || missing+=("$package")
}

for what in "$@"; do
    case $what in
    build)
        need gcc command -v "${CC:-gcc}"
        need libc6-dev compiles
        need pkg-config command -v pkg-config
        need libjansson-dev library jansson
        need libutf8proc-dev library libutf8proc
        need libpcre2-dev library libpcre2-8
        need libsqlite3-dev library sqlite3
        need libedit-dev library libedit
        need libgrpc-dev library grpc
        need libprotobuf-c-dev library libprotobuf-c
        need protobuf-compiler command -v protoc
        need protobuf-c-compiler command -v protoc-gen-c
        need libevent-dev library libevent_pthreads
        ;;
    check)
        need python3 command -v python3
        need libcmocka-dev library cmocka
        need clang-14 command -v clang-14
        need libclang-rt-14-dev fuzzes
        need python3-grpcio has_grpcio
        need openssl command -v openssl
        ;;
    *)
        echo "deps: '$what' is unknown: build or check" >&2
        exit 2
        ;;
    esac
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "deps: missing: ${missing[*]}" >&2
if ! command -v apt-get >/dev/null; then
    echo "deps: no apt-get here: install the like of these by hand" >&2
    exit 0
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "deps: not root and no sudo; as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" >&2; }
install() { apt install -y --no-install-recommends "${missing[@]}"; }

echo "deps: installing them with apt-get" >&2
if ! apt-cache show "${missing[@]}" >/dev/null 2>&1; then apt update; fi
install && exit 0
apt update && install && exit 0
echo "deps: apt-get could not install ${missing[*]}" >&2
exit 1
