package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"kiln.build/cache"
	"kiln.build/cache/registry"
	"kiln.build/cache/remote"
	"kiln.build/exporter"
	"kiln.build/exporter/images"
	"kiln.build/frontend"
	"kiln.build/frontend/dockerfile"
	"kiln.build/runner"
	"kiln.build/runner/cdi"
	"kiln.build/solver"
)

func (a *app) buildCommand() *cobra.Command {
	var f buildFlags
	c := &cobra.Command{
		Use:     "build [flags] PATH | URL | -",
		Aliases: []string{"b"},
		Short:   "Build an image from a Dockerfile",
		Long: `Build an image from a Dockerfile and the files in PATH.

Steps whose command and inputs have not changed are taken from the cache.
Without --output the image is kept in the local store.

PATH is a folder; URL is a git repository (https://host/path.git#ref:subdir,
git@host:path, or with a query such as ?branch=main&subdir=app), or the http
address of a tar archive or of a Dockerfile. With "-" a tar archive of the
files, or a Dockerfile alone, is read from standard input. The Dockerfile is
the one in there, unless --file names another.

Each step that runs says why: what changed since the nearest earlier build.

With --check (--call=check) nothing is built: the Dockerfile's build checks
run and their warnings are printed. --call=outline prints the arguments,
secrets and agents that the target takes, --call=targets the stages. A call
takes options: --call=check,format=json, and ignorestatus=true to exit with 0
whatever the checks find.

Exit status: 0 if everything was built and exported, 1 if not; with --dry-run
3 if a step would run; with --check 1 if there is a warning or an error.`,
		Example: `  kiln build -t hello .
  kiln build -t hello -f docker/Dockerfile --target test --build-arg VERSION=2 .
  kiln build --platform linux/amd64,linux/arm64 -t registry.example.com/hello:1 --push .
  kiln build -o out .                      # the root file system, as files in out/
  kiln build -o type=oci,dest=hello.tar .  # an image for other tools
  kiln build https://example.com/app.git#v1.2:docker
  tar -cz . | kiln build -t hello -         # the files come as an archive
  kiln build -f - . < Dockerfile            # the Dockerfile alone does
  kiln build --build-context src=https://example.com/src.git#main .
  kiln build --dry-run .                   # what would run, and why
  kiln build --check .                     # what the Dockerfile could do better
  kiln build --call=outline,format=json .`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.build(c.Context(), &f, args[0])
		},
	}
	f.register(c.Flags())
	return c
}

// builder is one build on its way.
type builder struct {
	app       *app
	flags     *buildFlags
	in        *buildInput
	store     *cache.Store
	runner    *runner.Runner
	agents    agents
	outputs   []exporter.Output
	platforms []ocispecs.Platform
	display   display
	cacheFrom []remoteCache
	cacheTo   []remoteCache
	remote    *remote.Cache      // nil without these
	x         *exporter.Exporter // nil before it is needed
	graph     *solver.Graph      // how the steps went, nil before they were solved
	later     []func()           // what is told once the display is closed

	remembered func() // waits until it is written down how the build went
}

func (a *app) build(ctx context.Context, f *buildFlags, path string) (err error) {
	lateGarbage()
	b := &builder{app: a, flags: f, remembered: func() {}}
	// Everything that can be wrong with the words is said before any work.
	if b.platforms, err = f.targetPlatforms(); err != nil {
		return err
	}
	if b.outputs, err = f.parseOutputs(); err != nil {
		return err
	}
	if b.cacheFrom, b.cacheTo, err = f.parseRemotes(); err != nil {
		return err
	}
	mode := f.progress
	if f.quiet {
		mode = "quiet"
	}
	switch mode {
	case "auto", "", "plain", "tty", "quiet", "none":
	default:
		return fmt.Errorf("--progress=%q: must be auto, plain, tty, quiet or none", mode)
	}
	call, err := f.parseCall()
	if err != nil {
		return err
	}
	options, err := f.options()
	if err != nil {
		return err
	}
	if b.store, err = a.open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.store.Close()) }()
	if err := b.boundStore(); err != nil {
		return err
	}
	if b.in, err = b.readInput(path); err != nil {
		return err
	}
	defer b.agents.close()
	defer func() {
		if b.x != nil {
			b.x.Close()
		}
	}()
	b.expect()
	if b.runner, err = b.newRunner(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.runner.Close()) }()
	defer func() { b.remembered() }()
	if f.dryRun {
		mode = "quiet"
	}
	if b.display, err = newDisplay(mode, a.stderr); err != nil {
		return err
	}
	if call.name != callBuild {
		err := b.call(ctx, options, call)
		b.display.Close(err)
		return err
	}
	built, warnings, err := b.solve(ctx, options)
	b.display.Close(err)
	for _, tell := range b.later {
		tell()
	}
	if graphErr := b.writeGraph(); err == nil {
		err = graphErr
	}
	if !f.silent() {
		printWarnings(a.stderr, warnings, b.in.dockerfile)
	}
	if err != nil {
		return b.explain(err)
	}
	if f.dryRun {
		return b.dryRun()
	}
	return b.export(ctx, built)
}

