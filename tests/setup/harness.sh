# shellcheck shell=bash
# A temporary checkout with stubs on PATH. Everything is written as a new file
# in a folder of its own; nothing is linked to the system's programs, so nothing
# can be written through such a link.

source_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
sandbox=$(mktemp -d)
trap 'rm -rf "$sandbox"' EXIT
# The canonical name, as scripts print it.
sandbox=$(cd "$sandbox" && pwd -P)
checkout=$sandbox/checkout
bin=$sandbox/bin
calls=$sandbox/calls
failures=0

# fresh CASE: an empty checkout, and PATH with nothing but the tools below.
fresh() {
  case_name=$1
  rm -rf "$checkout" "$bin" "${sandbox:?}/home" "$calls"
  mkdir -p "$checkout" "$bin" "$sandbox/home"
  cp "$source_root/mlx-lm" "$checkout/"
  cp -R "$source_root/scripts" "$checkout/scripts"
  : >"$calls"
  local tool real
  for tool in awk bash basename cat cksum cmp cp cut dirname env find flock \
    getconf grep head ls mkdir mktemp mv printf readlink rm sed sh sort tail \
    touch tr xargs; do
    real=$(command -v "$tool") || continue
    case $real in /*) stub "$tool" "exec '$real' \"\$@\"" ;; esac
  done
  stub sleep ':'
}

# stub NAME BODY: a program on PATH.
stub() {
  printf '#!/bin/sh\n%s\n' "$2" >"$bin/$1"
  chmod +x "$bin/$1"
}

# recorded NAME [BODY]: a stub that notes its arguments first.
recorded() {
  stub "$1" "echo \"$1 \$*\" >>'$calls'
${2:-}"
}

# script PATH BODY: a file of the checkout, as a program that notes its calls.
script() {
  mkdir -p "$(dirname "$checkout/$1")"
  printf '#!/bin/sh\necho "%s $*" >>"%s"\n%s\n' "$1" "$calls" "${2:-}" \
    >"$checkout/$1"
  chmod +x "$checkout/$1"
}

# run COMMAND...: in the sandbox's world; leaves out, err and code.
run() {
  code=0
  env -i PATH="$bin" HOME="$sandbox/home" TMPDIR="$sandbox" \
    "${world[@]}" "$@" >"$sandbox/out" 2>"$sandbox/err" </dev/null || code=$?
  out=$(cat "$sandbox/out")
  err=$(cat "$sandbox/err")
}
world=(LC_ALL=C)

fail() {
  failures=$((failures + 1))
  printf 'FAILED %s: %s\n  code: %s\n  out: %s\n  err: %s\n  calls: %s\n' \
    "$case_name" "$1" "${code:-}" "${out:-}" "${err:-}" \
    "$(cat "$calls")"
}

expect_code() { [ "$code" = "$1" ] || fail "exit code $1 was expected"; }
expect_out() { [ "$out" = "$1" ] || fail "standard output '$1' was expected"; }
expect_err() {
  case $err in *"$1"*) ;; *) fail "standard error with '$1' was expected" ;; esac
}
expect_call() {
  grep -q -F -- "$1" "$calls" || fail "a call '$1' was expected"
}
expect_no_call() {
  ! grep -q -F -- "$1" "$calls" || fail "no call '$1' was expected"
}
expect_file() { [ -e "$1" ] || fail "the file $1 was expected"; }
expect_no_file() { [ ! -e "$1" ] || fail "no file $1 was expected"; }

finish() {
  [ "$failures" = 0 ] || exit 1
  echo "all passed"
}
