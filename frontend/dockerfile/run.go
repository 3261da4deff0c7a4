package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// scriptDir is where a heredoc that is a script of its own is mounted.
const scriptDir = "/dev/pipes"

// run lowers a RUN.
func (b *build) run(s *stage, c *instructions.RunCommand, trigger bool) error {
	args, script, err := s.runArgs(c)
	if err != nil {
		return err
	}
	step := b.shown(s, c.String(), c.Location(), trigger)
	exec := op.Exec{
		Args: args, Env: sortedEnv(s.vars), User: s.image.Config.User,
		Cwd:        path.Join("/", s.image.Config.WorkingDir),
		ExtraHosts: b.Hosts, ShmSize: b.ShmSize, Ulimits: b.Ulimits, Limits: b.Limits,
		Hostname: b.overrides["BUILDKIT_SANDBOX_HOSTNAME"],
		Platform: platforms.Format(s.imagePlatform),
	}
	for _, k := range sortedKeys(b.overrides) {
		if _, declared := s.vars.Get(k); proxyArgs[strings.ToUpper(k)] && !declared {
			exec.ProxyEnv = append(exec.ProxyEnv, k+"="+b.overrides[k])
		}
	}
	if err := b.rights(&exec, c); err != nil {
		return err
	}
	v := &solver.Vertex{Inputs: []*solver.Vertex{s.root}, Below: s.root, Fresh: b.fresh(s), Step: step}
	if script != nil {
		b.bind(v, &exec, op.Mount{Type: op.Bind, Target: scriptDir, ReadOnly: true}, script, "/")
	}
	for _, m := range instructions.GetMounts(c) {
		if err := b.mount(s, v, &exec, m); err != nil {
			return err
		}
	}
	v.Op = exec
	text := ""
	for _, name := range s.args {
		value, _ := s.vars.Get(name)
		text += " " + name + "=" + value
	}
	if len(s.args) > 0 {
		text = "|" + strconv.Itoa(len(s.args)) + text + " "
	}
	s.history("RUN "+text+strings.Join(args, " "), true)
	s.root = v
	return nil
}

// runArgs is the command line of a RUN; a heredoc with a shebang is returned
// as a root with the script in it.
func (s *stage) runArgs(c *instructions.RunCommand) (args []string, script *solver.Vertex, err error) {
	args = c.CmdLine
	if len(c.Files) > 0 {
		if len(args) != 1 || !c.PrependShell {
			return nil, nil, errors.New("a heredoc needs the shell form of RUN")
		}
		data := c.Files[0].Data
		if c.Files[0].Chomp {
			data = parser.ChompHeredocContent(data)
		}
		switch h := parser.MustParseHeredoc(args[0]); {
		case h == nil:
			// The shell reads the heredocs itself.
			full := args[0]
			for _, f := range c.Files {
				full += "\n" + f.Data + f.Name
			}
			args = []string{full}
		case strings.HasPrefix(data, "#!"):
			name := c.Files[0].Name
			return []string{path.Join(scriptDir, name)}, scriptRoot(name, data), nil
		default:
			args = []string{data}
		}
	}
	if c.PrependShell {
		return s.withShell(args), nil, nil
	}
	if len(args) == 0 {
		return nil, nil, errors.New("RUN needs a command")
	}
	return args, nil, nil
}

// scriptRoot is a root that holds one executable file.
func scriptRoot(name, data string) *solver.Vertex {
	scratch := &solver.Vertex{Op: op.Scratch{}}
	file := &solver.Vertex{Op: op.Inline{Files: []op.InlineFile{{Name: name, Data: []byte(data)}}}, Volatile: true}
	dest := &solver.Vertex{Op: op.Dest{Path: "/"}, Inputs: []*solver.Vertex{scratch, file}}
	return &solver.Vertex{
		Op: op.Copy{Chmod: "755"}, Inputs: []*solver.Vertex{dest, file},
		Using: []*solver.Vertex{file}, Below: scratch,
	}
}

// rights sets the network and security mode, which need to be allowed.
func (b *build) rights(exec *op.Exec, c *instructions.RunCommand) error {
	network := instructions.GetNetwork(c)
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
	if instructions.GetSecurity(c) == instructions.SecurityInsecure {
		if !b.Allowed["security.insecure"] {
			return errors.New("security.insecure is not allowed: add --allow=security.insecure")
		}
		exec.Security = "insecure"
	}
	if d := instructions.GetDevices(c); len(d) > 0 {
		return fmt.Errorf("RUN --device=%s: devices are not supported", d[0].Name)
	}
	return nil
}

