package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"kiln.build/cache"
	"kiln.build/exporter/images"
)

func (a *app) duCommand() *cobra.Command {
	var verbose bool
	var format string
	var filters []string
	c := &cobra.Command{
		Use:   "du [flags]",
		Short: "Show what takes space in the store",
		Long: `Show what takes space in the store. A row is reclaimable if kiln prune may remove
it now. Records of actions and other small things are summed up in a row each;
--verbose shows every one, with what it is from.

Filters are id=PREFIX, type=layer|action|blob|mount|image|context,
description=TEXT, shared=true|false, inuse=true|false, until=DURATION.`,
		Example: "  kiln du\n  kiln du --verbose --filter type=mount\n  kiln du --format json | jq .Size",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			match, err := usageFilter(filters)
			if err != nil {
				return err
			}
			return a.withImages(func(s *images.Store) error {
				rows, err := usage(c.Context(), s, match)
				if err != nil {
					return err
				}
				switch {
				case format == "json":
					return printUsageJSON(a.stdout, rows)
				case format != "" && format != "table":
					return printRows(a.stdout, format, "", usageHeaders, usageRows(rows))
				case verbose:
					err = printUsageVerbose(a.stdout, rows)
				default:
					err = printUsage(a.stdout, rows)
				}
				if err != nil {
					return err
				}
				return printUsageSums(a.stdout, rows)
			})
		},
	}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "show everything, and all about it")
	c.Flags().StringVar(&format, "format", "", formatHelp)
	c.Flags().StringArrayVar(&filters, "filter", nil, "show only what matches KEY=VALUE (repeatable)")
	return c
}

// parseFilters splits KEY=VALUE words.
func parseFilters(words []string) (map[string][]string, error) {
	m := map[string][]string{}
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			return nil, fmt.Errorf("--filter=%q: must be KEY=VALUE", w)
		}
		m[k] = append(m[k], v)
	}
	return m, nil
}

// usageFilter makes a function of --filter flags: of several with one key one
// must match, and of all keys.
func usageFilter(words []string) (func(cache.Usage) bool, error) {
	filters, err := parseFilters(words)
	if err != nil {
		return nil, err
	}
	tests := map[string]func(u cache.Usage, v string) bool{
		"id": func(u cache.Usage, v string) bool {
			return strings.HasPrefix(u.ID, v) || strings.HasPrefix(u.ID, "sha256:"+v)
		},
		"type":        func(u cache.Usage, v string) bool { return string(u.Kind) == v },
		"description": func(u cache.Usage, v string) bool { return strings.Contains(u.Description, v) },
		"shared":      func(u cache.Usage, v string) bool { return strconv.FormatBool(u.Shared) == v },
		"inuse":       func(u cache.Usage, v string) bool { return strconv.FormatBool(u.InUse) == v },
		"until": func(u cache.Usage, v string) bool {
			d, err := time.ParseDuration(v)
			return err == nil && time.Since(u.LastUsed) >= d
		},
	}
	for key := range filters {
		if tests[key] == nil {
			return nil, fmt.Errorf("--filter=%q: unknown key: must be id, type, description, shared, inuse or until", key)
		}
	}
	return func(u cache.Usage) bool {
		for key, values := range filters {
			if !slices.ContainsFunc(values, func(v string) bool { return tests[key](u, v) }) {
				return false
			}
		}
		return true
	}, nil
}

// usageRow is a thing in the store, as templates and JSON name its fields.
type usageRow struct {
	ID           string
	Type         string
	Reclaimable  bool
	Shared       bool
	Size         string
	Description  string    `json:",omitempty"`
	CreatedAt    time.Time `json:",omitzero"`
	LastUsedAt   time.Time `json:",omitzero"`
	LastAccessed string    `json:"-"`
	Bytes        int64     `json:"SizeBytes"`
}

var usageHeaders = map[string]string{
	"ID": "ID", "Type": "TYPE", "Reclaimable": "RECLAIMABLE", "Shared": "SHARED", "Size": "SIZE", "Bytes": "BYTES",
	"Description": "DESCRIPTION", "CreatedAt": "CREATED", "LastUsedAt": "LAST USED", "LastAccessed": "LAST ACCESSED",
}

