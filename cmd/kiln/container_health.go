package main

import (
	"errors"
	"fmt"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/spf13/pflag"
	"kiln.build/runner/container"
)

// healthFlags are the flags of run and create for health checks, as typed.
type healthFlags struct {
	command                                       string
	interval, timeout, startPeriod, startInterval time.Duration
	retries                                       int
	none                                          bool
}

func (f *healthFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.command, "health-cmd", "", "command line that checks the container's health")
	fs.DurationVar(&f.interval, "health-interval", 0, "time between two checks (default 30s)")
	fs.IntVar(&f.retries, "health-retries", 0, "failures in a row after which it is unhealthy (default 3)")
	fs.DurationVar(&f.timeout, "health-timeout", 0, "time that a check may take (default 30s)")
	fs.DurationVar(&f.startPeriod, "health-start-period", 0, "time to start in which failures do not count")
	fs.DurationVar(&f.startInterval, "health-start-interval", 0, "time between two checks in the start period (default 5s)")
	fs.BoolVar(&f.none, "no-healthcheck", false, "do not do the checks that the image has")
}

// health is the image's check, changed as the flags say; nil is none.
func (f *healthFlags) health(img *dockerspec.DockerOCIImageConfig) (*container.Health, error) {
	set := f.command != "" || f.interval != 0 || f.timeout != 0 || f.startPeriod != 0 || f.startInterval != 0 || f.retries != 0
	if f.none {
		if set {
			return nil, errors.New("--no-healthcheck conflicts with --health-* options")
		}
		return nil, nil
	}
	h := &container.Health{Shell: img.Shell}
	if i := img.Healthcheck; i != nil {
		h.Test, h.Interval, h.Timeout, h.Retries = i.Test, i.Interval, i.Timeout, i.Retries
		h.StartPeriod, h.StartInterval = i.StartPeriod, i.StartInterval
		// What is refused to the user is not for an image either: its monitor
		// would check without a pause.
		for _, d := range []*time.Duration{&h.Interval, &h.Timeout, &h.StartPeriod, &h.StartInterval} {
			if *d < time.Millisecond {
				*d = 0
			}
		}
		h.Retries = max(h.Retries, 0)
	}
	if f.command != "" {
		h.Test = []string{"CMD-SHELL", f.command}
	}
	for _, d := range []struct {
		name  string
		value time.Duration
		to    *time.Duration
	}{
		{"interval", f.interval, &h.Interval}, {"timeout", f.timeout, &h.Timeout},
		{"start-period", f.startPeriod, &h.StartPeriod}, {"start-interval", f.startInterval, &h.StartInterval},
	} {
		switch {
		case d.value < 0:
			return nil, fmt.Errorf("--health-%s cannot be negative", d.name)
		case d.value > 0 && d.value < time.Millisecond:
			return nil, fmt.Errorf("--health-%s cannot be less than 1ms", d.name)
		case d.value > 0:
			*d.to = d.value
		}
	}
	if f.retries < 0 {
		return nil, errors.New("--health-retries cannot be negative")
	}
	if f.retries > 0 {
		h.Retries = f.retries
	}
	if len(h.Test) < 2 || h.Test[0] != "CMD" && h.Test[0] != "CMD-SHELL" { // NONE, too
		return nil, nil
	}
	return h, nil
}
