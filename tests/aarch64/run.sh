#!/usr/bin/env bash
# Installs the package and runs predictions on an emulated aarch64 processor, and compares the masks with this machine's.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tests/aarch64/run.sh [-w WORK] [-c CPU] [-l SHARE] BUNDLE BEFORE AFTER [ENGINE...]

Installs this checkout with its default dependencies using pip of an arm64 Debian, runs `misgnet-run predict` there for
each ENGINE (default: cpu-float32 cpu), and compares each mask with the mask that this machine computes.

  -w WORK    Folder kept between runs: root, wheels, installation, masks (default: .aarch64 in the checkout).
  -c CPU     cortex-a76 (with dot products, like Orin) or cortex-a57 (without) (default: cortex-a76).
  -l SHARE   Required share of equal pixels (default: 0.999).

Requires root (debootstrap, chroot), network access to Debian and Python packages (on first use), and the packages of
`apt-get install qemu-user-static debootstrap`. Environment variables: MIRROR, a Debian mirror (default:
http://deb.debian.org/debian); PYTHON, with this project's runtime and pip (default: the checkout's .venv, or python3).
TEXT
}

fail() {
  echo "run.sh: $1" >&2
  exit "$2"
}

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$checkout/.aarch64 cpu=cortex-a76 least=0.999
while getopts hw:c:l: option; do
  case $option in
    h) usage && exit 0 ;;
    w) work=$OPTARG ;;
    c) cpu=$OPTARG ;;
    l) least=$OPTARG ;;
    *) usage >&2 && exit 2 ;;
  esac
done
shift $((OPTIND - 1))
if (($# < 3)); then
  usage >&2
  exit 2
fi
case $cpu in
  cortex-a76) part=0xd0b more=" atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp" ;;
  cortex-a57) part=0xd07 more="" ;;
  *) fail "-c is $cpu; expected cortex-a76 or cortex-a57" 2 ;;
esac
bundle=$1 before=$2 after=$3
shift 3
if (($# == 0)); then set -- cpu-float32 cpu; fi
for path in "$bundle/manifest.json" "$before" "$after"; do
  [[ -f $path ]] || fail "$path does not exist" 4
done

# Prints the first of the given commands that exists.
first_of() {
  local name
  for name in "$@"; do command -v "$name" && return; done
  fail "requires ${*: -1}; install it with: apt-get install qemu-user-static debootstrap" 5
}

qemu=$(first_of qemu-aarch64-static qemu-aarch64)
debootstrap=$(first_of debootstrap)
python=${PYTHON:-$checkout/.venv/bin/python}
[[ -x $python ]] || python=$(first_of python3)
mkdir -p "$work"
work=$(cd "$work" && pwd)
root=$work/root wheels=$work/wheels inside=$work/root/work
((EUID == 0)) || fail "debootstrap and chroot require root" 5

# Packages are unpacked but not configured: configuring would start arm64 programs as child processes, for which the
# kernel needs binfmt_misc; Python works without it.
make_root() {
  rm -rf "$root"
  "$debootstrap" --foreign --arch=arm64 --variant=minbase --include=python3,python3-pip,libstdc++6 bookworm "$root" \
    "${MIRROR:-http://deb.debian.org/debian}"
  local package
  for package in "$root"/var/cache/apt/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  touch "$root.complete"
}

# Uses the arm64 pip, outside of the root, with this machine's network settings and certificates.
install_project() {
  rm -rf "$wheels" "$inside"
  mkdir -p "$inside/masks"
  "$python" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" "$checkout"
  env -u PYTHONPATH -u PYTHONHOME "$qemu" -cpu "$cpu" -L "$root" "$root/usr/bin/python3" -m pip install --quiet \
    --root-user-action=ignore --only-binary=:all: --target "$inside/site" "$wheels"/misgnet_export-*.whl
}

# ONNX Runtime reads the processor from Linux, and would crash if it found this machine's.
describe_processor() {
  mkdir -p "$root/proc" "$root/sys/devices/system/cpu"
  echo 0 | tee "$root/sys/devices/system/cpu/possible" >"$root/sys/devices/system/cpu/present"
  {
    printf 'processor\t: 0\nFeatures\t: fp asimd aes pmull sha1 sha2 crc32%s\n' "$more"
    printf 'CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\n'
    printf 'CPU part\t: %s\nCPU revision\t: 1\n' "$part"
  } >"$root/proc/cpuinfo"
}

# Runs the emulated Python inside the root.
arm() {
  env -i PATH=/usr/bin HOME=/work PYTHONPATH=/work/site "$(command -v chroot)" "$root" \
    /qemu -cpu "$cpu" /usr/bin/python3 "$@"
}

[[ -e $root.complete ]] || make_root
install_project
describe_processor
cp "$qemu" "$root/qemu"
cp -rL "$bundle" "$inside/bundle"
cp "$before" "$inside/before"
cp "$after" "$inside/after"
arm -c 'import platform as p, onnxruntime as o, numpy as n
print(f"{p.machine()}, Python {p.python_version()}, ONNX Runtime {o.__version__}, NumPy {n.__version__}")'
for engine in "$@"; do
  arm /work/site/bin/misgnet-run predict /work/bundle /work/before /work/after --engine "$engine" \
    -o "/work/masks/$engine.png"
done
PYTHONPATH=$checkout/runtime${PYTHONPATH:+:$PYTHONPATH} "$python" "$checkout/tests/aarch64/compare.py" \
  "$bundle" "$before" "$after" "$inside/masks" --least "$least" "$@"