// usage lists the store, the largest first. What images and containers need
// is not reclaimable; only a prune that changes nothing can tell.
func usage(ctx context.Context, s *images.Store, match func(cache.Usage) bool) ([]cache.Usage, error) {
	all, err := s.Cache.Usage(ctx)
	if err != nil {
		return nil, err
	}
	report, err := s.Cache.Prune(ctx, cache.PruneOptions{DryRun: true, All: true, Roots: roots(ctx, s)})
	if err != nil {
		return nil, err
	}
	type id struct {
		kind cache.Kind
		id   string
	}
	free := map[id]bool{}
	for _, u := range report.Removed {
		free[id{u.Kind, u.ID}] = true
	}
	rows := all[:0]
	for _, u := range all {
		u.InUse = !free[id{u.Kind, u.ID}]
		if match(u) {
			rows = append(rows, u)
		}
	}
	slices.SortStableFunc(rows, func(x, y cache.Usage) int { return cmp.Compare(y.Size, x.Size) })
	return rows, nil
}

func usageRows(all []cache.Usage) []usageRow {
	rows := make([]usageRow, len(all))
	for i, u := range all {
		rows[i] = usageRow{
			ID: u.ID, Type: string(u.Kind), Reclaimable: !u.InUse, Shared: u.Shared, Size: humanSize(u.Size), Bytes: u.Size,
			Description: u.Description, CreatedAt: u.Created, LastUsedAt: u.LastUsed, LastAccessed: units.HumanDuration(time.Since(u.LastUsed)) + " ago",
		}
	}
	return rows
}

func printUsageJSON(w io.Writer, all []cache.Usage) error {
	e := json.NewEncoder(w)
	for _, r := range usageRows(all) {
		if err := e.Encode(r); err != nil {
			return err
		}
	}
	return nil
}

// printUsage prints a row for each of the larger things.
func printUsage(w io.Writer, all []cache.Usage) error {
	tw := tabwriter.NewWriter(w, 1, 8, 1, '\t', 0)
	fmt.Fprintln(tw, "ID\tTYPE\tRECLAIMABLE\tSIZE\tLAST ACCESSED")
	type sum struct{ count, bytes int64 }
	sums := map[cache.Kind]*sum{}
	for _, r := range all {
		switch r.Kind {
		case cache.KindAction, cache.KindBlob, cache.KindContext:
			if sums[r.Kind] == nil {
				sums[r.Kind] = &sum{}
			}
			sums[r.Kind].count++
			sums[r.Kind].bytes += r.Size
			continue
		}
		id := strings.TrimPrefix(r.ID, "sha256:")
		if len(id) == 64 {
			id = id[:25]
		}
		fmt.Fprintf(tw, "%s\t%s\t%t\t%s\t%s ago\n", id, r.Kind, !r.InUse, humanSize(r.Size), units.HumanDuration(time.Since(r.LastUsed)))
	}
	for _, k := range []cache.Kind{cache.KindAction, cache.KindBlob, cache.KindContext} {
		if s := sums[k]; s != nil {
			fmt.Fprintf(tw, "(%d)\t%s\t\t%s\t\n", s.count, k, humanSize(s.bytes))
		}
	}
	return tw.Flush()
}

