#!/bin/bash
# The demonstration: ask the embedded model for a code hidden in a long document, then measure recall.
set -eu
cd "$(dirname "$0")/.."
doc=$(mktemp)
trap 'rm -f "$doc" "$doc.times"' EXIT

{
    for i in $(seq 0 159); do
        [ "$i" -eq 107 ] && printf '\nIMPORTANT: the secret code is ORCHID-4217.\n\n'
        printf 'Note %04d: this paragraph is unrelated padding and does not contain the answer.\n' "$i"
    done
    printf '\nQuestion: what is the secret code? Answer:'
} >"$doc"

echo "A document of 160 lines hides one code:   IMPORTANT: the secret code is ORCHID-4217."
echo "Its last line:                            Question: what is the secret code? Answer:"
echo "The model's answer:"
answer=$(build/kakeya run -m models/tiny -f "$doc" -n 8 2>"$doc.times")
echo "   $answer"
cat "$doc.times"
echo
echo "Recall over 8 such documents of each length (60, 160 and 320 lines):"
build/kakeya bench niah -m models/tiny --lines 60,160,320 --samples 8
