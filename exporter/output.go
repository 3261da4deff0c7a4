package exporter

import (
	"encoding/csv"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"kiln.build/cache/archive"
	"kiln.build/cache/registry"
	"kiln.build/exporter/blob"
)

// Type is a kind of output.
type Type string

// The kinds of outputs.
const (
	TypeImage    Type = "image"    // into the local store
	TypeRegistry Type = "registry" // to a registry
	TypeOCI      Type = "oci"      // OCI image layout, as a tar or a folder
	TypeDocker   Type = "docker"   // tar for docker load; without Dest as TypeImage
	TypeTar      Type = "tar"      // the root file system, as a tar
	TypeLocal    Type = "local"    // the root file system, in a folder

	TypeCacheOnly Type = "cacheonly" // nowhere: all is built and cached
)

// An Output says where the result of a build goes. [ParseOutput] makes one of
// what users type.
type Output struct {
	Type Type

	// Dest is a file or folder, "-" for standard output, "" for none.
	Dest string

	// Names are image names in full form, such as "docker.io/library/hello:latest".
	Names []string

	Push     bool // TypeImage: to the registries of Names too
	ByDigest bool // push without a tag
	Insecure bool // the registries may have plain HTTP or any certificate

	// Form of the layers that are made; nil is the output's own.
	Form *blob.Form

	// ForceCompression gives the base image's layers the Form too, which
	// otherwise stay as they are.
	ForceCompression bool

	// DockerTypes writes Docker's media types and not those of the OCI.
	DockerTypes bool

	// Folder, for TypeOCI, writes the layout as a folder.
	Folder bool

	// Split puts each platform into a folder of its own, for TypeTar and
	// TypeLocal; nil does so where there are several.
	Split *bool

	Annotations []Annotation
}

// outputTypes are the types, and what each accepts beside "type".
var outputTypes = map[Type][]string{
	TypeImage:    append([]string{"name", "push", "push-by-digest", "name-canonical", "unpack", "store", "registry.insecure"}, imageKeys...),
	TypeRegistry: append([]string{"name", "push-by-digest", "name-canonical", "unpack", "store", "registry.insecure"}, imageKeys...),
	TypeOCI:      append([]string{"name", "dest", "tar"}, imageKeys...),
	TypeDocker:   append([]string{"name", "dest", "tar"}, imageKeys...),
	TypeTar:      {"dest", "platform-split"},
	TypeLocal:    {"dest", "platform-split", "mode"},

	TypeCacheOnly: {},
}

var imageKeys = []string{"compression", "compression-level", "force-compression", "oci-mediatypes", "annotation.*"}

// ParseOutput reads the value of --output: a list of key=value fields
// separated by commas, in which a field that holds commas itself is quoted as
// in CSV; or a folder's name; or "-" for a tar on standard output.
func ParseOutput(s string) (Output, error) {
	o, err := parseOutput(s)
	if err != nil {
		return Output{}, fmt.Errorf("--output=%s: %w", s, err)
	}
	return o, nil
}

func parseOutput(s string) (Output, error) {
	if s == "" {
		return Output{}, errors.New("is empty: must be a folder, - or type=TYPE,…")
	}
	fields, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return Output{}, fmt.Errorf("not a list of fields: %w", err)
	}
	if key, _, _ := strings.Cut(strings.ToLower(s), "="); len(fields) == 1 && key != "type" && key != "dest" && key != "name" {
		if s == "-" {
			return Output{Type: TypeTar, Dest: "-"}, nil
		}
		return Output{Type: TypeLocal, Dest: s}, nil
	}
	var o Output
	for _, f := range fields {
		if k, v, _ := strings.Cut(f, "="); strings.EqualFold(strings.TrimSpace(k), "type") {
			o.Type = Type(strings.ToLower(v))
		}
	}
	accepted, ok := outputTypes[o.Type]
	switch {
	case o.Type == "":
		return o, fmt.Errorf("no type: must be one of %s", typeNames())
	case !ok:
		return o, fmt.Errorf("unknown type %q: must be one of %s", o.Type, typeNames())
	}
	for _, f := range fields {
		k, v, ok := strings.Cut(f, "=")
		if !ok {
			return o, fmt.Errorf("field %q must be key=value", f)
		}
		k = strings.ToLower(strings.TrimSpace(k))
		if k == "type" {
			continue
		}
		if len(accepted) == 0 {
			return o, fmt.Errorf("type %s has no keys: %q", o.Type, k)
		}
		if !accepts(accepted, k) {
			return o, fmt.Errorf("type %s has no key %q: must be one of %s", o.Type, k, strings.Join(accepted, ", "))
		}
		if err := o.set(k, v, f); err != nil {
			return o, err
		}
	}
	return o, o.check()
}

func accepts(keys []string, k string) bool {
	return slices.Contains(keys, k) || strings.HasPrefix(k, "annotation") && slices.Contains(keys, "annotation.*")
}

func typeNames() string {
	return strings.Join([]string{"image", "registry", "oci", "docker", "tar", "local"}, ", ")
}

