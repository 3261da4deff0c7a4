package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"kiln.build/cache/registry"
	"kiln.build/exporter/images"
)

// inspectCommand shows containers and images, or one kind of them.
func (a *app) inspectCommand(kind string) *cobra.Command {
	var format string
	var size bool
	wanted := kind
	c := &cobra.Command{
		Use:     "inspect [flags] NAME|ID...",
		Short:   "Show all about containers and images, as JSON",
		Example: "  kiln inspect hello\n  kiln inspect --format '{{json .Config.Env}}' hello\n  kiln inspect --type image --format '{{.Id}}' hello",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch wanted {
			case "", "image", "container", "volume", "network":
			default:
				return fmt.Errorf("--type=%q: must be image, container, volume or network", wanted)
			}
			return a.inspect(c.Context(), wanted, format, size, args)
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", "print as: json, or a Go template")
	if kind == "" {
		c.Flags().StringVar(&wanted, "type", "", "only: image, container, volume or network")
	}
	if kind == "" || kind == "container" {
		c.Flags().BoolVarP(&size, "size", "s", false, "show the sizes of containers' file systems")
	}
	return c
}

func (a *app) inspect(ctx context.Context, kind, format string, size bool, names []string) error {
	found := []any{}
	var failed []error
	for _, name := range names {
		v, err := a.inspectOne(ctx, kind, name, size)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		found = append(found, v)
		if format == "" {
			continue
		}
		if err := printOne(a.stdout, format, v); err != nil {
			return err
		}
	}
	if format == "" {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "    ")
		if err := e.Encode(found); err != nil {
			return err
		}
		if _, err := a.stdout.Write(b.Bytes()); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

func (a *app) inspectOne(ctx context.Context, kind, name string, size bool) (any, error) {
	if kind == "volume" {
		v, ok, err := a.volumeInspect(name)
		if err == nil && !ok {
			err = fmt.Errorf("get %s: no such volume", name)
		}
		return v, err
	}
	if kind == "network" {
		v, ok, err := a.networkDetails(name)
		if err == nil && !ok {
			err = fmt.Errorf("network %s not found", name)
		}
		return v, err
	}
	if kind != "image" {
		v, ok, err := a.containerInspect(name, size)
		if err != nil || ok {
			return v, err
		}
		if kind == "container" {
			return nil, errors.New("No such container: " + name)
		}
	}
	var v *imageDetails
	err := a.withImages(func(s *images.Store) (err error) {
		v, err = inspectImage(ctx, s, name)
		return err
	})
	var missing *images.NotFoundError
	if kind == "" && errors.As(err, &missing) {
		if v, ok, err := a.volumeInspect(name); err != nil || ok {
			return v, err
		}
		if v, ok, err := a.networkDetails(name); err != nil || ok {
			return v, err
		}
		return nil, errors.New("No such object: " + name)
	}
	return v, err
}

// imageDetails is what kiln image inspect shows. Fields have the names that
// docker gives them in JSON, which are those that templates use.
type imageDetails struct {
	Id           string //nolint:revive // as in docker
	RepoTags     []string
	RepoDigests  []string
	Comment      string
	Created      string
	Author       string
	Config       dockerspec.DockerOCIImageConfig
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	OsVersion    string `json:",omitempty"`
	Size         int64
	RootFS       rootFS
	Descriptor   v1.Descriptor
	Platforms    []v1.Platform `json:",omitempty"` // where there are several
}

type rootFS struct {
	Type   string
	Layers []string
}

// ID is what docker's templates accept too.
func (d *imageDetails) ID() string { return d.Id }

func inspectImage(ctx context.Context, s *images.Store, name string) (*imageDetails, error) {
	image, err := s.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	if image.Err != nil {
		return nil, image.Err
	}
	d := &imageDetails{
		Id:       string(image.ID),
		RepoTags: []string{}, RepoDigests: []string{},
		Author: image.Config.Author, Config: image.Config.Config,
		Architecture: image.Config.Architecture, Variant: image.Config.Variant, Os: image.Config.OS, OsVersion: image.Config.OSVersion,
		Size: image.Size, RootFS: rootFS{Type: "layers", Layers: []string{}}, Descriptor: image.Target,
	}
	if image.Config.Created != nil {
		d.Created = image.Config.Created.Format(time.RFC3339Nano)
	}
	if h := image.Config.History; len(h) > 0 {
		d.Comment = h[len(h)-1].Comment
	}
	for _, n := range image.Names {
		ref, err := registry.ParseReference(n)
		if err != nil {
			continue
		}
		if ref.Tag != "" {
			d.RepoTags = append(d.RepoTags, registry.Reference{Host: ref.Host, Path: ref.Path, Tag: ref.Tag}.Familiar())
		}
		byDigest := registry.Reference{Host: ref.Host, Path: ref.Path, Digest: image.Target.Digest}.Familiar()
		if !slices.Contains(d.RepoDigests, byDigest) {
			d.RepoDigests = append(d.RepoDigests, byDigest)
		}
	}
	for _, l := range image.Documents.Layers {
		d.RootFS.Layers = append(d.RootFS.Layers, string(l.DiffID))
	}
	d.Platforms, err = s.Platforms(image.Image)
	return d, err
}
