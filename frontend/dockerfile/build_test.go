package dockerfile

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/tools/txtar"
	"kiln.build/frontend"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// amd64 is the platform of all tests, so that goldens hold everywhere.
var amd64 = ocispecs.Platform{OS: "linux", Architecture: "amd64"}

// library is a Resolver over configs by reference.
type library map[string]string

func (l library) ResolveImage(_ context.Context, ref string, p ocispecs.Platform) (*frontend.Image, error) {
	config, ok := l[ref]
	if !ok {
		return nil, fmt.Errorf("%s: no such image", ref)
	}
	return &frontend.Image{
		Ref: "docker.io/library/" + ref, Digest: digest.FromString(config), Platform: p, Config: []byte(config),
		Layers: []solver.Origin{{DiffID: digest.FromString(ref)}},
	}, nil
}

var shelf = library{
	"base":  `{"config":{"Env":["PATH=/bin","LANG=C"],"Cmd":["sh"],"WorkingDir":"/srv","Labels":{"from":"base"}},"history":[{"created_by":"base layer"}]}`,
	"onb":   `{"config":{"OnBuild":["COPY --from=base /etc/passwd /p","RUN echo triggered"]}}`,
	"plain": `{"config":{}}`,
}

func lower(t *testing.T, text string, change func(*Options)) (*frontend.Result, error) {
	t.Helper()
	o := Options{Dockerfile: []byte(text), Resolver: shelf, Platform: amd64, BuildPlatform: amd64}
	if change != nil {
		change(&o)
	}
	return Build(t.Context(), o)
}

func mustLower(t *testing.T, text string, change func(*Options)) *frontend.Result {
	t.Helper()
	r, err := lower(t, text, change)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestGolden lowers each testdata/*.txtar: the file Dockerfile gives the
// files graph, config and warnings.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("golden files: %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			a := txtar.Parse(data)
			r := mustLower(t, string(a.Files[0].Data), nil)
			config, err := json.MarshalIndent(r.Image, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			var warnings strings.Builder
			for _, w := range r.Warnings {
				fmt.Fprintf(&warnings, "%d %s: %s\n", w.Location.Start, w.Rule, w.Text)
			}
			got := &txtar.Archive{Comment: a.Comment, Files: []txtar.File{
				a.Files[0],
				{Name: "graph", Data: []byte(frontend.Format(r.Target))},
				{Name: "config", Data: append(config, '\n')},
				{Name: "warnings", Data: []byte(warnings.String())},
			}}
			if *update {
				if err := os.WriteFile(file, txtar.Format(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if text := string(txtar.Format(got)); text != string(data) {
				t.Errorf("got:\n%s", text)
			}
		})
	}
}

// execs are the RUNs of a graph, first to last.
func execs(v *solver.Vertex) []op.Exec {
	var all []op.Exec
	seen := map[*solver.Vertex]bool{}
	var walk func(*solver.Vertex)
	walk = func(v *solver.Vertex) {
		if v == nil || seen[v] {
			return
		}
		seen[v] = true
		for _, d := range append(slices.Clone(v.Inputs), v.Using...) {
			walk(d)
		}
		walk(v.Below)
		if e, ok := v.Op.(op.Exec); ok {
			all = append(all, e)
		}
	}
	walk(v)
	return all
}

// TestVariables checks what the last RUN's environment says of X.
func TestVariables(t *testing.T) {
	for _, test := range []struct {
		name, text, want string
		args             map[string]string
	}{
		{name: "default", text: "ARG X=1", want: "1"},
		{name: "build argument", text: "ARG X=1", args: map[string]string{"X": "2"}, want: "2"},
		{name: "no value stays unset", text: "ARG X", want: "unset"},
		{name: "empty value is set", text: "ARG X=", want: ""},
		{name: "not declared", text: "RUN true", args: map[string]string{"X": "2"}, want: "unset"},
		{name: "ARG after ENV wins", text: "ENV X=1\nARG X=2", want: "2"},
		{name: "ENV after ARG wins", text: "ARG X=2\nENV X=1", want: "1"},
		{name: "old value within one ENV", text: "ENV A=old\nENV A=new X=$A", want: "old"},
		{name: "new value within one ARG", text: "ARG A=1 X=$A", want: "1"},
		{name: "default with :-", text: "ENV X=${Y:-d}", want: "d"},
		{name: "set and empty with :-", text: "ENV Y=\nENV X=${Y:-d}", want: "d"},
		{name: "set and empty with -", text: "ENV Y=\nENV X=${Y-d}", want: ""},
		{name: "alternate", text: "ENV Y=1\nENV X=${Y:+alt}", want: "alt"},
		{name: "prefix", text: "ENV Y=a/b/c\nENV X=${Y#*/}", want: "b/c"},
		{name: "longest prefix", text: "ENV Y=a/b/c\nENV X=${Y##*/}", want: "c"},
		{name: "suffix", text: "ENV Y=a.tar.gz\nENV X=${Y%.*}", want: "a.tar"},
		{name: "replace all", text: "ENV Y=a-b-c\nENV X=${Y//-/+}", want: "a+b+c"},
		{name: "single quotes", text: "ENV Y=1\nENV X='$Y'", want: "$Y"},
		{name: "escaped", text: "ENV Y=1\nENV X=\\$Y", want: "$Y"},
		{name: "rest of line", text: "ENV X a  b", want: "a  b"},
		{name: "platform needs ARG", text: "ENV X=$TARGETARCH", want: ""},
		{name: "platform", text: "ARG TARGETARCH\nENV X=$TARGETARCH", want: "amd64"},
		{name: "target stage", text: "ARG TARGETSTAGE\nENV X=$TARGETSTAGE", want: "default"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := mustLower(t, "FROM plain\n"+test.text+"\nRUN last", func(o *Options) { o.BuildArgs = test.args })
			all := execs(r.Target)
			got := "unset"
			for _, kv := range all[len(all)-1].Env {
				if v, ok := strings.CutPrefix(kv, "X="); ok {
					got = v
				}
			}
			if got != test.want {
				t.Errorf("X is %q, want %q", got, test.want)
			}
		})
	}
}

