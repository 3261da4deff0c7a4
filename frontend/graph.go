package frontend

import (
	"fmt"
	"strings"

	"kiln.build/solver"
)

// Format prints the graph below a vertex for people and golden files: each
// vertex once, dependencies first, with a number, its step's name, its op's
// description, and the numbers of what it is applied to.
func Format(target *solver.Vertex) string {
	var b strings.Builder
	numbers := map[*solver.Vertex]int{}
	var visit func(v *solver.Vertex) int
	visit = func(v *solver.Vertex) int {
		if n, ok := numbers[v]; ok {
			return n
		}
		list := func(vs []*solver.Vertex) string {
			var words []string
			for _, d := range vs {
				words = append(words, fmt.Sprintf("v%d", visit(d)))
			}
			return strings.Join(words, " ")
		}
		inputs, using, below := list(v.Inputs), list(v.Using), ""
		if v.Below != nil {
			below = fmt.Sprintf("v%d", visit(v.Below))
		}
		n := len(numbers) + 1
		numbers[v] = n
		fmt.Fprintf(&b, "v%d", n)
		if v.Step != nil && v.Step.Name != "" {
			fmt.Fprintf(&b, " %q", v.Step.Name)
		}
		if v.Volatile {
			b.WriteString(" volatile")
		}
		if v.Fresh {
			b.WriteString(" fresh")
		}
		b.WriteByte('\n')
		for line := range strings.Lines(solver.Describe(v.Op)) {
			b.WriteString("\t" + line)
		}
		for _, row := range []struct{ label, value string }{{"inputs", inputs}, {"using", using}, {"below", below}} {
			if row.value != "" {
				fmt.Fprintf(&b, "\t%s: %s\n", row.label, row.value)
			}
		}
		return n
	}
	visit(target)
	return b.String()
}
