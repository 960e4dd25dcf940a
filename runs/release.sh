#!/usr/bin/env bash
# The checklist of a release: version and changelog, build, check, install in a bare environment, doctor, docs.
# It uploads nothing. Start it in a clean working tree, with any Python >= 3.11: runs/release.sh [python3]
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${1:-python3}
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
step() { printf '\n== %s\n' "$*"; }

step "Version, changelog and citation agree"
VERSION=$("$PYTHON" -c 'import re; print(re.search(r"__version__ = \"(.+?)\"", open("src/samdiffsr/__init__.py").read())[1])')
grep -q "^## \[$VERSION\]" CHANGELOG.md || { echo "CHANGELOG.md has no section [$VERSION]." >&2; exit 1; }
grep -q "^version: $VERSION$" CITATION.cff || { echo "CITATION.cff has not version $VERSION." >&2; exit 1; }
[ -z "$(git status --porcelain)" ] || { echo "The working tree is not clean." >&2; exit 1; }

step "Build sdist and wheel"
"$PYTHON" -m venv "$WORK/tools"
"$WORK/tools/bin/python" -m pip install --quiet build twine
rm -rf dist
"$WORK/tools/bin/python" -m build --outdir dist .
"$WORK/tools/bin/python" -m twine check --strict dist/*

step "Install the wheel in a bare environment"
"$PYTHON" -m venv "$WORK/bare"
"$WORK/bare/bin/python" -m pip install --quiet -c constraints.txt dist/*.whl
(cd "$WORK" && bare/bin/samdiffsr doctor)
cp examples/cat.png "$WORK/"
(cd "$WORK" && bare/bin/samdiffsr upscale cat.png -o large/)

step "Documentation"
"$WORK/bare/bin/python" -m pip install --quiet -c constraints.txt "$(echo dist/*.whl)[docs]"
"$WORK/bare/bin/properdocs" build --strict -f mkdocs.yml -d "$WORK/site"

step "Tests and linters"
.ci/run

step "samdiffsr $VERSION is ready: git tag v$VERSION, then twine upload dist/*"
