package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"kiln.build/cache"
	"kiln.build/runner/container"
)

func (a *app) createCommand() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use: "create [flags] IMAGE [COMMAND] [ARG...]", Short: "Create a container without starting it",
		Example: "  kiln create --name web nginx && kiln start web",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			f.note(c)
			if _, err := a.shown(&f); err != nil {
				return cliFailed(err)
			}
			store, err := a.open()
			if err != nil {
				return cliFailed(err)
			}
			defer store.Close()
			k, err := a.newContainer(c.Context(), store, &f, args)
			if err != nil {
				return cliFailed(err)
			}
			return writeLines(a.stdout, k.ID)
		},
	}
	c.Flags().StringSliceVarP(&f.attach, "attach", "a", nil, "checked as for run: start -a shows all (repeatable)")
	c.Flags().Bool("help", false, "help for create")
	f.register(c.Flags())
	return c
}

// note remembers which flags were given whose zero value means something.
func (f *runFlags) note(c *cobra.Command) {
	f.entrySet, f.oomSet = c.Flags().Changed("entrypoint"), c.Flags().Changed("oom-score-adj")
}

// newContainer makes a container of an image and what the flags say.
func (a *app) newContainer(ctx context.Context, store *cache.Store, f *runFlags, args []string) (*container.Container, error) {
	switch f.pull {
	case "always", "missing", "never":
	default:
		return nil, fmt.Errorf("--pull=%q: must be always, missing or never", f.pull)
	}
	c := container.Config{
		Name: f.name, Image: args[0], Platform: f.platform, User: f.user, Groups: f.groups, Hostname: f.hostname,
		StopSignal: f.stopSignal, StopWait: f.stopTimeout,
		Terminal: f.tty, Stdin: f.interactive, StdinOnce: f.interactive && !f.detach, AutoRemove: f.rm,
		ReadOnly: f.readOnly, Init: f.init, Privileged: f.privileged,
		CapAdd: f.capAdd, CapDrop: f.capDrop,
		PublishAll: f.publishAll, CIDFile: f.cidFile, Attach: f.attach, Others: f.volumesFrom,
	}
	if err := f.apply(&c); err != nil {
		return nil, err
	}
	var err error
	if c.Hostname == "" && (c.HostUTS || c.Network == "host") {
		if c.Hostname, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	if c.Runtime, err = findRuntime(f.runtime); err != nil {
		return nil, err
	}
	if f.cidFile == "" {
		return a.create(ctx, store, f, args, c)
	}
	cid, err := os.OpenFile(f.cidFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("container ID file found, make sure the other container isn't running or delete %s", f.cidFile)
	}
	if err != nil {
		return nil, fmt.Errorf("failed to create the container ID file: %w", err)
	}
	k, err := a.create(ctx, store, f, args, c)
	if err == nil {
		_, err = cid.WriteString(k.ID)
	}
	if err = errors.Join(err, cid.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(f.cidFile))
	}
	return k, nil
}

// create makes the container of a config that lacks what its image says.
func (a *app) create(ctx context.Context, store *cache.Store, f *runFlags, args []string, c container.Config) (*container.Container, error) {
	root, err := a.imageRoot(ctx, store, args[0], f)
	if err != nil {
		return nil, err
	}
	c.ImageID, c.Layers = root.id, root.layers
	if root.config.Architecture != "" { // what its programs are for, whatever was asked for
		c.Platform = platforms.Format(platforms.Normalize(root.config.Platform))
	}
	set, err := a.containers()
	if err != nil {
		return nil, err
	}
	if err := a.joinNetworks(set, &c); err != nil {
		return nil, err
	}
	for i := range c.Binds {
		if b := &c.Binds[i]; b.Image != "" {
			mounted, err := a.imageRoot(ctx, store, b.Image, f)
			if err != nil {
				return nil, err
			}
			b.ImageID, b.Layers = mounted.id, mounted.layers
		}
	}
	for _, name := range []*string{&c.PIDOf, &c.IPCOf} {
		if *name == "" {
			continue
		}
		other, err := set.Find(*name)
		if err != nil {
			return nil, err
		}
		*name = other.ID
	}
	if err := a.warnHooks(c.CDI); err != nil {
		return nil, err
	}
	if err := f.volumesOf(set, &c); err != nil {
		return nil, err
	}
	if err := f.adopt(&c, &root.config.Config, args[1:]); err != nil {
		return nil, err
	}
	sync := store.Sync
	if f.rm { // it is removed when it ends, and does not outlive the machine
		sync = store.SyncMany
	}
	if err := sync(ctx); err != nil {
		return nil, err
	}
	if len(c.Ports) > 0 && (c.Network == "host" || c.Network == "none") {
		fmt.Fprintf(a.stderr, "WARNING: Published ports are discarded when using %s network mode\n", c.Network)
	}
	return set.Create(ctx, c)
}

