#!/bin/bash
# The command line itself: usage, exit codes, what goes to which stream, options, help.
. tests/cli_lib.sh
TINY=models/tiny
MINI=synth:tests/data/mini.json
CMDS=("run" "chat" "inspect" "tokenize" "logits" "plan" "bench niah" "bench decode")

# ---- exit codes and streams
run
check "no arguments: exit 2" [ "$rc" -eq 2 ]
check "no arguments: help on stderr, nothing on stdout" sh -c '[ ! -s "$1/out" ] && grep -q usage: "$1/err"' sh "$KK_TMP"
for a in --help -h help; do
    run $a
    check "$a: exit 0, on stdout alone" sh -c '[ "$2" -eq 0 ] && [ ! -s "$1/err" ] && grep -q "bench niah" "$1/out"' sh "$KK_TMP" "$rc"
done
run --version
check "--version" sh -c '[ "$2" -eq 0 ] && grep -Eq "^kakeya [0-9]+\.[0-9]+\.[0-9]+ " "$1/out"' sh "$KK_TMP" "$rc"

refuses "unknown command" 2 "unknown command 'rum': did you mean 'run'?" rum
refuses "unknown command, none near" 2 "unknown command 'fhqwhgads'" fhqwhgads
refuses "bench without a name" 2 "bench what?" bench
refuses "bench with a wrong name" 2 "did you mean 'bench niah'?" bench nia
refuses "help of a wrong command" 2 "did you mean 'plan'?" help plam
refuses "unknown flag" 2 "unknown option --thread: did you mean --threads?" run --thread 2
refuses "unknown flag, none near" 2 "unknown option --fhqwhgads (kakeya run --help lists them)" run --fhqwhgads
refuses "unknown letter" 2 "unknown option -z" run -z
refuses "flag of another command" 2 "--temp does not apply to 'kakeya plan'" plan --temp 1
refuses "flag without its value" 2 "--threads needs a value: --threads N" run --threads
refuses "not a number" 2 "--threads: 'two' is not a whole number from 0 to 256" run --threads two
refuses "out of bounds" 2 "--top-p: '1.5' is not a number from 0 to 1" run --top-p 1.5
refuses "not one of the words" 2 "--kv: 'sideways' is not one of full, native, s5, restored, sinkwin" plan --kv sideways
refuses "not a size" 2 "--kv-device: '12XB' is not a size in bytes" plan --kv-device 12XB
refuses "not a list" 2 "--lines: '60;70' is not a list with commas" bench niah --lines '60;70'
refuses "a word too many" 2 "unexpected argument 'extra'" plan -m "$MINI" extra
refuses "run without a model" 2 "no model given: -m MODEL" run -p x
refuses "inspect without a model" 2 "no model given" inspect
refuses "plan without a model" 2 "no model given: -m MODEL" plan
refuses "bench decode without a model" 2 "no model given: -m MODEL" bench decode

# ---- help
for c in "${CMDS[@]}"; do
    run $c --help
    cp "$KK_TMP/out" "$KK_TMP/help"
    check "$c --help: exit 0, on stdout alone" sh -c '[ "$2" -eq 0 ] && [ ! -s "$1/err" ]' sh "$KK_TMP" "$rc"
    run help $c
    check "help $c: the same" cmp -s "$KK_TMP/out" "$KK_TMP/help"
    # Every option that --print-config knows is in the help.
    "$KK_BIN" $c --print-config 2>/dev/null | cut -d' ' -f1 | sort -u >"$KK_TMP/names"
    missing=$(while read -r n; do
        [ ${#n} -eq 1 ] && n="-$n " || n="--$n"
        grep -q -- "$n" "$KK_TMP/help" || echo "$n"
    done <"$KK_TMP/names")
    check "$c --help lists every option" [ -s "$KK_TMP/names" -a -z "$missing" ]
    check "$c --help fits 100 columns" [ "$(awk '{ if (length > m) m = length } END { print m }' "$KK_TMP/help")" -le 100 ]
done

# ---- where a setting comes from
setting() { "$KK_BIN" plan "$@" --print-config | awk -v n="$name" '$1 == n { print $2, $3 }'; }
name=threads
printf '# ours\nthreads = 3\nkv = s5\ntemp = 0.5\n' >"$KK_TMP/conf"
check "default" [ "$(setting)" = "0 default" ]
check "file" [ "$(setting --config "$KK_TMP/conf")" = "3 file" ]
check "environment over file" [ "$(KAKEYA_THREADS=5 setting --config "$KK_TMP/conf")" = "5 environment" ]
check "flag over environment" [ "$(KAKEYA_THREADS=5 setting --threads=7 --config "$KK_TMP/conf")" = "7 flag" ]
check "the file's name from the environment" [ "$(KAKEYA_CONFIG="$KK_TMP/conf" setting)" = "3 file" ]
name=kv-window
check "dashes in the environment" [ "$(KAKEYA_KV_WINDOW=9 setting)" = "9 environment" ]
printf 'threads = 1\n\nthread = 3\n' >"$KK_TMP/conf"
refuses "wrong name in a file, with its line" 2 "conf:3: unknown option --thread: did you mean --threads?" plan --config "$KK_TMP/conf"
refuses "no such config file" 1 "cannot open" plan --config "$KK_TMP/none"
KAKEYA_THREADS=many refuses "wrong value in the environment" 2 "KAKEYA_THREADS: --threads: 'many'" plan

# ---- what is printed where
run plan -m "$MINI" --json extra
check "--json does not take the next word" [ "$rc" -eq 2 ]
run plan -m "$MINI" --json="$KK_TMP/plan.json"
check "--json=FILE: table on stdout, JSON in the file" sh -c '[ "$2" -eq 0 ] && grep -q "KV staging" "$1/out" && python3 -m json.tool "$1/plan.json" >/dev/null' sh "$KK_TMP" "$rc"
refuses_file() { "$KK_BIN" plan -m "$MINI" --json="$1" 2>"$KK_TMP/err" >/dev/null; [ $? -eq 1 ] && grep -q "cannot write" "$KK_TMP/err"; }
check "--json=FILE that cannot be written" refuses_file "$KK_TMP/none/x.json"
check "--json=/dev/full" refuses_file /dev/full
full() { "$KK_BIN" "$@" >/dev/full 2>"$KK_TMP/err"; [ $? -eq 1 ] && grep -q "cannot write to standard output: No space left" "$KK_TMP/err"; }
check "full standard output: plan" full plan -m "$MINI"
check "full standard output: help" full run --help
check "full standard output: run" full run -m "$TINY" -p hello -n 8
closed() { timeout 60 bash -c '"$@" 2>/dev/null | head -1 >/dev/null; [ "${PIPESTATUS[0]}" -ne 124 ]' bash "$KK_BIN" "$@"; }
check "closed standard output: inspect" closed inspect "$TINY" --tensors
check "closed standard output: run" closed run -m "$TINY" -p hello -n 2000 --ignore-eos
no_escapes() { ! grep -q $'[\033\r]' "$KK_TMP/out" "$KK_TMP/err"; }
run bench decode -m "$MINI" --ctx 0,64 --reps 1
check "no escape codes, no bar when not a terminal" no_escapes
refuses_one_line() { run plan -m $'a\nb'; [ "$rc" -eq 1 ] && [ "$(wc -l <"$KK_TMP/err")" -eq 1 ]; }
check "an error is one line, whatever the name holds" refuses_one_line

done_testing