// boundStore makes the store trim itself while the build goes on. Images
// without a name, which no one can want by accident, go first once they have
// been left alone for an hour.
func (b *builder) boundStore() error {
	max, err := cacheMax(b.store.Root())
	if err != nil {
		return err
	}
	kept := &images.Store{Cache: b.store}
	b.store.Bound(max, func() ([]digest.Digest, error) {
		return roots(context.Background(), kept)()
	}, func(ctx context.Context) error {
		_, err := kept.Prune(ctx, images.PruneOptions{Match: func(i *images.Image) bool { return kept.Idle(i) > time.Hour }, Users: imageUsers(b.store)})
		return err
	})
	return nil
}

// parseOutputs are the outputs that the flags ask for: the local store if
// they ask for none.
func (f *buildFlags) parseOutputs() ([]exporter.Output, error) {
	var all []exporter.Output
	for _, s := range f.outputs {
		o, err := exporter.ParseOutput(s)
		if err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	if f.push {
		all = append(all, exporter.Output{Type: exporter.TypeRegistry})
	}
	if f.load || len(all) == 0 {
		all = append(all, exporter.Output{Type: exporter.TypeImage})
	}
	var names []string
	for _, t := range f.tags {
		ref, err := registry.ParseReference(t)
		if err != nil {
			return nil, err
		}
		if ref.Digest != "" {
			return nil, fmt.Errorf("--tag=%s: a tag cannot have a digest", t)
		}
		names = append(names, ref.String())
	}
	for i := range all {
		if len(all[i].Names) == 0 {
			all[i].Names = names
		}
		for _, s := range f.annotations {
			more, err := exporter.ParseAnnotation(s)
			if err != nil {
				return nil, err
			}
			all[i].Annotations = append(all[i].Annotations, more...)
		}
		if all[i].Type == exporter.TypeRegistry && len(all[i].Names) == 0 {
			return nil, errors.New("pushing needs a name: give --tag")
		}
	}
	return all, nil
}

// options are the flags in the form that the frontend takes them.
func (f *buildFlags) options() (o dockerfile.Options, err error) {
	if o.BuildArgs, err = args("--build-arg", f.buildArgs, os.LookupEnv); err != nil {
		return o, err
	}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"} {
		for _, n := range []string{name, strings.ToLower(name)} {
			if _, given := o.BuildArgs[n]; given || os.Getenv(n) == "" {
				continue
			}
			o.BuildArgs[n] = os.Getenv(n)
		}
	}
	if o.Labels, err = args("--label", f.labels, nil); err != nil {
		return o, err
	}
	if o.Hosts, err = f.hosts(); err != nil {
		return o, err
	}
	if o.ShmSize, err = bytesFlag("--shm-size", f.shmSize); err != nil {
		return o, err
	}
	if o.Ulimits, err = f.parseUlimits(); err != nil {
		return o, err
	}
	if o.Limits, err = f.limits(); err != nil {
		return o, err
	}
	if o.Allowed, err = f.entitlements(); err != nil {
		return o, err
	}
	o.DeviceAllowed = deviceAllowed(o.Allowed)
	if o.GitModes, err = f.gitModes(); err != nil {
		return o, err
	}
	o.Target, o.Network, o.NoCache, o.NoCacheStages = f.target, f.network, f.noCache, f.noCacheFilter
	o.NoCacheMounts = f.dropCaches
	return o, nil
}

