package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

// defaultPath is the PATH in containers of images that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// runFlags are the flags of run and create, as typed.
type runFlags struct {
	detach, interactive, tty, rm, readOnly, init, privileged, publishAll bool

	name, workdir, user, entrypoint, network, hostname, memory, memorySwap, memoryReservation         string
	platform, runtime, pull, stopSignal, cidFile, shmSize, cpus, cpusetCPUs, cpusetMems, cgroupParent string
	restart, detachKeys                                                                               string

	env, envFiles, publish, volumes, mounts, tmpfs, hosts, ulimits, capAdd, capDrop, labels []string
	labelFiles, security, dns, dnsSearch, dnsOptions, devices, sysctls, groups              []string

	pids, cpuShares, cpuPeriod, cpuQuota int64
	stopTimeout, oomScore                int
	logDriver                            string
	logOptions                           []string
	health                               healthFlags
	expose, volumesFrom, attach          []string
	pid, ipc, uts, cgroupns, domainname  string
	quiet                                bool
	entrySet, oomSet, sigProxy           bool
}

func (f *runFlags) register(fs *pflag.FlagSet) {
	fs.SetInterspersed(false)
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "keep standard input open")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	fs.BoolVar(&f.rm, "rm", false, "remove the container when it ends")
	fs.BoolVar(&f.readOnly, "read-only", false, "mount the root file system read-only")
	fs.BoolVar(&f.init, "init", false, "run an init that forwards signals and reaps processes")
	fs.BoolVar(&f.privileged, "privileged", false, "give all rights: this is no sandbox any more")
	fs.StringVar(&f.name, "name", "", "name of the container")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "working folder")
	fs.StringVarP(&f.user, "user", "u", "", "user[:group], by name or number")
	fs.StringArrayVar(&f.groups, "group-add", nil, "further group of the user (repeatable)")
	fs.StringVar(&f.entrypoint, "entrypoint", "", "command instead of the image's ENTRYPOINT")
	fs.StringVar(&f.platform, "platform", "", "platform of the image")
	fs.StringVar(&f.runtime, "runtime", "", "OCI runtime, such as runc, to run the container with (default kiln's own sandbox)")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "do not say that an image is being pulled")
	fs.StringVar(&f.pull, "pull", "missing", "when to pull the image: always, missing or never")
	fs.StringVar(&f.restart, "restart", "no", "when to start it again: no, on-failure[:MAX], always or unless-stopped")
	fs.StringVar(&f.stopSignal, "stop-signal", "", "signal that asks the container to end")
	fs.IntVar(&f.stopTimeout, "stop-timeout", 10, "seconds after which stop kills it; -1 is never")
	fs.StringVar(&f.cidFile, "cidfile", "", "file to write the container's ID to")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "variable, NAME=VALUE; NAME alone takes the environment's (repeatable)")
	fs.StringArrayVar(&f.envFiles, "env-file", nil, "file with variables, one a line (repeatable)")
	fs.StringArrayVarP(&f.labels, "label", "l", nil, "label, NAME=VALUE (repeatable)")
	fs.StringArrayVar(&f.labelFiles, "label-file", nil, "file with labels, one a line (repeatable)")
	f.registerNetwork(fs)
	f.registerFiles(fs)
	f.registerRights(fs)
	f.registerLimits(fs)
	f.registerLog(fs)
	f.health.register(fs)
}

func (f *runFlags) registerLog(fs *pflag.FlagSet) {
	fs.StringVar(&f.logDriver, "log-driver", "json-file", "where output is kept: json-file, local or none")
	fs.StringArrayVar(&f.logOptions, "log-opt", nil, "of the log: max-size=SIZE (default 32m), max-file=N (default 2), labels=, env= or tag= that logs --details shows (repeatable)")
}

