# runtime-tools.sh CHECKOUT KILN: runs the validation programs of
# opencontainers/runtime-tools with runc and with kiln oci, as root, and fails
# if a check fails with kiln that passes with runc.
set -eu
[ -d "$1/validation" ] || { echo "RUNTIME_TOOLS=FOLDER: a checkout of https://github.com/opencontainers/runtime-tools" >&2; exit 2; }
kiln=$(realpath "$2")
cd "$1"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
printf '#!/bin/sh\nexec "%s" oci "$@"\n' "$kiln" >"$out/kiln"
chmod +x "$out/kiln"
CGO_ENABLED=0 go build -o runtimetest ./cmd/runtimetest
for dir in validation/*/; do
  name=$(basename "$dir")
  [ "$name" = util ] || CGO_ENABLED=0 go build -o "$out/$name.t" "./$dir"
done

# One line for each check: its result and its text, without its number.
checks() {
  for t in "$out"/*.t; do
    name=$(basename "$t" .t)
    RUNTIME=$1 timeout 300 "$t" 2>/dev/null >"$out/log" || true
    sed -nE "s/^ok [0-9]+ ?-? ?/ok $name: /p; s/^not ok [0-9]+ ?-? ?/not ok $name: /p" "$out/log"
  done
}
checks runc >"$out/runc"
checks "$out/kiln" >"$out/ours"
grep '^not ok' "$out/ours" | sort | uniq -c | sed 's/not ok //' >"$out/failed" || true
grep -c '^ok' "$out/runc" | sed 's/$/ checks pass with runc/'
grep -c '^ok' "$out/ours" | sed 's/$/ checks pass with kiln/'
status=0
while read -r n text; do
  # The same texts fail as often with runc?
  theirs=$(grep -cxF "not ok $text" "$out/runc" || true)
  if [ "$theirs" -lt "$n" ] && grep -qxF "ok $text" "$out/runc"; then
    echo "fails with kiln alone: $text"
    status=1
  fi
done <"$out/failed"
for t in "$out"/*.t; do
  name=$(basename "$t" .t)
  if grep -q "^ok $name:" "$out/runc" && ! grep -q " $name:\|^ok $name:" "$out/ours"; then
    grep -q "^not ok\|^ok" "$out/ours" && [ "$name" = process_capabilities_fail ] && continue # means to be refused, and runc does not
    echo "no checks with kiln: $name"
    status=1
  fi
done
exit $status
