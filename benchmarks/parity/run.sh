#!/bin/sh
# benchmarks/parity/run.sh [FOLDER]: both sides, and docs/parity.md. TRL gets an environment of its own in $TRL_ENV.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
folder=${1:-$root/runs/parity}
trl_env=${TRL_ENV:-$root/runs/trl-env}
python=${PYTHON:-python3}
export OMP_NUM_THREADS=1

if [ ! -x "$trl_env/bin/python" ] || ! "$trl_env/bin/python" -c 'import trl' 2>/dev/null; then
    "$python" -m venv "$trl_env"
    "$trl_env/bin/pip" install --quiet --disable-pip-version-check -r "$here/trl-requirements.txt"
fi
rm -rf "$folder"
mkdir -p "$folder"
"$root/.venv/bin/python" "$here/ours.py" "$folder" 2>"$folder/ours.log"
"$trl_env/bin/python" "$here/trl_side.py" "$folder" >"$folder/trl.log" 2>&1
"$root/.venv/bin/python" "$here/compare.py" "$folder" "$root/docs/parity.md"
