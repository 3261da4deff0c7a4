package runner

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"kiln.build/solver"
	"kiln.build/solver/op"
)

// gitCommand runs git for a repository that may be hostile.
type gitCommand struct {
	path string
	env  []string
}

// gitSafety is configuration that stands before whatever a repository or
// this machine has: nothing of a repository is ever run, and no repository
// makes git read files of this machine.
var gitSafety = []string{
	"core.hooksPath=/dev/null", // no hooks
	"core.fsmonitor=false",     // a program that git would start
	"core.symlinks=true",
	"core.autocrlf=false", // the same files on every machine
	"core.protectHFS=true",
	"core.protectNTFS=true",
	"core.sshCommand=", // GIT_SSH_COMMAND is the one
	"protocol.allow=never",
	"protocol.http.allow=always",
	"protocol.https.allow=always",
	"protocol.ssh.allow=always",
	"protocol.git.allow=always",
	"protocol.file.allow=never", // a submodule at file:// would be a look at this machine
	"protocol.ext.allow=never",  // runs any command
	"submodule.recurse=false",   // they are fetched when asked for
	"gc.auto=0",
	"advice.detachedHead=false",
	"credential.helper=", // none of the user's
}

// newGit prepares the commands for a repository, with the credentials that
// the build has for it.
func (r *Runner) newGit(a *solver.Action, o op.Git) (*gitRepo, error) {
	path, err := exec.LookPath("git")
	if err != nil {
		return nil, errors.New("there is no git command on PATH, and it needs one: install git")
	}
	g := gitCommand{path: path}
	g.env = []string{
		"PATH=" + os.Getenv("PATH"),
		"LC_ALL=C",
		"HOME=/nonexistent",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_ATTR_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_ASKPASS=/bin/false",
		"GIT_SSH_COMMAND=" + sshCommand(),
	}
	for _, name := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH"} {
		if v, ok := os.LookupEnv(name); ok {
			g.env = append(g.env, name+"="+v) // whom this machine trusts
		}
	}
	proxies := map[string]string{}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"} {
		for _, n := range []string{name, strings.ToLower(name)} {
			if v, ok := os.LookupEnv(n); ok {
				proxies[n] = v
			}
		}
	}
	for _, kv := range o.ProxyEnv {
		k, v, _ := strings.Cut(kv, "=")
		proxies[k] = v
	}
	for k, v := range proxies {
		g.env = append(g.env, k+"="+v)
	}
	if sock, ok := r.SSH["default"]; ok {
		g.env = append(g.env, "SSH_AUTH_SOCK="+sock)
	}
	config := append([]string(nil), gitSafety...)
	if header := r.gitHeader(o.Remote); header != "" {
		config = append(config, "http."+headerScope(o.Remote)+".extraHeader=Authorization: "+header)
	}
	// In the environment, where neither other users of the machine nor a
	// message about the command line shows them.
	g.env = append(g.env, fmt.Sprintf("GIT_CONFIG_COUNT=%d", len(config)))
	for i, c := range config {
		k, v := cutConfig(c)
		g.env = append(g.env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, k), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, v))
	}
	return &gitRepo{runner: r, action: a, op: o, git: g}, nil
}

// sshCommand takes no configuration and no keys but those of the agent that
// the build is given. Hosts in the user's list must be the ones that are
// listed; others are taken as they are.
func sshCommand() string {
	known := "/dev/null"
	if home, err := os.UserHomeDir(); err == nil && exists(home+"/.ssh/known_hosts") {
		known = home + "/.ssh/known_hosts"
	}
	return "ssh -F /dev/null -o BatchMode=yes -o IdentityFile=none -o StrictHostKeyChecking=accept-new" +
		" -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o GlobalKnownHostsFile='" + strings.ReplaceAll(known, "'", `'\''`) + "'"
}

// cutConfig cuts "section.subsection.key=value"; the subsection may be an
// address with "=" in it.
func cutConfig(c string) (key, value string) {
	if i := strings.Index(c, ".extraHeader="); i >= 0 {
		i += len(".extraHeader")
		return c[:i], c[i+1:]
	}
	key, value, _ = strings.Cut(c, "=")
	return key, value
}

// gitHeader is the Authorization header for a repository from the secrets
// GIT_AUTH_HEADER and GIT_AUTH_TOKEN, those for its host ("GIT_AUTH_TOKEN.host")
// first.
func (r *Runner) gitHeader(remote string) string {
	u, err := url.Parse(remote)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" {
		return ""
	}
	for _, suffix := range []string{"." + u.Host, ""} {
		if v, ok := r.Secrets["GIT_AUTH_HEADER"+suffix]; ok {
			return strings.TrimSpace(string(v))
		}
		if v, ok := r.Secrets["GIT_AUTH_TOKEN"+suffix]; ok {
			return "basic " + base64.StdEncoding.EncodeToString([]byte("x-access-token:"+strings.TrimSpace(string(v))))
		}
	}
	return ""
}

// headerScope is where a token may be sent: to the repository, and for
// GitHub, where submodules are as a rule next to it, to all of the host.
func headerScope(remote string) string {
	for _, host := range []string{"https://github.com/", "https://www.github.com/"} {
		if strings.HasPrefix(remote, host) {
			return host
		}
	}
	return remote
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// run runs git and returns what it prints.
func (g gitCommand) run(ctx context.Context, dir string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, g.path, args...)
	c.Dir, c.Env = dir, g.env
	if dir == "" {
		c.Dir = "/" // no repository of the user's
	} else {
		// Not the one that encloses the directory, should its own be gone.
		c.Env = append(append([]string(nil), g.env...), "GIT_CEILING_DIRECTORIES="+dir)
	}
	var out, said bytes.Buffer
	c.Stdout, c.Stderr = &out, &said
	// git's helpers are its children: all of them end with the build. Should
	// that be killed git dies, if the thread that starts it stays.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second
	err := c.Run()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "", gitError(args[0], said.String(), err)
	}
	return out.String(), nil
}

// gitError puts what git said into one line.
func gitError(verb, said string, err error) error {
	var lines []string
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	text := strings.Join(lines, "; ")
	if text == "" {
		text = err.Error()
	}
	switch {
	case strings.Contains(text, "could not read Username"), strings.Contains(text, "Authentication failed"):
		text += ": give a token with --secret id=GIT_AUTH_TOKEN"
	case strings.Contains(text, "Permission denied (publickey"):
		text += ": give an agent with --ssh default"
	}
	return fmt.Errorf("git %s: %s", verb, text)
}