// set takes one field. Its key is in lower case, which those of annotations
// are not, so the whole field comes too.
func (o *Output) set(k, v, field string) error {
	var err error
	switch k {
	case "dest":
		o.Dest = v
		if v == "" {
			err = errors.New("is empty")
		}
	case "name":
		o.Names, err = splitNames(v)
	case "push":
		o.Push, err = parseBool(v)
	case "push-by-digest":
		o.ByDigest, err = parseBool(v)
	case "tar":
		var tar bool
		tar, err = parseBool(v)
		o.Folder = !tar
	case "platform-split":
		var split bool
		split, err = parseBool(v)
		o.Split = &split
	case "force-compression":
		o.ForceCompression, err = parseBool(v)
	case "oci-mediatypes":
		var oci bool
		oci, err = parseBool(v)
		o.DockerTypes = !oci
	case "mode":
		if v != "copy" {
			err = errors.New("must be copy")
		}
	case "compression":
		c := archive.Compression(strings.ToLower(v))
		switch c {
		case archive.Uncompressed, archive.Gzip, archive.Zstd:
			o.form().Compression = c
		default:
			err = errors.New("must be uncompressed, gzip or zstd")
		}
	case "compression-level":
		var level int
		if level, err = strconv.Atoi(v); err != nil {
			return fmt.Errorf("%s=%q: must be a number", k, v)
		}
		o.form().Level = &level
	case "registry.insecure":
		o.Insecure, err = parseBool(v)
	case "name-canonical", "unpack", "store":
		// What other engines do besides with the image.
		_, err = parseBool(v)
	default:
		var a Annotation
		if a, err = parseAnnotationField(field); err == nil {
			o.Annotations = append(o.Annotations, a)
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("%s=%q: %w", k, v, err)
	}
	return nil
}

func parseBool(v string) (bool, error) {
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, errors.New("must be true or false")
	}
	return b, nil
}

func (o *Output) form() *blob.Form {
	if o.Form == nil {
		o.Form = &blob.Form{Compression: archive.Gzip}
	}
	return o.Form
}

func (o *Output) check() error {
	if o.Form != nil && o.Form.Level != nil {
		level := *o.Form.Level
		switch o.Form.Compression {
		case archive.Gzip:
			if level < 0 || level > 9 {
				return fmt.Errorf("compression-level=%d: must be 0 to 9 for gzip", level)
			}
		case archive.Zstd:
			if level < 0 || level > 22 {
				return fmt.Errorf("compression-level=%d: must be 0 to 22 for zstd", level)
			}
		}
	}
	switch {
	case o.Form != nil && o.Form.Compression == archive.Zstd && o.DockerTypes:
		return errors.New("compression=zstd needs oci-mediatypes=true: Docker's media types have none for it")
	case o.Type == TypeLocal && o.Dest == "":
		return errors.New("type local needs dest=FOLDER")
	case o.Type == TypeLocal && o.Dest == "-":
		return errors.New("a folder cannot be written to standard output: use type=tar")
	case o.Type == TypeOCI && o.Folder && (o.Dest == "" || o.Dest == "-"):
		return errors.New("tar=false needs dest=FOLDER")
	case o.Type == TypeDocker && o.Folder:
		return errors.New("type docker is always a tar: for a folder use type=oci,tar=false")
	case o.ByDigest && !o.Push && o.Type != TypeRegistry:
		return errors.New("push-by-digest needs push=true")
	}
	if o.Type == TypeOCI || o.Type == TypeTar {
		if o.Dest == "" {
			o.Dest = "-"
		}
	}
	return nil
}

// splitNames reads a list of image names with commas between them.
func splitNames(v string) ([]string, error) {
	var names []string
	for n := range strings.SplitSeq(v, ",") {
		if n = strings.TrimSpace(n); n == "" {
			continue
		}
		ref, err := registry.ParseReference(n)
		if err != nil {
			return nil, err
		}
		names = append(names, ref.String())
	}
	return names, nil
}

// Files reports whether the output is the bare files, without an image.
func (o Output) Files() bool {
	return o.Type == TypeTar || o.Type == TypeLocal || o.Type == TypeCacheOnly
}

// InStore reports whether the output puts an image into the local store.
func (o Output) InStore() bool {
	return o.Type == TypeImage || o.Type == TypeDocker && o.Dest == ""
}

// Title says what is being done, for people.
func (o Output) Title() string {
	switch {
	case o.InStore() && o.Push:
		return "exporting and pushing image"
	case o.InStore():
		return "exporting to image"
	case o.Type == TypeRegistry:
		return "pushing image"
	case o.Type == TypeLocal:
		return "exporting to folder " + filepath.Clean(o.Dest)
	case o.Folder:
		return "exporting to oci layout " + filepath.Clean(o.Dest)
	}
	if o.Dest == "-" {
		return fmt.Sprintf("exporting to %s archive on standard output", o.Type)
	}
	return fmt.Sprintf("exporting to %s archive %s", o.Type, o.Dest)
}
