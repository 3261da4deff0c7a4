#!/bin/sh
# Greets in every language of the list.
set -eu
while read -r language word; do
	printf '%-10s %s\n' "$language" "$word, world!"
done < "$HELLO_WORDS"
