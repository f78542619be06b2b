#!/bin/sh
# Fills what run.sh needs on a machine without a network: a folder of wheels, and a bundle. See tests/gpu/README.md.
set -eu

usage() {
  cat <<'TEXT'
usage: tests/gpu/carry.sh [-p PLATFORM] [-y PYTHON_VERSION] [-n] [-w | -b] [REQUIREMENT...]

Downloads wheels into tests/gpu/wheels, and builds tests/gpu/bundle and tests/gpu/tiles from generated tiles and the
demo weights. Copy the whole checkout to the machine with the GPU afterwards, and start tests/gpu/run.sh there.

  -p PLATFORM        x86_64, jetpack6 or jetpack7 (default: x86_64)
  -y PYTHON_VERSION  Python of the machine with the GPU, for x86_64 (default: 3.12)
  -n                 Leave out PyTorch and TensorRT for RTX, for a machine that has what it needs of them (x86_64).
  -w                 Only download the wheels.
  -b                 Only build the bundle.
  REQUIREMENT        Further requirement of pip, such as 'torch<2.11' for a driver without CUDA 13.

Environment variable: PYTHON, which has this project's compiler and pip (default: the checkout's .venv, or python3).
TEXT
}

platform=x86_64 version=3.12 only='' requirements='requirements.txt'
while getopts hp:y:nwb option; do
  case $option in
    h) usage && exit 0 ;;
    p) platform=$OPTARG ;;
    y) version=$OPTARG ;;
    n) requirements='requirements-small.txt' ;;
    w) only=wheels ;;
    b) only=bundle ;;
    *) usage >&2 && exit 2 ;;
  esac
done
shift $((OPTIND - 1))
case $platform in
  x86_64) targets='--target rtx-sm75,sm80,sm86,sm89,sm120 --target tensorrt --on-device' ;;
  jetpack6) targets='--target jetson-orin' version=3.10 ;;
  jetpack7) targets='--target jetson-orin --target jetson-thor' version=3.12 ;;
  *) echo "carry.sh: -p is $platform; expected x86_64, jetpack6 or jetpack7" >&2 && exit 2 ;;
esac

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
checkout=$(CDPATH='' cd -- "$here/../.." && pwd)
wheels=$here/wheels
python=${PYTHON:-$checkout/.venv/bin/python}
if ! command -v "$python" >/dev/null; then python=python3; fi
PYTHONPATH=$checkout:$checkout/export:$checkout/calibration:$checkout/runtime
PYTHONSAFEPATH=1
export PYTHONPATH PYTHONSAFEPATH

# Downloads wheels for the other machine: pip accepts no source distributions then.
download() {
  tags="--platform manylinux2014_$1"
  minor=35
  while [ "$minor" -ge 17 ]; do
    tags="$tags --platform manylinux_2_${minor}_$1"
    minor=$((minor - 1))
  done
  shift
  # shellcheck disable=SC2086 # the tags are separate words
  "$python" -m pip download --disable-pip-version-check --only-binary=:all: --implementation cp \
    --python-version "$version" $tags --find-links "$wheels" -d "$wheels" "$@"
}

build() {
  "$python" -m pip wheel --disable-pip-version-check --quiet --no-deps -w "$wheels" "$@"
}

fill_wheels() {
  mkdir -p "$wheels"
  if [ "$platform" = x86_64 ]; then
    rm -f "$wheels"/misgnet_export-*.whl
    build "$checkout"
    # Published as source distributions that only name their dependencies
    if [ "$requirements" = requirements.txt ]; then build tensorrt-rtx tensorrt-rtx-cu13; fi
    cp "$here/$requirements" "$wheels/requirements.txt"
    if [ $# -gt 0 ]; then printf '%s\n' "$@" >>"$wheels/requirements.txt"; fi
    download x86_64 -r "$wheels/requirements.txt"
  else
    "$python" -m misgnet_export wheelhouse --platform "$platform" -o "$wheels"
    # exceptiongroup and tomli: what pytest requires on Python 3.10, whichever Python runs pip here
    download aarch64 pytest exceptiongroup tomli "$@"
    printf '%s\n' misgnet-export pytest "$@" >>"$wheels/requirements.txt"
  fi
  du -sh "$wheels"
}

build_bundle() {
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  "$python" -m misgnet synthesize -o "$work/tiles" --train 24 --val 8 --test 16 --seed 1
  # shellcheck disable=SC2086 # the targets are separate words
  "$python" -m misgnet_export build "$checkout/examples/misgnet_synthetic_fp16.safetensors" \
    --calib "$work/tiles/train" --val "$work/tiles/val" --eval "$work/tiles/test" $targets --ship-eval 16 \
    --force -o "$here/bundle"
  rm -rf "$here/tiles"
  cp -r "$work/tiles/test" "$here/tiles"
}

if [ "$only" != bundle ]; then fill_wheels "$@"; fi
if [ "$only" != wheels ]; then build_bundle; fi
