package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// machine is the place of a benchmark.
type machine struct {
	bin  string // folder of kiln and toolbox
	work string // removed at the end
	root string // the base as a tar archive
}

// runner measures one builder. The first run of a case is for what it must
// do once, and is not counted.
type runner struct {
	name string
	run  func(ctx context.Context, dir string, first bool) error
}

// prepare makes what all cases share.
func (m *machine) prepare(ctx context.Context) error {
	m.root = filepath.Join(m.work, "root.tar")
	f, err := os.Create(m.root)
	if err != nil {
		return err
	}
	defer f.Close()
	c := exec.CommandContext(ctx, filepath.Join(m.bin, "toolbox"), "--tar")
	c.Stdout, c.Stderr = f, os.Stderr
	if err := c.Run(); err != nil {
		return fmt.Errorf("make the base: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	_, err = m.kiln(ctx, "import", m.root, "toolbox")
	if err != nil {
		return err
	}
	bundle := filepath.Join(m.work, "bundle", "rootfs")
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return err
	}
	_, err = command(ctx, nil, filepath.Join(m.bin, "toolbox"), "tar", "-xf", m.root, "-C", bundle)
	return err
}

func (m *machine) kiln(ctx context.Context, args ...string) ([]byte, error) {
	return command(ctx, []string{"KILN_ROOT=" + filepath.Join(m.work, "store")}, filepath.Join(m.bin, "kiln"), args...)
}

// command runs a program; an error has the end of what it printed.
func command(ctx context.Context, env []string, name string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Env = append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	if err != nil {
		text := bytes.TrimSpace(out)
		if i := bytes.LastIndexByte(text, '\n'); i >= 0 {
			text = text[i+1:]
		}
		return out, fmt.Errorf("%s: %w: %s", filepath.Base(name), err, text)
	}
	return out, nil
}

// runners are kiln and the peers that this machine has.
func (m *machine) runners(c benchCase) []runner {
	if c.context == nil {
		return m.starters()
	}
	rs := []runner{{"kiln", func(ctx context.Context, dir string, _ bool) error {
		_, err := m.kiln(ctx, "build", "--progress=plain", "-t", "bench", dir)
		return err
	}}}
	for _, peer := range []struct {
		name string
		args []string
	}{
		{"buildah", []string{"build", "--layers", "-t", "kiln-bench"}},
		{"podman", []string{"build", "--layers", "-t", "kiln-bench"}},
	} {
		if _, err := exec.LookPath(peer.name); err == nil {
			rs = append(rs, runner{peer.name, func(ctx context.Context, dir string, _ bool) error {
				_, err := command(ctx, nil, peer.name, append(peer.args, dir)...)
				return err
			}})
		}
	}
	if _, err := exec.LookPath("buildctl"); err == nil && os.Getenv("BUILDKIT_HOST") != "" {
		rs = append(rs, runner{"buildkit", func(ctx context.Context, dir string, _ bool) error {
			_, err := command(ctx, nil, "buildctl", "build", "--frontend=dockerfile.v0",
				"--local=context="+dir, "--local=dockerfile="+dir, "--output=type=image,name=kiln-bench")
			return err
		}})
	}
	return rs
}

// starters start a container: kiln, low-level runtimes on the unpacked base,
// and, as the limit of the machine, the program without any container.
func (m *machine) starters() []runner {
	bundle := filepath.Join(m.work, "bundle")
	rootfs := filepath.Join(bundle, "rootfs")
	rs := []runner{
		{"kiln", func(ctx context.Context, _ string, _ bool) error {
			_, err := m.kiln(ctx, "run", "--rm", "--network=none", "toolbox", "true")
			return err
		}},
		{"no container", func(ctx context.Context, _ string, _ bool) error {
			_, err := command(ctx, nil, filepath.Join(m.bin, "toolbox"), "true")
			return err
		}},
	}
	if _, err := exec.LookPath("runc"); err == nil {
		rs = append(rs, runner{"runc", func(ctx context.Context, _ string, first bool) error {
			if first {
				if err := bundleConfig(ctx, bundle); err != nil {
					return err
				}
			}
			_, err := command(ctx, nil, "runc", "run", "--bundle", bundle, fmt.Sprintf("kiln-bench-%d", os.Getpid()))
			return err
		}})
	}
	if _, err := exec.LookPath("bwrap"); err == nil {
		rs = append(rs, runner{"bwrap", func(ctx context.Context, _ string, _ bool) error {
			_, err := command(ctx, nil, "bwrap", "--unshare-all", "--bind", rootfs, "/", "--proc", "/proc", "--dev", "/dev", "/bin/true")
			return err
		}})
	}
	return rs
}

// bundleConfig makes runc's default configuration run true.
func bundleConfig(ctx context.Context, bundle string) error {
	if _, err := command(ctx, nil, "runc", "spec", "--bundle", bundle); err != nil && !strings.Contains(err.Error(), "exists") {
		return err
	}
	path := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	process, ok := spec["process"].(map[string]any)
	if !ok {
		return fmt.Errorf("%s: no process", path)
	}
	process["args"], process["terminal"] = []string{"/bin/true"}, false
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}
