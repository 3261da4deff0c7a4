package exporter

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Place is where in an image an annotation goes.
type Place string

// The places of annotations. A manifest's descriptor is in the index.
const (
	OnManifest           Place = "manifest"
	OnManifestDescriptor Place = "manifest-descriptor"
	OnIndex              Place = "index"
	OnIndexDescriptor    Place = "index-descriptor"
)

// An Annotation is a key and value in an image's manifest or index.
type Annotation struct {
	Place    Place
	Platform string // normal form; empty is every platform
	Key      string
	Value    string
}

var (
	annotationField = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/.-]+)\])?\.([^=\s]+)=(?s:(.*))$`)
	})
	annotationFlag = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(?:([a-z,-]+)(?:\[([A-Za-z0-9_/.-]+)\])?:)?([^=\s:]+)=(?s:(.*))$`)
	})
)

// parseAnnotationField reads annotation[-PLACE][[PLATFORM]].KEY=VALUE, as in
// --output.
func parseAnnotationField(s string) (Annotation, error) {
	m := annotationField().FindStringSubmatch(s)
	if m == nil {
		return Annotation{}, fmt.Errorf("%q: must be annotation[-PLACE].KEY=VALUE", s)
	}
	return newAnnotation(s, m[1], m[2], m[3], m[4])
}

// ParseAnnotation reads the value of --annotation: [PLACE[,PLACE][[PLATFORM]]:]KEY=VALUE.
// Without a place it is the manifest.
func ParseAnnotation(s string) ([]Annotation, error) {
	m := annotationFlag().FindStringSubmatch(s)
	if m == nil {
		return nil, fmt.Errorf("--annotation=%q: must be [PLACE:]KEY=VALUE", s)
	}
	var all []Annotation
	for place := range strings.SplitSeq(m[1], ",") {
		a, err := newAnnotation(s, place, m[2], m[3], m[4])
		if err != nil {
			return nil, fmt.Errorf("--annotation=%w", err)
		}
		all = append(all, a)
	}
	return all, nil
}

func newAnnotation(text, place, platform, key, value string) (Annotation, error) {
	a := Annotation{Place: Place(place), Key: key, Value: value}
	switch a.Place {
	case "":
		a.Place = OnManifest
	case OnManifest, OnManifestDescriptor, OnIndex, OnIndexDescriptor:
	default:
		return a, fmt.Errorf("%q: unknown place %q: must be %s, %s, %s or %s", text, place, OnManifest, OnManifestDescriptor, OnIndex, OnIndexDescriptor)
	}
	if platform == "" {
		return a, nil
	}
	if a.Place == OnIndex || a.Place == OnIndexDescriptor {
		return a, fmt.Errorf("%q: an index has no platform", text)
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return a, fmt.Errorf("%q: %w", text, err)
	}
	a.Platform = platforms.FormatAll(platforms.Normalize(p))
	return a, nil
}

// annotationsAt collects those for a place, nil if there are none. The last
// of a key wins.
func annotationsAt(all []Annotation, place Place, p v1.Platform) map[string]string {
	var m map[string]string
	for _, a := range all {
		if a.Place != place || a.Platform != "" && a.Platform != platforms.FormatAll(platforms.Normalize(p)) {
			continue
		}
		if m == nil {
			m = map[string]string{}
		}
		m[a.Key] = a.Value
	}
	return m
}
