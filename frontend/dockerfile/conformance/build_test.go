package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// tools are what the cases are built with.
type tools struct {
	kiln     string // the program
	store    string // a store that has the base; each case gets a copy
	layout   string // the base as an OCI layout, for the reference
	digest   string // of the base
	base     *image
	buildctl string // "" without a daemon
	daemon   sync.Mutex
}

func command(ctx context.Context, dir string, env []string, name string, args ...string) (stderr string, err error) {
	c := exec.CommandContext(ctx, name, args...)
	var errs bytes.Buffer
	c.Dir, c.Env, c.Stderr = dir, append(environment(), env...), &errs
	if err := c.Run(); err != nil {
		return errs.String(), fmt.Errorf("%s %q: %w\n%s", filepath.Base(name), args, err, errs.String())
	}
	return errs.String(), nil
}

// environment is ours but for what builds take from it.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(strings.ToLower(kv), "=")
		return strings.HasSuffix(name, "_proxy") || strings.HasPrefix(name, "kiln_") || name == "source_date_epoch"
	})
}

// prepare builds the program and the base in dir.
func prepare(ctx context.Context, dir string) (*tools, error) {
	const top = "../../.."
	t := &tools{
		kiln: filepath.Join(dir, "kiln"), store: filepath.Join(dir, "store"), layout: filepath.Join(dir, "base"),
	}
	noCgo := []string{"CGO_ENABLED=0", "GOFLAGS=-trimpath"}
	toolbox, root := filepath.Join(dir, "toolbox"), filepath.Join(dir, "toolbox.tar")
	if _, err := command(ctx, top, noCgo, "go", "build", "-o", t.kiln, "./cmd/kiln"); err != nil {
		return nil, err
	}
	if _, err := command(ctx, filepath.Join(top, "examples/toolbox"), noCgo, "go", "build", "-o", toolbox, "."); err != nil {
		return nil, err
	}
	data, err := exec.CommandContext(ctx, toolbox, "--tar").Output()
	if err != nil {
		return nil, fmt.Errorf("toolbox --tar: %w", err)
	}
	if err := os.WriteFile(root, data, 0o644); err != nil {
		return nil, err
	}
	env := []string{"KILN_ROOT=" + t.store}
	if _, err := command(ctx, "", env, t.kiln, "import", root, "toolbox"); err != nil {
		return nil, err
	}
	from := filepath.Join(dir, "from")
	if err := os.Mkdir(from, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(from, "Dockerfile"), []byte("FROM toolbox\n"), 0o644); err != nil {
		return nil, err
	}
	archive := filepath.Join(dir, "base.tar")
	if _, err := command(ctx, "", env, t.kiln, "build", "--progress=none",
		"-o", "type=oci,tar=false,dest="+t.layout, "-o", "type=oci,dest="+archive, from); err != nil {
		return nil, err
	}
	if t.base, err = readImage(archive, nil); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(t.layout, "index.json"))
	if err != nil {
		return nil, err
	}
	var index ocispecs.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, err
	}
	t.digest = index.Manifests[0].Digest.String()
	if os.Getenv("BUILDKIT_HOST") != "" {
		if t.buildctl, err = exec.LookPath("buildctl"); err != nil {
			return nil, fmt.Errorf("BUILDKIT_HOST is set: %w", err)
		}
	}
	return t, nil
}

// kilnBuild is the listing of what Kiln makes of the context, or that it
// refuses, and what it said.
func (t *tools) kilnBuild(ctx context.Context, c *testCase, dir, scratch string) (listing, said string, err error) {
	store, out := filepath.Join(scratch, "store"), filepath.Join(scratch, "kiln.tar")
	if err := copyStore(ctx, store, t.store); err != nil {
		return "", "", err
	}
	args := append([]string{"build", "--progress=none", "-o", "type=oci,compression=uncompressed,dest=" + out}, c.flags...)
	said, err = command(ctx, dir, []string{"KILN_ROOT=" + store}, t.kiln, append(args, ".")...)
	return t.outcome(out, said, err)
}

