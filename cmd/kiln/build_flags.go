package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/pflag"
	"kiln.build/runner"
	"kiln.build/solver/op"
)

// buildFlags are the flags of kiln build, as typed.
type buildFlags struct {
	file           string
	tags           []string
	target         string
	buildArgs      []string
	labels         []string
	annotations    []string
	platforms      []string
	contexts       []string
	noCache        bool
	noCacheFilter  []string
	pull           bool
	secrets        []string
	ssh            []string
	network        string
	addHosts       []string
	shmSize        string
	runtime        string
	ulimits        []string
	memory         string
	memorySwap     string
	cpuShares      int64
	cpuPeriod      int64
	cpuQuota       int64
	cpusetCPUs     string
	cpusetMems     string
	cgroupParent   string
	allow          []string
	iidFile        string
	metadataFile   string
	quiet          bool
	outputs        []string
	push           bool
	load           bool
	progress       string
	jobs           int
	contextModes   string
	sourceDateTime string
	explain        bool
	dryRun         bool
	graph          string
	dropCaches     bool
	traceReads     bool
	cacheFrom      []string
	cacheTo        []string
	callWord       string
}

func (f *buildFlags) register(fs *pflag.FlagSet) {
	fs.StringVarP(&f.file, "file", "f", "", "the Dockerfile, a path, a URL or - for standard input (default PATH/Dockerfile); relative to the files of a remote PATH")
	fs.StringArrayVarP(&f.tags, "tag", "t", nil, "name of the image, name[:tag] (repeatable)")
	fs.StringVar(&f.target, "target", "", "the stage to build (default the last)")
	fs.StringArrayVar(&f.buildArgs, "build-arg", nil, "value of an ARG, NAME=VALUE; NAME alone takes the environment's (repeatable)")
	fs.StringArrayVar(&f.labels, "label", nil, "label of the image, NAME=VALUE (repeatable)")
	fs.StringArrayVar(&f.annotations, "annotation", nil, "annotation of the manifest, NAME=VALUE (repeatable)")
	fs.StringSliceVar(&f.platforms, "platform", nil, "platforms to build for, such as linux/amd64,linux/arm64")
	fs.StringArrayVar(&f.contexts, "build-context", nil, "further context, NAME=DIR|TAR|URL|docker-image://REF|oci-layout://DIR[:TAG|@DIGEST] (repeatable)")
	fs.BoolVar(&f.noCache, "no-cache", false, "run every step, whatever the cache has")
	fs.StringSliceVar(&f.noCacheFilter, "no-cache-filter", nil, "run every step of these stages")
	fs.BoolVar(&f.dropCaches, "no-cache-mounts", false, "empty the cache mounts of the RUN steps that run")
	fs.StringArrayVar(&f.cacheFrom, "cache-from", nil, "cache of other machines to read, NAME|type=registry,ref=NAME|type=local,src=DIR (repeatable)")
	fs.StringArrayVar(&f.cacheTo, "cache-to", nil, "cache of other machines to write, type=registry,ref=NAME|type=local,dest=DIR|type=inline[,mode=min|max] (repeatable)")
	fs.BoolVar(&f.traceReads, "trace-reads", true, "reuse a RUN whose root differs only in context files that it did not read")
	fs.BoolVar(&f.explain, "explain", false, "tell all that changed since the nearest earlier build for each step that runs")
	fs.BoolVar(&f.dryRun, "dry-run", false, "only tell which steps would run, and why; exit with 3 if any would")
	fs.StringVar(&f.graph, "graph", "", "write the graph with keys, durations and hits to `FILE`.dot and FILE.json, or to one of them")
	f.registerCall(fs)
	fs.BoolVar(&f.pull, "pull", false, "look base images up in their registry even if the store has them")
	fs.StringArrayVar(&f.secrets, "secret", nil, "secret for RUN --mount=type=secret, id=ID[,src=FILE|,env=NAME] (repeatable)")
	fs.StringArrayVar(&f.ssh, "ssh", nil, "agent for RUN --mount=type=ssh and for git, default|ID[=SOCKET|KEY[,KEY]] (repeatable)")
	fs.StringVar(&f.network, "network", "default", "network of RUN steps: default, none or host")
	fs.StringSliceVar(&f.addHosts, "add-host", nil, "line of /etc/hosts in RUN steps, NAME:IP; host-gateway is this machine (repeatable)")
	fs.StringVar(&f.runtime, "runtime", "", "OCI runtime, such as runc, for RUN steps (default kiln's own sandbox)")
	fs.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm in RUN steps")
	fs.StringArrayVar(&f.ulimits, "ulimit", nil, "resource limit of RUN steps, NAME=SOFT[:HARD] (repeatable)")
	fs.StringVarP(&f.memory, "memory", "m", "", "memory limit of each RUN step")
	fs.StringVar(&f.memorySwap, "memory-swap", "", "memory and swap together; -1 does not limit swap")
	fs.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "relative weight of a RUN step's processor time")
	fs.Int64Var(&f.cpuPeriod, "cpu-period", 0, "period of the processor quota, in microseconds")
	fs.Int64Var(&f.cpuQuota, "cpu-quota", 0, "processor time in each period, in microseconds")
	fs.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "processors that RUN steps may use, such as 0-3,5")
	fs.StringVar(&f.cpusetMems, "cpuset-mems", "", "memory nodes that RUN steps may use")
	fs.StringVar(&f.cgroupParent, "cgroup-parent", "", "cgroup that RUN steps are put under")
	fs.StringSliceVar(&f.allow, "allow", nil, "allow network.host, security.insecure, device (all of them) or device=NAME")
	fs.StringVar(&f.iidFile, "iidfile", "", "file to write the image ID to")
	fs.StringVar(&f.metadataFile, "metadata-file", "", "file to write the result's digests to, as JSON")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "print only the image ID")
	fs.StringArrayVarP(&f.outputs, "output", "o", nil, "where the result goes, type=image|oci|docker|tar|local|registry|cacheonly[,dest=PATH,…] or DIR (repeatable)")
	fs.BoolVar(&f.push, "push", false, "push the image to its registry: --output type=registry")
	fs.BoolVar(&f.load, "load", false, "keep the image in the local store (the default)")
	fs.StringVar(&f.progress, "progress", envOr("BUILDKIT_PROGRESS", "auto"), "auto, plain, tty, quiet or none")
	fs.IntVar(&f.jobs, "jobs", 0, "how many steps may run at a time, in all builds on this store together (default four for each processor, at least eight)")
	fs.StringVar(&f.contextModes, "context-modes", envOr("KILN_CONTEXT_MODES", "exact"), "modes of context files: exact, or git (the executable bit alone)")
	fs.StringVar(&f.sourceDateTime, "source-date-epoch", "", "newest time in the image, in seconds (default SOURCE_DATE_EPOCH)")
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// silent says that nothing is wanted on standard error but why a build failed.
func (f *buildFlags) silent() bool { return f.quiet || f.progress == "none" }