func (f *runFlags) registerNetwork(fs *pflag.FlagSet) {
	fs.StringVar(&f.network, "network", "", "bridge, host or none (default bridge for root, else host)")
	fs.StringVar(&f.network, "net", "", "same as --network")
	_ = fs.MarkHidden("net") // it is there
	fs.StringVar(&f.domainname, "domainname", "", "NIS domain name")
	fs.StringArrayVar(&f.expose, "expose", nil, "port that the container listens on, PORT[-PORT][/PROTO] (repeatable)")
	fs.StringVarP(&f.hostname, "hostname", "h", "", "host name (default the container's ID)")
	fs.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port, [IP:][HOST:]CONTAINER[/PROTO] (repeatable)")
	fs.BoolVarP(&f.publishAll, "publish-all", "P", false, "publish all exposed ports on free ones")
	fs.StringArrayVar(&f.hosts, "add-host", nil, "line of /etc/hosts, NAME:IP; host-gateway is this machine (repeatable)")
	fs.StringArrayVar(&f.dns, "dns", nil, "name server (repeatable)")
	fs.StringArrayVar(&f.dnsSearch, "dns-search", nil, "domain in which names are looked up (repeatable)")
	fs.StringArrayVar(&f.dnsOptions, "dns-option", nil, "option of resolv.conf (repeatable)")
}

func (f *runFlags) registerFiles(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.volumes, "volume", "v", nil, "folder of this machine or volume, SOURCE:TARGET[:ro] (repeatable)")
	fs.StringArrayVar(&f.mounts, "mount", nil, "type=bind|volume|tmpfs,source=…,target=…[,readonly] (repeatable)")
	fs.StringArrayVar(&f.tmpfs, "tmpfs", nil, "file system in memory, TARGET[:OPTIONS] (repeatable)")
	fs.StringArrayVar(&f.volumesFrom, "volumes-from", nil, "mount what another container has mounted, CONTAINER[:ro] (repeatable)")
	fs.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm")
}

func (f *runFlags) registerRights(fs *pflag.FlagSet) {
	fs.StringVar(&f.pid, "pid", "", "host: see all processes of this machine")
	fs.StringVar(&f.ipc, "ipc", "", "private or host: semaphores and queues of its own or this machine's")
	fs.StringVar(&f.uts, "uts", "", "host: share this machine's host name")
	fs.StringVar(&f.cgroupns, "cgroupns", "", "private or host: see its own control groups or this machine's")
	fs.StringSliceVar(&f.capAdd, "cap-add", nil, "add a capability, or ALL (repeatable)")
	fs.StringSliceVar(&f.capDrop, "cap-drop", nil, "drop a capability, or ALL (repeatable)")
	fs.StringArrayVar(&f.security, "security-opt", nil, "seccomp=unconfined|FILE, no-new-privileges, systempaths=unconfined (repeatable)")
	fs.StringArrayVar(&f.devices, "device", nil, "device of this machine, PATH[:TARGET][:rwm] (repeatable)")
	fs.StringArrayVar(&f.sysctls, "sysctl", nil, "setting of the container's kernel namespaces, NAME=VALUE (repeatable)")
}

func (f *runFlags) registerLimits(fs *pflag.FlagSet) {
	f.registerUpdate(fs)
	fs.StringArrayVar(&f.ulimits, "ulimit", nil, "resource limit, NAME=SOFT[:HARD] (repeatable)")
	fs.StringVar(&f.cgroupParent, "cgroup-parent", "", "control group to make the container's in")
	fs.IntVar(&f.oomScore, "oom-score-adj", 0, "whom the kernel kills first, -1000 to 1000")
}

