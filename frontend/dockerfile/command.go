package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// command lowers one instruction.
func (b *build) command(s *stage, c instructions.Command, trigger bool) error {
	if c, ok := c.(*instructions.ArgCommand); ok {
		return b.arg(s, c)
	}
	if err := b.expand(s, c); err != nil {
		return err
	}
	cfg := &s.image.Config
	switch c := c.(type) {
	case *instructions.EnvCommand:
		return b.env(s, c)
	case *instructions.LabelCommand:
		return label(s, c)
	case *instructions.MaintainerCommand:
		s.image.Author = c.Maintainer
		s.history("MAINTAINER "+c.Maintainer, false)
	case *instructions.WorkdirCommand:
		return b.workdir(s, c, trigger)
	case *instructions.RunCommand:
		return b.run(s, c, trigger)
	case *instructions.CopyCommand:
		return b.copy(s, c, trigger)
	case *instructions.AddCommand:
		return b.add(s, c, trigger)
	case *instructions.CmdCommand:
		args := b.shellForm(s, c.ShellDependantCmdLine, c)
		cfg.Cmd = args
		//lint:ignore SA1019 docker writes it for every CMD, and equal images need it
		cfg.ArgsEscaped = true
		s.cmdSet = true
		s.history(fmt.Sprintf("CMD %q", args), false)
	case *instructions.EntrypointCommand:
		args := b.shellForm(s, c.ShellDependantCmdLine, c)
		cfg.Entrypoint = args
		if !s.cmdSet {
			cfg.Cmd = nil
		}
		s.history(fmt.Sprintf("ENTRYPOINT %q", args), false)
	case *instructions.HealthCheckCommand:
		h := *c.Health
		cfg.Healthcheck = &h
		s.history(fmt.Sprintf("HEALTHCHECK %+v", h), false)
	case *instructions.ExposeCommand:
		return b.expose(s, c)
	case *instructions.UserCommand:
		cfg.User = c.User
		s.history("USER "+c.User, false)
	case *instructions.VolumeCommand:
		if cfg.Volumes == nil {
			cfg.Volumes = map[string]struct{}{}
		}
		for _, v := range c.Volumes {
			if v == "" {
				return errors.New("VOLUME specified can not be an empty string")
			}
			cfg.Volumes[v] = struct{}{}
		}
		s.history(fmt.Sprintf("VOLUME %v", c.Volumes), false)
	case *instructions.StopSignalCommand:
		if err := checkSignal(c.Signal); err != nil {
			return err
		}
		cfg.StopSignal = c.Signal
		s.history("STOPSIGNAL "+c.Signal, false)
	case *instructions.OnbuildCommand:
		cfg.OnBuild = append(cfg.OnBuild, c.Expression)
	case *instructions.ShellCommand:
		cfg.Shell = c.Shell
		s.history(fmt.Sprintf("SHELL %v", c.Shell), false)
	default:
		return fmt.Errorf("instruction %s is not known", c.Name())
	}
	return nil
}

// expand replaces the variables of an instruction by their values, all as
// they were before it.
func (b *build) expand(s *stage, c instructions.Command) error {
	unmatched := map[string]struct{}{}
	word := func(lex *shell.Lex) instructions.SingleWordExpander {
		return func(w string) (string, error) {
			r, err := lex.ProcessWordWithMatches(w, s.vars)
			for n := range r.Unmatched {
				unmatched[n] = struct{}{}
			}
			return r.Result, err
		}
	}
	if c, ok := c.(instructions.SupportsSingleWordExpansion); ok {
		if err := c.Expand(word(shell.NewLex(b.escape))); err != nil {
			return err
		}
	}
	if c, ok := c.(instructions.SupportsSingleWordExpansionRaw); ok {
		lex := shell.NewLex('\\')
		lex.SkipProcessQuotes = true
		if err := c.ExpandRaw(word(lex)); err != nil {
			return err
		}
	}
	b.undefined(unmatched, s.vars, c.Location())
	return nil
}

func (b *build) env(s *stage, c *instructions.EnvCommand) error {
	text := "ENV"
	env := newVariables()
	for _, kv := range s.image.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		env.set(k, v)
	}
	for _, kv := range c.Env {
		if kv.NoDelim {
			b.lint.Run(&linter.RuleLegacyKeyValueFormat, c.Location(), linter.RuleLegacyKeyValueFormat.Format("ENV"))
		}
		if secretName(kv.Key) {
			b.lint.Run(&linter.RuleSecretsUsedInArgOrEnv, c.Location(), linter.RuleSecretsUsedInArgOrEnv.Format("ENV", kv.Key))
		}
		text += " " + kv.String()
		env.set(kv.Key, kv.Value)
		s.vars.set(kv.Key, kv.Value)
	}
	s.image.Config.Env = env.list()
	s.history(text, false)
	return nil
}

func label(s *stage, c *instructions.LabelCommand) error {
	text := "LABEL"
	if s.image.Config.Labels == nil {
		s.image.Config.Labels = map[string]string{}
	}
	for _, kv := range c.Labels {
		s.image.Config.Labels[kv.Key] = kv.Value
		text += " " + kv.String()
	}
	s.history(text, false)
	return nil
}

