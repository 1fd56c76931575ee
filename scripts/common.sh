# shellcheck shell=bash
# What the scripts share. Messages go to standard error: standard output
# belongs to the program.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # used by the scripts that source this file
mlx_version=0.32.4
# The Rust crate needs this compiler, 1.minor.
# shellcheck disable=SC2034
rust_minor_needed=77

say() { printf 'mlx-lm: %s\n' "$*" >&2; }

die() {
  say "$@"
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# quietly LOG COMMAND...: keeps a long command's output in a file, shown only
# when it fails.
quietly() {
  local log=$1
  shift
  mkdir -p "$(dirname "$log")"
  if "$@" >"$log" 2>&1 </dev/null; then
    return 0
  fi
  tail -n 60 "$log" >&2
  say "this failed: $*"
  say "its whole output: $log"
  return 1
}

# The newest clang++ that links fuzzers; none if there is none.
find_fuzzing_clang() {
  local name
  local probe='extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }'
  for name in clang++ clang++-{20,19,18,17,16,15,14}; do
    if have "$name" && echo "$probe" |
      "$name" -x c++ -fsanitize=fuzzer -o /dev/null - 2>/dev/null; then
      echo "$name"
      return 0
    fi
  done
  return 1
}

# try_thrice COMMAND...: for what needs the network.
try_thrice() {
  local attempt
  for attempt in 1 2 3; do
    "$@" && return 0
    [ "$attempt" = 3 ] || sleep "$((attempt * 3))"
  done
  return 1
}

have_pip() { have python3 && python3 -m pip --version >/dev/null 2>&1; }

sha256_of() {
  if have sha256sum; then
    sha256sum "$1" | cut -d ' ' -f 1
  else
    shasum -a 256 "$1" | cut -d ' ' -f 1
  fi
}

# download_pinned PINS FOLDER: the wheels of one file in scripts/pins, each
# checked against its hash by pip.
download_pinned() {
  have_pip || die "Python 3 with pip is needed to download: run scripts/setup"
  quietly "$root/build/logs/download-$(basename "$1" .txt).log" \
    try_thrice python3 -m pip download --require-hashes --no-deps \
    --only-binary=:all: --no-cache-dir --dest "$2" --requirement "$1"
}

# unpack_wheels FROM TO
unpack_wheels() {
  local wheel
  for wheel in "$1"/*.whl; do
    python3 -m zipfile -e "$wheel" "$2" || return 1
  done
}

# Where models known by name are kept; the binary looks there too.
models_folder() {
  printf '%s\n' "${MLX_LM_MODELS_DIR:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/mlx-lm/models}"
}

# The NVIDIA driver's main version, 0 if none answers. 580 and later know CUDA 13.
nvidia_driver_major() {
  local version=
  if have nvidia-smi; then
    version=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader \
      2>/dev/null | sed -n 1p)
  fi
  case ${version%%.*} in
    '' | *[!0-9]*) echo 0 ;;
    *) echo "${version%%.*}" ;;
  esac
}

# Which build of MLX to use: cpu, cuda or metal.
choose_backend() {
  local driver
  case ${MLX_LM_BACKEND:-} in
    cpu | cuda | metal)
      echo "$MLX_LM_BACKEND"
      return
      ;;
    '') ;;
    *) die "MLX_LM_BACKEND is '$MLX_LM_BACKEND': it can be cpu, cuda or metal" ;;
  esac
  if [ "$(uname -s)" = Darwin ]; then
    echo metal
    return
  fi
  driver=$(nvidia_driver_major)
  if [ "$driver" -ge 580 ]; then
    echo cuda
  else
    [ "$driver" = 0 ] ||
      say "the NVIDIA driver $driver is older than CUDA 13 needs (580): using the CPU"
    echo cpu
  fi
}
