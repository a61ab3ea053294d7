#!/bin/bash
# make bundle: the folder runs where there is nothing but a C library.
. tests/cli_lib.sh
[ "$KK_CONFIG" = release ] || { skip "make bundle" "of the release alone"; done_testing; }
make -s bundle BUNDLE="$KK_TMP/alone/kakeya" >"$KK_TMP/log" 2>&1 || {
    tail -n 5 "$KK_TMP/log"
    not_ok "make bundle"
    done_testing
}
cp -r "$KK_TMP/alone/kakeya" "$KK_TMP/moved"
answers() { [ -n "$("$KK_TMP/moved/kakeya" run -p "def add(a, b):" -n 16 2>/dev/null)" ]; }
check "it can be moved, and finds its model" answers
check "at most 40 MB without the model" \
    sh -c '[ "$(du -sm --exclude=models "$1" | cut -f 1)" -le 40 ]' sh "$KK_TMP/moved"
mkdir "$KK_TMP/alone/proc"
inside='mount -t proc proc "$1/proc" && shift && exec chroot "$@"' # the loader learns $ORIGIN there
if unshare -m sh -c "$inside" sh "$KK_TMP/alone" / true 2>/dev/null; then
    loader=$(ldd "$KK_TMP/moved/kakeya" | awk '/ld-linux/ { print $1 }')
    ldd "$KK_TMP/moved/kakeya" | awk '$2 == "=>" { print $3 }' | grep -v "^$KK_TMP" |
        while read -r lib; do install -D "$lib" "$KK_TMP/alone/$lib"; done
    install -D "$loader" "$KK_TMP/alone/$loader"
    alone() {
        [ -n "$(unshare -m sh -c "$inside" sh "$KK_TMP/alone" "$KK_TMP/alone" /kakeya/kakeya run \
            -p "def" -n 8 2>"$KK_TMP/err")" ]
    }
    check "it runs in a root of C library and bundle" alone
    [ -s "$KK_TMP/err" ] && grep -i "cannot\|error" "$KK_TMP/err" | sed 's/^/    /'
    check "which holds no library more" \
        sh -c '[ "$(find "$1" -path "$1/kakeya" -prune -o -type f -print | grep -Evc "/(lib[cm]|lib(dl|rt|pthread|resolv)|ld-linux.*)\.so")" -eq 0 ]' sh "$KK_TMP/alone"
else
    skip "it runs in a root of C library and bundle" "needs root"
fi
done_testing
