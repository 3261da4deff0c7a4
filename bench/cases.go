package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The base is unpacked by the Dockerfile itself, so that every builder has
// the same one and none needs a registry.
const base = "FROM scratch AS base\nADD root.tar /\nENV PATH=/bin\n"

// twelve is a build of two stages and twelve steps.
const twelve = base + `FROM base AS make
WORKDIR /src
COPY nonce .
RUN echo 1 > f1
RUN echo 2 > f2
RUN echo 3 > f3
RUN cat nonce f1 f2 f3 > out
FROM base
COPY --from=make /src/out /app/
RUN cat /app/out > /app/a
RUN cat /app/a > /app/b
CMD ["/bin/true"]
`

var cases = []benchCase{
	{name: "noop", what: "twelve steps in two stages, all cached: to the store, to an OCI tar",
		turns: 7, warm: 1, lanes: noop},
	{name: "full", what: "the same, to the store, with 2,500 images there",
		turns: 7, warm: 1, lanes: full},
	{name: "cold", what: "the same twelve steps, none but the base cached",
		turns: 5, warm: 1, lanes: cold},
	{name: "run", what: "thirty RUN steps in a row; figures are for one",
		turns: 5, warm: 1, per: 30, lanes: manyRuns},
	{name: "wide", what: "eight stages of sleep 1",
		turns: 3, warm: 1, lanes: wide},
	{name: "context", what: "COPY of 20,000 files, 200 MB: cold, the same, one file changed",
		turns: 3, lanes: contextStore},
	{name: "contexttar", what: "the same to an OCI tar with gzip, one file changed",
		turns: 3, lanes: contextArchive},
	{name: "pull", what: "cold pull of a Debian base from a registry on loopback, and one RUN",
		turns: 3, warm: 1, needs: first(needsRegistry, needsDebian), lanes: pull},
	{name: "export", what: "1 GiB made by a RUN to an OCI tar: gzip, zstd, gzip again",
		turns: 2, needs: lacks("pigz", "zstd"), lanes: export},
	{name: "push", what: "the same to a registry on loopback: nothing made, only the config new, again",
		turns: 2, needs: first(needsRegistry, lacks("pigz")), lanes: push},
	{name: "app", what: "apt-get install python3 git, COPY, second stage: cold, one line changed, the same to an OCI tar",
		turns: 2, needs: first(needsRegistry, needsDebian), lanes: app},
	{name: "scale", what: "3,000 instructions in 1,000 stages: cold, all cached",
		turns: 3, lanes: scale},
	{name: "start", what: "a container, from start to exit of true",
		turns: 15, warm: 1, lanes: start},
}

// project writes a Dockerfile, the file "nonce", and links the base.
func (m *machine) project(dir, dockerfile string) error {
	if err := write(dir, map[string]string{"Dockerfile": dockerfile, "nonce": "0\n"}); err != nil {
		return err
	}
	if !strings.Contains(dockerfile, "root.tar") {
		return nil
	}
	return os.Link(m.root, filepath.Join(dir, "root.tar"))
}

func noop(m *machine) ([]lane, error) {
	archive := func(dir string) string { return dir + ".tar" }
	lanes, err := m.builders(func(b builder, dir string) (lane, error) {
		return lane{turn: func(int) []step {
			return []step{
				timed("noop, to the store", b.build(dir, output{kind: "store"})...),
				timed("noop, to an OCI tar", b.build(dir, output{kind: "oci", to: archive(dir)})...),
			}
		}}, m.project(dir, twelve)
	})
	limit := lane{name: "true; cp of the tar", turn: func(int) []step {
		kiln := archive(filepath.Join(m.dir, "kiln"))
		return []step{
			timed("noop, to the store", "true"),
			timed("noop, to an OCI tar", "cp", kiln, kiln+".copy"),
		}
	}}
	return append(lanes, limit), err
}

