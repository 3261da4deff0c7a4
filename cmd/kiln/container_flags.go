package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/pflag"
	"kiln.build/runner/container"
	"kiln.build/runner/sandbox"
)

// defaultPath is the PATH in containers of images that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// runFlags are the flags of run and create, as typed.
type runFlags struct {
	detach, interactive, tty, rm, readOnly, init, privileged, publishAll bool

	name, workdir, user, entrypoint, hostname, ip, mac, memory, memorySwap, memoryReservation         string
	platform, runtime, pull, stopSignal, cidFile, shmSize, cpus, cpusetCPUs, cpusetMems, cgroupParent string
	restart, detachKeys                                                                               string

	env, envFiles, publish, networks, aliases, volumes, mounts, tmpfs, hosts, ulimits, capAdd, capDrop, labels []string
	labelFiles, security, dns, dnsSearch, dnsOptions, devices, sysctls, groups                                 []string

	pids, cpuShares, cpuPeriod, cpuQuota int64
	stopTimeout, oomScore                int
	logDriver                            string
	logOptions                           []string
	health                               healthFlags
	expose, volumesFrom, attach          []string
	pid, ipc, uts, cgroupns, domainname  string
	quiet                                bool
	entrySet, oomSet, sigProxy           bool
	limits                               resourceFlags

	deviceRules, gpus, annotations, storage []string
	userns, isolation, volumeDriver         string
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
	fs.StringArrayVar(&f.annotations, "annotation", nil, "note for whoever inspects the container, NAME=VALUE (repeatable)")
	fs.StringArrayVar(&f.labelFiles, "label-file", nil, "file with labels, one a line (repeatable)")
	f.registerNetwork(fs)
	f.registerFiles(fs)
	f.registerRights(fs)
	f.registerLimits(fs)
	f.limits.register(fs)
	f.registerLog(fs)
	f.health.register(fs)
}

func (f *runFlags) registerLog(fs *pflag.FlagSet) {
	fs.StringVar(&f.logDriver, "log-driver", "json-file", "where output is kept: json-file, local or none")
	fs.StringArrayVar(&f.logOptions, "log-opt", nil, "of the log: max-size=SIZE (default 32m), max-file=N (default 2), labels=, env= or tag= that logs --details shows (repeatable)")
}

func (f *runFlags) registerNetwork(fs *pflag.FlagSet) {
	fs.StringArrayVar(&f.networks, "network", nil, "bridge, host, none, container:NAME, slirp4netns:allow_host_loopback=true, or a network: NAME or name=NAME[,alias=…,ip=…] (repeatable; default bridge)")
	fs.StringArrayVar(&f.networks, "net", nil, "same as --network")
	fs.StringArrayVar(&f.aliases, "network-alias", nil, "a further name for the container in its network (repeatable)")
	fs.StringArrayVar(&f.aliases, "net-alias", nil, "same as --network-alias")
	_ = fs.MarkHidden("net-alias") // it is there
	fs.StringVar(&f.ip, "ip", "", "address in the network, as in 10.20.0.7")
	fs.StringVar(&f.mac, "mac-address", "", "hardware address, as in 02:42:0a:14:00:07")
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
	fs.StringArrayVar(&f.dnsOptions, "dns-opt", nil, "same as --dns-option")
	_ = fs.MarkHidden("dns-opt") // it is there
}

func (f *runFlags) registerFiles(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.volumes, "volume", "v", nil, "folder of this machine or volume, SOURCE:TARGET[:ro] (repeatable)")
	fs.StringArrayVar(&f.mounts, "mount", nil, "type=bind|volume|tmpfs|image,source=…,target=…[,readonly] (repeatable)")
	fs.StringArrayVar(&f.tmpfs, "tmpfs", nil, "file system in memory, TARGET[:OPTIONS] (repeatable)")
	fs.StringArrayVar(&f.volumesFrom, "volumes-from", nil, "mount what another container has mounted, CONTAINER[:ro] (repeatable)")
	fs.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm")
	fs.StringVar(&f.volumeDriver, "volume-driver", "", "of volumes: local, there are no others")
	fs.StringArrayVar(&f.storage, "storage-opt", nil, "option of the container's file system: there are none")
}

