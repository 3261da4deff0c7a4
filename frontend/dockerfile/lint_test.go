package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"kiln.build/frontend"
)

// lintRules checks a Dockerfile and returns the rules that it breaks, each
// with the line: "StageNameCasing:1".
func lintRules(t *testing.T, text string, change func(*Options)) []string {
	t.Helper()
	o := Options{Dockerfile: []byte(text), Resolver: shelf, Platform: amd64, BuildPlatform: amd64}
	if change != nil {
		change(&o)
	}
	warnings, err := Lint(t.Context(), o)
	if at := (*frontend.LintError)(nil); err != nil && !errors.As(err, &at) {
		t.Fatal(err)
	}
	var got []string
	for _, w := range warnings {
		if w.Text == "" || w.Rule != "" && (w.Detail == "" || w.URL == "" && w.Rule != "InvalidBaseImagePlatform") {
			t.Errorf("%+v: a warning has a text, what the rule is about, and where to read more", w)
		}
		got = append(got, fmt.Sprintf("%s:%d", w.Rule, w.Location.Start))
	}
	return got
}

// TestRules breaks and keeps each of the 22 rules.
func TestRules(t *testing.T) {
	ignore := func(patterns ...string) func(*Options) {
		return func(o *Options) { o.Ignore, o.IgnoreFile = patterns, ".dockerignore" }
	}
	onArm := func(o *Options) { o.Resolver = anotherPlatform{shelf} }
	for _, test := range []struct {
		rule      string
		line      int
		bad, good string
		change    func(*Options)
		goodIs    func(*Options) // changes for good, where they are others
	}{
		{rule: "StageNameCasing", line: 1, bad: "FROM base AS Build", good: "FROM base AS build"},
		{rule: "FromAsCasing", line: 1, bad: "FROM base as build", good: "from base as build"},
		{rule: "NoEmptyContinuation", line: 4, bad: "FROM base\nRUN a \\\n\n  b", good: "FROM base\nRUN a \\\n# why\n  b"},
		{rule: "ConsistentInstructionCasing", line: 3, bad: "FROM base\nRUN a\nrun b", good: "from base\nrun a\nrun b"},
		{rule: "ConsistentInstructionCasing", line: 2, bad: "FROM base\nRun a\nRUN b", good: "FROM base\nRUN a"},
		{rule: "DuplicateStageName", line: 2, bad: "FROM base AS a\nFROM base AS a", good: "FROM base AS a\nFROM base AS b"},
		{rule: "ReservedStageName", line: 1, bad: "FROM base AS scratch", good: "FROM scratch AS scratchy"},
		{rule: "ReservedStageName", line: 1, bad: "FROM base AS context", good: "FROM base AS contexts"},
		{rule: "JSONArgsRecommended", line: 2, bad: "FROM base\nCMD a b", good: "FROM base\nCMD [\"a\", \"b\"]"},
		{rule: "JSONArgsRecommended", line: 2, bad: "FROM base\nENTRYPOINT a", good: "FROM base\nSHELL [\"sh\", \"-c\"]\nENTRYPOINT a"},
		{rule: "MaintainerDeprecated", line: 2, bad: "FROM base\nMAINTAINER me", good: "FROM base\nLABEL org.opencontainers.image.authors=me"},
		{rule: "UndefinedArgInFrom", line: 2, bad: "ARG VERSION=base\nFROM ${VERSOIN:-base}", good: "ARG VERSION=base\nFROM ${VERSION}"},
		{rule: "WorkdirRelativePath", line: 2, bad: "FROM base\nWORKDIR a", good: "FROM base\nWORKDIR /b\nWORKDIR a"},
		{rule: "UndefinedVar", line: 3, bad: "FROM base\nARG NAME\nCOPY $NMAE /x", good: "FROM base\nARG NAME\nCOPY $NAME /x"},
		{rule: "MultipleInstructionsDisallowed", line: 2, bad: "FROM base\nCMD [\"a\"]\nCMD [\"b\"]", good: "FROM base\nCMD [\"a\"]\nFROM base\nCMD [\"b\"]"},
		{rule: "MultipleInstructionsDisallowed", line: 2, bad: "FROM base\nHEALTHCHECK NONE\nHEALTHCHECK CMD x", good: "FROM base\nHEALTHCHECK NONE"},
		{rule: "MultipleInstructionsDisallowed", line: 2, bad: "FROM base\nENTRYPOINT [\"a\"]\nENTRYPOINT [\"b\"]", good: "FROM base\nENTRYPOINT [\"a\"]\nCMD [\"b\"]"},
		{rule: "LegacyKeyValueFormat", line: 2, bad: "FROM base\nENV a b", good: "FROM base\nENV a=b"},
		{rule: "LegacyKeyValueFormat", line: 2, bad: "FROM base\nLABEL a b", good: "FROM base\nLABEL a=b"},
		{rule: "InvalidBaseImagePlatform", line: 1, bad: "FROM base", good: "FROM base", change: onArm, goodIs: func(*Options) {}},
		{rule: "RedundantTargetPlatform", line: 1, bad: "FROM --platform=$TARGETPLATFORM base", good: "FROM --platform=$BUILDPLATFORM base"},
		{rule: "SecretsUsedInArgOrEnv", line: 2, bad: "FROM base\nENV DB_PASSWORD=x", good: "FROM base\nENV PASSWORD_FILE=x"},
		{rule: "SecretsUsedInArgOrEnv", line: 2, bad: "FROM base\nARG apikey", good: "FROM base\nARG PUBLIC_KEY"},
		{rule: "InvalidDefaultArgInFrom", line: 2, bad: "ARG TAG\nFROM base:${TAG}", good: "ARG TAG=1\nFROM base:${TAG}", change: tagged, goodIs: tagged},
		{rule: "FromPlatformFlagConstDisallowed", line: 1, bad: "FROM --platform=linux/amd64 base", good: "FROM --platform=linux/amd64 base AS build_amd64"},
		{rule: "CopyIgnoredFile", line: 2, bad: "FROM base\nCOPY a.key /", good: "FROM base\nCOPY a.txt /", change: ignore("*.key"), goodIs: ignore("*.key")},
		{rule: "CopyIgnoredFile", line: 2, bad: "FROM base\nADD a.key /", good: "FROM base\nADD a.key /", change: ignore("*.key"), goodIs: ignore("*.key", "!b.key")},
		{rule: "InvalidDefinitionDescription", line: 4, bad: "# check=experimental=all\n\n# says nothing\nARG A\nFROM base", good: "# check=experimental=all\n\n# A says much\nARG A\nFROM base"},
		{rule: "ExposeProtoCasing", line: 2, bad: "FROM base\nEXPOSE 80/TCP", good: "FROM base\nEXPOSE 80/tcp"},
		{rule: "ExposeInvalidFormat", line: 2, bad: "FROM base\nEXPOSE 127.0.0.1:80:80", good: "FROM base\nEXPOSE 80"},
	} {
		t.Run(test.rule, func(t *testing.T) {
			want := fmt.Sprintf("%s:%d", test.rule, test.line)
			if got := lintRules(t, test.bad, test.change); !slices.Equal(got, []string{want}) {
				t.Errorf("%q: got %v, want %s alone", test.bad, got, want)
			}
			if got := lintRules(t, test.good, test.goodIs); len(got) != 0 {
				t.Errorf("%q: got %v, want nothing", test.good, got)
			}
		})
	}
}

