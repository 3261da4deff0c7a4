package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"kiln.build/runner/container"
)

func (a *app) logsCommand() *cobra.Command {
	var follow, stamps, details bool
	var tail, since, until string
	c := &cobra.Command{
		Use: "logs [flags] CONTAINER", Short: "Show what a container printed", Args: cobra.ExactArgs(1),
		Example: "  kiln logs -f --tail 20 web",
		RunE: func(c *cobra.Command, args []string) error {
			k, err := a.container(args[0])
			if err != nil {
				return err
			}
			o := container.LogOptions{Tail: -1, Follow: follow}
			if tail != "all" {
				if o.Tail, err = strconv.Atoi(tail); err != nil {
					return fmt.Errorf("--tail=%q: must be a number or all", tail)
				}
			}
			if o.Since, err = when("--since", since); err != nil {
				return err
			}
			if o.Until, err = when("--until", until); err != nil {
				return err
			}
			p := linePrinter{a: a, stamps: stamps, details: details}
			return withoutPipe(k.Logs(c.Context(), o, p.print))
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more until the container ends")
	c.Flags().BoolVarP(&stamps, "timestamps", "t", false, "show the time of each line")
	c.Flags().BoolVar(&details, "details", false, "show the attributes that --log-opt wants with each line")
	c.Flags().StringVarP(&tail, "tail", "n", "all", "only the last lines")
	c.Flags().StringVar(&since, "since", "", "from this time on: RFC 3339, or a duration such as 10m")
	c.Flags().StringVar(&until, "until", "", "up to this time")
	return c
}

// linePrinter prints entries of a log.
type linePrinter struct {
	a               *app
	stamps, details bool
	inLine          [2]bool // what was printed last, on either stream, has no end yet
}

// print prints an entry. A long line comes in several, of which the first
// alone is told the time of.
func (p *linePrinter) print(l container.Line) error {
	w, inLine := p.a.stdout, &p.inLine[0]
	if l.Stream == "stderr" {
		w, inLine = p.a.stderr, &p.inLine[1]
	}
	text := l.Log
	if p.details && !*inLine {
		var pairs []string
		for _, k := range slices.Sorted(maps.Keys(l.Attrs)) {
			pairs = append(pairs, url.QueryEscape(k)+"="+url.QueryEscape(l.Attrs[k]))
		}
		text = strings.Join(pairs, ",") + " " + text
	}
	if p.stamps && !*inLine {
		text = l.Time.Format("2006-01-02T15:04:05.000000000Z07:00") + " " + text
	}
	*inLine = !strings.HasSuffix(text, "\n")
	_, err := io.WriteString(w, text)
	return err
}

// when reads a time, or how long ago it was.
func when(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return time.Now().Add(-d), nil
	}
	if n, err := strconv.ParseFloat(s, 64); err == nil { // seconds since 1970
		return time.Unix(0, int64(n*1e9)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s=%q: must be a time as in RFC 3339, or a duration", flag, s)
}

// withoutPipe takes it as success when the reader of the output has left.
func withoutPipe(err error) error {
	if errors.Is(err, unix.EPIPE) {
		return nil
	}
	return err
}
