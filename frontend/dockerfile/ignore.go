package dockerfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

// ReadIgnore reads the ignore patterns of a context directory. A file named
// like the Dockerfile with ".dockerignore" added, beside it, wins over the
// ".dockerignore" of the context; dockerfile may be empty. It returns the
// name of the file that was read, for messages, or empty.
func ReadIgnore(dir, dockerfile string) (patterns []string, name string, err error) {
	var paths []string
	if dockerfile != "" {
		paths = append(paths, dockerfile+".dockerignore")
	}
	paths = append(paths, filepath.Join(dir, ".dockerignore"))
	for _, p := range paths {
		f, err := os.Open(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		patterns, err := ignorefile.ReadAll(f)
		_ = f.Close()
		if err == nil {
			_, err = patternmatcher.New(patterns)
		}
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w", p, err)
		}
		return patterns, filepath.Base(p), nil
	}
	return nil, "", nil
}
