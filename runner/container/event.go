package container

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"time"

	"kiln.build/runner/journal"
)

// Event is something that happened to a container, image, volume or network,
// in the form that docker gives it.
type Event struct {
	Status   string `json:"status,omitempty"` // as Action, of containers and images
	ID       string `json:"id,omitempty"`     // as Actor.ID, of these
	From     string `json:"from,omitempty"`   // the container's image
	Type     string // "container", "image", "volume" or "network"
	Action   string
	Actor    Actor
	Scope    string `json:"scope"`
	Time     int64  `json:"time"` // seconds since 1970
	TimeNano int64  `json:"timeNano"`
}

// Actor is what an event happened to.
type Actor struct {
	ID         string
	Attributes map[string]string
}

// The journal of events keeps the last ones, some ten thousand.
const (
	maxEvents     = 1 << 20
	maxEventFiles = 4
)

// events is the journal of events, beside the containers' folder. Everybody
// who changes something adds to it; nothing depends on it.
func (s Set) events() journal.File {
	return journal.File{Path: filepath.Join(filepath.Dir(s.Dir), "events"), Max: maxEvents, Keep: maxEventFiles}
}

// Note writes an event down. Attributes come in pairs of name and value. That
// it cannot be written, on a full disk for one, stops nobody.
func (s Set) Note(kind, action, id string, attributes ...string) {
	a := make(map[string]string, len(attributes)/2)
	for i := 0; i+1 < len(attributes); i += 2 {
		a[attributes[i]] = attributes[i+1]
	}
	s.note(kind, action, id, a)
}

func (s Set) note(kind, action, id string, attributes map[string]string) {
	now := time.Now()
	e := Event{
		Type: kind, Action: action, Actor: Actor{id, attributes},
		Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano(),
	}
	if kind == "container" || kind == "image" {
		e.Status, e.ID, e.From = action, id, attributes["image"]
	}
	if data, err := json.Marshal(e); err == nil {
		_ = s.events().Append(data)
	}
}

// Note writes down an event of the container, with its image, name and labels
// beside the attributes, which come in pairs of name and value.
func (c *Container) Note(action string, attributes ...string) {
	a := map[string]string{}
	maps.Copy(a, c.Labels)
	a["image"], a["name"] = c.Image, c.Name
	for i := 0; i+1 < len(attributes); i += 2 {
		a[attributes[i]] = attributes[i+1]
	}
	c.set().note("container", action, c.ID, a)
}

// set is the one that the container is of.
func (c *Container) set() Set { return Set{filepath.Dir(c.dir)} }

// EventOptions say which events are wanted.
type EventOptions struct {
	Since, Until time.Time // Until in the future, or zero, waits for events
	Match        func(*Event) bool
}

// Events calls f for the events of the store, the oldest first: those since a
// time, if one is given, and those that happen until a time, or until ctx
// ends.
func (s Set) Events(ctx context.Context, o EventOptions, f func(*Event) error) error {
	since := o.Since
	if since.IsZero() {
		since = time.Now()
	}
	over := func() bool { return !o.Until.IsZero() && time.Now().After(o.Until) }
	return s.events().Follow(ctx, over, func(line []byte) error {
		e := &Event{}
		if json.Unmarshal(line, e) != nil {
			return nil // torn by a full disk
		}
		at := time.Unix(0, e.TimeNano)
		if at.Before(since) || !o.Until.IsZero() && at.After(o.Until) || !o.Match(e) {
			return nil
		}
		return f(e)
	})
}

// EventFilter reads values of --filter for events. Of several values of one
// key one must match, but of labels all.
func EventFilter(filters []string) (func(*Event) bool, error) {
	tests := map[string][]func(*Event) bool{}
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok || value == "" {
			return nil, fmt.Errorf("invalid filter %q: must be KEY=VALUE", f)
		}
		t := eventTest(key, value)
		if t == nil {
			return nil, fmt.Errorf("invalid filter '%s'", key)
		}
		if key == "label" {
			key = f
		}
		tests[key] = append(tests[key], t)
	}
	return func(e *Event) bool {
		for _, any := range tests {
			matched := false
			for _, t := range any {
				matched = matched || t(e)
			}
			if !matched {
				return false
			}
		}
		return true
	}, nil
}

func eventTest(key, value string) func(*Event) bool {
	switch key {
	case "type":
		return func(e *Event) bool { return e.Type == value }
	case "event":
		// "exec_create: sh" and "health_status: healthy" are also known by
		// what comes before the colon.
		return func(e *Event) bool {
			return e.Action == value || strings.HasPrefix(e.Action, value+":")
		}
	case "container", "volume", "network":
		return func(e *Event) bool {
			if e.Type != key {
				return e.Actor.Attributes[key] == value
			}
			name := strings.TrimPrefix(value, "/")
			return e.Actor.Attributes["name"] == name || strings.HasPrefix(e.Actor.ID, value)
		}
	case "image":
		return func(e *Event) bool {
			name := e.Actor.Attributes["image"]
			if e.Type == "image" {
				name = e.Actor.Attributes["name"]
			}
			bare := name
			if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
				bare = name[:i]
			}
			return name == value || bare == value || e.Type == "image" && strings.HasPrefix(e.Actor.ID, value)
		}
	case "label":
		name, want, has := strings.Cut(value, "=")
		return func(e *Event) bool {
			v, ok := e.Actor.Attributes[name]
			return ok && (!has || v == want)
		}
	case "scope":
		return func(e *Event) bool { return e.Scope == value }
	}
	return nil
}