// copyStore makes a store of one's own from another that nobody uses. What is
// never changed in place, blobs and layers, is linked.
func copyStore(ctx context.Context, to, from string) error {
	if _, err := command(ctx, "", nil, "cp", "-al", from, to); err != nil {
		return err
	}
	return filepath.WalkDir(to, func(at string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "layers" || d.Name() == "blobs"):
			return fs.SkipDir
		case !d.Type().IsRegular():
			return nil
		}
		data, err := os.ReadFile(at)
		if err != nil {
			return err
		}
		return errors.Join(os.Remove(at), os.WriteFile(at, data, 0o600))
	})
}

// referenceBuild is the same by BuildKit.
func (t *tools) referenceBuild(ctx context.Context, c *testCase, dir, scratch string) (listing, said string, err error) {
	out := filepath.Join(scratch, "reference.tar")
	args, err := buildctlArgs(c.flags)
	if err != nil {
		return "", "", err
	}
	args = append([]string{
		"build", "--progress=plain", "--no-cache", "--frontend=dockerfile.v0", "--local", "context=.", "--local", "dockerfile=.",
		"--oci-layout", "base=" + t.layout, "--opt", "context:toolbox=oci-layout://base@" + t.digest,
		"--output", "type=oci,compression=uncompressed,dest=" + out,
	}, args...)
	// The daemon keeps what clients sent, asks only for files of another size
	// or time, and gives folders that it updates the time of that.
	t.daemon.Lock()
	defer t.daemon.Unlock()
	if _, err := command(ctx, "", nil, t.buildctl, "prune", "--filter=type==source.local"); err != nil {
		return "", "", err
	}
	said, err = command(ctx, dir, nil, t.buildctl, args...)
	return t.outcome(out, said, err)
}

var position = regexp.MustCompile(`\bDockerfile:(\d+)`)

// outcome reads the image of a build that ended well; of one that did not it
// is only that, and the line that it named.
func (t *tools) outcome(archive, said string, err error) (listing, stderr string, _ error) {
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		if at := position.FindString(said); at != "" {
			return "refused at " + at + "\n", said, nil
		}
		return "refused\n", said, nil
	case err != nil:
		return "", said, err
	}
	img, err := readImage(archive, t.base)
	if err != nil {
		return "", said, err
	}
	listing, err = img.listing(t.base)
	return listing, said, err
}

// buildctlArgs turns the words of docker's build command into buildctl's.
func buildctlArgs(flags []string) (args []string, err error) {
	opt := func(key, value string) { args = append(args, "--opt", key+"="+value) }
	for i := 0; i < len(flags); i++ {
		name, value, ok := strings.Cut(flags[i], "=")
		switch name {
		case "--no-cache":
			continue
		}
		if !ok {
			if i++; i == len(flags) {
				return nil, fmt.Errorf("flag %s without a value", name)
			}
			value = flags[i]
		}
		k, v, _ := strings.Cut(value, "=")
		switch name {
		case "--build-arg":
			opt("build-arg:"+k, v)
		case "--label":
			opt("label:"+k, v)
		case "--target":
			opt("target", value)
		case "--platform":
			opt("platform", value)
		case "-f", "--file":
			opt("filename", value)
		case "--network":
			opt("force-network-mode", value)
		case "--add-host":
			opt("add-hosts", strings.Replace(value, ":", "=", 1))
		case "--shm-size":
			opt("shm-size", value)
		case "--ulimit":
			opt("ulimit", value)
		case "--secret":
			args = append(args, "--secret", value)
		case "--allow":
			args = append(args, "--allow", value)
		case "--source-date-epoch":
			opt("build-arg:SOURCE_DATE_EPOCH", value)
		case "--build-context":
			opt("context:"+k, "local:"+k)
			args = append(args, "--local", k+"="+v)
		default:
			return nil, fmt.Errorf("flag %s: not known to this test", name)
		}
	}
	return args, nil
}
