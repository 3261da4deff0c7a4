#!/bin/sh
# Builds a base image and an example of several stages, runs it, changes files
# and builds again. Needs no registry: the base is made of Go modules alone
# (examples/toolbox). Everything is in a folder that is removed at the end.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export KILN_ROOT="$work/store"
kiln=bin/kiln

say() { printf '\n== %s\n' "$*"; }

# build WHAT: builds examples/hello, shows how, and notes it for the summary.
build() {
	begin=$(date +%s%N)
	$kiln build --progress=plain -t hello "$work/hello" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
	took=$((($(date +%s%N) - begin) / 1000000))
	cat "$work/log"
	ran=$(grep -c '^#[0-9]* DONE' "$work/log" || true)
	cached=$(grep -c '^#[0-9]* CACHED' "$work/log" || true)
	printf '%-42s %2d steps ran, %2d cached, %4d ms\n' "$1" "$ran" "$cached" "$took" >> "$work/summary"
}

# ran N: fails unless the last build ran just so many steps.
ran() {
	[ "$ran" = "$1" ] || { echo "demo: $ran steps ran, want $1" >&2; exit 1; }
}

say "import the base image: a tool box made of Go modules"
bin/toolbox --tar > "$work/toolbox.tar"
$kiln import "$work/toolbox.tar" toolbox

say "build examples/hello"
cp -r examples/hello "$work/hello"
build "first build"

say "run it"
$kiln run --rm --network=none hello

say "build it again"
build "nothing changed"
ran 0

say "change the program: the words are not sorted again"
echo 'echo "(changed)"' >> "$work/hello/hello.sh"
build "the program changed"
ran 3
$kiln run --rm --network=none hello

say "change a comment in the words: they come out the same, so nothing after them runs"
echo '# a comment' >> "$work/hello/words/north.txt"
build "a comment changed"
ran 2

say "what there is now"
$kiln images

say "summary"
cat "$work/summary"
