#!/bin/sh
# Measures this project on the NVIDIA GPU of this machine, without a network. tests/gpu/README.md describes it.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
checkout=$(CDPATH='' cd -- "$here/../.." && pwd)
started=$(date +%s)
wheels=$here/wheels
environment=$here/.venv

if [ "${1:-}" = "--list" ]; then
  if [ -d "$wheels" ]; then du -h "$wheels"/*.whl; else echo "run.sh: $wheels does not exist; run carry.sh" >&2 && exit 4; fi
  exit
fi

# Installs the wheels, unless the same ones are installed. TensorRT and PyTorch may come with the system, as on a Jetson.
install_wheels() {
  listed=$(cd "$wheels" && cksum -- *.txt && ls -l -- *.whl)
  if [ -f "$environment/installed" ] && [ "$listed" = "$(cat "$environment/installed")" ]; then return; fi
  python3 -m venv --clear --system-site-packages "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$wheels" \
    -r "$wheels/requirements.txt"
  printf '%s\n' "$listed" >"$environment/installed"
}

if [ -n "${PYTHON:-}" ]; then
  python=$PYTHON
elif [ -d "$wheels" ]; then
  install_wheels
  python=$environment/bin/python
elif [ -x "$checkout/.venv/bin/python" ]; then
  python=$checkout/.venv/bin/python
else
  python=python3
fi

PYTHONPATH=$checkout:$checkout/tests:$checkout/export:$checkout/calibration:$checkout/runtime
PYTHONSAFEPATH=1
export PYTHONPATH PYTHONSAFEPATH
exec "$python" -m gpu --started "$started" "$@"