// shellForm is the command line of CMD or ENTRYPOINT, with the shell of this
// place in the file.
func (b *build) shellForm(s *stage, line instructions.ShellDependantCmdLine, c instructions.Command) []string {
	if !line.PrependShell {
		if line.CmdLine == nil {
			return []string{}
		}
		return line.CmdLine
	}
	if len(s.image.Config.Shell) == 0 {
		name := strings.ToUpper(c.Name())
		b.lint.Run(&linter.RuleJSONArgsRecommended, c.Location(), linter.RuleJSONArgsRecommended.Format(name))
	}
	return s.withShell(line.CmdLine)
}

// withShell puts SHELL before a command text.
func (s *stage) withShell(args []string) []string {
	shell := s.image.Config.Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), strings.Join(args, " "))
}

func (b *build) expose(s *stage, c *instructions.ExposeCommand) error {
	lex := shell.NewLex(b.escape)
	var words []string
	for _, p := range c.Ports {
		w, err := lex.ProcessWords(p, s.vars)
		if err != nil {
			return err
		}
		words = append(words, w...)
	}
	if s.image.Config.ExposedPorts == nil {
		s.image.Config.ExposedPorts = map[string]struct{}{}
	}
	for i, w := range words {
		if lower := strings.ToLower(w); lower != w {
			b.lint.Run(&linter.RuleExposeProtoCasing, c.Location(), linter.RuleExposeProtoCasing.Format(w))
			words[i], w = lower, lower
		}
		if strings.Contains(w, ":") {
			b.lint.Run(&linter.RuleExposeInvalidFormat, c.Location(), linter.RuleExposeInvalidFormat.Format(w))
		}
		ports, err := exposed(w)
		if err != nil {
			return err
		}
		for _, p := range ports {
			s.image.Config.ExposedPorts[p] = struct{}{}
		}
	}
	s.history(fmt.Sprintf("EXPOSE %v", words), false)
	return nil
}

// exposed are the ports of "80", "80/udp" or "3000-3005/tcp"; what stands
// before a colon is for docker run and means nothing here.
func exposed(word string) ([]string, error) {
	text, proto, ok := strings.Cut(word, "/")
	if !ok {
		proto = "tcp"
	}
	switch proto {
	case "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("EXPOSE %s: invalid protocol %q: must be tcp, udp or sctp", word, proto)
	}
	text = text[strings.LastIndexByte(text, ':')+1:]
	low, high, ok := strings.Cut(text, "-")
	if !ok {
		high = low
	}
	first, err := strconv.ParseUint(low, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("EXPOSE %s: invalid port %q: must be 0 to 65535", word, low)
	}
	last, err := strconv.ParseUint(high, 10, 16)
	if err != nil || last < first {
		return nil, fmt.Errorf("EXPOSE %s: invalid range of ports %q", word, text)
	}
	var ports []string
	for p := first; p <= last; p++ {
		ports = append(ports, fmt.Sprintf("%d/%s", p, proto))
	}
	return ports, nil
}

func (b *build) workdir(s *stage, c *instructions.WorkdirCommand, trigger bool) error {
	dir := c.Path
	if !path.IsAbs(dir) {
		if !s.workdir {
			b.lint.Run(&linter.RuleWorkdirRelativePath, c.Location(), linter.RuleWorkdirRelativePath.Format(dir))
		}
		dir = path.Join("/", s.image.Config.WorkingDir, dir)
	} else {
		s.workdir = true
		dir = path.Clean(dir)
	}
	step := b.shown(s, "WORKDIR "+c.Path, c.Location(), trigger)
	s.image.Config.WorkingDir = dir
	s.history("WORKDIR "+dir, false)
	s.image.History[len(s.image.History)-1].EmptyLayer = dir == "/"
	if dir == "/" {
		return nil
	}
	dest := &solver.Vertex{
		Op:     op.Dest{Path: dir, Owner: s.image.Config.User, OwnerIsUser: true, Mkdir: true},
		Inputs: []*solver.Vertex{s.root},
		Step:   &solver.Step{Location: step.Location},
	}
	s.root = &solver.Vertex{
		Op: op.Mkdir{Path: dir}, Inputs: []*solver.Vertex{dest}, Below: s.root,
		Fresh: b.fresh(s), Step: step,
	}
	return nil
}

// checkSignal accepts what docker does: a number, or a name with or without
// SIG.
func checkSignal(s string) error {
	if n, err := strconv.Atoi(s); err == nil {
		if n > 0 && n <= 64 {
			return nil
		}
		return fmt.Errorf("invalid signal: %s", s)
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if rt, ok := strings.CutPrefix(name, "RT"); ok {
		if rt == "MIN" || rt == "MAX" {
			return nil
		}
		for _, p := range []string{"MIN+", "MAX-"} {
			if n, ok := strings.CutPrefix(rt, p); ok {
				if d, err := strconv.Atoi(n); err == nil && d >= 0 && d <= 30 {
					return nil
				}
			}
		}
		return fmt.Errorf("invalid signal: %s", s)
	}
	if !slices.Contains(strings.Fields(signals), name) {
		return fmt.Errorf("invalid signal: %s", s)
	}
	return nil
}

// signals are the names of signal(7).
const signals = "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ"