// registerUpdate registers those that can change later.
func (f *runFlags) registerUpdate(fs *pflag.FlagSet) {
	fs.StringVarP(&f.memory, "memory", "m", "", "memory limit")
	fs.StringVar(&f.memorySwap, "memory-swap", "", "memory and swap together; -1 does not limit swap")
	fs.StringVar(&f.memoryReservation, "memory-reservation", "", "memory that it gets before others")
	fs.StringVar(&f.cpus, "cpus", "", "number of processors, such as 1.5")
	fs.StringVar(&f.cpusetCPUs, "cpuset-cpus", "", "processors that may be used, such as 0-3")
	fs.StringVar(&f.cpusetMems, "cpuset-mems", "", "memory nodes that may be used, such as 0,1")
	fs.Int64VarP(&f.cpuShares, "cpu-shares", "c", 0, "relative weight of processor time")
	fs.Int64Var(&f.cpuPeriod, "cpu-period", 0, "microseconds of a scheduler's period")
	fs.Int64Var(&f.cpuQuota, "cpu-quota", 0, "microseconds of processor time in each period")
	fs.Int64Var(&f.pids, "pids-limit", 0, "limit of processes; -1 is none")
}

// apply puts the flags that need no image into a config.
func (f *runFlags) apply(c *container.Config) error {
	for _, step := range []func(*container.Config) error{
		f.applyLabels, f.applyLog, f.applyNamespaces, f.applyLimits, f.applyProcessors, f.applyRights, f.applyMounts, f.applyNetwork, f.applyLife,
	} {
		if err := step(c); err != nil {
			return err
		}
	}
	return nil
}

func (f *runFlags) applyLife(c *container.Config) error {
	if c.Limits.MemorySwap > 0 && c.Limits.Memory == 0 {
		return errors.New("you should always set the memory limit when using memoryswap limit, see usage")
	}
	var err error
	if c.Restart, err = container.ParsePolicy(f.restart); err != nil {
		return err
	}
	if f.rm && c.Restart.Name != "" {
		return errors.New("conflicting options: cannot specify both --restart and --rm")
	}
	if f.stopSignal != "" {
		_, err = container.ParseSignal(f.stopSignal)
	}
	return err
}

func (f *runFlags) applyLabels(c *container.Config) error {
	var all []string
	for _, file := range f.labelFiles {
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("--label-file: %w", err)
		}
		for line := range bytes.Lines(data) {
			if l := strings.TrimSpace(string(line)); l != "" && l[0] != '#' {
				all = append(all, l)
			}
		}
	}
	c.Labels = map[string]string{}
	for _, l := range append(all, f.labels...) {
		name, value, _ := strings.Cut(l, "=")
		if name == "" {
			return fmt.Errorf("--label=%q: no name", l)
		}
		c.Labels[name] = value
	}
	return nil
}