// adopt completes a config by that of its image.
func (f *runFlags) adopt(c *container.Config, img *dockerspec.DockerOCIImageConfig, args []string) error {
	c.User, c.StopSignal = cmp.Or(c.User, img.User), cmp.Or(c.StopSignal, img.StopSignal)
	if f.workdir != "" && !path.IsAbs(f.workdir) {
		return fmt.Errorf("the working directory '%s' is invalid, it needs to be an absolute path", f.workdir)
	}
	c.Cwd = path.Clean(cmp.Or(f.workdir, path.Join("/", img.WorkingDir)))
	cmd := img.Cmd
	c.Entrypoint = img.Entrypoint
	if f.entrySet {
		c.Entrypoint, cmd = nil, nil
		if f.entrypoint != "" {
			c.Entrypoint = []string{f.entrypoint}
		}
	}
	if len(args) > 0 {
		cmd = args
	}
	if c.Args = slices.Concat(c.Entrypoint, cmd); len(c.Args) == 0 {
		return errors.New("no command specified")
	}
	var err error
	if c.Env, err = f.environment(img.Env); err != nil {
		return err
	}
	if c.Health, err = f.health.health(img); err != nil {
		return err
	}
	labels := map[string]string{}
	maps.Copy(labels, img.Labels)
	maps.Copy(labels, c.Labels)
	c.Labels = labels
	addImageVolumes(c, img.Volumes)
	if c.Exposed, err = f.exposed(img.ExposedPorts, c.Ports); err != nil || !f.publishAll {
		return err
	}
	for _, p := range c.Exposed {
		if slices.ContainsFunc(c.Ports, func(q container.Port) bool { return q.ContainerPort() == p }) {
			continue
		}
		more, err := parsePublish([]string{p})
		if err != nil {
			return err
		}
		c.Ports = append(c.Ports, more...)
	}
	return nil
}

// exposed lists the ports that the image, --expose and --publish name, in the
// form "80/tcp".
func (f *runFlags) exposed(image map[string]struct{}, published []container.Port) ([]string, error) {
	all := map[string]struct{}{}
	for _, e := range slices.Concat(slices.Collect(maps.Keys(image)), f.expose) {
		ports, proto, _ := strings.Cut(e, "/")
		from, to, isRange := strings.Cut(ports, "-")
		first, err := strconv.ParseUint(from, 10, 16)
		last := first
		if err == nil && isRange {
			last, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || first == 0 || last < first {
			return nil, fmt.Errorf("invalid range format for --expose: %s", e)
		}
		for p := first; p <= last; p++ {
			all[fmt.Sprintf("%d/%s", p, strings.ToLower(cmp.Or(proto, "tcp")))] = struct{}{}
		}
	}
	for _, p := range published {
		all[p.ContainerPort()] = struct{}{}
	}
	return sortedPorts(all), nil
}

// volumesOf gives the container what those of --volumes-from have mounted.
func (f *runFlags) volumesOf(set container.Set, c *container.Config) error {
	for _, from := range f.volumesFrom {
		name, mode, _ := strings.Cut(from, ":")
		if mode != "" && mode != "ro" && mode != "rw" {
			return fmt.Errorf("--volumes-from=%s: invalid mode: %s", from, mode)
		}
		other, err := set.Find(name)
		if err != nil {
			return err
		}
		for _, b := range other.Binds {
			if slices.ContainsFunc(c.Binds, func(o container.Bind) bool { return o.Target == b.Target }) {
				continue
			}
			b.Copy, b.ReadOnly, b.Origin = false, b.ReadOnly || mode == "ro", container.OfContainer
			c.Binds = append(c.Binds, b)
		}
	}
	return nil
}

// addImageVolumes gives the container a volume for each place for which its
// image wants one, where the user has put nothing.
func addImageVolumes(c *container.Config, volumes map[string]struct{}) {
	for _, target := range slices.Sorted(maps.Keys(volumes)) {
		target = path.Join("/", target)
		if !slices.ContainsFunc(c.Binds, func(b container.Bind) bool { return b.Target == target }) &&
			!slices.ContainsFunc(c.Tmpfs, func(t container.Tmpfs) bool { return t.Target == target }) {
			c.Binds = append(c.Binds, container.Bind{Target: target, Anonymous: true, Copy: true, Origin: container.OfImage})
		}
	}
}
