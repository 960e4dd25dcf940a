#!/usr/bin/env bash
# The steps of the Dockerfile without docker: its RUN lines in a new virtual environment, its health check against its command.
#
#   tests/container.sh [PYTHON]
#   TORCH_INDEX= tests/container.sh     # torch from pip's own index, where the Dockerfile's cannot be reached
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
place=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi; rm -rf "$place"' EXIT

"${1:-python3}" -m venv "$place/venv"
export PATH="$place/venv/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
unset PYTHONPATH
mkdir "$place/build" "$place/pictures"

# What .dockerignore lets through, and nothing else: a file that the build needs and does not get must be missed here too.
sed -n 's/^!//p' "$root/.dockerignore" | while read -r name; do cp -r "$root/$name" "$place/build/"; done

TORCH_INDEX=${TORCH_INDEX-$(sed -n 's/^ARG TORCH_INDEX=//p' "$root/Dockerfile")}
pip install -q ${TORCH_INDEX:+--index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple} \
    "$(grep '^torch==' "$place/build/constraints.txt")"
pip install -q -c "$place/build/constraints.txt" "$place/build[web]"
rm -rf "$place/build"

cd "$place/pictures"
samdiffsr doctor >/dev/null
cp "$root/examples/cat.png" .
samdiffsr upscale cat.png -o large/
samdiffsr serve --host 0.0.0.0 --port 8000 >"$place/address" & # CMD; the health check knows the port
server=$!
for _ in $(seq 120); do grep -q http "$place/address" && break; sleep 1; done
python - "$root/Dockerfile" <<'CHECK'
import json, re, subprocess, sys

text = open(sys.argv[1]).read()
command = json.loads(re.search(r"HEALTHCHECK[^\n]*\\\n\s+CMD (\[.*\])", text).group(1))
subprocess.run(command, check=True)
CHECK
test -f large/cat_x4.png
echo "The steps of the Dockerfile work."