// jobCount is the number of actions at a time. Most of them wait, for a
// disk, a network or a compiler that is itself parallel, so there are more
// than processors.
func (f *buildFlags) jobCount() (int, error) {
	if f.jobs < 0 {
		return 0, fmt.Errorf("--jobs=%d: must be positive", f.jobs)
	}
	if f.jobs == 0 {
		return max(8, 4*runtime.NumCPU()), nil
	}
	return f.jobs, nil
}

// args splits NAME=VALUE words; a NAME alone takes the value that the
// environment has, and is left out where it has none.
func args(flag string, words []string, getenv func(string) (string, bool)) (map[string]string, error) {
	m := map[string]string{}
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if name == "" {
			return nil, fmt.Errorf("%s=%q: no name", flag, w)
		}
		if !ok {
			if getenv == nil {
				continue
			}
			if value, ok = getenv(name); !ok {
				continue
			}
		}
		m[name] = value
	}
	return m, nil
}

// targetPlatforms parses --platform; without it the machine's own.
func (f *buildFlags) targetPlatforms() ([]ocispecs.Platform, error) {
	if len(f.platforms) == 0 {
		return []ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())}, nil
	}
	var all []ocispecs.Platform
	seen := map[string]bool{}
	for _, s := range f.platforms {
		if s == "local" {
			s = platforms.Format(platforms.DefaultSpec())
		}
		p, err := platforms.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("--platform=%s: %w", s, err)
		}
		p = platforms.Normalize(p)
		if key := platforms.FormatAll(p); !seen[key] {
			seen[key] = true
			all = append(all, p)
		}
	}
	return all, nil
}

// hosts parses --add-host: NAME:IP or NAME=IP, where IP may be
// "host-gateway".
func (f *buildFlags) hosts() ([]op.Host, error) {
	var all []op.Host
	for _, s := range f.addHosts {
		i := strings.IndexAny(s, "=:")
		if i <= 0 || i == len(s)-1 {
			return nil, fmt.Errorf("--add-host=%q: must be NAME:IP", s)
		}
		ip := strings.Trim(s[i+1:], "[]")
		if ip != runner.HostGateway && net.ParseIP(ip) == nil {
			return nil, fmt.Errorf("--add-host=%q: %q is no IP address, and not host-gateway", s, ip)
		}
		all = append(all, op.Host{Name: s[:i], IP: ip})
	}
	return all, nil
}

