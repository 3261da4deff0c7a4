package frontend

import (
	"strings"
	"testing"

	"kiln.build/solver"
	"kiln.build/solver/op"
)

func TestParseGit(t *testing.T) {
	hash := strings.Repeat("0a", 20)
	for _, test := range []struct {
		text string
		want op.Git
		keep bool
	}{
		{text: "https://h/p/r.git", want: op.Git{Remote: "https://h/p/r.git"}},
		{text: "http://u:p@h:8080/r.git#main", want: op.Git{Remote: "http://u:p@h:8080/r.git", Ref: "main"}},
		{text: "https://h/r.git#:sub/dir", want: op.Git{Remote: "https://h/r.git", Subdir: "sub/dir"}},
		{text: "https://h/r.git#feature/x:/a/../../b/", want: op.Git{Remote: "https://h/r.git", Ref: "feature/x", Subdir: "b"}},
		{text: "https://h/r.git#" + hash, want: op.Git{Remote: "https://h/r.git", Ref: hash}},
		{text: "git@h:me/r.git#v1:d", want: op.Git{Remote: "git@h:me/r.git", Ref: "v1", Subdir: "d"}},
		{text: "git@h:me/r", want: op.Git{Remote: "git@h:me/r"}},
		{text: "git@h:r.git?branch=b", want: op.Git{Remote: "git@h:r.git", Ref: "refs/heads/b"}},
		{text: "ssh://git@h:2222/r", want: op.Git{Remote: "ssh://git@h:2222/r"}},
		{text: "git://h/r#v1", want: op.Git{Remote: "git://h/r", Ref: "v1"}},
		{text: "https://h/r.git?ref=v1&subdir=/a/b/", want: op.Git{Remote: "https://h/r.git", Ref: "v1", Subdir: "a/b"}},
		{text: "https://h/r.git?tag=refs/tags/v1&commit=abc", want: op.Git{Remote: "https://h/r.git", Ref: "refs/tags/v1", Commit: "abc"}},
		{text: "https://h/r.git?branch=main&checksum=" + hash + "&fetch-by-commit", want: op.Git{Remote: "https://h/r.git", Ref: "refs/heads/main", Commit: hash, FetchByCommit: true}},
		{text: "https://h/r.git?submodules=false&mtime=commit", want: op.Git{Remote: "https://h/r.git", NoSubmodules: true, CommitTime: true}},
		{text: "https://h/r.git?submodules&mtime=checkout", want: op.Git{Remote: "https://h/r.git"}},
		{text: "https://h/r.git?keep-git-dir", want: op.Git{Remote: "https://h/r.git", KeepGitDir: true}, keep: true},
		{text: "https://h/r.git?keep-git-dir=0", want: op.Git{Remote: "https://h/r.git"}, keep: true},
		{text: "https://h/r.git?ref=v1#v1:d", want: op.Git{Remote: "https://h/r.git", Ref: "v1", Subdir: "d"}},
	} {
		t.Run(test.text, func(t *testing.T) {
			g, err := ParseGit(test.text)
			if err != nil || g == nil {
				t.Fatalf("got %v, %v", g, err)
			}
			if got, want := describe(g.Git), describe(test.want); got != want || g.KeepSet != test.keep {
				t.Errorf("got, keep %t:\n%swant:\n%s", g.KeepSet, got, want)
			}
			if again, err := ParseGit(g.String()); err != nil || again == nil || again.Ref != g.Ref || again.Subdir != g.Subdir || again.Remote != g.Remote {
				t.Errorf("%s is parsed to %+v, %v", g, again, err)
			}
		})
	}
}

func describe(o op.Git) string { return solver.Describe(o) }

func TestParseGitOthers(t *testing.T) {
	for _, text := range []string{"", ".", "a/b", "./r.git", "/abs/r.git", "https://h/r", "https://h/r.git/x", "http://h/x?y=r.git", "ftp://h/r.git", "file:///r.git", "ext::sh", "a:b", "user@host", "C:\\x"} {
		if g, err := ParseGit(text); g != nil || err != nil {
			t.Errorf("%q: got %+v, %v", text, g, err)
		}
	}
	for text, want := range map[string]string{
		"https://h/r.git?x=y":                       "unexpected query",
		"https://h/r.git?ref=a&ref=b":               "several values",
		"https://h/r.git?ref=":                      "no value",
		"https://h/r.git?ref=a#b":                   "ref conflicts",
		"https://h/r.git?branch=a&tag=b":            "branch conflicts with tag",
		"https://h/r.git?subdir=a#:b":               "subdir conflicts",
		"https://h/r.git?submodules=maybe":          "invalid submodules value",
		"https://h/r.git?mtime=now":                 "invalid mtime value",
		"https://h/r.git#--upload-pack=touch /x":    "is no reference",
		"git@h:r.git?commit=a&checksum=b":           "commit conflicts",
		"https://h/r.git?keep-git-dir=x&submodules": "invalid keep-git-dir value",
	} {
		if _, err := ParseGit(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", text, err, want)
		}
	}
}

func TestHTTPName(t *testing.T) {
	for address, want := range map[string]string{
		"https://h/a/b.txt": "b.txt", "https://h/q/?x=/y": "q", "https://h": "__unnamed__", "https://h/": "__unnamed__",
		"https://h/a%20b": "a b", "https://h/..": "__unnamed__", "https://h/a/%2e%2e": "__unnamed__", "https://h/x%00y": "x_y",
	} {
		if got := HTTPName(address); got != want {
			t.Errorf("%s: got %q, want %q", address, got, want)
		}
	}
}

func FuzzParseGit(f *testing.F) {
	for _, s := range []string{"https://h/r.git?ref=v1#v1:d", "git@h:r?tag=x", "ssh://h/r#:../.."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g, err := ParseGit(s)
		if err != nil || g == nil {
			return
		}
		if strings.HasPrefix(g.Ref, "-") || strings.HasPrefix(g.Remote, "-") || strings.HasPrefix(g.Subdir, "/") || strings.HasPrefix(g.Subdir, "..") {
			t.Errorf("%q gives %+v", s, g)
		}
		if name := HTTPName(s); name == "" || name == ".." || strings.ContainsAny(name, "/\x00") {
			t.Errorf("%q is named %q", s, name)
		}
	})
}
