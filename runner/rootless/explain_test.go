package rootless

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Each refusal names its step and a way out.
func TestExplain(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.ENOSPC: "user.max_user_namespaces", unix.EINVAL: "CONFIG_USER_NS", unix.EPERM: "run kiln as root",
	} {
		if sysctl("kernel.unprivileged_userns_clone") == "0" || sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1" {
			t.Skip("this machine has a reason of its own")
		}
		got := explain("make a user namespace", errno).Error()
		if !strings.HasPrefix(got, "make a user namespace: ") || !strings.Contains(got, want) {
			t.Errorf("%v: %q, want it to name %s", errno, got, want)
		}
	}
}

func TestAtLeast(t *testing.T) {
	for release, want := range map[string]bool{"6.18.44-fc": true, "5.12.0": true, "5.11.9": false, "4.19": false, "odd": true} {
		if got := atLeast(release, 5, 12); got != want {
			t.Errorf("%s: %v, want %v", release, got, want)
		}
	}
}
