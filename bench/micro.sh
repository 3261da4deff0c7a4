#!/bin/sh
# Runs the micro-benchmarks whose names match $1, $2 times each, in the
# packages that follow: here, and, in a work tree of its own, at the last
# commit, or at $BASE. Both take turns, so that a machine that gets slower
# meanwhile slows both. Where nothing differs from HEAD it is compared with
# the commit before.
#
#	make bench-micro MICRO=Compress MICROPKGS=./cache/archive
#	make bench-micro BASE=main
set -eu
match=$1 count=$2
shift 2
cd "$(git rev-parse --show-toplevel)"
go=${GO:-go}
base=${BASE:-HEAD}
if [ -z "${BASE:-}" ] && [ -z "$(git status --porcelain -- '*.go' go.mod)" ]; then
	base=HEAD~1
fi

work=$(mktemp -d)
trap 'git worktree remove --force "$work/tree" 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
git worktree add -q --detach "$work/tree" "$base"
# The sandbox's init is not in git.
mkdir -p "$work/tree/runner/sandbox/initbin"
cp runner/sandbox/initbin/init "$work/tree/runner/sandbox/initbin/"

# build TREE NAME PACKAGES: the test programs, by the package's name.
build() {
	tree=$1 name=$2
	shift 2
	mkdir -p "$work/$name"
	for p in "$@"; do
		[ -d "$tree/$p" ] || continue
		(cd "$tree" && CGO_ENABLED=0 "$go" test -c -tags kiln_embed -o "$work/$name/$(echo "$p" | tr / _)" "$p")
	done
}
build "$work/tree" old "$@"
build . new "$@"

top=$(pwd)
i=0
while [ "$i" -lt "$count" ]; do
	i=$((i + 1))
	for p in "$@"; do
		for name in old new; do
			tree=$top
			[ "$name" = new ] || tree=$work/tree
			program=$work/$name/$(echo "$p" | tr / _)
			[ -x "$program" ] || continue
			(cd "$tree/$p" && "$program" -test.run '^$' -test.bench "$match" -test.benchtime "${BENCHTIME:-0.3s}" -test.benchmem) >> "$work/$name.txt"
		done
	done
done
cd "$top"
"$go" tool benchstat "last=$work/old.txt" "now=$work/new.txt"
