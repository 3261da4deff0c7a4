package dockerfile

import (
	"runtime"
	"strings"
	"testing"
)

// TestMemoryIsBounded: a short text cannot fill the memory.
func TestMemoryIsBounded(t *testing.T) {
	double := "ENV A=0123456789abcdef\n" + strings.Repeat("ENV A=$A$A\n", 40)
	long := "ENV A=" + strings.Repeat("a", 20<<10) + "\n"
	for _, test := range []struct{ name, text string }{
		{"doubled", double},
		{"doubled global", strings.ReplaceAll(double, "ENV", "ARG") + "FROM base"},
		{"doubled argument", strings.ReplaceAll(double, "ENV", "ARG")},
		{"squared", long + "ENV B=${A//a/$A}\nENV B=${B//a/$B}"},
		{"cubed", long + "ENV B=${A//a/${A//a/$A}}"},
		{"long replacement", long + "ENV B=${A//a/" + strings.Repeat("x", 200<<10) + "}"},
		{"ports", strings.Repeat("EXPOSE 0-65535\n", 100)},
		{"environments", "ENV A=" + strings.Repeat("a", 1<<20) + "\n" + strings.Repeat("RUN x\n", 2000)},
	} {
		t.Run(test.name, func(t *testing.T) {
			text := test.text
			if !strings.HasPrefix(text, "ARG") || !strings.Contains(text, "FROM") {
				text = "FROM base\n" + text
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := lower(t, text, nil)
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), "too much text") {
				t.Errorf("got %v, want an error", err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 4<<30 {
				t.Errorf("allocated %d MiB", used>>20)
			}
		})
	}
}

// TestUsualReplacements: what real files do is far below the limits.
func TestUsualReplacements(t *testing.T) {
	mustLower(t, "FROM base\nENV P="+strings.Repeat("/usr/local/bin:", 100)+"\nENV Q=\"${P//:/ }\"\nENV R=${P//bin/${LANG//C/D}}\n"+
		"COPY <<E /x\n"+strings.Repeat("$P ${Q:-/x} http://example.com/${R%:}\n", 20)+"E\n", nil)
}