func (f *buildFlags) parseUlimits() ([]op.Ulimit, error) {
	var all []op.Ulimit
	for _, s := range f.ulimits {
		u, err := units.ParseUlimit(s)
		if err != nil {
			return nil, fmt.Errorf("--ulimit=%s: %w", s, err)
		}
		all = append(all, op.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	return all, nil
}

func (f *buildFlags) limits() (op.Limits, error) {
	l := op.Limits{
		CPUShares: f.cpuShares, CPUPeriod: f.cpuPeriod, CPUQuota: f.cpuQuota,
		CPUSetCPUs: f.cpusetCPUs, CPUSetMems: f.cpusetMems, Parent: f.cgroupParent,
	}
	var err error
	if l.Memory, err = bytesFlag("--memory", f.memory); err != nil {
		return l, err
	}
	if f.memorySwap == "-1" {
		l.MemorySwap = -1
	} else if l.MemorySwap, err = bytesFlag("--memory-swap", f.memorySwap); err != nil {
		return l, err
	}
	return l, nil
}

func bytesFlag(flag, value string) (int64, error) {
	if value == "" {
		return 0, nil
	}
	n, err := units.RAMInBytes(value)
	if err != nil {
		return 0, fmt.Errorf("%s=%s: %w", flag, value, err)
	}
	return n, nil
}

// epoch is the newest time that may appear in the image, or nil.
func (f *buildFlags) epoch() (*time.Time, error) {
	s := f.sourceDateTime
	if s == "" {
		s = os.Getenv("SOURCE_DATE_EPOCH")
	}
	if s == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("source date epoch %q: must be seconds since 1970", s)
	}
	t := time.Unix(n, 0).UTC()
	return &t, nil
}

// gitModes parses --context-modes.
func (f *buildFlags) gitModes() (bool, error) {
	switch f.contextModes {
	case "", "exact":
		return false, nil
	case "git":
		return true, nil
	}
	return false, fmt.Errorf("--context-modes=%q: must be exact or git", f.contextModes)
}

// secretSource is where a secret's value is: a file or a variable.
type secretSource struct {
	file, env string
}

// parseSecrets parses --secret id=ID[,type=file|env][,src=FILE|env=NAME]. As
// in docker, an id alone is the variable of that name if there is one, else
// the file.
func parseSecrets(flags []string) (map[string]secretSource, error) {
	m := map[string]secretSource{}
	for _, s := range flags {
		var id, src, env, kind string
		for field := range strings.SplitSeq(s, ",") {
			k, v, ok := strings.Cut(field, "=")
			if !ok {
				return nil, fmt.Errorf("--secret=%q: %q must be key=value", s, field)
			}
			switch strings.ToLower(k) {
			case "id":
				id = v
			case "src", "source":
				src = v
			case "env":
				env = v
			case "type":
				kind = v
			default:
				return nil, fmt.Errorf("--secret=%q: unknown key %q: must be id, type, src or env", s, k)
			}
		}
		if id == "" {
			return nil, fmt.Errorf("--secret=%q: no id", s)
		}
		switch {
		case kind != "" && kind != "file" && kind != "env":
			return nil, fmt.Errorf("--secret=%q: type %q: must be file or env", s, kind)
		case src != "" && env != "":
			return nil, fmt.Errorf("--secret=%q: has both src and env", s)
		case kind == "env" && env == "":
			if env = src; env == "" {
				env = id
			}
			src = ""
		case src == "" && env == "":
			if _, ok := os.LookupEnv(id); ok && kind == "" {
				env = id
			} else {
				src = id
			}
		}
		m[id] = secretSource{file: src, env: env}
	}
	return m, nil
}

// read returns the values of all secrets. They are read before anything is
// built, so that a missing file is an error at once.
func readSecrets(sources map[string]secretSource) (map[string][]byte, error) {
	m := map[string][]byte{}
	for id, s := range sources {
		if s.env != "" {
			v, ok := os.LookupEnv(s.env)
			if !ok {
				return nil, fmt.Errorf("secret %q: the environment has no variable %q", id, s.env)
			}
			m[id] = []byte(v)
			continue
		}
		v, err := os.ReadFile(s.file)
		if err != nil {
			return nil, fmt.Errorf("secret %q: %w", id, err)
		}
		m[id] = v
	}
	return m, nil
}

// entitlements checks --allow and what needs it.
func (f *buildFlags) entitlements() (map[string]bool, error) {
	m := map[string]bool{}
	for _, a := range f.allow {
		name, value, _ := strings.Cut(a, "=")
		switch {
		case a == "network.host", a == "security.insecure", a == "device", name == "device" && value != "":
			m[a] = true
		default:
			return nil, fmt.Errorf("--allow=%q: must be network.host, security.insecure, device or device=NAME", a)
		}
	}
	switch f.network {
	case "", "default", "none":
	case "host":
		if !m["network.host"] {
			return nil, errors.New("--network=host: needs --allow=network.host")
		}
	default:
		return nil, fmt.Errorf("--network=%q: must be default, none or host", f.network)
	}
	return m, nil
}
