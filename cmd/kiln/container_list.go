package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"kiln.build/cache"
	"kiln.build/runner"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

// each applies f to the containers of the names, and goes on after errors,
// which it prints. What docker prints for each is its name.
func (a *app) each(names []string, f func(*container.Container) error) error {
	set, err := a.containers()
	if err != nil {
		return err
	}
	failed := false
	for _, n := range names {
		k, err := set.Find(n)
		if err == nil {
			err = f(k)
		}
		if err != nil {
			fmt.Fprintf(a.stderr, "kiln: %v\n", err)
			failed = true
			continue
		}
		fmt.Fprintln(a.stdout, n)
	}
	if failed {
		return &exitError{1, nil}
	}
	return nil
}

func (a *app) psCommand() *cobra.Command {
	var all, quiet, noTrunc, size bool
	var last int
	var latest bool
	var filters []string
	var format string
	c := &cobra.Command{
		Use: "ps [flags]", Aliases: []string{"ls", "list"}, Short: "List containers", Args: cobra.NoArgs,
		Example: "  kiln ps -a\n  kiln ps -q --filter status=exited",
		RunE: func(*cobra.Command, []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			list, err := set.List()
			if err != nil {
				return err
			}
			if latest {
				last = 1
			}
			var rows []psRow
			for _, k := range list {
				st, err := k.State()
				if errors.Is(err, os.ErrNotExist) {
					continue
				}
				if err != nil {
					return err
				}
				if !all && last == 0 && st.Status != container.Running && !filtersStatus(filters) {
					continue
				}
				keep, err := psKeep(k, st, filters)
				if err != nil {
					return err
				}
				if keep {
					rows = append(rows, newPsRow(k, st, noTrunc, size))
				}
				if last > 0 && len(rows) == last {
					break
				}
			}
			return a.printPs(rows, quiet, size, format)
		},
	}
	fs := c.Flags()
	fs.BoolVarP(&all, "all", "a", false, "also those that do not run")
	fs.BoolVarP(&quiet, "quiet", "q", false, "only IDs")
	fs.BoolVar(&noTrunc, "no-trunc", false, "do not shorten anything")
	fs.BoolVarP(&size, "size", "s", false, "show sizes")
	fs.IntVarP(&last, "last", "n", 0, "the last N that were created")
	fs.BoolVarP(&latest, "latest", "l", false, "the last one that was created")
	fs.StringArrayVarP(&filters, "filter", "f", nil, "status=, name=, id=, label=, ancestor=, exited= (repeatable)")
	fs.StringVar(&format, "format", "", "table, json, or a Go template")
	return c
}

// psRow is a container as ps shows it; the field names are docker's.
type psRow struct {
	ID, Image, Command, CreatedAt, RunningFor, Status, State, Ports, Names, Labels, Size string
}

func newPsRow(k *container.Container, st container.State, noTrunc, size bool) psRow {
	r := psRow{
		ID: k.ID, Image: k.Image, Names: k.Name, State: string(st.Status), CreatedAt: k.Created.Format("2006-01-02 15:04:05 -0700 MST"),
		RunningFor: units.HumanDuration(time.Since(k.Created)) + " ago", Status: statusText(st),
	}
	cmd := strings.Join(k.Args, " ")
	if !noTrunc {
		r.ID = r.ID[:12]
		if n := []rune(cmd); len(n) > 20 {
			cmd = string(n[:19]) + "…"
		}
	}
	r.Command = fmt.Sprintf("%q", cmd)
	var ports []string
	for _, p := range st.Ports {
		ports = append(ports, p.String())
	}
	r.Ports = strings.Join(ports, ", ")
	var labels []string
	for k, v := range k.Labels {
		labels = append(labels, k+"="+v)
	}
	r.Labels = strings.Join(labels, ",")
	if size {
		r.Size = units.HumanSize(float64(k.SpaceUsed()))
	}
	return r
}

func statusText(st container.State) string {
	switch st.Status {
	case container.Running:
		return "Up " + units.HumanDuration(time.Since(st.Started))
	case container.Exited:
		if st.Finished.IsZero() {
			return fmt.Sprintf("Exited (%d)", st.ExitCode)
		}
		return fmt.Sprintf("Exited (%d) %s ago", st.ExitCode, units.HumanDuration(time.Since(st.Finished)))
	}
	return "Created"
}

