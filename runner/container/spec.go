package container

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	"kiln.build/runner/binfmt"
	"kiln.build/runner/sandbox"
)

// makeSpec describes the sandbox of the container, whose root is mounted.
func (r *run) makeSpec(ctx context.Context) error {
	c := r.c
	r.mu.Lock()
	size, limits := r.m.Size, c.Limits
	r.mu.Unlock()
	cmd, err := c.Command(r.root, CommandOptions{Args: c.Args, Env: c.Env, Cwd: c.Cwd, User: c.User, Terminal: c.Terminal, Size: size})
	if err != nil {
		return err
	}
	if err := makeDir(r.root, c.Cwd); err != nil {
		return fmt.Errorf("make the working directory: %w", err)
	}
	r.spec = sandbox.Spec{
		Command: cmd, Runtime: c.Runtime, Root: r.root, ReadonlyRoot: c.ReadOnly, Hostname: c.Hostname, ShmSize: c.ShmSize,
		Limits: limits, Init: c.Init, Accounting: true, Devices: c.Devices, Sysctls: c.Sysctls,
	}
	emulator, err := binfmt.Find(c.Platform)
	if err != nil {
		return err
	}
	if emulator != nil {
		r.spec.Formats = []sandbox.Format{sandbox.Format(*emulator)}
	}
	r.spec.PID.Host, r.spec.IPC.Host, r.spec.Cgroup.Host = c.HostPID, c.HostIPC, c.HostCgroup
	r.spec.Domainname = c.Domainname
	if c.HostUTS {
		r.spec.UTS.Host, r.spec.Hostname = true, ""
	}
	if c.Unmasked {
		r.spec.MaskedPaths, r.spec.ReadonlyPaths = []string{}, []string{}
	}
	if c.Network == "host" {
		r.spec.Network.Host = true
	}
	if err := r.shareNetwork(); err != nil {
		return err
	}
	if err := r.etc(); err != nil {
		return err
	}
	if err := r.mounts(ctx); err != nil {
		return err
	}
	return r.resources()
}

// CommandOptions say what to run in a container.
type CommandOptions struct {
	Args       []string
	Env        []string
	Cwd        string
	User       string // name or number, ":group"
	Privileged bool   // even if the container is not
	Terminal   bool
	Size       sandbox.Size // of the terminal; zero is 24 by 80
}

// Command is a command with the container's rights and limits, for the user that a root
// directory knows by this name.
func (c *Container) Command(root *os.File, o CommandOptions) (sandbox.Command, error) {
	who, err := lookUpUser(root, o.User, c.Groups)
	if err != nil {
		return sandbox.Command{}, err
	}
	env := slices.Clone(o.Env)
	if !has(env, "HOSTNAME") {
		env = slices.Insert(env, min(1, len(env)), "HOSTNAME="+c.Hostname) // after PATH, as docker has it
	}
	if !has(env, "HOME") {
		env = append(env, "HOME="+who.Home)
	}
	cmd := sandbox.Command{
		Args: o.Args, Env: env, Cwd: o.Cwd, UID: who.Uid, GID: who.Gid, Groups: who.Sgids,
		Privileged: c.Privileged || o.Privileged, NoNewPrivs: c.NoNewPrivs,
		Capabilities: capabilities(c.CapAdd, c.CapDrop), Seccomp: c.Seccomp,
		Rlimits: c.Rlimits, OOMScoreAdj: c.OOM,
	}
	if !o.Terminal {
		return cmd, nil
	}
	if !has(env, "TERM") {
		cmd.Env = append(cmd.Env, "TERM=xterm")
	}
	if cmd.Terminal = &o.Size; o.Size == (sandbox.Size{}) {
		cmd.Terminal = &sandbox.Size{Rows: 24, Cols: 80}
	}
	return cmd, nil
}

func has(env []string, name string) bool {
	return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

// lookUpUser reads the root's own passwd and group files, in which a user may
// be that the image does not have.
func lookUpUser(root *os.File, name string, groups []string) (*user.ExecUser, error) {
	passwd, err := readAccounts(root, "etc/passwd")
	if err != nil {
		return nil, err
	}
	group, err := readAccounts(root, "etc/group")
	if err != nil {
		return nil, err
	}
	who, err := user.GetExecUser(name, &user.ExecUser{Home: "/"}, strings.NewReader(passwd), strings.NewReader(group))
	if err != nil {
		return nil, fmt.Errorf("find user %q: %w", name, err)
	}
	if len(groups) > 0 {
		more, err := user.GetAdditionalGroups(groups, strings.NewReader(group))
		if err != nil {
			return nil, fmt.Errorf("find groups: %w", err)
		}
		who.Sgids = append(who.Sgids, more...)
	}
	return who, nil
}

// maxAccounts bounds files that the container may have written itself.
const maxAccounts = 16 << 20

// readAccounts reads a file of users or groups; one that is missing has none.
func readAccounts(root *os.File, name string) (string, error) {
	f, err := openRegular(root, name)
	if err != nil {
		return "", nil //nolint:nilerr // whatever it is, there are no users in it
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxAccounts))
	if err != nil {
		return "", fmt.Errorf("read /%s: %w", name, err)
	}
	return string(data), nil
}

// capabilities are the default ones with some added and some dropped; nil
// where nothing is said. What is named wins over ALL, as with docker.
func capabilities(add, drop []string) []string {
	if len(add)+len(drop) == 0 {
		return nil
	}
	caps := []string{}
	for _, name := range sandbox.AllCapabilities() {
		isDefault := slices.Contains(sandbox.DefaultCapabilities, name)
		switch {
		case names(drop, name):
		case names(add, name), all(add), isDefault && !all(drop):
			caps = append(caps, name)
		}
	}
	return caps
}

// fullCapability is the name with the CAP_ that it may lack.
func fullCapability(name string) string {
	return "CAP_" + strings.TrimPrefix(strings.ToUpper(name), "CAP_")
}

func names(list []string, capability string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return fullCapability(s) == capability })
}

func all(list []string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, "all") })
}

// CheckCapabilities reports the first name that is of no capability.
func CheckCapabilities(list []string) error {
	for _, n := range list {
		if !strings.EqualFold(n, "all") && !slices.Contains(sandbox.AllCapabilities(), fullCapability(n)) {
			return fmt.Errorf("invalid capability: %q", n)
		}
	}
	return nil
}