// tagged gives the base image a tag by a build argument.
func tagged(o *Options) {
	o.Resolver = library{"base:1": shelf["base"]}
	o.BuildArgs = map[string]string{"TAG": "1"}
}

// TestCheckDirective switches rules off, to errors and on: in the file, over
// an instruction, and by a build argument.
func TestCheckDirective(t *testing.T) {
	const bad = "FROM base AS Build\nENV a b\n"
	arg := func(v string) func(*Options) {
		return func(o *Options) { o.BuildArgs = map[string]string{"BUILDKIT_DOCKERFILE_CHECK": v} }
	}
	for _, test := range []struct {
		name, text string
		want       string
		fails      bool
		change     func(*Options)
	}{
		{name: "all rules", text: bad, want: "StageNameCasing:1 LegacyKeyValueFormat:2"},
		{name: "one skipped", text: "# check=skip=StageNameCasing\n" + bad, want: "LegacyKeyValueFormat:3"},
		{name: "two skipped", text: "# check=skip=StageNameCasing, LegacyKeyValueFormat\n" + bad},
		{name: "all skipped", text: "# check=skip=all\n" + bad},
		{name: "an error", text: "# check=error=true\n" + bad, want: "StageNameCasing:2 LegacyKeyValueFormat:3", fails: true},
		{name: "skipped, the others an error", text: "# check=skip=StageNameCasing;error=true\n" + bad, want: "LegacyKeyValueFormat:3", fails: true},
		{name: "nothing left for an error", text: "# check=skip=all;error=true\n" + bad},
		{name: "after another directive", text: "# syntax=docker/dockerfile:1\n# check=skip=all\n" + bad},
		{name: "after a comment it is none", text: "# a comment\n# check=skip=all\nARG X=1\n" + bad, want: "StageNameCasing:4 LegacyKeyValueFormat:5"},
		{name: "over an instruction", text: "FROM base AS Build\n# check=skip=LegacyKeyValueFormat\nENV a b\nENV c d\n", want: "StageNameCasing:1 LegacyKeyValueFormat:4"},
		{name: "over a FROM", text: "ARG X=1\n# check=skip=StageNameCasing\nFROM base AS Build\nENV a b\n", want: "LegacyKeyValueFormat:4"},
		{name: "experimental by name", text: "# check=experimental=InvalidDefinitionDescription\n\n# says nothing\nARG A\nFROM base", want: "InvalidDefinitionDescription:4"},
		{name: "experimental is off", text: "# check=skip=none\n\n# says nothing\nARG A\nFROM base"},
		{name: "build argument", text: bad, change: arg("skip=StageNameCasing"), want: "LegacyKeyValueFormat:2"},
		{name: "build argument over the file", text: "# check=skip=all\n" + bad, change: arg("error=true"), want: "StageNameCasing:2 LegacyKeyValueFormat:3", fails: true},
		{name: "empty build argument", text: "# check=error=true\n" + bad, change: arg(""), want: "StageNameCasing:2 LegacyKeyValueFormat:3"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := strings.Join(lintRules(t, test.text, test.change), " "); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
			_, err := lower(t, test.text, test.change)
			at := (*frontend.LintError)(nil)
			if errors.As(err, &at) != test.fails {
				t.Errorf("build: %v, want a lint error: %t", err, test.fails)
			}
		})
	}
	for _, text := range []string{"# check=skipp=all\n", "# check=skip\n", "# check=error=maybe\n"} {
		if _, err := lower(t, text+bad, nil); err == nil || !strings.Contains(err.Error(), "check") {
			t.Errorf("%q: got %v, want an error about the option", text, err)
		}
	}
}

// anotherPlatform finds images of a platform that was not asked for.
type anotherPlatform struct{ library }

func (a anotherPlatform) ResolveImage(ctx context.Context, ref string, p ocispecs.Platform) (*frontend.Image, error) {
	img, err := a.library.ResolveImage(ctx, ref, p)
	if img != nil {
		img.Platform = ocispecs.Platform{OS: "linux", Architecture: "arm64"}
	}
	return img, err
}