func filtersStatus(filters []string) bool {
	for _, f := range filters {
		if strings.HasPrefix(f, "status=") || strings.HasPrefix(f, "exited=") {
			return true
		}
	}
	return false
}

func psKeep(k *container.Container, st container.State, filters []string) (bool, error) {
	for _, f := range filters {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return false, fmt.Errorf("invalid filter %q: must be KEY=VALUE", f)
		}
		match := false
		switch key {
		case "status":
			match = string(st.Status) == value
		case "name":
			match = strings.Contains(k.Name, value)
		case "id":
			match = strings.HasPrefix(k.ID, value)
		case "ancestor":
			match = k.Image == value || strings.HasPrefix(k.Image, value+":") || k.Image+":latest" == value
		case "exited":
			match = st.Status == container.Exited && fmt.Sprint(st.ExitCode) == value
		case "label":
			name, want, has := strings.Cut(value, "=")
			v, ok := k.Labels[name]
			match = ok && (!has || v == want)
		default:
			return false, fmt.Errorf("invalid filter %q", key)
		}
		if !match {
			return false, nil
		}
	}
	return true, nil
}

func (a *app) printPs(rows []psRow, quiet, size bool, format string) error {
	switch {
	case quiet:
		for _, r := range rows {
			fmt.Fprintln(a.stdout, r.ID)
		}
		return nil
	case format == "json":
		for _, r := range rows {
			if err := json.NewEncoder(a.stdout).Encode(r); err != nil {
				return err
			}
		}
		return nil
	case format != "" && format != "table":
		t, err := template.New("ps").Funcs(template.FuncMap{"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(b), err
		}}).Parse(strings.TrimPrefix(format, "table ") + "\n")
		if err != nil {
			return fmt.Errorf("--format: %w", err)
		}
		for _, r := range rows {
			if err := t.Execute(a.stdout, r); err != nil {
				return fmt.Errorf("--format: %w", err)
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(a.stdout, 10, 1, 3, ' ', 0)
	head := "CONTAINER ID\tIMAGE\tCOMMAND\tCREATED\tSTATUS\tPORTS\tNAMES"
	if size {
		head += "\tSIZE"
	}
	fmt.Fprintln(w, head)
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s", r.ID, r.Image, r.Command, r.RunningFor, r.Status, r.Ports, r.Names)
		if size {
			fmt.Fprintf(w, "\t%s", r.Size)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func (a *app) logsCommand() *cobra.Command {
	var follow, stamps bool
	var tail, since, until string
	c := &cobra.Command{
		Use: "logs [flags] CONTAINER", Short: "Show what a container printed", Args: cobra.ExactArgs(1),
		Example: "  kiln logs -f --tail 20 web",
		RunE: func(c *cobra.Command, args []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			k, err := set.Find(args[0])
			if err != nil {
				return err
			}
			o := container.LogOptions{Tail: -1, Follow: follow}
			if tail != "all" {
				if _, err := fmt.Sscanf(tail, "%d", &o.Tail); err != nil || o.Tail < 0 {
					return fmt.Errorf("--tail=%q: must be a number or all", tail)
				}
			}
			if o.Since, err = when("--since", since); err != nil {
				return err
			}
			if o.Until, err = when("--until", until); err != nil {
				return err
			}
			return k.Logs(c.Context(), o, func(l container.Line) error {
				w := a.stdout
				if l.Stream == "stderr" {
					w = a.stderr
				}
				if stamps {
					fmt.Fprint(w, l.Time.Format("2006-01-02T15:04:05.000000000Z07:00")+" ")
				}
				_, err := fmt.Fprint(w, l.Log)
				return err
			})
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "wait for more until the container ends")
	c.Flags().BoolVarP(&stamps, "timestamps", "t", false, "show the time of each line")
	c.Flags().StringVarP(&tail, "tail", "n", "all", "only the last lines")
	c.Flags().StringVar(&since, "since", "", "from this time on: RFC 3339, or a duration such as 10m")
	c.Flags().StringVar(&until, "until", "", "up to this time")
	return c
}

// when reads a time, or how long ago it was.
func when(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return time.Now().Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%s=%q: must be a time as in RFC 3339, or a duration", flag, s)
}

func (a *app) stopCommand() *cobra.Command {
	var seconds int
	c := &cobra.Command{
		Use: "stop [flags] CONTAINER...", Short: "Ask containers to end, and kill them if they do not", Args: cobra.MinimumNArgs(1),
		Example: "  kiln stop -t 5 web",
		RunE: func(c *cobra.Command, args []string) error {
			return a.each(args, func(k *container.Container) error { return k.Stop(c.Context(), seconds) })
		},
	}
	c.Flags().IntVarP(&seconds, "time", "t", -1, "seconds to wait before killing (default the container's own, 10)")
	return c
}

func (a *app) killCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use: "kill [flags] CONTAINER...", Short: "Send a signal to containers", Args: cobra.MinimumNArgs(1),
		Example: "  kiln kill -s HUP web",
		RunE: func(c *cobra.Command, args []string) error {
			sig, err := container.ParseSignal(name)
			if err != nil {
				return err
			}
			return a.each(args, func(k *container.Container) error {
				if sig == unix.SIGKILL {
					if st, err := k.State(); err != nil || st.Status != container.Running {
						return errors.Join(err, fmt.Errorf("cannot kill container: %s: container %s is not running", k.Name, k.ID))
					}
					return k.Kill(c.Context())
				}
				return k.Signal(sig)
			})
		},
	}
	c.Flags().StringVarP(&name, "signal", "s", "KILL", "the signal, by name or number")
	return c
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait CONTAINER...", Short: "Wait until containers have ended, and print their exit statuses", Args: cobra.MinimumNArgs(1),
		Example: "  kiln wait job && echo done",
		RunE: func(c *cobra.Command, args []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			for _, n := range args {
				k, err := set.Find(n)
				if err != nil {
					return err
				}
				code, err := k.Wait(c.Context())
				if err != nil {
					return err
				}
				fmt.Fprintln(a.stdout, code)
			}
			return nil
		},
	}
}

func (a *app) rmCommand() *cobra.Command {
	var force, volumes bool
	c := &cobra.Command{
		Use: "rm [flags] CONTAINER...", Short: "Remove containers", Args: cobra.MinimumNArgs(1),
		Example: "  kiln rm -f web",
		RunE: func(c *cobra.Command, args []string) error {
			return a.each(args, func(k *container.Container) error {
				if force {
					if err := k.Kill(c.Context()); err != nil {
						return err
					}
					if _, err := os.Stat(k.Dir()); errors.Is(err, os.ErrNotExist) {
						return nil // --rm did it
					}
				}
				return k.Remove()
			})
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "kill what runs")
	c.Flags().BoolVarP(&volumes, "volumes", "v", false, "accepted: there are no anonymous volumes")
	return c
}

func (a *app) containerPrune() *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "prune", Short: "Remove all containers that do not run", Args: cobra.NoArgs,
		Example: "  kiln container prune -f",
		RunE: func(*cobra.Command, []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			list, err := set.List()
			if err != nil {
				return err
			}
			var freed int64
			for _, k := range list {
				if st, err := k.State(); err != nil || st.Status == container.Running {
					continue
				}
				n := k.SpaceUsed()
				if err := k.Remove(); err != nil {
					return err
				}
				freed += n
				fmt.Fprintln(a.stdout, k.ID)
			}
			fmt.Fprintf(a.stdout, "Total reclaimed space: %s\n", units.HumanSize(float64(freed)))
			return nil
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "accepted: nothing is asked")
	return c
}

func (a *app) portCommand() *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PORT[/PROTO]]", Short: "Show a container's published ports", Args: cobra.RangeArgs(1, 2),
		Example: "  kiln port web 80",
		RunE: func(_ *cobra.Command, args []string) error {
			set, err := a.containers()
			if err != nil {
				return err
			}
			k, err := set.Find(args[0])
			if err != nil {
				return err
			}
			st, err := k.State()
			if err != nil {
				return err
			}
			shown := false
			for _, p := range st.Ports {
				at := fmt.Sprintf("%d/%s", p.Container, p.Proto)
				host := p.HostIP
				if host == "" {
					host = "0.0.0.0"
				}
				switch {
				case len(args) == 1:
					fmt.Fprintf(a.stdout, "%s -> %s:%d\n", at, host, p.HostPort)
				case args[1] == at || args[1]+"/tcp" == at:
					fmt.Fprintf(a.stdout, "%s:%d\n", host, p.HostPort)
					shown = true
				}
			}
			if len(args) == 2 && !shown {
				return fmt.Errorf("no public port '%s' published for %s", args[1], k.Name)
			}
			return nil
		},
	}
}