func (f *runFlags) applyLimits(c *container.Config) error {
	swap := f.memorySwap
	if swap == "-1" {
		swap = ""
	}
	for _, b := range []struct {
		flag, text string
		to         *int64
	}{
		{"--memory", f.memory, &c.Limits.Memory}, {"--memory-swap", swap, &c.Limits.MemorySwap},
		{"--memory-reservation", f.memoryReservation, &c.Limits.MemoryReservation}, {"--shm-size", f.shmSize, &c.ShmSize},
	} {
		n, err := bytesFlag(b.flag, b.text)
		if err != nil {
			return err
		}
		*b.to = n
	}
	if f.memorySwap == "-1" {
		c.Limits.MemorySwap = -1
	}
	if c.Limits.Memory > 0 && c.Limits.Memory < minMemory {
		return errors.New("minimum memory limit allowed is 6MB")
	}
	if m, s := c.Limits.Memory, c.Limits.MemorySwap; s > 0 && s < m {
		return errors.New("minimum memoryswap limit should be larger than memory limit, see usage")
	}
	c.Limits.Pids = f.pids
	c.Limits.Parent = f.cgroupParent
	for _, s := range f.ulimits {
		u, err := units.ParseUlimit(s)
		if err != nil {
			return fmt.Errorf("--ulimit=%s: %w", s, err)
		}
		c.Rlimits = append(c.Rlimits, sandbox.Rlimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	if !f.oomSet {
		return nil
	}
	if f.oomScore < -1000 || f.oomScore > 1000 {
		return fmt.Errorf("--oom-score-adj=%d: must be from -1000 to 1000", f.oomScore)
	}
	c.OOM = &f.oomScore
	return nil
}

// minMemory is docker's: with less nothing starts.
const minMemory = 6 << 20

func (f *runFlags) applyLog(c *container.Config) error {
	switch f.logDriver {
	case "", "json-file":
	case "none", "local":
		c.Log.Driver = f.logDriver
	default:
		return fmt.Errorf("--log-driver=%s: must be json-file, local or none", f.logDriver)
	}
	if f.logDriver == "none" && len(f.logOptions) > 0 {
		return errors.New("invalid logging opts for driver none")
	}
	for _, o := range f.logOptions {
		if err := c.Log.SetOption(o); err != nil {
			return fmt.Errorf("--log-opt=%s: %w", o, err)
		}
	}
	return nil
}

func (f *runFlags) applyProcessors(c *container.Config) error {
	c.Limits.CPUSetCPUs, c.Limits.CPUSetMems, c.Limits.CPUShares = f.cpusetCPUs, f.cpusetMems, f.cpuShares
	c.Limits.CPUPeriod, c.Limits.CPUQuota = f.cpuPeriod, f.cpuQuota
	if f.cpus == "" {
		return nil
	}
	n, err := strconv.ParseFloat(f.cpus, 64)
	if err != nil || n <= 0 {
		return fmt.Errorf("--cpus=%s: must be a number over zero", f.cpus)
	}
	if f.cpuPeriod != 0 || f.cpuQuota != 0 {
		return errors.New("conflicting options: --cpus and --cpu-period or --cpu-quota cannot both be set")
	}
	c.Limits.CPUPeriod, c.Limits.CPUQuota = 100_000, int64(n*100_000)
	return nil
}

// applyNamespaces reads which namespaces are shared with this machine.
func (f *runFlags) applyNamespaces(c *container.Config) error {
	for _, n := range []struct {
		flag, value string
		private     bool // may be said
		to          *bool
	}{
		{"--pid", f.pid, false, &c.HostPID}, {"--ipc", f.ipc, true, &c.HostIPC},
		{"--uts", f.uts, false, &c.HostUTS}, {"--cgroupns", f.cgroupns, true, &c.HostCgroup},
	} {
		switch {
		case n.value == "host":
			*n.to = true
		case n.value == "", n.value == "private" && n.private:
		default:
			return fmt.Errorf("%s: invalid mode %q", n.flag, n.value)
		}
	}
	if c.HostUTS && (f.hostname != "" || f.domainname != "") {
		return errors.New("conflicting options: hostname and the UTS mode")
	}
	c.Domainname = f.domainname
	return nil
}

func (f *runFlags) applyRights(c *container.Config) error {
	if err := container.CheckCapabilities(slices.Concat(f.capAdd, f.capDrop)); err != nil {
		return err
	}
	for _, s := range f.security {
		if err := applySecurity(c, s); err != nil {
			return fmt.Errorf("--security-opt=%s: %w", s, err)
		}
	}
	for _, d := range f.devices {
		device, err := parseDevice(d)
		if err != nil {
			return fmt.Errorf("--device=%s: %w", d, err)
		}
		c.Devices = append(c.Devices, device)
	}
	var err error
	if c.Sysctls, err = args("--sysctl", f.sysctls, nil); err != nil {
		return err
	}
	for name := range c.Sysctls {
		if !sandbox.OwnSysctl(name) {
			return fmt.Errorf("--sysctl=%s: sysctl '%s' is not of a container's own namespaces", name, name)
		}
	}
	return nil
}

func applySecurity(c *container.Config, s string) error {
	i := strings.IndexAny(s, "=:")
	name, value := s, ""
	if i >= 0 {
		name, value = s[:i], s[i+1:]
	}
	switch {
	case name == "seccomp" && value == "unconfined":
		c.Seccomp.Unconfined = true
	case name == "seccomp" && value == "builtin":
	case name == "seccomp" && value != "":
		profile, err := os.ReadFile(value)
		if err != nil {
			return err
		}
		c.Seccomp.Profile = profile
	case name == "no-new-privileges" && (value == "" || value == "true"):
		c.NoNewPrivs = true
	case name == "no-new-privileges" && value == "false":
	case name == "systempaths" && value == "unconfined":
		c.Unmasked = true
	default:
		return errors.New("must be seccomp=unconfined, seccomp=FILE, no-new-privileges or systempaths=unconfined")
	}
	return nil
}

// parseDevice reads PATH[:TARGET][:rwm].
func parseDevice(s string) (sandbox.Device, error) {
	parts := strings.Split(s, ":")
	d := sandbox.Device{Path: parts[0]}
	rights := func(s string) bool { return s != "" && strings.Trim(s, "rwm") == "" }
	switch {
	case len(parts) == 1:
	case len(parts) == 2 && rights(parts[1]):
		d.Access = parts[1]
	case len(parts) == 2:
		d.Path = parts[1]
	case len(parts) == 3 && rights(parts[2]):
		d.Path, d.Access = parts[1], parts[2]
	default:
		return d, errors.New("must be PATH[:TARGET][:rwm]")
	}
	if !path.IsAbs(d.Path) {
		return d, fmt.Errorf("%q is not an absolute path", d.Path)
	}
	var st unix.Stat_t
	if err := unix.Stat(parts[0], &st); err != nil {
		return d, &os.PathError{Op: "stat", Path: parts[0], Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = 'c'
	case unix.S_IFBLK:
		d.Type = 'b'
	default:
		return d, fmt.Errorf("%s is no device", parts[0])
	}
	d.Major, d.Minor, d.Mode = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)), st.Mode&0o777
	d.UID, d.GID = int(st.Uid), int(st.Gid)
	return d, nil
}

func (f *runFlags) applyNetwork(c *container.Config) error {
	for _, h := range f.hosts {
		if err := container.CheckHost(h); err != nil {
			return err
		}
	}
	c.DNS = container.DNS{Servers: f.dns, Search: f.dnsSearch, Options: f.dnsOptions}
	var err error
	if c.Ports, err = parsePublish(f.publish); err != nil {
		return err
	}
	switch c.Network = f.network; c.Network {
	case "", "default":
		c.Network = defaultNetwork()
	case "bridge", "host", "none":
	default:
		return fmt.Errorf("network %s not found: must be bridge, host or none", c.Network)
	}
	if len(c.Ports) > 0 && c.Network != "bridge" {
		return fmt.Errorf("ports cannot be published with --network=%s: the container has no network of its own", c.Network)
	}
	return nil
}

// environment is the image's, with files' and flags' variables over it.
func (f *runFlags) environment(image []string) ([]string, error) {
	env := slices.Clone(image)
	if !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		env = append(env, "PATH="+defaultPath)
	}
	set := func(kv string) {
		name, _, ok := strings.Cut(kv, "=")
		if !ok {
			v, known := os.LookupEnv(name)
			if !known {
				return
			}
			kv = name + "=" + v
		}
		env = append(slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") }), kv)
	}
	for _, file := range f.envFiles {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--env-file: %w", err)
		}
		for line := range bytes.Lines(data) {
			kv := strings.TrimLeft(strings.TrimRight(string(line), "\r\n"), " \t")
			if kv == "" || kv[0] == '#' {
				continue
			}
			if name, _, _ := strings.Cut(kv, "="); name == "" || strings.ContainsAny(name, " \t") {
				return nil, fmt.Errorf("--env-file=%s: variable %q has no name or contains whitespaces", file, name)
			}
			set(kv)
		}
	}
	for _, kv := range f.env {
		if kv == "" || kv[0] == '=' {
			return nil, fmt.Errorf("--env=%q: no name", kv)
		}
		set(kv)
	}
	return env, nil
}

func sortedPorts(m map[string]struct{}) []string {
	var all []string
	for p := range m {
		all = append(all, p)
	}
	slices.Sort(all)
	return all
}
