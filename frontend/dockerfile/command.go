package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// command lowers one instruction.
func (b *build) command(s *stage, c *command) error {
	if in, ok := c.Command.(*instructions.ArgCommand); ok {
		return b.arg(s, c, in)
	}
	name := ""
	switch in := c.Command.(type) { // before variables are replaced
	case *instructions.WorkdirCommand:
		name = b.shown(b.lex, in.String(), s.vars)
	case *instructions.CopyCommand:
		name = b.shown(b.lex, in.String(), s.vars)
	case *instructions.AddCommand:
		name = b.shown(b.lex, in.String(), s.vars)
	}
	if err := b.expand(s, c); err != nil {
		return err
	}
	switch in := c.Command.(type) {
	case *instructions.RunCommand:
		return b.run(s, c, in)
	case *instructions.WorkdirCommand:
		return b.workdir(s, c, in, name)
	case *instructions.CopyCommand:
		return b.copy(s, c, in, name)
	case *instructions.AddCommand:
		return b.add(s, c, in, name)
	}
	return b.configure(s, c)
}

// configure performs an instruction that changes the config alone.
func (b *build) configure(s *stage, c *command) error {
	cfg := &s.image.Config
	switch in := c.Command.(type) {
	case *instructions.EnvCommand:
		b.env(s, c, in)
	case *instructions.LabelCommand:
		b.label(s, c, in)
	case *instructions.MaintainerCommand:
		s.image.Author = in.Maintainer
		b.history(s, "MAINTAINER "+in.Maintainer, false)
	case *instructions.CmdCommand:
		s.checkOnce(c)
		cfg.Cmd = b.shellForm(s, c, in.ShellDependantCmdLine)
		//lint:ignore SA1019 docker writes it for every CMD, and equal images need it
		cfg.ArgsEscaped = true
		b.history(s, fmt.Sprintf("CMD %q", cfg.Cmd), false)
	case *instructions.EntrypointCommand:
		s.checkOnce(c)
		cfg.Entrypoint = b.shellForm(s, c, in.ShellDependantCmdLine)
		if s.last["CMD"] == nil {
			cfg.Cmd = nil // the one inherited was for another entrypoint
		}
		b.history(s, fmt.Sprintf("ENTRYPOINT %q", cfg.Entrypoint), false)
	case *instructions.HealthCheckCommand:
		s.checkOnce(c)
		h := *in.Health
		cfg.Healthcheck = &h
		b.history(s, fmt.Sprintf("HEALTHCHECK %+v", h), false)
	case *instructions.ExposeCommand:
		return b.expose(s, c, in)
	case *instructions.UserCommand:
		cfg.User = in.User
		b.history(s, "USER "+in.User, false)
	case *instructions.VolumeCommand:
		for _, v := range in.Volumes {
			if v == "" {
				return errors.New("VOLUME specified can not be an empty string")
			}
			setKey(&cfg.Volumes, v, struct{}{})
		}
		b.history(s, fmt.Sprintf("VOLUME %v", in.Volumes), false)
	case *instructions.StopSignalCommand:
		if err := checkSignal(in.Signal); err != nil {
			return err
		}
		cfg.StopSignal = in.Signal
		b.history(s, "STOPSIGNAL "+in.Signal, false)
	case *instructions.OnbuildCommand:
		cfg.OnBuild = append(cfg.OnBuild, in.Expression)
	case *instructions.ShellCommand:
		cfg.Shell = in.Shell
		b.history(s, fmt.Sprintf("SHELL %v", in.Shell), false)
	default:
		return fmt.Errorf("instruction %s is not known", c.Name())
	}
	return nil
}

func (b *build) env(s *stage, c *command, in *instructions.EnvCommand) {
	text := "ENV"
	env := newVariables()
	for _, kv := range s.image.Config.Env {
		k, v, _ := strings.Cut(kv, "=")
		env.set(k, v)
	}
	for _, kv := range in.Env {
		if kv.NoDelim {
			c.warn(&linter.RuleLegacyKeyValueFormat, linter.RuleLegacyKeyValueFormat.Format(c.Name()))
		}
		b.checkSecret(c, "ENV", kv.Key)
		text += " " + kv.String()
		env.set(kv.Key, kv.Value)
		s.vars.set(kv.Key, kv.Value)
	}
	s.image.Config.Env = env.list()
	b.history(s, text, false)
}

func (b *build) label(s *stage, c *command, in *instructions.LabelCommand) {
	text := "LABEL"
	for _, kv := range in.Labels {
		if kv.NoDelim {
			c.warn(&linter.RuleLegacyKeyValueFormat, linter.RuleLegacyKeyValueFormat.Format(c.Name()))
		}
		setKey(&s.image.Config.Labels, kv.Key, kv.Value)
		text += " " + kv.String()
	}
	b.history(s, text, false)
}

// shellForm is the command line of CMD or ENTRYPOINT, with the shell of this
// place in the file.
func (b *build) shellForm(s *stage, c *command, line instructions.ShellDependantCmdLine) []string {
	if !line.PrependShell {
		return line.CmdLine
	}
	if len(s.image.Config.Shell) == 0 {
		c.warn(&linter.RuleJSONArgsRecommended, linter.RuleJSONArgsRecommended.Format(c.Name()))
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

func (b *build) workdir(s *stage, c *command, in *instructions.WorkdirCommand, name string) error {
	dir := in.Path
	if !path.IsAbs(dir) {
		// A base image's directory may change; one set in this file not.
		if !s.workdirSet {
			c.warn(&linter.RuleWorkdirRelativePath, linter.RuleWorkdirRelativePath.Format(dir))
		}
		dir = path.Join("/", s.image.Config.WorkingDir, dir)
	}
	s.workdirSet = true
	// An absolute path is kept as it was written.
	s.image.Config.WorkingDir = dir
	name = b.stepName(s, c, name)
	b.history(s, "WORKDIR "+dir, dir != "/")
	if dir == "/" {
		return nil
	}
	dir = path.Clean(dir)
	step := b.step(name, c.Location())
	dest := &solver.Vertex{
		Op:     op.Dest{Path: dir, Owner: s.image.Config.User, Mkdir: true},
		Inputs: []*solver.Vertex{s.root},
		Step:   hidden(step.Location),
	}
	s.root = &solver.Vertex{
		Op: op.Mkdir{Path: dir, Time: b.SourceDateEpoch}, Inputs: []*solver.Vertex{dest}, Below: s.root,
		Fresh: b.fresh(s), Step: step,
	}
	return nil
}
