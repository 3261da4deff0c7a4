package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// benchCase is one thing that is measured.
type benchCase struct {
	name string
	note string

	// context writes the Dockerfile and its files; nil for a case that
	// starts containers.
	context func(m *machine, dir string) error

	// fresh changes the file "nonce" before each run, on which all steps
	// depend.
	fresh bool
}

// The base is unpacked by the Dockerfile itself, so that every builder has
// the same one and none needs a registry.
const base = "FROM scratch AS base\nADD root.tar /\nENV PATH=/bin\n"

var cases = []benchCase{
	{name: "noop", note: "ten steps, all cached", context: func(m *machine, dir string) error {
		return dockerfile(m, dir, base+"FROM base\nCOPY nonce /\n"+runs(8))
	}},
	{name: "cold", note: "the same ten steps, none cached", fresh: true, context: func(m *machine, dir string) error {
		return dockerfile(m, dir, base+"FROM base\nCOPY nonce /\n"+runs(8))
	}},
	{name: "run", note: "thirty RUN steps in a row", fresh: true, context: func(m *machine, dir string) error {
		return dockerfile(m, dir, base+"FROM base\nCOPY nonce /\n"+runs(30))
	}},
	{name: "wide", note: "eight stages of sleep 1", fresh: true, context: func(m *machine, dir string) error {
		var b strings.Builder
		b.WriteString(base)
		for i := range 8 {
			fmt.Fprintf(&b, "FROM base AS s%d\nCOPY nonce /\nRUN sleep 1; echo %d > /out\n", i, i)
		}
		b.WriteString("FROM scratch\n")
		for i := range 8 {
			fmt.Fprintf(&b, "COPY --from=s%d /out /out%d\n", i, i)
		}
		return dockerfile(m, dir, b.String())
	}},
	{name: "scale", note: "a thousand stages, all cached", context: func(m *machine, dir string) error {
		var b strings.Builder
		b.WriteString("FROM scratch AS s0\nCOPY nonce /f\n")
		for i := 1; i < 1000; i++ {
			fmt.Fprintf(&b, "FROM scratch AS s%d\nCOPY --from=s%d /f /f\n", i, i-1)
		}
		return dockerfile(m, dir, b.String())
	}},
	{name: "start", note: "start to exit of true in a container"},
}

// runs are RUN steps of one small file each.
func runs(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "RUN echo %d > /f%d\n", i, i)
	}
	return b.String()
}

func dockerfile(m *machine, dir, text string) error {
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(text), 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "nonce"), []byte("0"), 0o644); err != nil {
		return err
	}
	return os.Link(m.root, filepath.Join(dir, "root.tar"))
}