func printUsageVerbose(w io.Writer, all []cache.Usage) error {
	for _, u := range all {
		tw := tabwriter.NewWriter(w, 1, 8, 1, '\t', 0)
		fmt.Fprintf(tw, "ID:\t%s\n", u.ID)
		fmt.Fprintf(tw, "Created at:\t%s\n", u.Created.Local().Format(time.RFC3339))
		fmt.Fprintf(tw, "Reclaimable:\t%t\n", !u.InUse)
		fmt.Fprintf(tw, "Shared:\t%t\n", u.Shared)
		fmt.Fprintf(tw, "Size:\t%s\n", humanSize(u.Size))
		if u.Description != "" {
			fmt.Fprintf(tw, "Description:\t%s\n", u.Description)
		}
		fmt.Fprintf(tw, "Last used:\t%s ago\n", units.HumanDuration(time.Since(u.LastUsed)))
		fmt.Fprintf(tw, "Type:\t%s\n\n", u.Kind)
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	return nil
}

func printUsageSums(w io.Writer, all []cache.Usage) error {
	var shared, private, free, total int64
	for _, u := range all {
		total += u.Size
		if u.Shared {
			shared += u.Size
		} else {
			private += u.Size
		}
		if !u.InUse {
			free += u.Size
		}
	}
	tw := tabwriter.NewWriter(w, 1, 8, 1, '\t', 0)
	if shared > 0 {
		fmt.Fprintf(tw, "Shared:\t%s\nPrivate:\t%s\n", humanSize(shared), humanSize(private))
	}
	fmt.Fprintf(tw, "Reclaimable:\t%s\nTotal:\t%s\n", humanSize(free), humanSize(total))
	return tw.Flush()
}

// pruneFlags are those of kiln prune.
type pruneFlags struct {
	all, force, verbose, dryRun bool
	filters                     []string
	keep, reserved, maxUsed     string
	until                       time.Duration
}

func (a *app) pruneCommand() *cobra.Command {
	var f pruneFlags
	c := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Free space: remove what builds can make again",
		Long: `Free space: remove what builds can make again, what was used least lately first.
Images, containers and what running builds use are spared; so are results that
images consist of, unless --all is given. Removed images (see kiln rmi and kiln
image prune) give their space back here.

Filters are id=PREFIX, type=layer|action|blob|mount|image|context,
description=TEXT, shared=true|false, inuse=true|false, until=DURATION.`,
		Example: "  kiln prune\n  kiln prune --force --until 72h\n  kiln prune -f --keep-storage 20GB",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o, err := f.options()
			if err != nil {
				return err
			}
			warning := "This will remove all build cache that no image needs."
			if f.all {
				warning = "This will remove all build cache."
			}
			if ok, err := a.confirm(f.force || f.dryRun, warning); err != nil || !ok {
				return err
			}
			return a.withImages(func(s *images.Store) error {
				o.Roots = roots(c.Context(), s)
				return a.prune(c.Context(), s, o, f.verbose)
			})
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&f.all, "all", "a", false, "remove results that images consist of too")
	fs.BoolVarP(&f.force, "force", "f", false, "do not ask")
	fs.BoolVar(&f.verbose, "verbose", false, "show all about what is removed")
	fs.BoolVar(&f.dryRun, "dry-run", false, "only show what would be removed")
	fs.StringArrayVar(&f.filters, "filter", nil, "remove only what matches KEY=VALUE (repeatable)")
	fs.DurationVar(&f.until, "until", 0, "spare what was used within this time, such as 24h")
	fs.StringVar(&f.keep, "keep-storage", "", "stop when the store takes no more than this, such as 10GB")
	fs.StringVar(&f.reserved, "reserved-space", "", "the same as --keep-storage")
	fs.StringVar(&f.maxUsed, "max-used-space", "", "the same as --keep-storage")
	return c
}

func (f *pruneFlags) options() (cache.PruneOptions, error) {
	o := cache.PruneOptions{All: f.all, Until: f.until, DryRun: f.dryRun}
	var err error
	if o.Filters, err = parseFilters(f.filters); err != nil {
		return o, err
	}
	if f.until < 0 {
		return o, errors.New("--until: must not be negative")
	}
	sizes := []struct{ flag, value string }{{"--keep-storage", f.keep}, {"--reserved-space", f.reserved}, {"--max-used-space", f.maxUsed}}
	for _, s := range sizes {
		n, err := bytesFlag(s.flag, s.value)
		if err != nil {
			return o, err
		}
		if n > 0 {
			o.KeepStorage = n
		}
	}
	return o, nil
}

func (a *app) prune(ctx context.Context, s *images.Store, o cache.PruneOptions, verbose bool) error {
	report, err := s.Cache.Prune(ctx, o)
	if err != nil {
		return err
	}
	for i := range report.Removed {
		report.Removed[i].InUse = false
	}
	switch {
	case verbose:
		err = printUsageVerbose(a.stdout, report.Removed)
	case len(report.Removed) > 0:
		err = printUsage(a.stdout, report.Removed)
	}
	if err != nil {
		return err
	}
	return writeLines(a.stdout, "Total:\t"+humanSize(report.Bytes))
}