func (a *app) startCommand() *cobra.Command {
	var attach, interactive bool
	c := &cobra.Command{
		Use: "start [flags] CONTAINER...", Short: "Start containers that were created or have ended", Args: cobra.MinimumNArgs(1),
		Example: "  kiln start -a job",
		RunE: func(c *cobra.Command, args []string) error {
			if !attach && !interactive {
				return a.each(args, func(k *container.Container) error {
					if st, err := k.State(); err != nil || st.Status == container.Running {
						return err
					}
					return a.detached(c.Context(), k)
				})
			}
			if len(args) > 1 {
				return errors.New("you cannot start and attach multiple containers at once")
			}
			store, err := a.open()
			if err != nil {
				return err
			}
			defer store.Close()
			set, err := a.containers()
			if err != nil {
				return err
			}
			k, err := set.Find(args[0])
			if err != nil {
				return err
			}
			return a.foreground(c.Context(), store, k, interactive)
		},
	}
	c.Flags().BoolVarP(&attach, "attach", "a", false, "show its output, and end with its exit status")
	c.Flags().BoolVarP(&interactive, "interactive", "i", false, "give it standard input too")
	return c
}

func (a *app) execCommand() *cobra.Command {
	var interactive, tty bool
	var user, workdir string
	var env []string
	c := &cobra.Command{
		Use: "exec [flags] CONTAINER COMMAND [ARG...]", Short: "Run another command in a running container", Args: cobra.MinimumNArgs(2),
		Example: "  kiln exec -it web sh",
		RunE: func(c *cobra.Command, args []string) error {
			// Not in a user namespace of its own: the command joins the
			// container's from where this user is.
			store, err := cache.Open(a.root, cache.Options{ReadOnly: true})
			if err != nil {
				return cliFailed(err)
			}
			defer store.Close()
			k, err := container.Set{Dir: filepath.Join(a.root, "containers")}.Find(args[0])
			if err != nil {
				return &exitError{1, err}
			}
			st, err := k.State()
			if err != nil {
				return cliFailed(err)
			}
			if st.Status != container.Running {
				return &exitError{1, fmt.Errorf("container %s is not running", k.ID)}
			}
			if user == "" {
				user = k.User
			}
			who, err := (&runner.Runner{Store: store}).LookupUser(k.Layers, user)
			if err != nil {
				return &exitError{126, err}
			}
			if workdir == "" {
				workdir = k.Cwd
			}
			all, err := (&runFlags{env: env}).environment(k.Env)
			if err != nil {
				return cliFailed(err)
			}
			cmd := sandbox.Command{
				Args: args[1:], Env: append(all, "HOME="+who.Home), Cwd: workdir,
				UID: who.UID, GID: who.GID, Groups: who.Groups, Privileged: k.Privileged,
				Seccomp: sandbox.Seccomp{Unconfined: k.Unmasked},
			}
			return a.execIn(c.Context(), st.PID, cmd, interactive, tty)
		},
	}
	fs := c.Flags()
	fs.SetInterspersed(false)
	fs.BoolVarP(&interactive, "interactive", "i", false, "keep standard input open")
	fs.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	fs.StringVarP(&user, "user", "u", "", "user[:group]")
	fs.StringVarP(&workdir, "workdir", "w", "", "working folder")
	fs.StringArrayVarP(&env, "env", "e", nil, "variable, NAME=VALUE (repeatable)")
	return c
}

// execIn runs a command in a sandbox with this process's streams.
func (a *app) execIn(ctx context.Context, pid int, cmd sandbox.Command, interactive, tty bool) error {
	s := &streams{app: a, interactive: interactive, tty: tty}
	if err := s.connect(&cmd); err != nil {
		return cliFailed(err)
	}
	p, err := sandbox.Exec(ctx, pid, cmd)
	s.started(p)
	if err != nil {
		s.wait()
		var failed *sandbox.CommandError
		if errors.As(err, &failed) {
			return &exitError{failed.Code, err}
		}
		return cliFailed(err)
	}
	status, err := p.Wait()
	s.wait()
	switch {
	case err != nil:
		return cliFailed(err)
	case status.Code != 0:
		return &exitError{status.Code, nil}
	}
	return nil
}