func (f *runFlags) registerRights(fs *pflag.FlagSet) {
	fs.StringVar(&f.pid, "pid", "", "host or container:NAME: see all processes of this machine, or another container's")
	fs.StringVar(&f.ipc, "ipc", "", "private, shareable, container:NAME or host: semaphores, queues and shared memory of its own, another container's, or this machine's")
	fs.StringVar(&f.uts, "uts", "", "host: share this machine's host name")
	fs.StringVar(&f.cgroupns, "cgroupns", "", "private or host: see its own control groups or this machine's")
	fs.StringSliceVar(&f.capAdd, "cap-add", nil, "add a capability, or ALL (repeatable)")
	fs.StringSliceVar(&f.capDrop, "cap-drop", nil, "drop a capability, or ALL (repeatable)")
	fs.StringVar(&f.userns, "userns", "", "host: accepted, ids are never mapped anew")
	fs.StringVar(&f.isolation, "isolation", "", "default: there is no other")
	fs.StringArrayVar(&f.security, "security-opt", nil, "seccomp=unconfined|FILE, no-new-privileges, systempaths=unconfined, apparmor=unconfined, label=disable (repeatable)")
	fs.StringArrayVar(&f.devices, "device", nil, "device of this machine, PATH[:TARGET][:rwm], or one of CDI, VENDOR/CLASS=NAME (repeatable)")
	fs.StringArrayVar(&f.deviceRules, "device-cgroup-rule", nil, "further devices that may be made and opened, such as 'c 10:* rwm' (repeatable)")
	fs.StringArrayVar(&f.gpus, "gpus", nil, "GPUs, by what CDI says of them: all, a number, or device=NAME (repeatable)")
	fs.StringArrayVar(&f.sysctls, "sysctl", nil, "setting of the container's kernel namespaces, NAME=VALUE (repeatable)")
}