func (b *builder) newRunner() (*runner.Runner, error) {
	r := &runner.Runner{Store: b.store, CDIDirs: cdi.Dirs()}
	var err error
	if r.Registry, err = b.app.registry(b.insecureHosts()...); err != nil {
		return nil, err
	}
	if r.Runtime, err = findRuntime(b.flags.runtime); err != nil {
		return nil, err
	}
	sources, err := parseSecrets(b.flags.secrets)
	if err != nil {
		return nil, err
	}
	if r.Secrets, err = readSecrets(sources); err != nil {
		return nil, err
	}
	keys, err := parseSSH(b.flags.ssh)
	if err != nil {
		return nil, err
	}
	if r.SSH, err = b.agents.start(b.store, keys); err != nil {
		return nil, err
	}
	r.Network = b.app.stepNetwork()
	if r.Contexts, err = b.in.directories(b.store); err != nil {
		return nil, err
	}
	return r, nil
}

// insecureHosts are the registries that an output has registry.insecure for.
func (b *builder) insecureHosts() []string {
	var hosts []string
	for _, o := range b.outputs {
		for _, name := range o.Names {
			if ref, err := registry.ParseReference(name); err == nil && o.Insecure {
				hosts = append(hosts, ref.Host)
			}
		}
	}
	return hosts
}

// resolver adapts the runner's search for images to the frontend.
type resolver struct {
	runner *runner.Runner
	pull   bool
}

func (r resolver) ResolveImage(ctx context.Context, ref string, p ocispecs.Platform) (*frontend.Image, error) {
	img, err := r.runner.ResolveImage(ctx, ref, p, r.pull)
	if err != nil {
		return nil, err
	}
	return &frontend.Image{Ref: img.Ref, Digest: img.Digest, Platform: img.Platform, Config: img.Config, Layers: img.Layers}, nil
}

// solve lowers the Dockerfile for each platform and solves all in one graph.
func (b *builder) solve(ctx context.Context, o dockerfile.Options) ([]exporter.Image, []frontend.Warning, error) {
	if err := b.fetchInput(ctx, o.BuildArgs); err != nil {
		return nil, nil, err
	}
	if err := b.in.options(&o); err != nil {
		return nil, nil, err
	}
	o.Resolver = resolver{b.runner, b.flags.pull}
	o.Secrets, o.SSH = known(b.runner.Secrets), known(b.runner.SSH)
	o.MultiPlatform = len(b.platforms) > 1
	results := make([]*frontend.Result, len(b.platforms))
	g, gctx := errgroup.WithContext(ctx)
	for i, p := range b.platforms {
		g.Go(func() (err error) {
			o := o
			o.Platform = p
			results[i], err = dockerfile.Build(gctx, o)
			return err
		})
	}
	err := g.Wait()
	var warnings []frontend.Warning
	if results[0] != nil {
		warnings = results[0].Warnings
	}
	if err != nil {
		return nil, warnings, err
	}
	var targets []*solver.Vertex
	for _, r := range results {
		targets = append(targets, r.Target)
	}
	jobs, err := b.flags.jobCount()
	if err != nil {
		return nil, warnings, err
	}
	why, err := b.explainer(targets)
	if err != nil {
		return nil, warnings, err
	}
	if b.remote, err = b.remotes(ctx); err != nil {
		return nil, warnings, err
	}
	run, err := b.ahead(ctx, targets)
	if err != nil {
		return nil, warnings, err
	}
	s := &solver.Solver{Cache: b.store, Runner: run, Events: b.display, Jobs: jobs, Why: why.Why, Dry: b.flags.dryRun}
	if b.runner.NoTrace = !b.flags.traceReads; b.flags.traceReads {
		s.Reuse = b.runner.Reuse
	}
	s.Place = func(ctx context.Context) (func(), error) { return b.store.Job(ctx, jobs) }
	if b.remote != nil {
		s.Cache, s.Runner = b.remote, remote.Runner{Runner: run, Cache: b.remote}
	}
	graph, err := b.evaluateGraph(ctx, s, targets)
	run.Close(err)
	err = errors.Join(err, b.finishRemote(ctx, graph, err))
	b.remember(why, graph, err)
	if err == nil && !b.flags.dryRun {
		err = b.store.SyncMany(ctx)
	}
	if err != nil || b.flags.dryRun {
		return nil, warnings, err
	}
	var built []exporter.Image
	for i, r := range results {
		built = append(built, exporter.Image{Output: b.withOrigins(graph.Targets[i].Output), Config: r.Image, Platform: r.Platform})
	}
	return built, warnings, nil
}

