#!/usr/bin/env bash
# What ./mlx-lm builds, fetches and runs.
# shellcheck disable=SC2016 # stubs: expanded when they run
set -euo pipefail
# shellcheck source=tests/setup/harness.sh
. "$(dirname "${BASH_SOURCE[0]}")/harness.sh"

program=build/release/cli/mlx-lm

# A checkout as it is after a build, with the default model in place.
built() {
  fresh "$1"
  mkdir -p "$checkout/src/core" "$checkout/include"
  touch "$checkout/CMakeLists.txt" "$checkout/src/core/file.cc"
  script scripts/build 'echo building; exit 0'
  script scripts/fetch-model 'echo /models/file'
  script "$program" 'for a in "$@"; do echo "[$a]"; done; exit 3'
  models=$sandbox/home/.cache/mlx-lm/models
  mkdir -p "$models"
  touch "$models/SmolLM2-135M-Instruct.Q4_1.gguf"
  echo cpu >"$checkout/build/release/stamp"
  touch -t 200001010000 "$checkout/src/core/file.cc"
  local slow
  for slow in cmake cargo python3 git ninja; do recorded "$slow"; done
  make_old "$checkout"
  touch "$checkout/build/release/stamp"
}

# Everything older than the stamp to come, folders included.
make_old() { find "$1" -exec touch -t 202001010000 {} +; }

built 'everything is there: only the program runs, arguments and code as given'
run "$checkout/mlx-lm" generate --prompt 'two  words' '' --x='a"b'
expect_code 3
expect_out '[generate]
[--prompt]
[two  words]
[]
[--x=a"b]'
expect_no_call scripts/
for slow in cmake cargo python3 git ninja; do expect_no_call "$slow"; done

built 'not built: builds first, with nothing on standard output'
rm "$checkout/build/release/stamp"
run "$checkout/mlx-lm" info x
expect_call scripts/build
expect_out '[info]
[x]'
expect_err building

built 'a build that fails ends it'
rm "$checkout/build/release/stamp"
script scripts/build 'exit 7'
run "$checkout/mlx-lm" info x
expect_code 7
expect_no_call "$program"

built 'a changed source is built'
touch -t 203001010000 "$checkout/src/core/file.cc"
run "$checkout/mlx-lm" info x
expect_call scripts/build

built 'a changed test is not'
touch -t 202001010000 "$checkout/src/core/file_test.cc"
touch -t 203001010000 "$checkout/src/core/file_test.cc"
make_old "$checkout/src/core"
touch -t 203001010000 "$checkout/src/core/file_test.cc"
run "$checkout/mlx-lm" info x
expect_no_call scripts/build

built 'another backend is built'
world=(LC_ALL=C MLX_LM_BACKEND=cuda)
run "$checkout/mlx-lm" info x
expect_call scripts/build
world=(LC_ALL=C MLX_LM_BACKEND=cpu)
built 'the same backend is not'
run "$checkout/mlx-lm" info x
expect_no_call scripts/build
world=(LC_ALL=C)

for command in generate chat cache-prompt score benchmark; do
  built "$command without a model fetches the default one"
  rm "$models"/*
  run "$checkout/mlx-lm" "$command" --temp 0
  expect_call 'scripts/fetch-model smollm2-135m-instruct'
  expect_call "$program"
done

built 'a failing fetch ends it'
rm "$models"/*
script scripts/fetch-model 'exit 1'
run "$checkout/mlx-lm" generate
expect_code 1
expect_no_call "$program"

built 'nothing is fetched for help, another model or other commands'
rm "$models"/*
run "$checkout/mlx-lm" generate --help
run "$checkout/mlx-lm" generate --temp 0 --model some/model
run "$checkout/mlx-lm" generate --temp 0 --model=some/model
run "$checkout/mlx-lm" info some/model
run "$checkout/mlx-lm" --version
run "$checkout/mlx-lm"
expect_no_call fetch-model

built 'the models known by name are fetched wherever a model is named'
for arguments in '--model gemma-3-270m' '--model=gemma-3-270m' \
  '--draft-model gemma-3-270m'; do
  : >"$calls"
  # shellcheck disable=SC2086 # two words
  run "$checkout/mlx-lm" generate $arguments
  expect_call 'scripts/fetch-model gemma-3-270m'
  expect_no_call 'fetch-model smollm2'
done
: >"$calls"
run "$checkout/mlx-lm" info --json gemma-3-270m
expect_call 'scripts/fetch-model gemma-3-270m'
: >"$calls"
run "$checkout/mlx-lm" generate --prompt gemma-3-270m
expect_no_call fetch-model

built 'MLX_LM_MODELS_DIR and XDG_CACHE_HOME say where models are'
world=(LC_ALL=C "MLX_LM_MODELS_DIR=$sandbox/home/none")
run "$checkout/mlx-lm" generate
expect_call 'fetch-model smollm2-135m-instruct'
: >"$calls"
world=(LC_ALL=C "XDG_CACHE_HOME=$sandbox/home/.cache" "HOME=$sandbox")
run "$checkout/mlx-lm" generate
expect_no_call fetch-model
world=(LC_ALL=C)

built 'it runs through a link, from another folder'
mkdir -p "$sandbox/home/links"
ln -s "$checkout/mlx-lm" "$sandbox/home/links/first"
ln -s links/first "$sandbox/home/second"
run sh -c "cd / && '$sandbox/home/second' version"
expect_out '[version]'
run sh -c "cd '$checkout' && sh mlx-lm version"
expect_out '[version]'

finish