// apply puts the flags that need no image into a config.
func (f *runFlags) apply(c *container.Config) error {
	for _, step := range []func(*container.Config) error{
		f.applyLabels, f.applyLog, f.applyNamespaces, f.applyLimits, f.applyProcessors, f.limits.apply, f.applyRights, f.applyMounts, f.applyNetwork, f.applyLife,
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
		lines, err := readPairs(file)
		if err != nil {
			return fmt.Errorf("--label-file: %w", err)
		}
		all = append(all, lines...)
	}
	var err error
	if c.Notes, err = args("--annotation", f.annotations, nil); err != nil {
		return err
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

// applyNamespaces reads which namespaces are shared with this machine.
func (f *runFlags) applyNamespaces(c *container.Config) error {
	c.PIDOf, c.IPCOf = "", ""
	if name, ok := strings.CutPrefix(f.pid, "container:"); ok {
		c.PIDOf = name
	}
	if name, ok := strings.CutPrefix(f.ipc, "container:"); ok {
		c.IPCOf = name
	}
	c.SharesIPC = f.ipc == "shareable"
	for _, n := range []struct {
		flag, value, what string
		private           bool // may be said
		to                *bool
	}{
		{"--pid", f.pid, "PID", c.PIDOf != "", &c.HostPID}, {"--ipc", f.ipc, "IPC", f.ipc == "private" || c.SharesIPC || c.IPCOf != "", &c.HostIPC},
		{"--uts", f.uts, "UTS", false, &c.HostUTS}, {"--cgroupns", f.cgroupns, "CGROUP", f.cgroupns == "private", &c.HostCgroup},
		{"--userns", f.userns, "USER", f.userns == "host", new(bool)},
	} {
		switch {
		case n.value == "host":
			*n.to = true
		case n.value == "", n.private:
		default:
			return fmt.Errorf("%s: invalid %s mode", n.flag, n.what)
		}
	}
	if c.HostUTS && (f.hostname != "" || f.domainname != "") {
		return errors.New("conflicting options: hostname and the UTS mode")
	}
	if n := len(f.hostname); n > 64 {
		return fmt.Errorf("hostname %q is too long (maximum 64 bytes)", f.hostname)
	}
	if f.isolation != "" && f.isolation != "default" {
		return fmt.Errorf("invalid isolation (%s): linux only supports 'default'", f.isolation)
	}
	if len(f.storage) > 0 {
		return fmt.Errorf("--storage-opt=%s: not supported: a container's file system is bounded by the disk alone", f.storage[0])
	}
	if f.volumeDriver != "" && f.volumeDriver != "local" {
		return fmt.Errorf("--volume-driver=%s: plugin %q not found: volumes are local", f.volumeDriver, f.volumeDriver)
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
			return err
		}
	}
	if err := f.applyDevices(c); err != nil {
		return err
	}
	var err error
	for _, kv := range f.sysctls {
		if name, _, ok := strings.Cut(kv, "="); !ok || !sandbox.OwnSysctl(name) {
			return fmt.Errorf("--sysctl=%s: sysctl '%s' is not allowed: it is not of a container's own namespaces", kv, kv)
		}
	}
	c.Sysctls, err = args("--sysctl", f.sysctls, nil)
	return err
}

// applySecurity reads a value of --security-opt.
func applySecurity(c *container.Config, s string) error {
	name, value, ok := strings.Cut(s, "=")
	if !ok {
		name, value, ok = strings.Cut(s, ":")
	}
	if (!ok || value == "") && name != "no-new-privileges" {
		return fmt.Errorf("invalid --security-opt: %q", s)
	}
	text := s
	switch name {
	case "seccomp":
		switch value {
		case "unconfined":
			c.Seccomp.Unconfined = true
		case "builtin":
		default:
			profile, err := os.ReadFile(value)
			if err != nil {
				return fmt.Errorf("opening seccomp profile (%s) failed: %w", value, err)
			}
			var b bytes.Buffer
			if err := json.Compact(&b, profile); err != nil {
				return fmt.Errorf("compacting json for seccomp profile (%s) failed: %w", value, err)
			}
			c.Seccomp.Profile, text = b.Bytes(), "seccomp="+b.String()
		}
	case "no-new-privileges":
		var err error
		if c.NoNewPrivs = true; ok {
			if c.NoNewPrivs, err = strconv.ParseBool(value); err != nil {
				return fmt.Errorf("invalid --security-opt: %q", s)
			}
		}
	case "systempaths":
		if value != "unconfined" {
			return fmt.Errorf("invalid --security-opt: %q", s)
		}
		c.Unmasked = true
		return nil // said by the lists of paths that inspect shows
	case "apparmor":
		// Profiles are the administrator's: none is applied unless asked for,
		// and one that is asked for and not applied would be a lie.
		if value != "unconfined" {
			return fmt.Errorf("--security-opt=%s: AppArmor profiles are not applied: use apparmor=unconfined", s)
		}
	case "label":
		if _, err := os.Stat("/sys/fs/selinux/enforce"); value != "disable" && err == nil {
			return fmt.Errorf("--security-opt=%s: SELinux labels are not applied: use label=disable", s)
		}
	default:
		return fmt.Errorf("invalid --security-opt: %q: must be seccomp, no-new-privileges, systempaths, apparmor or label", s)
	}
	c.Security = append(c.Security, text)
	return nil
}

func (f *runFlags) applyNetwork(c *container.Config) error {
	c.Hosts = nil
	for _, h := range f.hosts {
		host, err := container.ParseHost(h)
		if err != nil {
			return err
		}
		c.Hosts = append(c.Hosts, host)
	}
	for _, s := range f.dns {
		if net.ParseIP(s) == nil {
			return fmt.Errorf("--dns=%s: not an IP address", s)
		}
	}
	c.DNS = container.DNS{Servers: f.dns, Search: f.dnsSearch, Options: f.dnsOptions}
	var err error
	if c.Ports, err = parsePublish(f.publish); err != nil {
		return err
	}
	return f.connect(c)
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
		lines, err := readPairs(file)
		if err != nil {
			return nil, fmt.Errorf("--env-file: %w", err)
		}
		for _, kv := range lines {
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

// readPairs reads a file with NAME=VALUE, or NAME alone, on each line, as
// docker does: comments begin with #, and nothing is quoted.
func readPairs(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var all []string
	n := 0
	for line := range bytes.Lines(bytes.TrimPrefix(data, []byte("\ufeff"))) {
		n++
		if !utf8.Valid(line) {
			return nil, fmt.Errorf("invalid env file (%s): invalid utf8 bytes at line %d", file, n)
		}
		text := strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r")
		if text = strings.TrimLeftFunc(text, unicode.IsSpace); text == "" || text[0] == '#' {
			continue
		}
		name, _, _ := strings.Cut(text, "=")
		if name == "" {
			return nil, fmt.Errorf("invalid env file (%s): no variable name on line '%s'", file, text)
		}
		if strings.ContainsAny(name, " \t") {
			return nil, fmt.Errorf("invalid env file (%s): variable '%s' contains whitespaces", file, name)
		}
		all = append(all, text)
	}
	return all, nil
}

func sortedPorts(m map[string]struct{}) []string {
	var all []string
	for p := range m {
		all = append(all, p)
	}
	slices.Sort(all)
	return all
}
