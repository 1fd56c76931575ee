#!/usr/bin/env bash
# What scripts/setup installs, where, and what it says.
# shellcheck disable=SC2016 # stubs: expanded when they run
set -euo pipefail
# shellcheck source=tests/setup/harness.sh
. "$(dirname "${BASH_SOURCE[0]}")/harness.sh"

# pip downloads one file; zipfile unpacks MLX's folder.
python_stub='case "$*" in
  *"pip --version"*) exit 0 ;;
  *"pip download"*)
    [ ! -e "$HOME/pip-fails" ] || exit 1
    while [ "$1" != --dest ]; do shift; done
    mkdir -p "$2" && : >"$2/mlx.whl" ;;
  *"zipfile -e"*)
    mkdir -p "$5/mlx/share/cmake/MLX" && : >"$5/mlx/share/cmake/MLX/MLXConfig.cmake" ;;
esac'

# Everything installed.
complete() {
  fresh "$1"
  stub uname 'echo Linux'
  stub id 'echo 0'
  stub cargo 'echo "cargo 1.95.0 (f2d3ce0bd 2026-03-21)"'
  recorded apt-get
  recorded apt-cache
  stub dpkg-query 'printf "install ok installed"'
  local tool
  for tool in c++ cmake ninja; do stub "$tool" ':'; done
  recorded python3 "$python_stub"
}

# Debian 12 as its base system leaves it.
bare() {
  complete "$1"
  rm "$bin"/{c++,cmake,ninja,cargo,python3}
  stub dpkg-query 'exit 1'
  debian_12_packages
  # Installing brings the programs.
  recorded apt-get "case \"\$*\" in *install*)
    cp '$sandbox/python3' '$bin/python3'
    cp '$sandbox/cargo' '$bin/cargo' ;;
  esac"
  printf '#!/bin/sh\necho "python3 $*" >>"%s"\n%s\n' "$calls" "$python_stub" \
    >"$sandbox/python3"
  printf '#!/bin/sh\necho "cargo 1.85.0"\n' >"$sandbox/cargo"
  chmod +x "$sandbox/python3" "$sandbox/cargo"
}

debian_12_packages() {
  stub apt-cache 'case "$*" in
    "policy cargo") echo "  Candidate: 0.66.0+ds1-1" ;;
    "policy cargo-web") echo "  Candidate: 1.85.0+dfsg3-1~deb12u3" ;;
    "policy nlohmann-json3-dev") echo "  Candidate: 3.11.2-2"
      # More than a pipe holds: who stops reading early ends this program.
      awk "BEGIN { while (n++ < 20000) print \"  Version table\" }" ;;
    policy*) echo "  Candidate: (none)" ;;
  esac'
}

ubuntu_packages() {
  stub apt-cache 'case "$*" in
    "policy cargo") echo "  Candidate: 1.75.0+dfsg0ubuntu1-0ubuntu7.1" ;;
    "policy cargo-1.82") echo "  Candidate: 1.82.0ubuntu1" ;;
    "policy cargo-1.89") echo "  Candidate: 1.89.0ubuntu1" ;;
    "policy cargo-web") ;;
    "policy nlohmann-json3-dev") echo "  Candidate: 3.11.3-1" ;;
    pkgnames*) printf "cargo-1.82\ncargo-1.89\ncargo-1.82-doc\n" ;;
  esac'
}

setup() { run "$checkout/scripts/setup" "$@"; }
mlx=$checkout/build/mlx-0.32.4

complete 'nothing is missing: MLX only'
setup
expect_code 0
expect_out cpu
expect_no_call apt-get
expect_call 'python3 -m pip download --require-hashes --no-deps --only-binary=:all:'
expect_call pins/mlx-cpu.txt
expect_file "$mlx-cpu/mlx/share/cmake/MLX/MLXConfig.cmake"
: >"$calls"
setup
expect_out cpu
expect_no_call 'pip download'

bare 'a bare Debian 12 as root'
setup
expect_code 0
expect_out cpu
expect_err 'installing system packages: g++ cmake ninja-build python3-pip ca-certificates nlohmann-json3-dev libcli11-dev libedit-dev cargo-web rustc-web'
expect_call 'apt-get -q update'
expect_call 'install g++ cmake ninja-build python3-pip ca-certificates nlohmann-json3-dev libcli11-dev libedit-dev cargo-web rustc-web'
expect_no_call gtest
expect_no_call indextargets # nothing is missing from the package lists

bare 'the tests need more'
setup --tests
expect_call 'libgtest-dev libgmock-dev'
expect_call 'python3-venv'

bare 'sanitizers need a compiler that makes fuzzers'
setup --sanitizers
expect_call 'libgtest-dev libgmock-dev'
expect_call 'clang libclang-rt-dev'

bare 'a user with sudo'
stub id 'echo 1000'
recorded sudo 'exec "$@"'
setup
expect_code 0
expect_call 'sudo apt-get -q update'
expect_call 'sudo env DEBIAN_FRONTEND=noninteractive apt-get'

bare 'a user without sudo'
stub id 'echo 1000'
setup
expect_code 1
expect_err 'as root run: apt-get install g++ cmake'
expect_no_call apt-get