func TestGlobalArgs(t *testing.T) {
	r := mustLower(t, "ARG TAG=base\nARG IMG=${TAG}\nFROM $IMG AS one\nARG TAG\nRUN echo\nFROM one\nRUN two", nil)
	all := execs(r.Target)
	for _, e := range all {
		if !slices.Contains(e.Env, "TAG=base") {
			t.Errorf("environment %q has no TAG", e.Env)
		}
		if slices.Contains(e.Env, "IMG=base") {
			t.Errorf("environment %q has IMG, which no stage declares", e.Env)
		}
	}
	if len(all) != 2 {
		t.Errorf("%d RUNs, want 2", len(all))
	}
}

// TestConfig checks one thing about the config each.
func TestConfig(t *testing.T) {
	for _, test := range []struct {
		name, text string
		of         func(frontend.Result) any
		want       string
	}{
		{"CMD of the base", "FROM base", func(r frontend.Result) any { return r.Image.Config.Cmd }, "[sh]"},
		{"ENTRYPOINT clears it", "FROM base\nENTRYPOINT [\"x\"]", func(r frontend.Result) any { return r.Image.Config.Cmd }, "[]"},
		{"but not one of this stage", "FROM base\nCMD [\"y\"]\nENTRYPOINT [\"x\"]", func(r frontend.Result) any { return r.Image.Config.Cmd }, "[y]"},
		{"shell form", "FROM base\nCMD echo hi", func(r frontend.Result) any { return r.Image.Config.Cmd }, "[/bin/sh -c echo hi]"},
		{"SHELL counts from its line", "FROM base\nCMD a\nSHELL [\"bash\",\"-c\"]\nENTRYPOINT b", func(r frontend.Result) any { return fmt.Sprint(r.Image.Config.Cmd, r.Image.Config.Entrypoint) }, "[/bin/sh -c a] [bash -c b]"},
		{"ARG does not persist", "FROM plain\nARG X=1\nENV Y=$X", func(r frontend.Result) any { return r.Image.Config.Env }, "[PATH=" + defaultPath + " Y=1]"},
		{"ENV keeps its place", "FROM base\nENV PATH=/x A=1\nENV LANG=D", func(r frontend.Result) any { return r.Image.Config.Env }, "[PATH=/x LANG=D A=1]"},
		{"relative WORKDIR", "FROM base\nWORKDIR a\nWORKDIR b/../c", func(r frontend.Result) any { return r.Image.Config.WorkingDir }, "/srv/a/c"},
		{"EXPOSE", "FROM base\nENV P=\"80 90/udp\"\nEXPOSE $P 3000-3001", func(r frontend.Result) any { return r.Image.Config.ExposedPorts }, "map[3000/tcp:{} 3001/tcp:{} 80/tcp:{} 90/udp:{}]"},
		{"labels of the user win", "FROM base\nLABEL a=1 b=2", func(r frontend.Result) any { return r.Image.Config.Labels }, "map[a:9 b:2 from:base]"},
		{"ONBUILD is recorded", "FROM base\nONBUILD RUN x", func(r frontend.Result) any { return r.Image.Config.OnBuild }, "[RUN x]"},
		{"ONBUILD of a stage runs", "FROM base AS a\nONBUILD ENV T=1\nFROM a", func(r frontend.Result) any { return fmt.Sprint(r.Image.Config.OnBuild, r.Image.Config.Env) }, "[] [PATH=/bin LANG=C T=1]"},
		{"HEALTHCHECK", "FROM base\nHEALTHCHECK --interval=5s CMD true", func(r frontend.Result) any { return r.Image.Config.Healthcheck.Test }, "[CMD-SHELL true]"},
		{"STOPSIGNAL", "FROM base\nSTOPSIGNAL SIGRTMIN+3", func(r frontend.Result) any { return r.Image.Config.StopSignal }, "SIGRTMIN+3"},
		{"VOLUME", "FROM base\nVOLUME /a /b", func(r frontend.Result) any { return r.Image.Config.Volumes }, "map[/a:{} /b:{}]"},
		{"MAINTAINER", "FROM base\nMAINTAINER me", func(r frontend.Result) any { return r.Image.Author }, "me"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := mustLower(t, test.text, func(o *Options) {
				if strings.Contains(test.name, "user") {
					o.Labels = map[string]string{"a": "9"}
				}
			})
			if got := fmt.Sprint(test.of(*r)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

func TestHistory(t *testing.T) {
	r := mustLower(t, "FROM base\nARG V=1\nENV A=b\nCOPY --chown=1:2 x y /d/\nWORKDIR /w\nRUN make\nCMD [\"a\"]", nil)
	var got []string
	for _, h := range r.Image.History {
		got = append(got, fmt.Sprintf("%t %s", h.EmptyLayer, h.CreatedBy))
	}
	want := []string{
		"false base layer", "true ARG V=1", "true ENV A=b", "false COPY --chown=1:2 x y /d/ # buildkit",
		"false WORKDIR /w", "false RUN |1 V=1 /bin/sh -c make # buildkit", `true CMD ["a"]`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestErrors(t *testing.T) {
	for _, test := range []struct {
		name, text, want string
		line             int
		change           func(*Options)
	}{
		{name: "empty", text: " \n", want: "is empty"},
		{name: "only comments", text: "# x\n", want: "file with no instructions"},
		{name: "no stage", text: "RUN x", want: "no build stage in current context", line: 1},
		{name: "only ARG", text: "ARG x=1", want: "no build stage"},
		{name: "unknown instruction", text: "FROM base\nCOPPY a b", want: "did you mean COPY", line: 2},
		{name: "unknown flag", text: "FROM base\nCOPY --form=x a b", want: "form", line: 2},
		{name: "one argument", text: "FROM base\nCOPY a", want: "at least two arguments", line: 2},
		{name: "target", text: "FROM base AS release", want: "did you mean release", change: func(o *Options) { o.Target = "relase" }},
		{name: "no such image", text: "FROM base AS a\nFROM none\nCOPY --from=a /x /", want: "none: no such image", line: 2},
		{name: "no such image to copy from", text: "FROM base\nRUN x\nCOPY --from=none /x /", want: "none: no such image", line: 3},
		{name: "stage index", text: "FROM base\nCOPY --from=7 a b", want: "invalid stage index 7", line: 2},
		{name: "self", text: "FROM base AS a\nCOPY --from=a x y", want: "circular dependency", line: 2},
		{name: "mutual", text: "FROM base AS a\nCOPY --from=b x y\nFROM base AS b\nCOPY --from=a x y\nFROM a", want: "circular dependency", line: 4},
		{name: "forward", text: "FROM base AS a\nCOPY --from=b x y\nFROM base AS b\nFROM a", want: "needs to be defined before", line: 2},
		{name: "chmod", text: "FROM base\nCOPY --chmod=rw a /c", want: "invalid chmod parameter", line: 2},
		{name: "mandatory", text: "FROM base\nENV A=${B:?missing}", want: "missing", line: 2},
		{name: "modifier", text: "FROM base\nENV A=${B^^}", want: "unsupported modifier", line: 2},
		{name: "port", text: "FROM base\nEXPOSE eighty", want: "invalid port", line: 2},
		{name: "signal", text: "FROM base\nSTOPSIGNAL SIGNOPE", want: "invalid signal", line: 2},
		{name: "blank base", text: "ARG B\nFROM $B", want: "should not be blank", line: 2},
		{name: "platform", text: "FROM --platform=a/b/c/d base", want: "platform", line: 1},
		{name: "syntax", text: "# syntax=example.com/other\nFROM base", want: "built in", line: 1},
		{name: "host network", text: "FROM base\nRUN --network=host x", want: "--allow=network.host", line: 2},
		{name: "insecure", text: "FROM base\nRUN --security=insecure x", want: "--allow=security.insecure", line: 2},
		{name: "mount on root", text: "FROM base\nRUN --mount=target=/ x", want: "invalid mount target", line: 2},
		{name: "mount key", text: "FROM base\nRUN --mount=type=cache,targt=/x y", want: "targt", line: 2},
		{name: "required secret", text: "FROM base\nRUN --mount=type=secret,id=t,required=true x", want: "secret t: not found", line: 2, change: func(o *Options) { o.Secrets = map[string]bool{} }},
		{name: "COPY of an address", text: "FROM base\nCOPY https://example.com/x /", want: "can't be a URL", line: 2},
		{name: "COPY of a repository", text: "FROM base\nCOPY git@example.com:x /", want: "can't be a git ref", line: 2},
		{name: "bad git query", text: "FROM base\nADD https://example.com/x.git?brnch=y /", want: "unexpected query", line: 2},
		{name: "two references", text: "FROM base\nADD https://example.com/x.git?tag=y#z /", want: "ref conflicts", line: 2},
		{name: "checksum of a file", text: "FROM base\nADD --checksum=sha256:0 x /", want: "requires HTTP(S) or Git", line: 2},
		{name: "checksum of two", text: "FROM base\nADD --checksum=sha256:0 https://a/b https://a/c /", want: "multiple sources", line: 2},
		{name: "bad checksum", text: "FROM base\nADD --checksum=sha256:0 https://a/b /", want: "--checksum=sha256:0: invalid", line: 2},
		{name: "history of a file", text: "FROM base\nADD --keep-git-dir x /", want: "requires a Git", line: 2},
		{name: "lint as error", text: "# check=error=true\nFROM base\nENV A b", want: "LegacyKeyValueFormat"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := lower(t, test.text, test.change)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want an error with %q", err, test.want)
			}
			var at *frontend.SourceError
			if errors.As(err, &at); test.line > 0 && (at == nil || at.Location.Start != test.line) {
				t.Errorf("got %v, want it at line %d", err, test.line)
			}
		})
	}
}

func TestUnusedStagesAreNotResolved(t *testing.T) {
	mustLower(t, "FROM none AS unused\nRUN x\nFROM base AS used\nFROM none AS after\n", func(o *Options) { o.Target = "used" })
}

func TestOfficialSyntaxIsAccepted(t *testing.T) {
	for _, s := range []string{"docker/dockerfile:1", "docker/dockerfile:1.7-labs", "docker.io/docker/dockerfile:1@sha256:abc", "docker/dockerfile-upstream:master"} {
		mustLower(t, "# syntax="+s+"\nFROM base", nil)
	}
}

func TestUnusedBuildArg(t *testing.T) {
	r := mustLower(t, "FROM base\nARG VERSION=1", func(o *Options) {
		o.BuildArgs = map[string]string{"VERSOIN": "2", "HTTP_PROXY": "x", "BUILDKIT_INLINE_CACHE": "1"}
	})
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0].Text, `"VERSOIN"`) || !strings.Contains(r.Warnings[0].Text, "VERSION") {
		t.Errorf("got %+v", r.Warnings)
	}
}

func TestProxyIsNotInTheKey(t *testing.T) {
	text := "FROM base\nRUN x"
	without := mustLower(t, text, nil)
	with := mustLower(t, text, func(o *Options) { o.BuildArgs = map[string]string{"http_proxy": "http://p"} })
	if a, b := frontend.Format(without.Target), frontend.Format(with.Target); a != b {
		t.Errorf("got\n%s\nand\n%s", a, b)
	}
	if e := execs(with.Target)[0]; !slices.Equal(e.ProxyEnv, []string{"HTTP_PROXY=http://p", "http_proxy=http://p"}) {
		t.Errorf("proxy environment %q", e.ProxyEnv)
	}
}

func TestNoCache(t *testing.T) {
	text := "FROM base AS a\nRUN x\nFROM base\nCOPY --from=a /x /x\n"
	count := func(change func(*Options)) int {
		return strings.Count(frontend.Format(mustLower(t, text, change).Target), " fresh\n")
	}
	if n := count(nil); n != 0 {
		t.Errorf("%d fresh, want none", n)
	}
	if n := count(func(o *Options) { o.NoCache = true }); n != 2 {
		t.Errorf("%d fresh, want both steps", n)
	}
	if n := count(func(o *Options) { o.NoCacheStages = []string{"A"} }); n != 1 {
		t.Errorf("%d fresh, want that of stage a", n)
	}
}

func TestNamedContexts(t *testing.T) {
	contexts := map[string]frontend.Context{
		"src": {Local: true, Ignore: []string{"*.o"}}, "base": {Image: "plain"}, "rootfs": {Root: op.Tar{Path: "/r.tar"}},
	}
	r := mustLower(t, "FROM rootfs AS r\nFROM base\nCOPY --from=src a /\nCOPY --from=rootfs b /\nCOPY --from=r c /", func(o *Options) { o.Contexts = contexts })
	graph := frontend.Format(r.Target)
	for _, want := range []string{"context \"src\"", "ignore \"*.o\"", "op \"tar\"", digest.FromString("plain").String()} {
		if !strings.Contains(graph, want) {
			t.Errorf("graph has no %s:\n%s", want, graph)
		}
	}
	if strings.Contains(graph, digest.FromString("base").String()) {
		t.Error("the image base was used though a context has its name")
	}
}

func TestSnippet(t *testing.T) {
	got := frontend.Snippet([]byte("FROM x\nRUN a \\\n  b\nRUN c\nRUN d\nRUN e\n"), solver.Location{File: "Dockerfile", Start: 2, End: 3})
	want := `Dockerfile:2
--------------------
   1 |     FROM x
   2 | >>> RUN a \
   3 | >>>   b
   4 |     RUN c
--------------------
`
	if got != want {
		t.Errorf("got:\n%s", got)
	}
}

func goldenFiles(t testing.TB) []*txtar.Archive {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("golden files: %v, %v", files, err)
	}
	var all []*txtar.Archive
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	return all
}

// FuzzBuild: any text gives vertices or an error, and no panic.
func FuzzBuild(f *testing.F) {
	f.Add("FROM base\nRUN --mount=type=cache,target=/x <<EOF\na\nEOF\n")
	f.Add("# syntax=docker/dockerfile:1\nARG A=1\nFROM base AS a\nCOPY --from=a <<A <<B /x/\nA\nB\n")
	f.Add("FROM onb\nONBUILD RUN x\nHEALTHCHECK --interval=1s CMD x\nADD --chmod=755 a b\n")
	f.Add("ARG A=x\nFROM ${A:-base} AS b\nENV B=${A//x/$A} C=\"${B##*/}\"\nEXPOSE 1-9/udp $A\nRUN --mount=type=secret,id=a,env=B x\n")
	f.Add("# check=skip=all;error=true\n# escape=`\nFROM base\nCOPY --exclude=*.o --parents --link a `\n b/ /c/\nUSER a:b\nVOLUME [\"/x\"]\n")
	for _, file := range goldenFiles(f) {
		f.Add(string(file.Files[0].Data))
	}
	f.Fuzz(func(t *testing.T, text string) {
		o := Options{Dockerfile: []byte(text), Resolver: shelf, Platform: amd64, BuildPlatform: amd64}
		start := time.Now()
		r, err := Build(t.Context(), o)
		if err == nil && r.Target == nil {
			t.Error("neither a target nor an error")
		}
		if _, err := OutlineOf(t.Context(), o); err != nil {
			_, _ = Targets(o)
		}
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("took %s", d)
		}
	})
}

// BenchmarkBuild lowers 3,000 instructions in 1,000 stages.
func BenchmarkBuild(b *testing.B) {
	var text strings.Builder
	text.WriteString("FROM base AS s0\nCOPY x /x\nRUN y\n")
	for i := 1; i < 1000; i++ {
		fmt.Fprintf(&text, "FROM base AS s%d\nCOPY --from=s%d /x /x\nRUN echo %d\n", i, i-1, i)
	}
	for b.Loop() {
		if _, err := Build(b.Context(), Options{Dockerfile: []byte(text.String()), Resolver: shelf, Platform: amd64, BuildPlatform: amd64}); err != nil {
			b.Fatal(err)
		}
	}
}
