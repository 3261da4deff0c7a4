package exporter

import (
	"time"

	"kiln.build/solver"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// completeHistory returns an image's history with the time of every entry,
// and with as many entries for layers as there are layers. Entries of layers
// that have no time get that of their layer; others get that of the entry
// before, or of the first new layer where none of those is before. Times are
// not later than epoch, if that is set. The rules are BuildKit's.
func completeHistory(history []v1.History, layers []solver.Layer, epoch *time.Time) []v1.History {
	all := matchLayers(history, layers)
	layer := 0
	for i := range all {
		if all[i].EmptyLayer {
			continue
		}
		if all[i].Created == nil {
			all[i].Created = &layers[layer].Created
		}
		layer++
	}
	fillTimes(all)
	for i := range all {
		if all[i].Created != nil {
			all[i].Created = clamp(*all[i].Created, epoch)
		}
	}
	return all
}

// matchLayers copies a history and makes it fit the number of layers. Base
// images made by other tools have entries that are missing or too many.
func matchLayers(history []v1.History, layers []solver.Layer) []v1.History {
	all := make([]v1.History, 0, len(history)+len(layers))
	entries := 0
	for _, h := range history {
		if !h.EmptyLayer {
			entries++
		}
	}
	// Missing and surplus entries are taken to be the oldest: those that our
	// own instructions added last are right.
	for i := range layers[:max(0, len(layers)-entries)] {
		h := v1.History{Created: &layers[i].Created, Comment: "kiln: layer without a history entry"}
		all = append(all, h)
	}
	surplus := entries - len(layers)
	for _, h := range history {
		if !h.EmptyLayer && surplus > 0 {
			h.EmptyLayer = true
			surplus--
		}
		all = append(all, h)
	}
	return all
}

// fillTimes gives the entries without a time one.
func fillTimes(all []v1.History) {
	// Instructions between the base image and the first new layer are as new
	// as that layer and not as old as the base.
	var created *time.Time
	missing := false
	for _, h := range all {
		if h.Created == nil {
			missing = true
			continue
		}
		created = h.Created
		if missing {
			break
		}
	}
	missing = false
	for i := range all {
		switch {
		case all[i].Created == nil:
			missing = true
			all[i].Created = created
		case missing:
			created = all[i].Created
		}
	}
}

// clamp is t in UTC, not later than epoch.
func clamp(t time.Time, epoch *time.Time) *time.Time {
	if epoch != nil && t.After(*epoch) {
		t = *epoch
	}
	t = t.UTC()
	return &t
}
