package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"strconv"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// mounter adds the mounts of one RUN to its vertex and op.
type mounter struct {
	b      *build
	s      *stage
	c      *command
	vertex *solver.Vertex
	exec   *op.Exec
	agents int // ssh mounts so far
}

// add adds a RUN --mount; src is what its "from" names.
func (r *mounter) add(m *instructions.Mount, src source) error {
	om := op.Mount{
		Type: op.MountType(m.Type), ReadOnly: m.ReadOnly, Input: -1, Using: -1,
		Required: m.Required, Size: m.SizeLimit,
	}
	if m.Target != "" {
		om.Target = r.target(m.Target)
	}
	if m.UID != nil {
		om.UID = int(*m.UID)
	}
	if m.GID != nil {
		om.GID = int(*m.GID)
	}
	switch m.Type {
	case instructions.MountTypeSecret:
		return r.secret(om, m)
	case instructions.MountTypeSSH:
		return r.ssh(om, m)
	}
	om.Target = r.target(m.Target) // without one it is the working directory
	if om.Target == "/" {
		return fmt.Errorf("invalid mount target %q", om.Target)
	}
	switch m.Type {
	case instructions.MountTypeTmpfs:
		r.exec.Mounts = append(r.exec.Mounts, om)
	case instructions.MountTypeCache:
		r.cache(om, m, src)
	default:
		if m.From == "" {
			src = source{context: MainContext}
		}
		r.from(om, src, m.Source)
	}
	return nil
}

// target is a mount point in the working directory, or an absolute one.
func (r *mounter) target(p string) string {
	if path.IsAbs(p) {
		return path.Clean(p)
	}
	return path.Join("/", r.s.image.Config.WorkingDir, p)
}

// mode is the mode of a mount, or a default.
func mode(m *instructions.Mount, other uint32) uint32 {
	if m.Mode == nil {
		return other
	}
	return uint32(*m.Mode)
}

func (r *mounter) cache(om op.Mount, m *instructions.Mount, src source) {
	om.Mode = mode(m, 0o755)
	om.CacheID = cacheID(m)
	if ns := r.b.BuildArgs["BUILDKIT_CACHE_MOUNT_NS"]; ns != "" {
		om.CacheID = ns + "/" + om.CacheID
	}
	om.Sharing = string(m.CacheSharing)
	if om.Sharing == "" {
		om.Sharing = string(instructions.MountSharingShared)
	}
	r.exec.ClearCaches = r.b.NoCacheMounts
	if m.From == "" || m.From == "scratch" {
		r.exec.Mounts = append(r.exec.Mounts, om)
		return
	}
	r.from(om, src, m.Source)
}

// cacheID is the id of a cache mount: its target where it has none.
func cacheID(m *instructions.Mount) string {
	if m.CacheID != "" {
		return m.CacheID
	}
	return path.Clean(m.Target)
}

// secretID is the id of a secret mount, or empty.
func secretID(m *instructions.Mount) string {
	switch {
	case m.Source != "":
		return m.Source
	case m.CacheID == "" && m.Target != "":
		return path.Base(m.Target)
	}
	return m.CacheID
}

func (r *mounter) secret(om op.Mount, m *instructions.Mount) error {
	if om.ID = secretID(m); om.ID == "" {
		return errors.New("a secret mount needs an id or a target")
	}
	if m.Env != nil {
		if om.Env = *m.Env; om.Env == "" {
			om.Env = om.ID
		}
	} else if om.Target == "" {
		om.Target = "/run/secrets/" + path.Base(om.ID)
	}
	om.Mode = mode(m, 0o400)
	if m.Required && r.b.Secrets != nil && !r.b.Secrets[om.ID] {
		return fmt.Errorf("secret %s: not found%s: give it with --secret id=%s,src=FILE", om.ID, didYouMean(om.ID, sortedKeys(r.b.Secrets)), om.ID)
	}
	r.exec.Mounts = append(r.exec.Mounts, om)
	return nil
}

func (r *mounter) ssh(om op.Mount, m *instructions.Mount) error {
	if m.Source != "" {
		return errors.New("an ssh mount has no source")
	}
	if om.ID = m.CacheID; om.ID == "" {
		om.ID = "default"
	}
	if om.Target == "" {
		om.Target = "/run/buildkit/ssh_agent." + strconv.Itoa(r.agents)
	}
	r.agents++
	om.Mode = mode(m, 0o600)
	if m.Required && r.b.SSH != nil && !r.b.SSH[om.ID] {
		return fmt.Errorf("ssh agent %s: not found: give it with --ssh %s", om.ID, om.ID)
	}
	r.exec.Mounts = append(r.exec.Mounts, om)
	return nil
}

// from adds a mount whose content comes from a stage, image or context.
func (r *mounter) from(om op.Mount, src source, dir string) {
	if dir == "" {
		dir = "/"
	}
	if stack := r.b.stack(src, r.c.Location()); stack != nil {
		r.bind(om, stack, dir, src.String())
		return
	}
	sel := r.b.selectLocal(src.context, op.Select{Sources: []string{dir}, Whole: true}, r.vertex.Step.Location)
	r.attach(om, sel, sel)
}

// bind adds a mount of a path in a stack.
func (r *mounter) bind(om op.Mount, stack *solver.Vertex, dir, name string) {
	r.attach(om, &solver.Vertex{
		Op: op.Select{From: name, Sources: []string{dir}, Whole: true}, Inputs: []*solver.Vertex{stack},
		Step: hidden(r.vertex.Step.Location),
	}, stack)
}

func (r *mounter) attach(om op.Mount, sel, using *solver.Vertex) {
	om.Input, om.Using = len(r.vertex.Inputs), len(r.vertex.Using)
	r.vertex.Inputs = append(r.vertex.Inputs, sel)
	r.vertex.Using = append(r.vertex.Using, using)
	r.exec.Mounts = append(r.exec.Mounts, om)
}
