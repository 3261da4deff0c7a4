package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
)

func start(m *machine) ([]lane, error) {
	one := func(name string, argv ...string) lane {
		return lane{name: name, turn: func(int) []step { return []step{timed("start", argv...)} }}
	}
	// An earlier case may have emptied the store.
	if err := m.run(context.Background(), m.kiln("import", m.root, "toolbox")); err != nil {
		return nil, err
	}
	lanes := []lane{
		one("kiln", m.kiln("run", "--rm", "--network=none", "toolbox", "true")...),
		one("kiln, with a network", m.kiln("run", "--rm", "toolbox", "true")...),
		one("no container", filepath.Join(m.bin, "toolbox"), "true"),
	}
	if os.Geteuid() == 0 {
		lanes = append(lanes, one("unshare + chroot", "unshare", "-mpuinf", "chroot", m.rootfs, "/bin/true"))
	}
	bundle := filepath.Dir(m.rootfs)
	for _, name := range m.starters {
		switch name {
		case "runc", "crun":
			if err := m.bundleConfig(bundle); err != nil {
				return nil, err
			}
			argv, label := []string{name}, name
			if name == "crun" { // it refuses hybrid hierarchies
				argv, label = append(argv, "--cgroup-manager=disabled"), "crun, no cgroups"
			}
			argv = append(argv, "run", "--bundle", bundle, fmt.Sprintf("kiln-bench-%d", os.Getpid()))
			lanes = append(lanes, one(label, argv...))
		case "bwrap":
			lanes = append(lanes, one(name, name, "--unshare-all", "--bind", m.rootfs, "/", "--proc", "/proc", "--dev", "/dev", "/bin/true"))
		case "podman":
			global := append(m.storage(name), withRunc()...)
			if err := m.run(context.Background(), append(global, "import", "-q", m.root, "toolbox")); err != nil {
				return nil, err
			}
			lanes = append(lanes, one(name, append(global, "run", "--rm", "--network=none", openFiles(), "--ulimit=nproc=1000:1000", "toolbox", "/bin/true")...))
		case "docker":
			if err := m.run(context.Background(), []string{name, "import", m.root, "kiln-bench-toolbox"}); err != nil {
				return nil, err
			}
			lanes = append(lanes, one(name, name, "run", "--rm", "--network=none", "kiln-bench-toolbox", "/bin/true"))
		}
	}
	return lanes, nil
}

// bundleConfig makes runc's default configuration run true.
func (m *machine) bundleConfig(bundle string) error {
	path := filepath.Join(bundle, "config.json")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	tool := "runc"
	if !onPath(tool) {
		tool = "crun"
	}
	if err := m.run(context.Background(), []string{tool, "spec", "--bundle", bundle}); err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec map[string]any
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	process, ok := spec["process"].(map[string]any)
	if !ok {
		return fmt.Errorf("%s: no process", path)
	}
	process["args"], process["terminal"] = []string{"/bin/true"}, false
	delete(process, "rlimits") // more than what is allowed here, maybe
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// layerURL is where a registry has the only layer of an image.
func (m *machine) layerURL(name string) (string, error) {
	repo, tag, _ := strings.Cut(strings.TrimPrefix(name, m.registry+"/"), ":")
	top := "http://" + m.registry + "/v2/" + repo
	req, err := http.NewRequest(http.MethodGet, top+"/manifests/"+tag, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return "", err
	}
	var manifest struct{ Layers []struct{ Digest string } }
	if err := json.Unmarshal(b, &manifest); err != nil {
		return "", err
	}
	if len(manifest.Layers) != 1 {
		return "", fmt.Errorf("%s has %d layers and not one", name, len(manifest.Layers))
	}
	return top + "/blobs/" + manifest.Layers[0].Digest, nil
}
