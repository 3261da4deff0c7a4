package exporter

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"kiln.build/cache/archive"
	"kiln.build/cache/tree"
	"kiln.build/exporter/blob"
	"kiln.build/exporter/internal/storetest"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestArchiveAhead exports to files, which begin while the top layer's blob is
// made, and to standard output, where that is there: the bytes are the same.
func TestArchiveAhead(t *testing.T) {
	arm64 := v1.Platform{OS: "linux", Architecture: "arm64"}
	for _, c := range []struct {
		what      string
		o         Output
		before    *Output // exported first
		platforms int
	}{
		{what: "gzip", o: Output{Type: TypeOCI}},
		{what: "zstd", o: Output{Type: TypeOCI, Form: &blob.Form{Compression: archive.Zstd}}},
		{what: "uncompressed", o: Output{Type: TypeOCI, Form: &blob.Form{Compression: archive.Uncompressed}}},
		{what: "docker", o: Output{Type: TypeDocker}},
		{what: "two platforms", o: Output{Type: TypeOCI}, platforms: 2},
		{what: "compressed from what was packed", o: Output{Type: TypeOCI}, before: &Output{Type: TypeImage}},
	} {
		s := storetest.Open(t)
		in := []Image{image(t, s)}
		if c.platforms == 2 {
			other := image(t, s)
			other.Platform, other.Config.Platform = arm64, arm64
			other.Output.Layers = append(other.Output.Layers[:1:1], storetest.Layer(t, s, "h of the other"))
			in = append(in, other)
		}
		var stdout bytes.Buffer
		e := &Exporter{Store: s, Stdout: &stdout}
		if c.before != nil {
			if _, err := e.Export(t.Context(), *c.before, in); err != nil {
				t.Fatal(err)
			}
		}
		dir := t.TempDir()
		c.o.Dest = filepath.Join(dir, "a.tar")
		if h := e.head(c.o); h == nil {
			t.Errorf("%s: no archive is begun", c.what)
		}
		if _, err := e.Export(t.Context(), c.o, in); err != nil {
			t.Fatal(err)
		}
		c.o.Dest = "-"
		if _, err := e.Export(t.Context(), c.o, in); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "a.tar"))
		if err != nil || !bytes.Equal(got, stdout.Bytes()) {
			t.Errorf("%s: the file is another archive than standard output, %v", c.what, err)
		}
		e.Close()
		if all, _ := os.ReadDir(dir); len(all) != 1 {
			t.Errorf("%s: left are %v", c.what, all)
		}
	}
}

// TestFeedAhead feeds a layer of files that is being made: one that becomes the
// top layer, one that does not come about, and one that is another's.
func TestFeedAhead(t *testing.T) {
	for _, what := range []string{"the layer", "not kept", "another layer", "not the top"} {
		s := storetest.Open(t)
		in := image(t, s)
		in.Output.Layers = in.Output.Layers[:1]
		in.Config.History = in.Config.History[:1]
		layer := in.Output.Layers[0]
		if what == "another layer" {
			layer = storetest.Layer(t, s, "big of another")
		}
		tr, err := s.Tree(layer.Digest)
		if err != nil {
			t.Fatal(err)
		}
		feed := archive.NewFeed(8)
		for i := range tr.Entries {
			e := &tr.Entries[i]
			if !archive.Feeds(e) {
				continue
			}
			b := feed.Next([]*tree.Entry{e})
			data, err := os.ReadFile(filepath.Join(storetest.Dir(t, s, layer.Digest), e.Path))
			if err != nil {
				t.Fatal(err)
			}
			b.Data = append(b.Data, data...)
			b.Next(nil)
			b.Done()
		}
		feed.End(nil)
		var stdout bytes.Buffer
		e := &Exporter{Store: s, Stdout: &stdout}
		dir := t.TempDir()
		o := Output{Type: TypeOCI, Dest: filepath.Join(dir, "a.tar")}
		kept := func(blob.Blob) error {
			if what == "not kept" {
				return errors.New("it did not come about")
			}
			return nil
		}
		open := func(*tree.Entry) (io.ReadCloser, error) { return nil, errors.New("all files are small") }
		_, err = e.Feed(t.Context(), o, what != "not the top", tr, archive.PackOptions{Feed: feed, Open: open}, kept)
		if (err == nil) != (what != "not kept") {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := e.Export(t.Context(), o, []Image{in}); err != nil {
			t.Fatal(err)
		}
		o.Dest = "-"
		if _, err := e.Export(t.Context(), o, []Image{in}); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "a.tar"))
		if err != nil || !bytes.Equal(got, stdout.Bytes()) {
			t.Errorf("%s: the file is another archive than standard output, %v", what, err)
		}
		e.Close()
		if all, _ := os.ReadDir(dir); len(all) != 1 {
			t.Errorf("%s: left are %v", what, all)
		}
	}
}
