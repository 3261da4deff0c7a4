package op

import (
	"net/url"

	"github.com/opencontainers/go-digest"
	"kiln.build/solver"
)

// HTTP is a file at an http or https address. The vertex is volatile unless
// Checksum is set. No inputs. Its result has one layer, which holds the file
// alone: as Name at the top, mode 0600, owned by root, with the time that the
// server gives it, else that of 1970.
type HTTP struct {
	URL  string
	Name string

	// Checksum is what the content must have, in any algorithm that a
	// digest can be of; empty takes any content.
	Checksum digest.Digest

	// ProxyEnv has the variables HTTP_PROXY and so on that stand before
	// those of this process's environment. Not in the key.
	ProxyEnv []string
}

func (o HTTP) Describe(d *solver.Description) {
	d.Line("op", "http")
	if o.Checksum == "" {
		d.Line("url", Redacted(o.URL))
	}
	d.Line("name", o.Name)
	if o.Checksum != "" {
		d.Line("checksum", string(o.Checksum))
	}
}

// Git is the files of a commit in a git repository. The vertex is volatile
// unless [Git.Pinned]. No inputs. Its result has one layer: directories and
// executable files have mode 0755 and other files 0644, all owned by root.
type Git struct {
	Remote string // as git takes it, without user, reference and so on

	// Ref is a branch, a tag, a full reference such as "refs/pull/1/head",
	// or a commit in full; empty is the repository's HEAD.
	Ref string

	// Commit is the beginning of the hash that the commit, or the annotated
	// tag, must have; empty takes any.
	Commit string

	Subdir       string // the directory that becomes the root; empty is all
	KeepGitDir   bool   // keeps .git, where there is no Subdir
	NoSubmodules bool

	// FetchByCommit takes Commit, which is in full, without a look at what
	// Ref stands for on the server.
	FetchByCommit bool

	// CommitTime gives all files the time of the commit, not the one at
	// which they were fetched.
	CommitTime bool

	// ProxyEnv is as in HTTP. Not in the key.
	ProxyEnv []string
}

func (o Git) Describe(d *solver.Description) {
	d.Line("op", "git")
	d.Line("remote", Redacted(o.Remote))
	d.Line("ref", o.Ref)
	d.Line("commit", o.Commit)
	d.Line("subdir", o.Subdir)
	d.Bool("keep git dir", o.KeepGitDir)
	d.Bool("no submodules", o.NoSubmodules)
	d.Bool("fetch by commit", o.FetchByCommit)
	d.Bool("commit time", o.CommitTime)
}

// Pinned reports whether the op names a commit itself, so that the server
// need not be asked what it is.
func (o Git) Pinned() bool { return IsCommit(o.Ref) || o.FetchByCommit && IsCommit(o.Commit) }

// IsCommit reports whether a text is the hash of a commit, SHA-1 or SHA-256,
// in full.
func IsCommit(s string) bool {
	if len(s) != 40 && len(s) != 64 {
		return false
	}
	for _, c := range s {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Redacted is an address without its password, for messages and for what is
// kept.
func Redacted(address string) string {
	if u, err := url.Parse(address); err == nil && u.User != nil {
		return u.Redacted()
	}
	return address
}

// Volatile reports whether a leaf must be looked at anew in every build.
func Volatile(o solver.Op) bool {
	switch o := o.(type) {
	case Tar:
		return o.Digest == ""
	case HTTP:
		return o.Checksum == ""
	case Git:
		return !o.Pinned()
	}
	return false
}

func (HTTP) Looks() {}
func (Git) Looks()  {}

var (
	_ solver.Op = HTTP{}
	_ solver.Op = Git{}
)
