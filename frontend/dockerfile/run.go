package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// scriptDir is where a heredoc that is a script of its own is mounted.
const scriptDir = "/dev/pipes"

// run lowers a RUN.
func (b *build) run(s *stage, c *command, in *instructions.RunCommand) error {
	args, script, err := s.runArgs(in, b.place(c.Location()))
	if err != nil {
		return err
	}
	env := s.vars.list()
	slices.Sort(env)
	for _, kv := range env { // which this step keeps, as does its history
		if err := b.spend(len(kv)); err != nil {
			return err
		}
	}
	exec := op.Exec{
		Args: args, Env: env, User: s.image.Config.User,
		Cwd:        path.Join("/", s.image.Config.WorkingDir),
		ExtraHosts: b.Hosts, ShmSize: b.ShmSize, Ulimits: b.Ulimits, Limits: b.Limits,
		Hostname: b.BuildArgs["BUILDKIT_SANDBOX_HOSTNAME"],
		Platform: platforms.Format(s.actual),
		ProxyEnv: b.proxyEnv(s),
	}
	if err := b.rights(&exec, in); err != nil {
		return err
	}
	step := b.step(b.stepName(s, c, b.runName(s, in)), c.Location())
	v := &solver.Vertex{Inputs: []*solver.Vertex{s.root}, Below: s.root, Fresh: b.fresh(s), Step: step}
	m := mounter{b: b, s: s, c: c, vertex: v, exec: &exec}
	if script != nil {
		m.bind(op.Mount{Type: op.Bind, Target: scriptDir, ReadOnly: true}, script, "/", "")
	}
	for i, mount := range instructions.GetMounts(in) {
		if err := m.add(mount, c.sources[i]); err != nil {
			return err
		}
	}
	v.Op = exec
	s.root = v
	b.history(s, "RUN "+s.argsText()+strings.Join(args, " ")+" # buildkit", true)
	return nil
}

// runArgs is the command line of a RUN; a heredoc with a shebang is returned
// as a root with the script in it.
func (s *stage) runArgs(in *instructions.RunCommand, at solver.Location) (args []string, script *solver.Vertex, err error) {
	args = in.CmdLine
	if len(in.Files) > 0 {
		if len(args) != 1 || !in.PrependShell {
			return nil, nil, errors.New("a heredoc needs the shell form of RUN")
		}
		data := in.Files[0].Data
		if in.Files[0].Chomp {
			data = parser.ChompHeredocContent(data)
		}
		switch h := parser.MustParseHeredoc(args[0]); {
		case h == nil:
			// The shell reads the heredocs itself.
			full := args[0]
			for _, f := range in.Files {
				full += "\n" + f.Data + f.Name
			}
			args = []string{full}
		case strings.HasPrefix(data, "#!"):
			name := in.Files[0].Name
			file := inline([]op.InlineFile{{Name: name, Data: []byte(data)}}, at)
			return s.withShell([]string{path.Join(scriptDir, name)}), put(op.Copy{Chmod: "755"}, file), nil
		default:
			args = []string{data}
		}
	}
	if in.PrependShell {
		return s.withShell(args), nil, nil
	}
	if len(args) == 0 {
		return nil, nil, errors.New("RUN needs a command")
	}
	return args, nil, nil
}

// runName is the text of a RUN with its variables' values, but for secrets,
// and with the first line of a heredoc that is the whole command.
func (b *build) runName(s *stage, in *instructions.RunCommand) string {
	text := in.String()
	if len(in.Files) > 0 && parser.MustParseHeredoc(in.CmdLine[0]) != nil {
		first, rest, _ := strings.Cut(strings.TrimSpace(in.Files[0].Data), "\n")
		if rest != "" {
			first = strings.TrimSuffix(first, "\r") + "..."
		}
		text += " (" + first + ")"
	}
	var vars shell.EnvGetter = s.vars
	for _, m := range instructions.GetMounts(in) {
		if m.Type == instructions.MountTypeSecret && m.Env != nil {
			masked := s.vars.clone()
			masked.set(*m.Env, "****")
			vars = masked
		}
	}
	return b.shown(b.shownLex, text, vars)
}

// proxyEnv is the environment of the proxy arguments that the stage does not
// set itself, in both spellings, since programs know one or the other.
func (b *build) proxyEnv(s *stage) []string {
	var env []string
	for _, k := range sortedKeys(b.BuildArgs) {
		if !proxyArgs[strings.ToUpper(k)] {
			continue
		}
		for _, name := range []string{strings.ToUpper(k), strings.ToLower(k)} {
			if _, set := s.vars.Get(name); set {
				continue
			}
			if _, given := b.BuildArgs[name]; given && name != k {
				continue
			}
			env = append(env, name+"="+b.BuildArgs[k])
		}
	}
	return env
}

// rights sets the network and security mode, which need to be allowed.
func (b *build) rights(exec *op.Exec, in *instructions.RunCommand) error {
	network := instructions.GetNetwork(in)
	if network == "" || network == instructions.NetworkDefault {
		network = b.Network
	}
	switch network {
	case "", instructions.NetworkDefault:
	case instructions.NetworkHost:
		if !b.Allowed["network.host"] {
			return errors.New("network.host is not allowed: add --allow=network.host")
		}
		exec.Network = network
	default:
		exec.Network = network
	}
	if instructions.GetSecurity(in) == instructions.SecurityInsecure {
		if !b.Allowed["security.insecure"] {
			return errors.New("security.insecure is not allowed: add --allow=security.insecure")
		}
		exec.Security = "insecure"
	}
	for _, d := range instructions.GetDevices(in) {
		if d.Name == "" {
			return errors.New("RUN --device: no name")
		}
		if b.DeviceAllowed == nil || !b.DeviceAllowed(d.Name) {
			return fmt.Errorf("device %s is not allowed: add --allow=device=%s, or --allow=device for all", d.Name, d.Name)
		}
		exec.Devices = append(exec.Devices, op.Device{Name: d.Name, Required: d.Required})
	}
	return nil
}