// mount adds a RUN --mount to a vertex and its op.
func (b *build) mount(s *stage, v *solver.Vertex, exec *op.Exec, m *instructions.Mount) error {
	target := m.Target
	if target != "" && !path.IsAbs(target) {
		target = path.Join("/", s.image.Config.WorkingDir, target)
	}
	om := op.Mount{
		Type: op.MountType(m.Type), Target: path.Clean(target), ReadOnly: m.ReadOnly, Input: -1, Using: -1,
		Required: m.Required, Size: m.SizeLimit,
	}
	if target == "" {
		om.Target = ""
	}
	if m.Mode != nil {
		om.Mode = uint32(*m.Mode)
	}
	if m.UID != nil {
		om.UID = int(*m.UID)
	}
	if m.GID != nil {
		om.GID = int(*m.GID)
	}
	if om.Target == "/" {
		return fmt.Errorf("invalid mount target %q", m.Target)
	}
	switch m.Type {
	case instructions.MountTypeBind:
		return b.bindFrom(s, v, exec, om, m)
	case instructions.MountTypeCache:
		if m.Mode == nil {
			om.Mode = 0o755
		}
		om.CacheID = m.CacheID
		if om.CacheID == "" {
			om.CacheID = om.Target
		}
		if ns := b.overrides["BUILDKIT_CACHE_MOUNT_NS"]; ns != "" {
			om.CacheID = ns + "/" + om.CacheID
		}
		om.Sharing = string(m.CacheSharing)
		if om.Sharing == "" {
			om.Sharing = "shared"
		}
		if m.From != "" {
			return b.bindFrom(s, v, exec, om, m)
		}
		exec.Mounts = append(exec.Mounts, om)
	case instructions.MountTypeTmpfs:
		exec.Mounts = append(exec.Mounts, om)
	case instructions.MountTypeSecret:
		om.ID = m.CacheID
		if om.ID == "" && target != "" {
			om.ID = path.Base(om.Target)
		}
		if om.ID == "" {
			return errors.New("a secret mount needs an id or a target")
		}
		if m.Env != nil {
			if om.Env = *m.Env; om.Env == "" {
				om.Env = om.ID
			}
		}
		if om.Target == "" && m.Env == nil {
			om.Target = "/run/secrets/" + path.Base(om.ID)
		}
		if m.Mode == nil {
			om.Mode = 0o400
		}
		if m.Required && b.Secrets != nil && !b.Secrets[om.ID] {
			return fmt.Errorf("secret %s: not found: give it with --secret id=%s,src=FILE", om.ID, om.ID)
		}
		exec.Mounts = append(exec.Mounts, om)
	case instructions.MountTypeSSH:
		if om.ID = m.CacheID; om.ID == "" {
			om.ID = "default"
		}
		if om.Target == "" {
			om.Target = "/run/buildkit/ssh_agent." + strconv.Itoa(len(exec.Mounts))
		}
		if m.Mode == nil {
			om.Mode = 0o600
		}
		if m.Required && b.SSH != nil && !b.SSH[om.ID] {
			return fmt.Errorf("ssh agent %s: not found: give it with --ssh %s", om.ID, om.ID)
		}
		exec.Mounts = append(exec.Mounts, om)
	}
	return nil
}

// bindFrom adds a mount whose content comes from a stage, image or context.
func (b *build) bindFrom(s *stage, v *solver.Vertex, exec *op.Exec, om op.Mount, m *instructions.Mount) error {
	src := source{context: MainContext}
	if m.From != "" {
		src = s.refs[m.From]
	}
	from := m.Source
	if from == "" {
		from = "/"
	}
	if stack := b.stack(src); stack != nil {
		b.bind(v, exec, om, stack, from)
		return nil
	}
	sel := b.selectLocal(src.context, op.Select{Sources: []string{from}, Whole: true})
	sel.Step = &solver.Step{Location: v.Step.Location}
	om.Input, om.Using = len(v.Inputs), len(v.Using)
	v.Inputs = append(v.Inputs, sel)
	v.Using = append(v.Using, sel)
	exec.Mounts = append(exec.Mounts, om)
	return nil
}

// bind adds a mount of a path in a stack.
func (b *build) bind(v *solver.Vertex, exec *op.Exec, om op.Mount, stack *solver.Vertex, from string) {
	om.Input, om.Using = len(v.Inputs), len(v.Using)
	v.Inputs = append(v.Inputs, &solver.Vertex{
		Op: op.Select{Sources: []string{from}, Whole: true}, Inputs: []*solver.Vertex{stack},
		Step: &solver.Step{Location: v.Step.Location},
	})
	v.Using = append(v.Using, stack)
	exec.Mounts = append(exec.Mounts, om)
}
