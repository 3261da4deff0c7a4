package cache

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"kiln.build/cache/tree"
	"kiln.build/solver"
)

// TestOverlay lets the kernel say what a stack of layers is: steps change a
// mounted overlay, their upper directories become layers, and the index of
// the stack must list what the last overlay showed.
func TestOverlay(t *testing.T) {
	s := openTest(t, t.TempDir(), Options{})
	layers := []solver.Layer{putLayer(t, s, map[string]string{
		"etc/passwd": "root", "etc/conf.d/a": "a", "etc/conf.d/b": "b", "usr/bin/tool": "tool", "usr/lib/x/y/z": "z", "file": "f",
	})}
	steps := []func(root string) error{
		func(r string) error { return os.Remove(r + "/etc/conf.d/a") },
		func(r string) error { return os.RemoveAll(r + "/usr/lib") },
		func(r string) error { return os.MkdirAll(r+"/usr/lib/x", 0o711) }, // over a whiteout
		func(r string) error { // opaque
			if err := os.RemoveAll(r + "/etc/conf.d"); err != nil {
				return err
			}
			if err := os.Mkdir(r+"/etc/conf.d", 0o750); err != nil {
				return err
			}
			return os.WriteFile(r+"/etc/conf.d/c", []byte("c"), 0o600)
		},
		func(r string) error { // a directory becomes a file, a file a directory
			if err := os.RemoveAll(r + "/usr/bin"); err != nil {
				return err
			}
			if err := os.WriteFile(r+"/usr/bin", nil, 0o644); err != nil {
				return err
			}
			if err := os.Remove(r + "/file"); err != nil {
				return err
			}
			return os.Mkdir(r+"/file", 0o755)
		},
		func(r string) error { // attributes, links, renames
			if err := os.Chmod(r+"/etc/passwd", 0o4600); err != nil {
				return err
			}
			if err := os.Link(r+"/etc/passwd", r+"/etc/passwd-"); err != nil {
				return err
			}
			if err := os.Symlink("../etc", r+"/file/link"); err != nil {
				return err
			}
			return os.Rename(r+"/etc/conf.d/c", r+"/usr/c")
		},
		func(r string) error { return unix.Setxattr(r+"/etc/passwd", "user.note", []byte("1"), 0) },
		func(r string) error { return os.Chmod(r, 0o711) },
	}
	merged := t.TempDir()
	// With userxattr a mount shows links to a copied-up file as other inodes.
	strictLinks := tree.OverlayXattr() == "trusted.overlay.opaque"
	for i, step := range steps {
		d, err := s.NewLayer()
		if err != nil {
			t.Fatal(err)
		}
		var lower []string
		for _, l := range slices.Backward(layers) {
			lower = append(lower, layerDir(t, s, l.Digest))
		}
		data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=off", strings.Join(lower, ":"), d.FS, d.Work)
		if tree.OverlayXattr() == "user.overlay.opaque" {
			data += ",userxattr" // which excludes the others
		} else {
			data += ",redirect_dir=off,metacopy=off"
		}
		if err := unix.Mount("overlay", merged, "overlay", 0, data); err != nil {
			_ = d.Discard()
			t.Skipf("needs to mount overlayfs: %v", err)
		}
		err = step(merged)
		var want *tree.Tree
		if err == nil {
			want, err = tree.Scan(context.Background(), merged, tree.ScanOptions{})
		}
		if unmountErr := unix.Unmount(merged, 0); unmountErr != nil {
			t.Fatal(unmountErr)
		}
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		upper, err := tree.Scan(t.Context(), d.FS, tree.ScanOptions{})
		if err != nil {
			t.Fatal(err)
		}
		l, err := d.Commit(t.Context(), upper)
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, l)
		x, err := s.Index(layers)
		if err != nil {
			t.Fatal(err)
		}
		got := &tree.Tree{}
		err = x.Walk("", func(e tree.Entry, layer int) error {
			e.Opaque = false // which the merged view does not show
			if _, from, _ := x.Lookup(e.Hardlink); from != layer || !strictLinks {
				e.Hardlink = "" // copying up breaks links
			}
			got.Entries = append(got.Entries, e)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range want.Entries {
			if !strictLinks {
				want.Entries[i].Hardlink = ""
			}
		}
		if path, what := compare(want, got, everything); what != "" {
			t.Errorf("step %d: /%s: %s", i, path, what)
		}
	}
	if problems, err := s.Verify(t.Context()); err != nil || len(problems) > 0 {
		t.Errorf("verify: %v, %v", problems, err)
	}
	if left, _ := filepath.Glob(s.proc.dir + "/work-*"); len(left) != 1 {
		t.Errorf("work directories %q, want one that all steps used", left)
	}
}
