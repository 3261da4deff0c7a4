package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"kiln.build/cache/registry"
	"kiln.build/exporter/images"
	"kiln.build/runner/container"
)

func (a *app) eventsCommand() *cobra.Command {
	var since, until, format string
	var filters []string
	c := &cobra.Command{
		Use: "events [flags]", Short: "Show what happens to containers, images, volumes and networks", Args: cobra.NoArgs,
		Long: `Show what happens to containers, images, volumes and networks, from now on or
since a time. Every command notes in the store what it does; the last ten
thousand events or so are kept.`,
		Example: "  kiln events --since 10m --until 0s --filter type=container",
		RunE: func(c *cobra.Command, _ []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			var o container.EventOptions
			if o.Since, err = when("--since", since); err != nil {
				return err
			}
			if o.Until, err = when("--until", until); err != nil {
				return err
			}
			if o.Since.After(o.Until) && !o.Until.IsZero() {
				return fmt.Errorf("`since` time (%s) cannot be after `until` time (%s)", since, until)
			}
			if o.Since.IsZero() && !o.Until.IsZero() {
				o.Since = time.Unix(0, 0) // all that is known up to then
			}
			if o.Match, err = container.EventFilter(filters); err != nil {
				return err
			}
			show, err := a.eventFormat(format)
			if err != nil {
				return err
			}
			return withoutPipe(set.Events(c.Context(), o, show))
		},
	}
	c.Flags().StringVar(&since, "since", "", "from this time on: RFC 3339, or a duration such as 10m (default now, with --until all that is known)")
	c.Flags().StringVar(&until, "until", "", "up to this time, and end then")
	c.Flags().StringArrayVarP(&filters, "filter", "f", nil, "container, event, image, label, network, scope, type, volume =VALUE (repeatable)")
	c.Flags().StringVar(&format, "format", "", "print as: json, or a Go template")
	return c
}

// noteImage writes an event of an image down.
func noteImage(ctx context.Context, s *images.Store, action, name string) {
	id := name
	if found, err := s.Find(ctx, name); err == nil && found.ID != "" {
		id = string(found.ID)
	}
	if ref, err := registry.ParseReference(name); err == nil && id != name {
		name = ref.Familiar()
	}
	containers(s.Cache).Note("image", action, id, "name", name)
}

// noteRemoved writes down that an image lost names, and is gone with the last.
func noteRemoved(s *images.Store, r images.Removed) {
	set := containers(s.Cache)
	for _, n := range r.Untagged {
		id := string(r.Deleted)
		if id == "" {
			id = n
		}
		set.Note("image", "untag", id, "name", images.Familiar(n))
	}
	if r.Deleted != "" {
		set.Note("image", "delete", string(r.Deleted), "name", string(r.Deleted))
	}
}

// eventFormat returns what prints an event.
func (a *app) eventFormat(format string) (func(*container.Event) error, error) {
	switch format {
	case "":
		return func(e *container.Event) error {
			var b strings.Builder
			for _, k := range slices.Sorted(maps.Keys(e.Actor.Attributes)) {
				if b.Len() > 0 {
					b.WriteString(", ")
				}
				b.WriteString(k + "=" + e.Actor.Attributes[k])
			}
			_, err := fmt.Fprintf(tamed(a.stdout), "%s %s %s %s (%s)\n",
				time.Unix(0, e.TimeNano).Format("2006-01-02T15:04:05.000000000Z07:00"), e.Type, e.Action, e.Actor.ID, &b)
			return err
		}, nil
	case "json":
		return func(e *container.Event) error {
			data, err := json.Marshal(e)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(append(data, '\n'))
			return err
		}, nil
	}
	t, err := parseFormat(format)
	if err != nil {
		return nil, err
	}
	return func(e *container.Event) error { return printEach(a.stdout, t, []*container.Event{e}) }, nil
}
