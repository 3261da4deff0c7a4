package container

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/docker/go-units"
)

// Log says where a container's output is kept. The zero value is docker's
// json-file form, bounded to two files of 32 MiB.
type Log struct {
	Driver  string `json:"driver,omitempty"`  // "none", "local", or "" for json-file
	MaxSize int64  `json:"maxSize,omitempty"` // bytes; negative is no bound
	MaxFile int    `json:"maxFile,omitempty"`

	// Options are all that were given, as they were.
	Options map[string]string `json:"options,omitempty"`
}

// What a log is bounded to where the user says nothing: docker's bounds for
// local, and for json-file, which docker does not bound, ones that fill no
// disk.
const (
	maxLogSize, maxLogFile     = 32 << 20, 2
	maxLocalSize, maxLocalFile = 20 << 20, 5
)

// bounds are the most bytes of a file of the log, zero for any number, and
// the number of files.
func (l Log) bounds() (size int64, files int) {
	size, files = maxLogSize, maxLogFile
	if l.Driver == "local" {
		size, files = maxLocalSize, maxLocalFile
	}
	if l.MaxSize != 0 {
		size = max(l.MaxSize, 0)
	}
	if l.MaxFile != 0 {
		files = l.MaxFile
	}
	return size, files
}

// SetOption reads a value of --log-opt. The driver is set before.
func (l *Log) SetOption(s string) error {
	key, value, ok := strings.Cut(s, "=")
	if !ok {
		return fmt.Errorf("invalid logging opts format: '%s' should be key=value", s)
	}
	if err := l.set(key, value); err != nil {
		return err
	}
	if l.Options == nil {
		l.Options = map[string]string{}
	}
	l.Options[key] = value
	return nil
}

func (l *Log) set(key, value string) (err error) {
	switch key {
	case "max-size":
		if value == "-1" {
			l.MaxSize = -1
			return nil
		}
		// Powers of ten, as docker takes it.
		n, err := units.FromHumanSize(value)
		if err != nil || n <= 0 {
			return fmt.Errorf("invalid max-size %q: must be a size such as 10m, or -1", value)
		}
		l.MaxSize = n
	case "max-file":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 {
			return fmt.Errorf("invalid max-file %q: must be a number over zero", value)
		}
		l.MaxFile = n
	case "labels", "env":
	case "labels-regex", "env-regex":
		_, err = regexp.Compile(value)
	case "tag":
		_, err = template.New("tag").Parse(value)
	case "compress":
		// What was put aside stays as it is: it is bounded.
		_, err = strconv.ParseBool(value)
	case "mode":
		// What is written is a file of this machine, so both mean the same.
		if value != "blocking" && value != "non-blocking" {
			err = fmt.Errorf("logger: logging mode not supported: %s", value)
		}
	case "max-buffer-size":
		_, err = units.RAMInBytes(value)
	default:
		driver := l.Driver
		if driver == "" {
			driver = "json-file"
		}
		return fmt.Errorf("unknown log opt '%s' for %s log driver", key, driver)
	}
	if err != nil {
		return fmt.Errorf("invalid %s: %w", key, err)
	}
	return nil
}

// logAttributes are what the options of the log want to be with each entry:
// labels, variables, and a tag.
func (c *Container) logAttributes() ([]byte, error) {
	o := c.Log.Options
	if len(o) == 0 {
		return nil, nil
	}
	env := map[string]string{}
	for _, kv := range c.Env {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	attrs := map[string]string{}
	for _, from := range []struct {
		names, regex string
		values       map[string]string
	}{{o["labels"], o["labels-regex"], c.Labels}, {o["env"], o["env-regex"], env}} {
		re, err := regexp.Compile(from.regex)
		if err != nil {
			return nil, err
		}
		names := strings.Split(from.names, ",")
		for k, v := range from.values {
			if slices.Contains(names, k) || from.regex != "" && re.MatchString(k) {
				attrs[k] = v
			}
		}
	}
	if o["tag"] != "" {
		t, err := template.New("tag").Parse(o["tag"])
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		if err := t.Execute(&b, newLogTag(c)); err != nil {
			return nil, err
		}
		attrs["tag"] = b.String()
	}
	if len(attrs) == 0 {
		return nil, nil
	}
	data, err := json.Marshal(attrs)
	return slices.Concat([]byte(`"attrs":`), data, []byte(",")), err
}

// logTag is what templates of --log-opt tag name; the names are docker's.
type logTag struct {
	ID, FullID, Name, Command              string
	ImageID, ImageFullID, ImageName        string
	DaemonName, ContainerID, ContainerName string
	ContainerImageID, ContainerImageName   string
	ContainerEntrypoint, ContainerCreated  string
	ContainerArgs, ContainerEnv            []string
	ContainerLabels                        map[string]string
}

func newLogTag(c *Container) logTag {
	id := c.ImageID.Encoded()
	return logTag{
		ID: c.ID[:12], FullID: c.ID, Name: c.Name, Command: strings.Join(c.Args, " "),
		ImageID: id[:min(12, len(id))], ImageFullID: string(c.ImageID), ImageName: c.Image, DaemonName: "kiln",
		ContainerID: c.ID, ContainerName: "/" + c.Name, ContainerImageID: string(c.ImageID), ContainerImageName: c.Image,
		ContainerEntrypoint: c.Args[0], ContainerArgs: c.Args[1:], ContainerEnv: c.Env, ContainerLabels: c.Labels,
		ContainerCreated: c.Created.String(),
	}
}

// Hostname is this machine's.
func (logTag) Hostname() (string, error) { return os.Hostname() }
