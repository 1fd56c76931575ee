#!/usr/bin/env bash
# What scripts/lint makes of tools that are there, are not, or complain.
set -euo pipefail
# shellcheck source=tests/setup/harness.sh
. "$(dirname "${BASH_SOURCE[0]}")/harness.sh"

# A checkout with one file of each kind.
lintable() {
  fresh "$1"
  mkdir -p "$checkout"/{include,src,cli,tests,.ci}
  touch "$checkout/src/a.cc"
  printf '#!/bin/sh\n' >"$checkout/test"
}

lintable 'no tool: skipped'
run "$checkout/scripts/lint"
expect_code 77
expect_err 'neither clang-format 14 nor shellcheck is installed'

lintable 'another clang-format: skipped'
recorded clang-format 'echo "clang-format version 18.1.3 (1)"'
run "$checkout/scripts/lint"
expect_code 77
expect_no_call --dry-run

lintable 'both are there'
recorded clang-format 'echo "Debian clang-format version 14.0.6"'
recorded shellcheck
run "$checkout/scripts/lint"
expect_code 0
expect_call 'clang-format --dry-run --Werror src/a.cc'
expect_call 'shellcheck --external-sources scripts/common.sh mlx-lm'

for tool in clang-format shellcheck; do
  lintable "$tool complains"
  recorded clang-format 'echo "clang-format version 14.0.6"'
  recorded shellcheck
  recorded "$tool" 'echo "version 14"; case $* in *--version*) ;; *) exit 1 ;; esac'
  run "$checkout/scripts/lint"
  expect_code 1
done

finish
