package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A row is what one lane took for one thing.
type row struct {
	label, lane string
	per         int
	samples     []sample
	err         error
}

func (r *row) times() []time.Duration {
	var all []time.Duration
	for _, s := range r.samples {
		all = append(all, s.took/time.Duration(max(r.per, 1)))
	}
	slices.Sort(all)
	return all
}

func (r *row) peak() int64 {
	var most int64
	for _, s := range r.samples {
		most = max(most, s.peak)
	}
	return most
}

// disturbed says how many samples were, and why one was.
func (r *row) disturbed() string {
	n, reason := 0, ""
	for _, s := range r.samples {
		if s.reason != "" {
			n, reason = n+1, s.reason
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d disturbed: %s", n, len(r.samples), reason)
}

// header says what was measured where.
func header(w io.Writer, m *machine, p *place) {
	fmt.Fprintf(w, "%s, %d processors (%s), %s; %s.\n", kernel(), runtime.NumCPU(), processor(), memory(), p.what)
	fmt.Fprintf(w, "%s.\n\n", strings.Join(m.versions(), "; "))
}

// table prints medians and ranges, and how long kiln took of the others'
// time.
func table(out io.Writer, rows []*row) error {
	w := tabwriter.NewWriter(out, 0, 0, 1, ' ', 0)
	fmt.Fprintln(w, "| work\t| who\t| median ms\t| min–max ms\t| n\t| peak MB\t| kiln takes\t| notes\t|")
	fmt.Fprintln(w, "|---\t|---\t|---:\t|---:\t|---:\t|---:\t|---:\t|---\t|")
	kiln := map[string]time.Duration{}
	for _, r := range rows {
		if r.lane == "kiln" && len(r.samples) > 0 {
			kiln[r.label] = median(r.times())
		}
	}
	for _, r := range rows {
		if r.err != nil {
			text, _, _ := strings.Cut(r.err.Error(), "\n")
			text = text[:min(len(text), 160)]
			fmt.Fprintf(w, "| %s\t| %s\t| –\t| –\t| 0\t| –\t| –\t| did not work: %s\t|\n", r.label, r.lane, text)
			continue
		}
		all := r.times()
		mid := median(all)
		ratio := ""
		if k, ok := kiln[r.label]; ok && r.lane != "kiln" {
			ratio = fmt.Sprintf("%.2f×", float64(k)/float64(mid))
		}
		fmt.Fprintf(w, "| %s\t| %s\t| %s\t| %s–%s\t| %d\t| %d\t| %s\t| %s\t|\n", r.label, r.lane,
			ms(mid), ms(all[0]), ms(all[len(all)-1]), len(all), r.peak()>>20, ratio, r.disturbed())
	}
	return w.Flush()
}

// median is that of sorted durations.
func median(d []time.Duration) time.Duration {
	if len(d)%2 == 1 {
		return d[len(d)/2]
	}
	return (d[len(d)/2-1] + d[len(d)/2]) / 2
}

func ms(d time.Duration) string {
	f := float64(d) / float64(time.Millisecond)
	if f >= 100 {
		return fmt.Sprintf("%.0f", f)
	}
	return fmt.Sprintf("%.1f", f)
}

func kernel() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown kernel"
	}
	// What follows the numbers is the name that a builder gave it.
	version, _, _ := strings.Cut(strings.TrimSpace(string(b)), "-")
	return "Linux " + version
}

func processor() string { return field("/proc/cpuinfo", "model name", runtime.GOARCH) }

func memory() string {
	var kb int64
	if _, err := fmt.Sscan(field("/proc/meminfo", "MemTotal", "0"), &kb); err != nil {
		return "memory unknown"
	}
	return fmt.Sprintf("%d GB of memory", (kb+512<<10)>>20)
}

// field is the value of the first line that starts with a name.
func field(path, name, unknown string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return unknown
	}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return unknown
}
