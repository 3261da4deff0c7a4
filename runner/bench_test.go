package runner

import (
	"fmt"
	"testing"

	"kiln.build/solver"
)

// BenchmarkExec is a whole RUN that does nothing: overlay mount, sandbox,
// scan, commit.
func BenchmarkExec(b *testing.B) {
	bed := newBed(b)
	root := bed.build(bed.stage(world...))
	r := &Runner{Store: bed.store}
	a := &solver.Action{Op: do(nil, "echo").Exec, Inputs: []solver.Output{root}, Below: &root}
	for b.Loop() {
		if _, err := r.Run(b.Context(), a); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCopy selects and copies 5,000 small files, and finds out that
// nothing has changed.
func BenchmarkCopy(b *testing.B) {
	bed := newBed(b)
	text := fmt.Sprintf("%02000d", 0)
	var files []string
	for i := range 5000 {
		files = append(files, fmt.Sprintf("f 644 0:0 d/%02d/%04d %d%s", i%100, i, i, text))
	}
	bed.put(files...)
	b.Run("changed", func(b *testing.B) {
		// Another mode each time: the layers stay, for where files have just
		// been deleted ext4 is slow to make others.
		c := copyTo("/", "d")
		for i := 0; b.Loop(); i++ {
			c.chmod = fmt.Sprintf("%o", i)
			bed.build(c.vertex())
		}
	})
	b.Run("unchanged", func(b *testing.B) {
		v := copyTo("/", "d").vertex()
		for b.Loop() {
			bed.build(v)
		}
	})
}
