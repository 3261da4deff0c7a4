package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/runner/network/usermode"
	"kiln.build/runner/rootless"
)

// diagnosis is what kiln doctor found.
type diagnosis struct {
	Ready bool `json:"ready"` // builds can work

	Kernel    string `json:"kernel"`
	Arch      string `json:"arch"`
	Isolation string `json:"isolation"`
	Overlay   string `json:"overlay"`
	Cgroups   string `json:"cgroups"`
	Limits    bool   `json:"limits"` // of memory and processors can be set
	Seccomp   bool   `json:"seccomp"`
	Fuse      bool   `json:"fuse"`

	UserNamespaces string   `json:"userNamespaces"`
	IDHelpers      []string `json:"idHelpers"` // newuidmap and newgidmap
	Network        string   `json:"network"`
	Foreign        []string `json:"foreign"` // platforms whose programs run by emulation
	Git            string   `json:"git"`

	Store     string `json:"store"`
	StoreNote string `json:"storeNote"` // its version, or why it cannot be used
	FreeBytes int64  `json:"freeBytes"`
	usable    bool

	Problems []problem `json:"problems"`
}

type problem struct {
	What  string `json:"what"`
	Fix   string `json:"fix,omitempty"`
	Fatal bool   `json:"fatal"` // builds cannot work
}

func (d *diagnosis) problem(fatal bool, what, fix string) {
	d.Problems = append(d.Problems, problem{What: what, Fix: fix, Fatal: fatal})
}

func (a *app) doctorCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor [flags]",
		Short: "Show what this machine offers for builds, and what is missing",
		Long: `Show what this machine offers for builds and containers, how commands will be
isolated, and what is missing with the one line that gets it.

Exit status: 0 if builds can work, 1 if not.`,
		Example: "  kiln doctor\n  kiln doctor --json | jq .problems",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			d := a.examine(c.Context())
			var err error
			if asJSON {
				e := json.NewEncoder(a.stdout)
				e.SetIndent("", "  ")
				err = e.Encode(d)
			} else {
				err = a.printDiagnosis(d)
			}
			if err == nil && !d.Ready {
				err = &exitError{code: 1}
			}
			return err
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print as JSON")
	return c
}

func (a *app) examine(ctx context.Context) *diagnosis {
	d := &diagnosis{Store: a.root, Foreign: []string{}, IDHelpers: []string{}, Problems: []problem{}}
	mode, enterErr := rootless.Enter()
	d.examineStore(a.root)
	facts := rootless.Probe(d.probeDir())
	d.Kernel, d.Arch = facts.Kernel, facts.Arch
	d.Isolation = isolation(mode)
	d.Overlay, d.Cgroups, d.Limits = facts.Overlay, facts.Cgroups, facts.CgroupsWritable
	d.Seccomp, d.Fuse = facts.Seccomp, facts.Fuse
	if !d.Fuse {
		d.problem(false, "what RUN steps read is not traced, so each runs again with any change of the files copied before it: /dev/fuse cannot be opened",
			"modprobe fuse && chmod 0666 /dev/fuse")
	}
	if enterErr != nil {
		d.problem(true, enterErr.Error(), "")
	}
	for _, p := range facts.Problems {
		if enterErr != nil && strings.HasPrefix(p.What, "no namespaces") {
			continue // said better already
		}
		fatal := strings.Contains(p.What, "cannot be run") || strings.HasPrefix(p.What, "overlay")
		d.problem(fatal, p.What, p.Fix)
	}
	if mode != rootless.None {
		d.examineForeign(ctx)
	}
	d.UserNamespaces = userNamespaces()
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if path, err := exec.LookPath(name); err == nil {
			d.IDHelpers = append(d.IDHelpers, path)
		}
	}
	d.Network = defaultNetwork()
	if mode != rootless.Root && mode != rootless.None {
		d.Network = "bridge, by a network stack of kiln's own"
		if err := usermode.Probe(); err != nil {
			d.Network = "host alone"
			d.problem(false, "containers and steps have no network of their own: "+err.Error(), "modprobe veth af_packet; or run with --network=host, build with --network=host --allow=network.host")
		}
	}
	var err error
	if d.Git, err = exec.LookPath("git"); err != nil {
		d.Git = ""
		d.problem(false, "git is not installed: contexts and ADD from git repositories do not work", "apt-get install git")
	}
	d.Ready = true
	for _, p := range d.Problems {
		d.Ready = d.Ready && !p.Fatal
	}
	return d
}