// full fills Kiln's store with images.
func full(m *machine) ([]lane, error) {
	dir := filepath.Join(m.dir, "kiln")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	return []lane{{name: "kiln", turn: func(i int) []step {
		steps := []step{timed("noop, to a store with 2,500 images", m.kilnBuilder().build(dir, output{kind: "store"})...)}
		if i == 0 {
			fill := "i=0; while [ $i -lt 2500 ]; do \"$1\" build -q -t full:$i --label n=$i \"$2\" >/dev/null; i=$((i+1)); done"
			steps = append(steps, untimed("sh", "-ec", fill, "sh", m.kiln()[0], dir))
		}
		return steps
	}}}, m.project(dir, twelve)
}

func cold(m *machine) ([]lane, error) {
	lanes, err := m.builders(func(b builder, dir string) (lane, error) {
		return lane{turn: func(i int) []step {
			return []step{change(dir+"/nonce", i), timed("cold", b.build(dir, output{kind: "store"})...)}
		}}, m.project(dir, twelve)
	})
	limit := lane{name: "six shells", turn: func(int) []step {
		return []step{shell("cold", `for i in 1 2 3 4 5 6; do sh -c "echo $i > $1"; done`, m.dir+"/f")}
	}}
	return append(lanes, limit), err
}

func manyRuns(m *machine) ([]lane, error) {
	var b strings.Builder
	b.WriteString(base + "FROM base\nCOPY nonce /\n")
	for i := range 30 {
		fmt.Fprintf(&b, "RUN echo %d > /f%d\n", i, i)
	}
	return m.builders(func(bl builder, dir string) (lane, error) {
		return lane{turn: func(i int) []step {
			return []step{change(dir+"/nonce", i), timed("one of 30 RUNs", bl.build(dir, output{kind: "store"})...)}
		}}, m.project(dir, b.String())
	})
}

func wide(m *machine) ([]lane, error) {
	var b strings.Builder
	b.WriteString(base)
	for i := range 8 {
		fmt.Fprintf(&b, "FROM base AS s%d\nCOPY nonce /\nRUN sleep 1; echo %d > /out\n", i, i)
	}
	b.WriteString("FROM scratch\n")
	for i := range 8 {
		fmt.Fprintf(&b, "COPY --from=s%d /out /out%d\n", i, i)
	}
	lanes, err := m.builders(func(bl builder, dir string) (lane, error) {
		return lane{turn: func(i int) []step {
			// Podman and buildah build stages one by one unless told.
			argv := bl.build(dir, output{kind: "store"})
			if bl.name == "buildah" || bl.name == "podman" {
				argv[2] = strings.Replace(argv[2], "--layers", "--jobs=8 --layers", 1)
			}
			return []step{change(dir+"/nonce", i), timed("wide", argv...)}
		}}, m.project(dir, b.String())
	})
	limit := lane{name: "sleep", turn: func(int) []step { return []step{timed("wide", "sleep", "1")} }}
	return append(lanes, limit), err
}

func scale(m *machine) ([]lane, error) {
	var b strings.Builder
	b.WriteString("FROM scratch AS s0\nWORKDIR /d0\nCOPY nonce /f\n")
	for i := 1; i < 1000; i++ {
		fmt.Fprintf(&b, "FROM scratch AS s%d\nWORKDIR /d%d\nCOPY --from=s%d /f /f\n", i, i, i-1)
	}
	var lanes []lane
	all, err := m.builders(func(bl builder, dir string) (lane, error) {
		// A name that no earlier turn had in each line makes all of it new.
		fresh := func(i int) step {
			return do(func(context.Context) error {
				return write(dir, map[string]string{
					"Dockerfile": strings.ReplaceAll(b.String(), "/d", fmt.Sprintf("/t%d/d", i)),
					"nonce":      fmt.Sprintln(i),
				})
			})
		}
		return lane{turn: func(i int) []step {
			return []step{
				fresh(i),
				timed("scale, cold", bl.build(dir, output{kind: "store"})...),
				timed("scale, all cached", bl.build(dir, output{kind: "store"})...),
			}
		}}, m.project(dir, b.String())
	})
	for _, l := range all {
		if l.name == "kiln" || l.name == "buildkit" { // the others take many minutes
			lanes = append(lanes, l)
		}
	}
	return lanes, err
}
