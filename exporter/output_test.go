package exporter

import (
	"reflect"
	"strings"
	"testing"

	"kiln.build/cache/archive"
	"kiln.build/exporter/blob"
)

func TestParseOutput(t *testing.T) {
	nine, no := 9, false
	tests := []struct {
		in   string
		want Output
	}{
		{"out", Output{Type: TypeLocal, Dest: "out"}},
		{"./a=b", Output{Type: TypeLocal, Dest: "./a=b"}},
		{"-", Output{Type: TypeTar, Dest: "-"}},
		{"type=image", Output{Type: TypeImage}},
		{"type=docker", Output{Type: TypeDocker}},
		{"type=oci", Output{Type: TypeOCI, Dest: "-"}},
		{"type=oci,dest=x.tar", Output{Type: TypeOCI, Dest: "x.tar"}},
		{"TYPE=OCI,dest=X", Output{Type: TypeOCI, Dest: "X"}},
		{"type=oci,dest=x,tar=false", Output{Type: TypeOCI, Dest: "x", Folder: true}},
		{"type=tar,dest=x,platform-split=false", Output{Type: TypeTar, Dest: "x", Split: &no}},
		{`type=image,"name=a,example.com/b:1",push=true`, Output{Type: TypeImage, Push: true, Names: []string{"docker.io/library/a:latest", "example.com/b:1"}}},
		{"type=registry,compression=zstd,compression-level=9", Output{Type: TypeRegistry, Form: &blob.Form{Compression: archive.Zstd, Level: &nine}}},
		{"type=image,compression=uncompressed,force-compression=1,oci-mediatypes=false", Output{
			Type: TypeImage, Form: &blob.Form{Compression: archive.Uncompressed}, ForceCompression: true, DockerTypes: true,
		}},
		{`type=image,annotation.org.Example.Key=a=b,"annotation-index.k=x,y",annotation-manifest[linux/arm64].z=1`, Output{Type: TypeImage, Annotations: []Annotation{
			{Place: OnManifest, Key: "org.Example.Key", Value: "a=b"},
			{Place: OnIndex, Key: "k", Value: "x,y"},
			{Place: OnManifest, Platform: "linux/arm64", Key: "z", Value: "1"},
		}}},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			got, err := ParseOutput(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestParseOutputErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                                "is empty",
		"type=foo":                        `unknown type "foo"`,
		"dest=x":                          "no type",
		"dest=x,push=true":                "no type",
		"type=oci,dst=x":                  `no key "dst"`,
		"type=oci,dest":                   "must be key=value",
		"type=image,push=maybe":           "must be true or false",
		"type=local":                      "needs dest=FOLDER",
		"type=local,dest=-":               "standard output",
		"type=oci,tar=false":              "needs dest=FOLDER",
		"type=image,name=A":               "must be lowercase",
		`type=image,"`:                    "not a list",
		"type=oci,compression-level=high": "must be a number",
		"type=oci,compression-level=10":   "0 to 9",
		"type=oci,compression=lzma":       "uncompressed, gzip or zstd",
		"type=oci,compression=zstd,oci-mediatypes=false":      "oci-mediatypes",
		"type=image,push-by-digest=true":                      "needs push",
		"type=image,annotation-top.k=v":                       "unknown place",
		"type=image,annotation-index[linux/amd64].k=v":        "no platform",
		"type=image,annotation.k":                             "must be key=value",
		"type=cacheonly,dest=x":                               "has no keys",
		"type=local,dest=x,mode=delete":                       "must be copy",
		"type=image,annotation-manifest[not/a/plat/form].k=v": "not/a/plat/form",
	} {
		t.Run(in, func(t *testing.T) {
			_, err := ParseOutput(in)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want an error with %q", err, want)
			}
		})
	}
}

func TestParseAnnotation(t *testing.T) {
	tests := []struct {
		in   string
		want []Annotation
	}{
		{"a.b/c=v", []Annotation{{Place: OnManifest, Key: "a.b/c", Value: "v"}}},
		{"index:k=a:b=c", []Annotation{{Place: OnIndex, Key: "k", Value: "a:b=c"}}},
		{"index,manifest:k=v", []Annotation{{Place: OnIndex, Key: "k", Value: "v"}, {Place: OnManifest, Key: "k", Value: "v"}}},
		{"manifest-descriptor[linux/arm/v7]:k=", []Annotation{{Place: OnManifestDescriptor, Platform: "linux/arm/v7", Key: "k"}}},
	}
	for _, tt := range tests {
		got, err := ParseAnnotation(tt.in)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: got %+v, %v, want %+v", tt.in, got, err, tt.want)
		}
	}
	for _, bad := range []string{"", "k", "=v", "top:k=v"} {
		if _, err := ParseAnnotation(bad); err == nil {
			t.Errorf("%q is no annotation", bad)
		}
	}
}

func FuzzParseOutput(f *testing.F) {
	for _, s := range []string{"out", "type=oci,dest=x", `type=image,"name=a,b",annotation-index.k=v`, "type=,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if o, err := ParseOutput(s); err == nil && outputTypes[o.Type] == nil {
			t.Errorf("%q: type %q", s, o.Type)
		}
	})
}
