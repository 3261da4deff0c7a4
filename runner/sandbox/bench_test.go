package sandbox

import "testing"

// BenchmarkStart is start to end of a static program in a full sandbox.
func BenchmarkStart(b *testing.B) {
	for _, c := range []struct {
		name string
		set  func(*Spec)
	}{
		{"full", func(*Spec) {}},
		{"limits", func(s *Spec) { s.Limits = Limits{Memory: 256 << 20, Pids: 100} }},
		{"hostnet", func(s *Spec) { s.Network.Host = true }},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := spec(b, "true")
			c.set(&s)
			for b.Loop() {
				p, err := Start(b.Context(), s)
				if err != nil {
					b.Fatal(err)
				}
				if status, err := p.Wait(); err != nil || status.Code != 0 {
					b.Fatal(status, err)
				}
			}
		})
	}
}
