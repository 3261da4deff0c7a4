package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"kiln.build/cache"
)

// TestSSHKeys has ssh-add talk to an agent that holds key files.
func TestSSHKeys(t *testing.T) {
	for _, tool := range []string{"ssh-keygen", "ssh-add"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	keygen := func(name string, args ...string) string {
		at := filepath.Join(dir, name)
		if out, err := exec.Command("ssh-keygen", append(args, "-q", "-f", at)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return at
	}
	rsa, ed := keygen("rsa", "-t", "rsa", "-b", "2048", "-N", ""), keygen("ed", "-t", "ed25519", "-N", "")
	locked := keygen("locked", "-t", "ed25519", "-N", "passphrase")
	sources, err := parseSSH([]string{"default=" + rsa + "," + ed})
	if err != nil {
		t.Fatal(err)
	}
	root, err := os.MkdirTemp("/tmp", "kiln") // short: the name of a socket has to be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	store, err := cache.Open(root, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var a agents
	sockets, err := a.start(store, sources)
	if err != nil {
		t.Fatal(err)
	}
	add := func(args ...string) (string, error) {
		c := exec.Command("ssh-add", args...)
		c.Env = append(os.Environ(), "SSH_AUTH_SOCK="+sockets["default"])
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := add("-l"); err != nil || strings.Count(out, "\n") != 2 || !strings.Contains(out, "RSA") || !strings.Contains(out, "ED25519") {
		t.Errorf("keys: %v\n%s", err, out)
	}
	for _, pub := range []string{rsa + ".pub", ed + ".pub"} {
		if out, err := add("-T", pub); err != nil {
			t.Errorf("sign with %s: %v\n%s", pub, err, out)
		}
	}
	if out, err := add("-D"); err == nil {
		t.Errorf("the keys could be removed: %s", out)
	}
	a.close()
	if _, err := add("-l"); err == nil {
		t.Error("the agent goes on")
	}
	for flag, want := range map[string]string{
		"x=" + locked: "has a passphrase", "x=" + rsa + ".pub": "neither an agent's socket nor a private key",
		"x=" + rsa + "," + sockets["default"]: "one agent's socket, or keys", "=x": "no id", "x=/no/such": "no such file",
	} {
		if _, err := parseSSH([]string{flag}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--ssh=%s: got %v, want %q", flag, err, want)
		}
	}
}