// withOrigins is an output whose base layers come from where this machine can
// have them: results of another one name the blobs that it had.
func (b *builder) withOrigins(o solver.Output) solver.Output {
	o.Layers = slices.Clone(o.Layers)
	for i, l := range o.Layers {
		if l.Origin != nil {
			from := b.runner.Origin(*l.Origin)
			o.Layers[i].Origin = &from
		}
	}
	return o
}

// known are the keys of a map.
func known[V any](m map[string]V) map[string]bool {
	ids := map[string]bool{}
	for id := range m {
		ids[id] = true
	}
	return ids
}

// explain gives a failure the place in the Dockerfile that it belongs to, and
// shows it.
func (b *builder) explain(err error) error {
	var failed *solver.Error
	var source *frontend.SourceError
	loc := solver.Location{}
	switch {
	case errors.As(err, &source):
		loc = source.Location
	case errors.As(err, &failed) && failed.Vertex.Step != nil:
		loc = failed.Vertex.Step.Location
		err = &frontend.SourceError{Location: loc, Err: failed.Err}
	case errors.As(err, &failed):
		err = failed.Err
	}
	if snippet := frontend.Snippet(b.in.dockerfile, loc); snippet != "" {
		fmt.Fprint(b.app.stderr, snippet)
	}
	return err
}

// export sends the result where the flags say, and tells its digests.
func (b *builder) export(ctx context.Context, built []exporter.Image) error {
	x, err := b.exporter()
	if err != nil {
		return err
	}
	var last exporter.Result
	for _, o := range b.outputs {
		r, err := x.Export(ctx, o, built)
		if err != nil {
			return err
		}
		if !o.Files() {
			last = r
		}
		if !b.flags.silent() && o.Type != exporter.TypeCacheOnly {
			b.report(o, r)
		}
	}
	if last.Descriptor.Digest == "" {
		if b.flags.iidFile != "" || b.flags.metadataFile != "" {
			return b.writeResult(last)
		}
		return nil
	}
	if b.flags.quiet {
		fmt.Fprintln(b.app.stdout, imageID(last))
	}
	return b.writeResult(last)
}

// imageID is what docker calls a result: the config's digest, or that of the
// index over several platforms.
func imageID(r exporter.Result) string {
	if r.ID != "" {
		return string(r.ID)
	}
	return string(r.Descriptor.Digest)
}

// report tells where a result went.
func (b *builder) report(o exporter.Output, r exporter.Result) {
	w := b.app.stderr
	fmt.Fprintf(w, "=> %s", o.Title())
	if id := imageID(r); id != "" {
		fmt.Fprintf(w, " %s", id)
	}
	for _, n := range r.Names {
		fmt.Fprintf(w, " %s", images.Familiar(n))
	}
	fmt.Fprintln(w)
}

// writeResult writes --iidfile and --metadata-file, whose keys are those of
// docker buildx.
func (b *builder) writeResult(r exporter.Result) error {
	if b.flags.iidFile != "" {
		if err := os.WriteFile(b.flags.iidFile, []byte(imageID(r)), 0o644); err != nil {
			return fmt.Errorf("--iidfile: %w", err)
		}
	}
	if b.flags.metadataFile == "" {
		return nil
	}
	meta := map[string]any{}
	if r.Descriptor.Digest != "" {
		meta["containerimage.digest"] = r.Descriptor.Digest
		meta["containerimage.descriptor"] = r.Descriptor
	}
	if r.ID != "" {
		meta["containerimage.config.digest"] = r.ID
	}
	if len(r.Names) > 0 {
		meta["image.name"] = strings.Join(r.Names, ",")
	}
	data, err := json.MarshalIndent(meta, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.flags.metadataFile, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("--metadata-file: %w", err)
	}
	return nil
}

var _ frontend.Resolver = resolver{}
