package main

import (
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// An image cannot have its monitor check without a pause, nor in ways that
// there are not.
func TestHealthOfHostileImages(t *testing.T) {
	for _, check := range []dockerspec.HealthcheckConfig{
		{Interval: -5, Timeout: -1, StartPeriod: -1, StartInterval: -1, Retries: -3}, {Interval: 1, Timeout: 1, StartInterval: 1},
	} {
		check.Test = []string{"CMD", "true"}
		h, err := (&healthFlags{}).health(&dockerspec.DockerOCIImageConfig{DockerOCIImageConfigExt: dockerspec.DockerOCIImageConfigExt{Healthcheck: &check}})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []time.Duration{h.Interval, h.Timeout, h.StartPeriod, h.StartInterval, time.Duration(h.Retries)} {
			if d != 0 {
				t.Errorf("%+v: %+v, want the defaults", check, h)
			}
		}
	}
	for _, test := range [][]string{nil, {"CMD"}, {"NONE", "x"}, {"FOO", "x"}} {
		check := &dockerspec.HealthcheckConfig{Test: test}
		h, err := (&healthFlags{}).health(&dockerspec.DockerOCIImageConfig{DockerOCIImageConfigExt: dockerspec.DockerOCIImageConfigExt{Healthcheck: check}})
		if h != nil || err != nil {
			t.Errorf("%q: %+v, %v", test, h, err)
		}
	}
}
