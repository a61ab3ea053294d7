# For tests/cli/*.sh: `. tests/cli_lib.sh` first, `done_testing` last. Run from the repository root by
# tests/run.py, which sets KK_BIN (the program), KK_TMP (a fresh folder) and KK_CONFIG.
KK_BIN=${KK_BIN:-build/kakeya}
KK_TMP=${KK_TMP:-$(mktemp -d)}
KK_FAILED=0

ok() { echo "ok - $1"; }
skip() { echo "ok - $1 # skip ${2:-}"; }
not_ok() {
    echo "not ok - $1"
    KK_FAILED=1
}

# check WHAT COMMAND...: ok if the command succeeds.
check() {
    local what=$1
    shift
    if "$@"; then ok "$what"; else not_ok "$what"; fi
}

# run ARGS...: runs kakeya; leaves $rc, and its output in $KK_TMP/out and $KK_TMP/err.
run() {
    rc=0
    "$KK_BIN" "$@" >"$KK_TMP/out" 2>"$KK_TMP/err" </dev/null || rc=$?
}

# refuses WHAT RC WORDS ARGS...: kakeya ARGS exits with RC and says WORDS in one line on stderr.
refuses() {
    local what=$1 want=$2 words=$3
    shift 3
    run "$@"
    if [ "$rc" -eq "$want" ] && grep -qF -- "$words" "$KK_TMP/err" && [ ! -s "$KK_TMP/out" ]; then
        ok "$what"
    else
        not_ok "$what: exit $rc, wanted $want and '$words'"
        sed 's/^/    /' "$KK_TMP/err" | head -20
    fi
}

# json FIELD FILE: prints a value by its dotted path, as rungs.0.recall.
json() {
    python3 -c 'import json, sys
v = json.load(open(sys.argv[2]))
for k in sys.argv[1].split("."):
    v = v[int(k)] if isinstance(v, list) else v[k]
print(v if isinstance(v, str) else json.dumps(v))' "$1" "$2"
}

done_testing() { exit "$KK_FAILED"; }
