#!/bin/sh
# Builds an image of two stages, runs it, changes one file and builds again.
# Needs no registry: the base image is made of Go modules (examples/toolbox).
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export KILN_ROOT="$work/store"
kiln=bin/kiln

say() { printf '\n== %s\n' "$*"; }

say "the base image: a tool box made of Go modules, imported"
bin/toolbox --tar > "$work/toolbox.tar"
$kiln import "$work/toolbox.tar" toolbox

say "build examples/hello"
cp -r examples/hello "$work/hello"
$kiln build --progress=plain -t hello "$work/hello"

say "run it"
$kiln run --rm --network=none hello

say "build it again: everything is cached"
$kiln build --progress=plain -t hello "$work/hello" 2>&1 | tee "$work/again"
! grep -q DONE "$work/again" || { echo "something ran again"; exit 1; }

say "change the program: the words are not sorted again"
echo 'echo "(changed)"' >> "$work/hello/hello.sh"
$kiln build --progress=plain -t hello "$work/hello"
$kiln run --rm --network=none hello

say "what there is now"
$kiln images
