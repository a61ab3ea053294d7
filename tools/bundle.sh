#!/bin/bash
# tools/bundle.sh FOLDER PROGRAM...: the programs, stripped, and in FOLDER/lib the shared libraries
# that they need and no C library brings. Programs find them by their rpath ($ORIGIN/lib) or, tests,
# by LD_LIBRARY_PATH.
set -eu
folder=$1
shift
c_library='^(linux-vdso|ld-linux|lib(c|m|dl|rt|pthread|resolv|util|nsl|anl|mvec)\.so)'
mkdir -p "$folder/lib"
for program in "$@"; do
    name=$(basename "$program")
    install -m 755 "$program" "$folder/${name%-bundle}"
    strip "$folder/${name%-bundle}"
    ldd "$program" | awk '$2 == "=>" { print $1, $3 }' | while read -r lib path; do
        [[ $lib =~ $c_library || -e $folder/lib/$lib ]] && continue
        [ -e "$path" ] || { echo "bundle: $program needs $lib, which is not on this machine" >&2; exit 1; }
        install -m 644 "$path" "$folder/lib/$lib"
        strip --strip-unneeded "$folder/lib/$lib"
    done
done
