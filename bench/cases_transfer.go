package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

func needsRegistry(m *machine) string {
	if m.registry == "" {
		return "docker-registry is not on PATH"
	}
	return ""
}

func needsDebian(m *machine) string {
	if _, err := os.Stat(m.debian); err != nil {
		return "there is no Debian root: see -debian"
	}
	return ""
}

// pushDebian puts the Debian base into the registry.
func (m *machine) pushDebian(ctx context.Context) (string, error) {
	name := m.registry + "/debian:base"
	return name, m.run(ctx, m.kiln("import", m.debian, name), m.kiln("push", name), m.kiln("rmi", name))
}

func pull(m *machine) ([]lane, error) {
	name, err := m.pushDebian(context.Background())
	if err != nil {
		return nil, err
	}
	lanes, err := m.builders(func(b builder, dir string) (lane, error) {
		return lane{turn: func(int) []step {
			return []step{
				do(b.forget),
				m.sync(),
				timed("pull", b.build(dir, output{kind: "store"})...),
			}
		}}, m.project(dir, "FROM "+name+"\nRUN echo > /f\n")
	})
	if err != nil || !onPath("curl") {
		return lanes, err
	}
	blob, err := m.layerURL(name)
	dir := filepath.Join(m.dir, "limit")
	limit := lane{name: "curl, gunzip, tar", turn: func(int) []step {
		return []step{
			do(func(context.Context) error { return os.RemoveAll(dir) }),
			m.sync(),
			shell("pull", `mkdir "$2"; curl -sf "$1" | gunzip | tar -C "$2" -xpf -`, blob, dir),
		}
	}}
	return append(lanes, limit), err
}

// gigabyte is made inside a build, in no time that is measured.
const gigabyte = `FROM scratch
COPY gen nonce /
RUN ["/gen", "-generate", "1073741824", "-seed", "/nonce", "-to", "/data"]
`

// bigProject writes a project whose RUN makes a gigabyte, which depends on
// the file "nonce".
func (m *machine) bigProject(dir, more string) error {
	if err := m.project(dir, gigabyte+more); err != nil {
		return err
	}
	return m.run(context.Background(), []string{"cp", m.self, filepath.Join(dir, "gen")})
}

// bigFile makes the same gigabyte here.
func (m *machine) bigFile(dir string, i int) []step {
	return []step{
		do(func(context.Context) error { return os.MkdirAll(dir, 0o755) }),
		change(dir+"/nonce", i),
		untimed(m.self, "-generate", "1073741824", "-seed", dir+"/nonce", "-to", dir+"/data"),
		m.sync(),
	}
}

func export(m *machine) ([]lane, error) {
	const gzip, zstd, again = "export 1 GiB, gzip", "export 1 GiB, zstd", "export 1 GiB, gzip again"
	lanes, err := m.builders(func(b builder, dir string) (lane, error) {
		to := func(c string) output { return output{kind: "oci", to: dir + "." + c + ".tar", compression: c} }
		return lane{turn: func(i int) []step {
			return []step{
				change(dir+"/nonce", i),
				untimed(b.build(dir, output{kind: "none"})...),
				m.sync(),
				timed(gzip, b.build(dir, to("gzip"))...),
				m.sync(),
				timed(zstd, b.build(dir, to("zstd"))...),
				m.sync(),
				timed(again, b.build(dir, to("gzip"))...),
				m.sync(),
			}
		}}, m.bigProject(dir, "")
	})
	dir := filepath.Join(m.dir, "limit")
	limit := lane{name: "tar + pigz -6, zstd -3 -T0", turn: func(i int) []step {
		return append(m.bigFile(dir, i),
			shell(gzip, `tar -C "$1" -cf - data | pigz -6 > "$1".tar.gz`, dir),
			m.sync(),
			shell(zstd, `tar -C "$1" -cf - data | zstd -q -f -3 -T0 -o "$1".tar.zst`, dir),
			m.sync())
	}}
	return append(lanes, limit), err
}

func push(m *machine) ([]lane, error) {
	const nothing, config, again = "push 1 GiB, blob not made", "push 1 GiB, blob made", "push 1 GiB, again"
	lanes, err := m.builders(func(b builder, dir string) (lane, error) {
		to := func(tag string, i int) []string {
			return b.build(dir, output{kind: "push", to: fmt.Sprintf("%s/%s:%s%d", m.registry, b.name, tag, i)})
		}
		return lane{turn: func(i int) []step {
			return []step{
				change(dir+"/nonce", i+100),
				do(func(context.Context) error { return write(dir, map[string]string{"Dockerfile": gigabyte}) }),
				untimed(b.build(dir, output{kind: "none"})...),
				m.sync(),
				timed(nothing, to("a", i)...),
				m.sync(),
				do(func(context.Context) error {
					return write(dir, map[string]string{"Dockerfile": gigabyte + "LABEL a=b\n"})
				}),
				timed(config, to("b", i)...),
				timed(again, to("b", i)...),
			}
		}}, m.bigProject(dir, "")
	})
	dir := filepath.Join(m.dir, "limit")
	limit := lane{name: "tar + pigz -6", turn: func(i int) []step {
		return append(m.bigFile(dir, i+100), shell(nothing, `tar -C "$1" -cf - data | pigz -6 > "$1".tar.gz`, dir), m.sync())
	}}
	return append(lanes, limit), err
}

// install is what the case app installs.
const install = "apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 git >/dev/null"

func app(m *machine) ([]lane, error) {
	const cold, line, archive = "app, cold", "app, one line changed", "app, one line changed, to an OCI tar"
	name, err := m.pushDebian(context.Background())
	if err != nil {
		return nil, err
	}
	text := "FROM " + name + " AS build\nARG N\nCOPY nonce /nonce\nENV DEBIAN_FRONTEND=noninteractive\nRUN " + install +
		"\nWORKDIR /app\nCOPY app.py .\nRUN python3 -m py_compile app.py\n" +
		"FROM " + name + "\nCOPY --from=build /app /app\nCMD [\"/bin/true\"]\n"
	lanes, err := m.builders(func(b builder, dir string) (lane, error) {
		program := func(i int) step {
			return do(func(context.Context) error {
				return write(dir, map[string]string{"app.py": fmt.Sprintf("print(%d)\n", i)})
			})
		}
		return lane{turn: func(i int) []step {
			return []step{
				change(dir+"/nonce", i),
				program(10 * i),
				timed(cold, b.build(dir, output{kind: "store"})...),
				m.sync(),
				program(10*i + 1),
				timed(line, b.build(dir, output{kind: "store"})...),
				untimed(b.build(dir, output{kind: "oci", to: dir + ".tar"})...),
				m.sync(),
				program(10*i + 2),
				timed(archive, b.build(dir, output{kind: "oci", to: dir + ".tar"})...),
				m.sync(),
			}
		}}, m.project(dir, text)
	})
	if os.Geteuid() != 0 {
		return lanes, err
	}
	dir := filepath.Join(m.dir, "limit")
	limit := lane{name: "apt-get in a chroot", turn: func(int) []step {
		return []step{
			untimed("sh", "-ec", `rm -rf "$1"; mkdir "$1"; tar -C "$1" -xpf "$2"; cp /etc/resolv.conf "$1"/etc/`, "sh", dir, m.debian),
			m.sync(),
			timed(cold, "env", "DEBIAN_FRONTEND=noninteractive", "chroot", dir, "sh", "-ec", install),
			do(func(context.Context) error { return os.RemoveAll(dir) }),
		}
	}}
	return append(lanes, limit), err
}
