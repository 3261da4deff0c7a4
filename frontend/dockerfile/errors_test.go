package dockerfile

import (
	"errors"
	"strings"
	"testing"

	"kiln.build/frontend"
)

// TestErrorSnippets: what is wrong with a text is said with the file, the
// line, the lines around and, where there is one, the word that was meant.
func TestErrorSnippets(t *testing.T) {
	for _, test := range []struct {
		name, text, want string
		marked           []string // lines with >>>
		change           func(*Options)
	}{
		{name: "only comments", text: "# a\n# b", want: "file with no instructions", marked: []string{"# b"}},
		{name: "instruction before FROM", text: "RUN x", want: "no build stage in current context", marked: []string{"RUN x"}},
		{name: "byte order mark", text: "\ufeffFROM base\nRUNN x", want: "unknown instruction: RUNN (did you mean RUN?)", marked: []string{"RUNN x"}},
		{name: "CRLF", text: "FROM base\r\nCOPYY a \\\r\n  b\r\nRUN c\r\n", want: "did you mean COPY?", marked: []string{"COPYY a \\", "  b"}},
		{name: "unknown instruction", text: "FROM base\nENTRPOINT x", want: "unknown instruction: ENTRPOINT (did you mean ENTRYPOINT?)", marked: []string{"ENTRPOINT x"}},
		{name: "lower case", text: "from base\nexpos 80", want: "did you mean expose?", marked: []string{"expos 80"}},
		{name: "unknown flag", text: "FROM base\nCOPY --chwn=1 a b", want: "unknown flag: --chwn (did you mean chown?)", marked: []string{"COPY --chwn=1 a b"}},
		{name: "flag twice", text: "FROM base\nCOPY --chown=1 --chown=2 a b", want: "duplicate flag specified: --chown", marked: []string{"COPY --chown=1 --chown=2 a b"}},
		{name: "flag without value", text: "FROM base\nCOPY --chown a b", want: "missing a value on flag: --chown", marked: []string{"COPY --chown a b"}},
		{name: "no boolean", text: "FROM base\nCOPY --link=maybe a b", want: "expecting boolean value for flag --link", marked: []string{"COPY --link=maybe a b"}},
		{name: "another instruction's flag", text: "FROM base\nADD --from=x a b", want: "unknown flag: --from", marked: []string{"ADD --from=x a b"}},
		{name: "escape directive", text: "# escape=x\nFROM base", want: "invalid escape token 'x'", marked: []string{"# escape=x"}},
		{name: "directive twice", text: "# escape=`\n# escape=\\\nFROM base", want: "only one escape parser directive can be used", marked: []string{"# escape=`"}},
		{name: "check directive", text: "# check=skpi=all\nFROM base", want: `invalid check option "skpi"`, marked: []string{"# check=skpi=all"}},
		{name: "another frontend", text: "# syntax=example.com/mine:1\nFROM base", want: `syntax "example.com/mine:1": only the official Dockerfile frontend is built in`, marked: []string{"# syntax=example.com/mine:1"}},
		{name: "another frontend after a shebang", text: "#!/usr/bin/env docker\n// syntax=example.com/mine\nFROM base", want: "only the official", marked: []string{"// syntax=example.com/mine"}},
		{name: "JSON of numbers", text: "FROM base\nCMD [\"a\", 1]", want: "arrays must be comprised of strings only", marked: []string{"CMD [\"a\", 1]"}},
		{name: "SHELL in words", text: "FROM base\nSHELL bash -c", want: "SHELL requires the arguments to be in JSON form", marked: []string{"SHELL bash -c"}},
		{name: "no equals sign", text: "FROM base\nENV a=b c", want: `can't find = in "c"`, marked: []string{"ENV a=b c"}},
		{name: "blank key", text: "FROM base\nLABEL =b", want: "names can not be blank", marked: []string{"LABEL =b"}},
		{name: "ENV of one word", text: "FROM base\nENV a", want: "must have two arguments", marked: []string{"ENV a"}},
		{name: "over several lines", text: "FROM base\nENV a=b \\\n  c \\\n  d=e\nRUN x", want: "can't find =", marked: []string{"ENV a=b \\", "  c \\", "  d=e"}},
		{name: "heredoc without end", text: "FROM base\nRUN <<EOF\na\n", want: "unterminated heredoc", marked: []string{"RUN <<EOF", "a"}},
		{name: "heredoc where there is none", text: "FROM base\nCMD <<EOF\necho\nEOF", want: "unknown instruction: echo", marked: []string{"echo"}},
		{name: "heredoc instruction", text: "FROM base\nCOPY --chmod=rw <<A /a\nx\nA\nRUN y", want: "invalid chmod parameter", marked: []string{"COPY --chmod=rw <<A /a", "x", "A"}},
		{name: "mount type", text: "FROM base\nRUN --mount=type=cach,target=/x y", want: `unsupported mount type "cach" (did you mean cache?)`, marked: []string{"RUN --mount=type=cach,target=/x y"}},
		{name: "mount key", text: "FROM base\nRUN --mount=type=cache,traget=/x y", want: "unexpected key 'traget' in 'traget=/x' (did you mean target?)", marked: []string{"RUN --mount=type=cache,traget=/x y"}},
		{name: "sharing", text: "FROM base\nRUN --mount=type=cache,target=/x,sharing=lockd y", want: "did you mean locked?", marked: []string{"RUN --mount=type=cache,target=/x,sharing=lockd y"}},
		{name: "network", text: "FROM base\nRUN --network=nona y", want: "nona", marked: []string{"RUN --network=nona y"}},
		{name: "stage name", text: "FROM base AS a@b", want: `invalid name for build stage: "a@b"`, marked: []string{"FROM base AS a@b"}},
		{name: "near stage", text: "FROM base AS build\nFROM biuld", want: "did you mean the stage build?", marked: []string{"FROM biuld"}},
		{name: "near stage to copy from", text: "FROM base AS build\nFROM base\nCOPY --from=biuld a b", want: "did you mean the stage build?", marked: []string{"COPY --from=biuld a b"}},
		{name: "COPY of one word", text: "FROM base\nCOPY a", want: "COPY requires at least two arguments", marked: []string{"COPY a"}},
		{name: "duration", text: "FROM base\nHEALTHCHECK --interval=fast CMD x", want: `invalid duration "fast"`, marked: []string{"HEALTHCHECK --interval=fast CMD x"}},
		{name: "health check of no kind", text: "FROM base\nHEALTHCHECK CMDD x", want: `Unknown type "CMDD" in HEALTHCHECK`, marked: []string{"HEALTHCHECK CMDD x"}},
		{name: "ONBUILD twice", text: "FROM base\nONBUILD ONBUILD RUN x", want: "Chaining ONBUILD", marked: []string{"ONBUILD ONBUILD RUN x"}},
		{name: "ONBUILD FROM", text: "FROM base\nONBUILD FROM x", want: "FROM isn't allowed as an ONBUILD trigger", marked: []string{"ONBUILD FROM x"}},
		{name: "signal", text: "FROM base\nSTOPSIGNAL SIGTRM", want: "invalid signal: SIGTRM (did you mean TERM?)", marked: []string{"STOPSIGNAL SIGTRM"}},
		{name: "unsupported expansion", text: "FROM base\nARG A=b\nENV B=${A^^}", want: "unsupported modifier", marked: []string{"ENV B=${A^^}"}},
		{name: "after a long line", text: "FROM base\nRUN " + strings.Repeat("x", 200<<10) + "\nRUNN y", want: "unknown instruction: RUNN", marked: []string{"RUNN y"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := lower(t, test.text, test.change)
			var at *frontend.SourceError
			if err == nil || !strings.Contains(err.Error(), test.want) || !errors.As(err, &at) {
				t.Fatalf("got %v, want an error with %q and a place", err, test.want)
			}
			snippet := frontend.Snippet([]byte(test.text), at.Location)
			var marked []string
			for line := range strings.Lines(snippet) {
				if _, text, ok := strings.Cut(line, ">>> "); ok {
					marked = append(marked, strings.TrimSuffix(text, "\n"))
				}
			}
			if !strings.HasPrefix(snippet, "Dockerfile:") || strings.Join(marked, "|") != strings.Join(test.marked, "|") {
				t.Errorf("got\n%s\nwant the lines %q marked", snippet, test.marked)
			}
		})
	}
}

// TestLongLines: no line is too long.
func TestLongLines(t *testing.T) {
	long := strings.Repeat("0123456789", 20<<10)
	r := mustLower(t, "FROM base\nRUN echo "+long+"\nCOPY <<E /x\n"+long+"\nE\nENV X="+long[:100<<10]+"\n# "+long+"\n", nil)
	if all := execs(r.Target); len(all) != 1 || all[0].Args[2] != "echo "+long {
		t.Error("the RUN is not as it was written")
	}
	if !strings.Contains(frontend.Format(r.Target), long) {
		t.Error("the heredoc is not as it was written")
	}
}