bare 'package lists that cannot be refreshed are no reason to stop'
recorded apt-get "case \"\$*\" in
  *update*) exit 100 ;;
  *install*) cp '$sandbox/python3' '$bin/python3'; cp '$sandbox/cargo' '$bin/cargo' ;;
esac"
setup
expect_code 0
expect_err 'could not be refreshed'

bare 'packages that cannot be installed are'
recorded apt-get 'case "$*" in *install*) echo "E: no such package"; exit 100 ;; esac'
setup
expect_code 1
expect_err 'E: no such package'

bare 'Ubuntu: the newest versioned Rust'
ubuntu_packages
recorded apt-get "case \"\$*\" in *install*)
  cp '$sandbox/python3' '$bin/python3'
  cp '$sandbox/cargo' '$bin/cargo-1.89'; cp '$sandbox/cargo' '$bin/rustc-1.89' ;;
esac"
setup
expect_code 0
expect_call 'cargo-1.89 rustc-1.89'
[ "$(cat "$checkout/build/cargo-path")" = "$bin/cargo-1.89" ] ||
  fail 'cargo-1.89 was to be used'

bare 'a bare Ubuntu: universe and updates are added first'
ubuntu_packages
mv "$bin/apt-cache" "$sandbox/apt-cache"
stub apt-cache 'case "$*" in policy*) echo "  Candidate: (none)" ;; esac'
recorded tee "cp '$sandbox/apt-cache' '$bin/apt-cache'; cat >'$sandbox/list'"
recorded apt-get "case \"\$*\" in
  *indextargets*) echo 'Ubuntu noble http://mirror.invalid/ubuntu' ;;
  *install*) cp '$sandbox/python3' '$bin/python3'
    cp '$sandbox/cargo' '$bin/cargo-1.89'; cp '$sandbox/cargo' '$bin/rustc-1.89' ;;
esac"
setup
expect_code 0
expect_err 'universe'
expect_call 'tee /etc/apt/sources.list.d/mlx-lm.list'
[ "$(cat "$sandbox/list")" = 'deb http://mirror.invalid/ubuntu noble universe
deb http://mirror.invalid/ubuntu noble-updates main universe' ] ||
  fail 'other sources were expected'
expect_call 'cargo-1.89 rustc-1.89'

bare 'no package with a new enough Rust'
stub apt-cache 'case "$*" in policy*) echo "  Candidate: 0.66.0+ds1-1" ;; esac'
setup
expect_code 1
expect_err 'no package has Rust 1.'

complete 'an old cargo on PATH is replaced'
stub cargo 'echo "cargo 1.63.0"'
debian_12_packages
recorded apt-get "case \"\$*\" in *install*)
  printf '#!/bin/sh\necho cargo 1.85.0\n' >'$bin/cargo' ;; esac"
setup
expect_code 0
expect_call 'cargo-web rustc-web'

complete 'a new NVIDIA driver: CUDA'
stub nvidia-smi 'echo 580.95.05'
setup
expect_out cuda
expect_call pins/mlx-cuda.txt
expect_file "$mlx-cuda"

complete 'an old NVIDIA driver: CPU, and why'
stub nvidia-smi 'echo 550.54.15'
setup
expect_out cpu
expect_err 'older than CUDA 13 needs'

complete 'a driver that does not answer: CPU'
stub nvidia-smi 'echo "NVIDIA-SMI has failed"; exit 9'
setup
expect_out cpu

complete 'MLX_LM_BACKEND overrides'
stub nvidia-smi 'echo 580.95.05'
world=(LC_ALL=C MLX_LM_BACKEND=cpu)
setup
expect_out cpu
world=(LC_ALL=C MLX_LM_BACKEND=tpu)
setup
expect_code 1
expect_err "MLX_LM_BACKEND is 'tpu': it can be cpu, cuda or metal"
world=(LC_ALL=C)

complete 'a download that fails leaves nothing behind'
touch "$sandbox/home/pip-fails"
setup
expect_code 1
expect_err 'MLX 0.32.4 for cpu could not be downloaded'
expect_no_file "$mlx-cpu"
[ -z "$(find "$checkout/build" -name '.mlx-*')" ] || fail 'a work folder is left'

complete 'macOS with Homebrew'
stub uname 'echo Darwin'
rm "$bin"/{cmake,apt-get,dpkg-query}
recorded brew 'case "$*" in "list --versions nlohmann-json") exit 1 ;; esac'
setup
expect_code 0
expect_out metal
expect_err 'installing with Homebrew: cmake nlohmann-json'
expect_call 'brew install cmake nlohmann-json'
expect_call pins/mlx-metal.txt

complete "macOS: the tests need a newer Python than Apple's"
stub uname 'echo Darwin'
recorded brew
recorded python3 "case \"\$*\" in *version_info*) exit 1 ;; esac
$python_stub"
setup
expect_no_call 'brew install'
setup --tests
expect_call 'brew install python'

complete 'macOS without Homebrew'
stub uname 'echo Darwin'
setup
expect_code 1
expect_err 'Homebrew is needed'

complete 'another Linux: says what it needs'
rm "$bin"/{apt-get,cmake,cargo}
setup
expect_code 1
expect_err 'CMake 3.25 or later, Rust 1.'

complete 'another Linux with everything'
rm "$bin"/{apt-get,dpkg-query}
setup
expect_code 0
expect_out cpu

finish
