package images

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// Change applies Dockerfile instructions that change a config, as --change
// of docker import and docker commit takes them. Variables are those of the
// config itself.
func Change(c *dockerspec.DockerOCIImageConfig, changes []string) error {
	for _, text := range changes {
		if err := changeOne(c, text); err != nil {
			return fmt.Errorf("--change=%q: %w", text, err)
		}
	}
	return nil
}

func changeOne(c *dockerspec.DockerOCIImageConfig, text string) error {
	ast, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return err
	}
	for _, node := range ast.AST.Children {
		cmd, err := instructions.ParseInstruction(node)
		if err != nil {
			return err
		}
		if e, ok := cmd.(instructions.SupportsSingleWordExpansion); ok {
			err := e.Expand(func(word string) (string, error) {
				word, _, err := shell.NewLex(ast.EscapeToken).ProcessWord(word, shell.EnvsFromSlice(c.Env))
				return word, err
			})
			if err != nil {
				return err
			}
		}
		if err := apply(c, cmd); err != nil {
			return err
		}
	}
	return nil
}

func apply(c *dockerspec.DockerOCIImageConfig, cmd any) error {
	switch cmd := cmd.(type) {
	case *instructions.CmdCommand:
		c.Cmd = commandLine(c, cmd.CmdLine, cmd.PrependShell)
	case *instructions.EntrypointCommand:
		c.Entrypoint = commandLine(c, cmd.CmdLine, cmd.PrependShell)
	case *instructions.ShellCommand:
		c.Shell = cmd.Shell
	case *instructions.EnvCommand:
		for _, kv := range cmd.Env {
			c.Env = slices.DeleteFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, kv.Key+"=") })
			c.Env = append(c.Env, kv.Key+"="+kv.Value)
		}
	case *instructions.LabelCommand:
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		for _, kv := range cmd.Labels {
			c.Labels[kv.Key] = kv.Value
		}
	case *instructions.ExposeCommand:
		return expose(c, cmd.Ports)
	case *instructions.VolumeCommand:
		c.Volumes = with(c.Volumes, cmd.Volumes...)
	case *instructions.UserCommand:
		c.User = cmd.User
	case *instructions.WorkdirCommand:
		if !path.IsAbs(cmd.Path) {
			cmd.Path = path.Join("/", c.WorkingDir, cmd.Path)
		}
		c.WorkingDir = path.Clean(cmd.Path)
	case *instructions.StopSignalCommand:
		c.StopSignal = cmd.Signal
	case *instructions.OnbuildCommand:
		c.OnBuild = append(c.OnBuild, cmd.Expression)
	case *instructions.HealthCheckCommand:
		h := dockerspec.HealthcheckConfig(*cmd.Health)
		c.Healthcheck = &h
	default:
		return fmt.Errorf("cannot change that: must be CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME or WORKDIR")
	}
	return nil
}

func commandLine(c *dockerspec.DockerOCIImageConfig, line []string, shell bool) []string {
	if !shell {
		return line
	}
	prefix := c.Shell
	if len(prefix) == 0 {
		prefix = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(prefix), strings.Join(line, " "))
}

// expose adds ports, "80", "80/udp" or "8000-8010".
func expose(c *dockerspec.DockerOCIImageConfig, ports []string) error {
	for _, p := range ports {
		numbers, protocol, ok := strings.Cut(p, "/")
		if !ok {
			protocol = "tcp"
		}
		var from, to int
		if n, _ := fmt.Sscanf(numbers+";", "%d-%d;", &from, &to); n != 2 {
			if _, err := fmt.Sscanf(numbers+";", "%d;", &from); err != nil {
				return fmt.Errorf("port %q: must be NUMBER[-NUMBER][/PROTOCOL]", p)
			}
			to = from
		}
		if from < 1 || to > 65535 || from > to {
			return fmt.Errorf("port %q: must be between 1 and 65535", p)
		}
		for n := from; n <= to; n++ {
			c.ExposedPorts = with(c.ExposedPorts, fmt.Sprintf("%d/%s", n, strings.ToLower(protocol)))
		}
	}
	return nil
}

// with is a set with more members; the given one is not changed.
func with(set map[string]struct{}, members ...string) map[string]struct{} {
	all := maps.Clone(set)
	if all == nil {
		all = map[string]struct{}{}
	}
	for _, m := range members {
		all[m] = struct{}{}
	}
	return all
}
