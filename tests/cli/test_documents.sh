#!/bin/bash
# The manual page and the completions: well-formed, and nothing of the tables is missing.
. tests/cli_lib.sh
for d in man bash zsh fish; do
    run help --$d
    cp "$KK_TMP/out" "$KK_TMP/$d"
    check "help --$d: on stdout alone" [ "$rc" -eq 0 -a -s "$KK_TMP/$d" -a ! -s "$KK_TMP/err" ]
done
refuses "help --x" 2 "it is --man, --bash, --zsh or --fish" help --x

"$KK_BIN" --help | sed -n 's/^  \([a-z ]*[a-z]\)  .*/\1/p' >"$KK_TMP/commands"
check "commands are found" [ "$(wc -l <"$KK_TMP/commands")" -ge 10 ]

# ---- every option, of every command
# shellcheck disable=SC1091
source "$KK_TMP/bash"
# complete WORD..: what bash offers for the last word.
complete_words() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
    _kakeya
    printf '%s\n' "${COMPREPLY[@]}"
}
while read -r c; do
    # shellcheck disable=SC2086
    "$KK_BIN" $c --print-config | awk -v c="$c" '{ print c "\t" $1 }'
    # shellcheck disable=SC2086
    complete_words kakeya $c - | awk -v c="$c" '{ print c "\t" $1 }' >>"$KK_TMP/offered"
done <"$KK_TMP/commands" | sort -u >"$KK_TMP/wanted"
check "every option of every command is in all four" python3 - "$KK_TMP" <<'P'
import re, sys
read = lambda name: open(f"{sys.argv[1]}/{name}").read()
offered, fish, zsh, man = set(read("offered").splitlines()), read("fish"), read("zsh"), read("man")
missing = []
for line in read("wanted").splitlines():
    command, name = line.split("\t")
    flag = ("-" if len(name) == 1 else "--") + name
    there = {
        "bash": f"{command}\t{flag}" in offered,
        "fish": re.search(rf"is.* '{command}'.*\" (-l|-s) {name} ", fish),
        "zsh": re.search(rf"^ *'{command}'\)(?:(?!;;).)*[ ',{{*]{flag}(=|=-)?[\['}}]", zsh, re.M | re.S),
        "man": "\\fB" + flag.replace("-", "\\-") + "\\fR" in man and f"\\fBkakeya {command}\\fR" in man,
    }
    missing += [f"{shell}: {line}" for shell, found in there.items() if not found]
print("\n".join(missing[:20]))
sys.exit(len(missing) > 0)
P
check "which is many" [ "$(wc -l <"$KK_TMP/wanted")" -ge 150 ]
check "an option of another command is not offered" \
    sh -c '! grep -qx -e --temp "$1"' sh <(complete_words kakeya plan -)

missing=$(echo /help | "$KK_BIN" chat -m models/tiny 2>&1 | sed -n 's/^  \(\/[a-z]*\) .*/\1/p' | while read -r n; do
    grep -qF "\\fB$n" "$KK_TMP/man" && echo "$n" >>"$KK_TMP/typed" || echo "$n"
done)
check "the manual page has every command of a chat" [ -z "$missing" -a "$(wc -l <"$KK_TMP/typed")" -ge 6 ]

# ---- bash
check "bash: words of an option" [ "$(complete_words kakeya run --kv-type '' | tr '\n' ' ')" = "auto f32 bf16 q8_0 " ]
check "bash: with =" [ "$(complete_words kakeya run --kv-type = b)" = bf16 ]
check "bash: commands of two words" [ "$(complete_words kakeya bench n)" = niah ]
check "bash: files" [ "$(complete_words kakeya run -f READ)" = README.md ]
check "bash: directories alone" [ "$(complete_words kakeya run --f-theta src/RE)" = "" ]
check "bash: both" [ "$(complete_words kakeya chat --draft ng)$(complete_words kakeya chat --draft sr)" = ngramsrc ]

# ---- syntax, by who is there
# lint NAME PROGRAM COMMAND..: says nothing and succeeds, if there is the PROGRAM.
lint() {
    local what=$1 program=$2
    shift 2
    if ! command -v "$program" >/dev/null; then
        skip "$what" "no $program here"
    elif "$@" >"$KK_TMP/said" 2>&1 && [ ! -s "$KK_TMP/said" ]; then
        ok "$what"
    else
        not_ok "$what"
        head -5 "$KK_TMP/said"
    fi
}
lint "bash -n" bash bash -n "$KK_TMP/bash"
lint "zsh -n" zsh zsh -n "$KK_TMP/zsh"
lint "fish -n" fish fish -n "$KK_TMP/fish"
lint "man --warnings" man sh -c 'man --warnings=w -l "$1" 2>&1 >/dev/null' sh "$KK_TMP/man"
lint "mandoc" mandoc mandoc -T lint -W error "$KK_TMP/man"
done_testing
