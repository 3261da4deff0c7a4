package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A builder makes images from Dockerfiles.
type builder struct {
	name   string
	daemon int // its process, if it has one

	// build is the command that builds the folder dir.
	build func(dir string, o output) []string

	// forget drops all that the builder keeps.
	forget func(ctx context.Context) error
}

// An output is where a build's result goes.
type output struct {
	kind string // "none", "store", "oci" or "push"
	to   string // file, or reference

	compression string // of "oci"; empty is gzip
}

func (m *machine) findBuilders(ctx context.Context, peers string) error {
	m.found = []builder{m.kilnBuilder()}
	if wants(peers, "buildkit") && onPath("buildctl") {
		b, err := m.buildkit(ctx)
		if err != nil {
			return err
		}
		if b.name != "" {
			m.found = append(m.found, b)
		}
	}
	// Podman builds with Buildah's code.
	for _, name := range []string{"buildah", "podman"} {
		if wants(peers, name) && onPath(name) {
			m.found = append(m.found, m.containersBuilder(name))
			break
		}
	}
	if wants(peers, "docker") && onPath("docker") && exec.CommandContext(ctx, "docker", "info").Run() == nil {
		m.found = append(m.found, docker())
	}
	return nil
}

func (m *machine) kilnBuilder() builder {
	return builder{
		name: "kiln",
		build: func(dir string, o output) []string {
			argv := m.kiln("build", "--progress=plain", "--network=host", "--allow=network.host")
			switch o.kind {
			case "none":
				argv = append(argv, "-o", "type=cacheonly")
			case "store":
				argv = append(argv, "-t", "bench")
			case "oci":
				argv = append(argv, "-t", "bench", "-o", "type=oci,dest="+o.to+compressionField(o))
			case "push":
				argv = append(argv, "-t", o.to, "--push")
			}
			return append(argv, dir)
		},
		forget: func(context.Context) error { return os.RemoveAll(m.store()) },
	}
}

func compressionField(o output) string {
	if o.compression == "" {
		return ""
	}
	return ",compression=" + o.compression
}

// buildkit is the daemon of BUILDKIT_HOST, or one that is started here, on
// the file system that is measured.
func (m *machine) buildkit(ctx context.Context) (builder, error) {
	host := os.Getenv("BUILDKIT_HOST")
	if host == "" {
		if os.Geteuid() != 0 || !onPath("buildkitd") {
			return builder{}, nil
		}
		dir := filepath.Join(m.work, "buildkit")
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return builder{}, err
		}
		config := fmt.Sprintf("[registry.%q]\n  http = true\n", m.registry)
		if err := os.WriteFile(filepath.Join(dir, "buildkitd.toml"), []byte(config), 0o644); err != nil {
			return builder{}, err
		}
		host = "unix://" + filepath.Join(dir, "sock")
		err := m.daemon("buildkitd", "--root", filepath.Join(dir, "root"), "--addr", host,
			"--config", filepath.Join(dir, "buildkitd.toml"), "--containerd-worker=false",
			"--allow-insecure-entitlement=network.host")
		if err != nil {
			return builder{}, err
		}
	}
	err := await(ctx, "buildkitd", func() bool {
		return exec.CommandContext(ctx, "buildctl", "--addr", host, "debug", "workers").Run() == nil
	})
	if err != nil {
		return builder{}, err
	}
	b := builder{
		name: "buildkit",
		build: func(dir string, o output) []string {
			argv := []string{"buildctl", "--addr", host, "build", "--progress=plain", "--frontend=dockerfile.v0",
				"--allow=network.host", "--opt=force-network-mode=host",
				"--local=context=" + dir, "--local=dockerfile=" + dir}
			switch o.kind {
			case "store":
				argv = append(argv, "--output=type=image,name=bench")
			case "oci":
				field := compressionField(o)
				if field != "" {
					field += ",force-compression=true" // or it takes what it has, however compressed
				}
				argv = append(argv, "--output=type=oci,name=bench,dest="+o.to+field)
			case "push":
				argv = append(argv, "--output=type=image,push=true,registry.insecure=true,name="+o.to)
			}
			return argv
		},
		forget: func(ctx context.Context) error {
			return m.run(ctx, []string{"buildctl", "--addr", host, "prune", "--all"})
		},
	}
	if path, ok := strings.CutPrefix(host, "unix://"); ok {
		pid, err := listener(path)
		if err != nil {
			return builder{}, err
		}
		b.daemon = pid
	}
	return b, nil
}

// storage starts a command line of buildah or podman, with a store on the
// file system that is measured.
func (m *machine) storage(name string) []string {
	top := filepath.Join(m.work, name)
	return []string{name, "--root", top + "/root", "--runroot", top + "/run", "--storage-driver", "overlay"}
}

// openFiles is a limit on open files that this machine allows: buildah and
// podman ask for more than a container may be allowed to have.
func openFiles() string {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return "--ulimit=nofile=1024:1024"
	}
	return fmt.Sprintf("--ulimit=nofile=%d:%d", l.Max, l.Max)
}

// withRunc are the words by which buildah and podman use runc where it is to
// be had: crun refuses machines that have control groups of both versions.
func withRunc() []string {
	if onPath("runc") {
		return []string{"--runtime=runc"}
	}
	return nil
}

// containersBuilder is buildah or podman.
func (m *machine) containersBuilder(name string) builder {
	global, flags := m.storage(name), []string{openFiles()}
	if name == "buildah" {
		flags = append(flags, withRunc()...)
	} else {
		global = append(global, withRunc()...)
	}
	top, more := strings.Join(global, " ")+" ", strings.Join(flags, " ")+" "
	sh := func(line, dir string, args ...string) []string {
		return append([]string{"sh", "-ec", line, "sh", dir}, args...)
	}
	return builder{
		name: name,
		build: func(dir string, o output) []string {
			build := top + "build " + more + "--layers --network=host --tls-verify=false -t bench \"$1\""
			switch o.kind {
			case "oci":
				flags := ""
				if o.compression != "" {
					flags = "--compression-format " + o.compression + " "
				}
				return sh(build+" && rm -f \"$2\" && "+top+"push "+flags+"bench oci-archive:\"$2\"", dir, o.to)
			case "push":
				return sh(build+" && "+top+"push --tls-verify=false bench docker://\"$2\"", dir, o.to)
			}
			return sh(build, dir)
		},
		forget: func(ctx context.Context) error {
			return m.run(ctx, sh(top+"rmi --all --force", ""))
		},
	}
}

// docker is BuildKit inside a daemon, whose store is where it is.
func docker() builder {
	return builder{
		name: "docker",
		build: func(dir string, o output) []string {
			argv := []string{"docker", "buildx", "build", "--progress=plain", "--network=host", "--allow=network.host"}
			switch o.kind {
			case "store":
				argv = append(argv, "-t", "kiln-bench")
			case "oci":
				argv = append(argv, "--output=type=oci,dest="+o.to+compressionField(o))
			case "push":
				argv = append(argv, "-t", o.to, "--push")
			}
			return append(argv, dir)
		},
		forget: func(ctx context.Context) error {
			return errors.Join(
				exec.CommandContext(ctx, "docker", "rmi", "-f", "kiln-bench").Run(),
				exec.CommandContext(ctx, "docker", "buildx", "prune", "--all", "--force").Run())
		},
	}
}
