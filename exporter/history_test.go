package exporter

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"kiln.build/solver"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// day is midnight of a day of January 2024.
func day(n int) *time.Time {
	t := time.Date(2024, 1, n, 0, 0, 0, 0, time.UTC)
	return &t
}

func TestCompleteHistory(t *testing.T) {
	entry := func(name string, created *time.Time, empty bool) v1.History {
		return v1.History{CreatedBy: name, Created: created, EmptyLayer: empty}
	}
	layers := func(days ...int) []solver.Layer {
		var all []solver.Layer
		for _, d := range days {
			all = append(all, solver.Layer{Created: *day(d)})
		}
		return all
	}
	tests := []struct {
		name    string
		history []v1.History
		layers  []solver.Layer
		epoch   *time.Time
		want    string // entries, as name and day, "-" before empty ones
	}{
		{"nothing", nil, nil, nil, ""},
		{"metadata over a base takes the base's time",
			[]v1.History{entry("base", day(1), false), entry("env", nil, true)}, layers(1), nil,
			"base:1 -env:1"},
		{"metadata before a layer takes the layer's time, after it the same",
			[]v1.History{entry("base", day(1), false), entry("env", nil, true), entry("copy", nil, false), entry("cmd", nil, true), entry("run", nil, false), entry("label", nil, true)},
			layers(1, 5, 6), nil,
			"base:1 -env:5 copy:5 -cmd:5 run:6 -label:6"},
		{"nothing is later than the epoch",
			[]v1.History{entry("base", day(1), false), entry("copy", nil, false), entry("cmd", nil, true)}, layers(1, 9), day(3),
			"base:1 copy:3 -cmd:3"},
		{"a base without a history",
			[]v1.History{entry("copy", nil, false)}, layers(1, 2, 5), nil,
			":1 :2 copy:5"},
		{"a base with too long a history",
			[]v1.History{entry("ghost", day(1), false), entry("base", day(2), false), entry("copy", nil, false)}, layers(2, 5), nil,
			"-ghost:1 base:2 copy:5"},
		{"from scratch with metadata alone",
			[]v1.History{entry("env", nil, true)}, nil, nil,
			"-env"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, h := range completeHistory(tt.history, tt.layers, tt.epoch) {
				s := h.CreatedBy
				if h.EmptyLayer {
					s = "-" + s
				}
				if h.Created != nil {
					s += fmt.Sprintf(":%d", h.Created.Day())
				}
				got = append(got, s)
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
}