// probeDir is a place on the store's file system, if the store can be used.
func (d *diagnosis) probeDir() string {
	if d.usable {
		return d.Store
	}
	return os.TempDir()
}

// examineStore opens the store as a build would.
func (d *diagnosis) examineStore(root string) {
	store, err := cache.Open(root, cache.Options{})
	if err != nil {
		d.StoreNote = err.Error()
		d.problem(true, err.Error(), "use another folder: KILN_ROOT=FOLDER")
		return
	}
	defer store.Close()
	d.StoreNote, d.usable = "version 1", true
	var st unix.Statfs_t
	if unix.Statfs(root, &st) != nil {
		return
	}
	d.FreeBytes = int64(st.Bavail) * st.Bsize
	if d.FreeBytes < 1<<30 {
		d.problem(false, "only "+humanSize(d.FreeBytes)+" are free in "+root, "kiln prune")
	}
}

func isolation(m rootless.Mode) string {
	switch m {
	case rootless.Root:
		return "root with all namespaces"
	case rootless.Range:
		return "user namespace with a range of ids"
	case rootless.Single:
		return "user namespace with one id"
	}
	return "none"
}

// userNamespaces tells how many this user may make.
func userNamespaces() string {
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err != nil {
		return "none: the kernel has no user namespaces"
	}
	n := strings.TrimSpace(string(b))
	if n == "0" {
		return "none: user.max_user_namespaces is 0"
	}
	return "up to " + n
}

func (a *app) printDiagnosis(d *diagnosis) error {
	yes := func(b bool) string {
		if b {
			return "yes"
		}
		return "no"
	}
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	limits := "limits can be set"
	if !d.Limits {
		limits = "limits cannot be set"
	}
	store := d.Store
	if d.FreeBytes > 0 {
		store = fmt.Sprintf("%s (%s, %s free)", d.Store, d.StoreNote, humanSize(d.FreeBytes))
	}
	tw := tabwriter.NewWriter(a.stdout, 1, 1, 2, ' ', 0)
	for _, r := range [][2]string{
		{"kernel", d.Kernel + " " + d.Arch},
		{"isolation", d.Isolation},
		{"overlay", or(d.Overlay, "no")},
		{"control groups", d.Cgroups + ", " + limits},
		{"seccomp", yes(d.Seccomp)},
		{"fuse", yes(d.Fuse)},
		{"user namespaces", d.UserNamespaces},
		{"id helpers", or(strings.Join(d.IDHelpers, " "), "none (needed only without root)")},
		{"network", d.Network},
		{"emulation", d.foreign()},
		{"git", or(d.Git, "no")},
		{"store", store},
	} {
		if _, err := fmt.Fprintf(tw, "%s\t%s\n", r[0], r[1]); err != nil {
			return err
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, p := range d.Problems {
		word := "warning"
		if p.Fatal {
			word = "problem"
		}
		if err := writeLines(a.stdout, "", word+": "+p.What); err != nil {
			return err
		}
		if p.Fix != "" {
			if err := writeLines(a.stdout, "  fix: "+p.Fix); err != nil {
				return err
			}
		}
	}
	last := "Builds work here."
	if !d.Ready {
		last = "Builds do not work here."
	}
	return errors.Join(writeLines(a.stdout, "", last))
}
