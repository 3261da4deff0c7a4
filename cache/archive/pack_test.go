package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"kiln.build/cache/layout"
	"kiln.build/cache/tree"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// randomArchive is a layer with some of everything, names that repeat and
// names that sort in unusual ways.
func randomArchive(t testing.TB, r *mathrand.Rand, n int) []byte {
	dirs := []string{""}
	var files, members = []string{}, []member{}
	for range n {
		name := dirs[r.Intn(len(dirs))] + string("abc-.!"[r.Intn(6)]) + []string{"", "x", "-y", "\xff", strings.Repeat("l", 120)}[r.Intn(5)]
		if strings.HasSuffix(name, "/.") || name == "." {
			continue
		}
		attrs := func(h *tar.Header) {
			h.Mode = int64(r.Intn(0o10000))
			h.Uid, h.Gid = r.Intn(3)*1000, r.Intn(1<<22)
			h.ModTime = time.Unix(r.Int63n(4e9), 0)
		}
		m := member{name: name, opt: attrs}
		switch k := r.Intn(14); {
		case k < 4:
			m.kind = tar.TypeDir
			dirs = append(dirs, name+"/")
		case k < 9:
			m.kind, m.text = tar.TypeReg, strings.Repeat("text", r.Intn(300)*r.Intn(300))
			files = append(files, name)
		case k == 9:
			m.kind, m.text = tar.TypeSymlink, []string{"a", "/b", "../c", strings.Repeat("t", 200)}[r.Intn(4)]
		case k == 10 && len(files) > 0:
			m.kind, m.text = tar.TypeLink, files[r.Intn(len(files))]
		case k == 11:
			m.kind = []byte{tar.TypeFifo, tar.TypeChar, tar.TypeBlock}[r.Intn(3)]
			m.opt = func(h *tar.Header) { attrs(h); h.Devmajor, h.Devminor = 1+r.Int63n(100), r.Int63n(1<<20) }
		case k == 12:
			m = file(filepath.Dir(name)+"/.wh."+filepath.Base(name), "")
		case k == 13 && r.Intn(3) == 0:
			m = file(dirs[r.Intn(len(dirs))]+".wh..wh..opq", "")
		default:
			continue
		}
		members = append(members, m)
	}
	return tarOf(t, members...)
}

// unpackRandom unpacks entries one by one until it has a tree: a random
// archive may well be one that is refused, as for a link to nothing.
func unpackRandom(t testing.TB, seed int64) (dir string, tr *tree.Tree) {
	t.Helper()
	for ; ; seed += 1000 {
		in, check := cage(t)
		tr, err := Unpack(t.Context(), bytes.NewReader(randomArchive(t, mathrand.New(mathrand.NewSource(seed)), 40)), in, UnpackOptions{Layer: true})
		check()
		if err == nil {
			return in, tr
		}
	}
}

func pack(t testing.TB, dir string, tr *tree.Tree, o PackOptions) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Pack(t.Context(), &b, dir, tr, o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	needRoot(t)
	for seed := range int64(20) {
		in, want := unpackRandom(t, seed)
		agree(t, in, want)
		packed := pack(t, in, want, PackOptions{})
		if again := pack(t, in, want, PackOptions{}); !bytes.Equal(packed, again) {
			t.Errorf("seed %d: two streams of one tree differ", seed)
		}
		other, check := cage(t)
		got, err := Unpack(t.Context(), bytes.NewReader(packed), other, UnpackOptions{Layer: true})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		check()
		agree(t, other, got)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("seed %d: got\n%s\nwant\n%s", seed, list(got), list(want))
		}
		if again := pack(t, other, got, PackOptions{}); !bytes.Equal(packed, again) {
			t.Errorf("seed %d: the stream of the unpacked layer differs", seed)
		}
	}
}

// names lists a stream's headers in short.
func names(t testing.TB, b []byte) string {
	t.Helper()
	var s []string
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return strings.Join(s, " ")
		}
		if err != nil {
			t.Fatal(err)
		}
		s = append(s, h.Name)
	}
}

func TestPackAgainstLower(t *testing.T) {
	needRoot(t)
	unpack := func(members ...member) (string, *tree.Tree) {
		in, _ := cage(t)
		tr, err := Unpack(t.Context(), bytes.NewReader(tarOf(t, members...)), in, UnpackOptions{Layer: true})
		if err != nil {
			t.Fatal(err)
		}
		return in, tr
	}
	_, lower := unpack(dir("./"), file("d/s/x", ""), file("d/s/y", ""), file("d/t", ""), file("d/u/v", ""), file("gone", ""), file("o/x", ""))
	in, upper := unpack(dir("./"), dir("d"), file("d/.wh..wh..opq", ""), file("d/s/y", ""), file("d/s/z", ""), dir("d/t"), file(".wh.gone", ""), file(".wh.never", ""), file("d/new/n", ""))

	if got, want := names(t, pack(t, in, upper, PackOptions{Lower: tree.NewIndex(lower)})),
		"d/ d/.wh.u d/new/ d/new/n d/s/ d/s/.wh.x d/s/y d/s/z d/t/ .wh.gone"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := names(t, pack(t, in, upper, PackOptions{})),
		"d/ d/.wh..wh..opq d/new/ d/new/n d/s/ d/s/y d/s/z d/t/ .wh.gone .wh.never"; got != want {
		t.Errorf("without lower: got  %s\nwant %s", got, want)
	}

	// What both streams mean on top of the lower layer is the same.
	merged := func(packed []byte) string {
		other, _ := cage(t)
		tr, err := Unpack(t.Context(), bytes.NewReader(packed), other, UnpackOptions{Layer: true})
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		err = tree.NewIndex(lower, tr).Walk("", func(e tree.Entry, _ int) error {
			s = append(s, e.Path)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(s, " ")
	}
	a, b := merged(pack(t, in, upper, PackOptions{})), merged(pack(t, in, upper, PackOptions{Lower: tree.NewIndex(lower)}))
	if want := " d d/new d/new/n d/s d/s/y d/s/z d/t o o/x"; a != want || b != want {
		t.Errorf("merged: %q and %q, want %q", a, b, want)
	}

	// A top directory that differs is told.
	in, upper = unpack(member{"./", tar.TypeDir, "", func(h *tar.Header) { h.Mode = 0o700 }})
	if got := names(t, pack(t, in, upper, PackOptions{Lower: tree.NewIndex(lower)})); got != "./" {
		t.Errorf("got %q, want ./", got)
	}
}

func TestPackHeaders(t *testing.T) {
	needRoot(t)
	in, _ := cage(t)
	tr, err := Unpack(t.Context(), bytes.NewReader(tarOf(t, file("late", "x"), file(".wh.gone", ""),
		member{"early", tar.TypeReg, "", func(h *tar.Header) { h.ModTime = time.Unix(5, 999999999) }})), in, UnpackOptions{Layer: true})
	if err != nil {
		t.Fatal(err)
	}
	epoch := time.Unix(1000, 0)
	b := pack(t, in, tr, PackOptions{Epoch: &epoch})
	want := map[string]int64{"late": 1000, ".wh.gone": 0, "early": 5}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.ModTime.UnixNano() != want[h.Name]*1e9 || h.Uname != "" || h.Gname != "" || len(h.PAXRecords) != 0 || !h.AccessTime.IsZero() {
			t.Errorf("%+v", h)
		}
		if h.Name == ".wh.gone" && (h.Mode != 0 || h.Typeflag != tar.TypeReg || h.Size != 0) {
			t.Errorf("whiteout: %+v", h)
		}
	}
	if len(b) != 3*512+512+2*512 {
		t.Errorf("%d bytes: there are headers that nobody needs", len(b))
	}
}

func TestPackCorrupt(t *testing.T) {
	needRoot(t)
	tests := []struct {
		name   string
		damage func(path string) error
	}{
		{"other bytes", func(p string) error { return os.WriteFile(p, []byte("heLlo"), 0) }},
		{"shorter", func(p string) error { return os.Truncate(p, 3) }},
		{"longer", func(p string) error { return os.WriteFile(p, []byte("hello world"), 0) }},
		{"missing", os.Remove},
		{"a link", func(p string) error { return errors.Join(os.Remove(p), os.Symlink("/etc/passwd", p)) }},
		{"a directory", func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }},
		{"behind a link", func(p string) error {
			return errors.Join(os.Rename(filepath.Dir(p), p+"x/../../moved"), os.Symlink("moved", filepath.Dir(p)))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in, _ := cage(t)
			tr, err := Unpack(t.Context(), bytes.NewReader(tarOf(t, file("d/f", "hello"))), in, UnpackOptions{Layer: true})
			if err != nil {
				t.Fatal(err)
			}
			if test.name == "behind a link" {
				if err := os.Mkdir(filepath.Join(in, "d/fx"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := test.damage(filepath.Join(in, "d/f")); err != nil {
				t.Fatal(err)
			}
			layer := digest.FromString("layer")
			err = Pack(t.Context(), io.Discard, in, tr, PackOptions{Layer: layer})
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || corrupt.Path != "d/f" || corrupt.Layer != layer {
				t.Errorf("got %v, want a CorruptError", err)
			}
		})
	}
}

func TestPackReservedName(t *testing.T) {
	needRoot(t)
	in, _ := cage(t)
	tr, err := Unpack(t.Context(), bytes.NewReader(tarOf(t, file("d/.wh.f", ""))), in, UnpackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Pack(t.Context(), io.Discard, in, tr, PackOptions{}); err == nil || !strings.Contains(err.Error(), "mark deletions") {
		t.Errorf("got %v", err)
	}
}

// Compressed output must be a function of the input alone.
func TestCompressDeterministic(t *testing.T) {
	data := make([]byte, 3<<20+777) // several blocks, some that compress
	mathrand.New(mathrand.NewSource(1)).Read(data[:1<<20])
	copy(data[1<<20:], data[:1<<20])
	for i := 2 << 20; i < len(data); i++ {
		data[i] = byte(i >> 8)
	}
	for _, c := range []Compression{Gzip, Zstd} {
		for _, level := range []int{DefaultLevel, 1} {
			var first []byte
			for _, procs := range []int{1, 5} {
				for _, cut := range []int{40000, len(data)} {
					before := runtime.GOMAXPROCS(procs)
					var b bytes.Buffer
					z, err := Compress(&b, c, level)
					if err != nil {
						t.Fatal(err)
					}
					for rest := data; len(rest) > 0; {
						n := min(cut, len(rest))
						if _, err := z.Write(rest[:n]); err != nil {
							t.Fatal(err)
						}
						rest = rest[n:]
					}
					if err := z.Close(); err != nil {
						t.Fatal(err)
					}
					runtime.GOMAXPROCS(before)
					if first == nil {
						first = b.Bytes()
					} else if !bytes.Equal(first, b.Bytes()) {
						t.Errorf("%s level %d: %d processors and writes of %d bytes give other bytes", c, level, procs, cut)
					}
				}
			}
			r, err := Decompress(t.Context(), bytes.NewReader(first))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
				t.Errorf("%s level %d: read back %d bytes: %v", c, level, len(got), err)
			}
			r.Close()
		}
	}
	for _, level := range []int{10, -5} {
		if _, err := Compress(io.Discard, Gzip, level); err == nil {
			t.Errorf("gzip level %d is accepted", level)
		}
	}
	if _, err := Compress(io.Discard, Zstd, 23); err == nil {
		t.Error("zstd level 23 is accepted")
	}
	if _, err := Compress(io.Discard, "lzma", 1); err == nil {
		t.Error("an unknown compression is accepted")
	}
}

func TestPackBlob(t *testing.T) {
	needRoot(t)
	l, err := layout.Open(filepath.Join(t.TempDir(), "images"))
	if err != nil {
		t.Fatal(err)
	}
	in, tr := unpackRandom(t, 7)
	plain := pack(t, in, tr, PackOptions{})
	for _, c := range []Compression{"", Uncompressed, Gzip, Zstd} {
		desc, diffID, err := PackBlob(t.Context(), l, in, tr, BlobOptions{Compression: c})
		if err != nil {
			t.Fatal(err)
		}
		if diffID != digest.FromBytes(plain) {
			t.Errorf("%s: diff ID %s", c, diffID)
		}
		if c != "" && desc.MediaType != c.MediaType() {
			t.Errorf("%s: media type %s", c, desc.MediaType)
		}
		r, _, err := l.Blob(desc.Digest)
		if err != nil {
			t.Fatal(err)
		}
		other, _ := cage(t)
		var again digest.Digest
		got, err := Unpack(t.Context(), r, other, UnpackOptions{Layer: true, DiffID: &again})
		r.Close()
		if err != nil || again != diffID || !reflect.DeepEqual(got, tr) {
			t.Errorf("%s: %s, %v", c, list(got), err)
		}
	}

	// Failures on either side.
	in, tr = func() (string, *tree.Tree) {
		in, _ := cage(t)
		tr, err := Unpack(t.Context(), bytes.NewReader(tarOf(t, file("f", strings.Repeat("x", 1<<20)))), in, UnpackOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return in, tr
	}()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := PackBlob(ctx, l, in, tr, BlobOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if err := os.WriteFile(filepath.Join(in, "f"), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	var corrupt *CorruptError
	if _, _, err := PackBlob(t.Context(), l, in, tr, BlobOptions{}); !errors.As(err, &corrupt) {
		t.Errorf("corrupt file: %v", err)
	}
}

// Other tools unpack our layers to what we packed.
func TestOtherToolsRead(t *testing.T) {
	needRoot(t)
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		t.Skip("umoci is not installed")
	}
	images := filepath.Join(t.TempDir(), "images")
	l, err := layout.Open(images)
	if err != nil {
		t.Fatal(err)
	}
	in, tr := unpackRandom(t, 3)
	blob, diffID, err := PackBlob(t.Context(), l, in, tr, BlobOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`{"architecture":%q,"os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[%q]}}`, runtime.GOARCH, diffID)
	configDesc, err := l.WriteBytes(t.Context(), v1.MediaTypeImageConfig, []byte(config))
	if err != nil {
		t.Fatal(err)
	}
	manifest := fmt.Sprintf(`{"schemaVersion":%d,"mediaType":%q,"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		specs.Versioned{SchemaVersion: 2}.SchemaVersion, v1.MediaTypeImageManifest,
		configDesc.MediaType, configDesc.Digest, configDesc.Size, blob.MediaType, blob.Digest, blob.Size)
	desc, err := l.WriteBytes(t.Context(), v1.MediaTypeImageManifest, []byte(manifest))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Tag(t.Context(), "test", desc); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "root")
	if text, err := exec.Command(umoci, "raw", "unpack", "--image", images+":test", out).CombinedOutput(); err != nil {
		t.Fatalf("umoci: %v\n%s", err, text)
	}
	got, err := tree.Scan(t.Context(), out, tree.ScanOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := &tree.Tree{}
	for _, e := range tr.Entries {
		if e.Type != tree.Whiteout && e.Path != "" { // there is nothing below to delete
			e.Opaque = false
			want.Entries = append(want.Entries, e)
		}
	}
	got.Entries = got.Entries[1:]
	if got.Digest() != want.Digest() {
		t.Errorf("umoci has\n%s\nwe have\n%s", list(got), list(want))
	}
}

// debian returns a real root file system's archive, or skips.
func debian(b testing.TB) []byte {
	b.Helper()
	data, err := os.ReadFile("/var/cache/kiln-test/debian.tar")
	if err != nil {
		b.Skip("no Debian archive: ", err)
	}
	return data
}

func BenchmarkUnpack(b *testing.B) {
	data := debian(b)
	run := func(name string, stream []byte, o UnpackOptions) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				b.StopTimer()
				dir, err := os.MkdirTemp("", "unpack")
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if _, err := Unpack(b.Context(), bytes.NewReader(stream), dir, o); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				os.RemoveAll(dir)
				b.StartTimer()
			}
		})
	}
	run("tar", data, UnpackOptions{Layer: true})
	run("tar with diff ID", data, UnpackOptions{Layer: true, DiffID: new(digest.Digest)})
	run("gzip with diff ID", gzipOf(b, data), UnpackOptions{Layer: true, DiffID: new(digest.Digest)})
	b.Run("GNU tar", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			b.StopTimer()
			dir, err := os.MkdirTemp("", "unpack")
			if err != nil {
				b.Fatal(err)
			}
			cmd := exec.Command("tar", "-x", "-C", dir)
			cmd.Stdin = bytes.NewReader(data)
			b.StartTimer()
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v %s", err, out)
			}
			b.StopTimer()
			os.RemoveAll(dir)
			b.StartTimer()
		}
	})
}

func BenchmarkPack(b *testing.B) {
	data := debian(b)
	dir := b.TempDir()
	tr, err := Unpack(b.Context(), bytes.NewReader(data), dir, UnpackOptions{Layer: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("tar", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			if err := Pack(b.Context(), io.Discard, dir, tr, PackOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, c := range []Compression{Uncompressed, Gzip, Zstd} {
		b.Run("blob "+string(c), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				b.StopTimer()
				l, err := layout.Open(filepath.Join(b.TempDir(), "l"))
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				desc, _, err := PackBlob(b.Context(), l, dir, tr, BlobOptions{Compression: c})
				if err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(desc.Size)/1e6, "MB")
			}
		})
	}
}

func BenchmarkCompress(b *testing.B) {
	data := debian(b)[:64<<20]
	for _, c := range []struct {
		c     Compression
		level int
	}{{Gzip, 1}, {Gzip, DefaultLevel}, {Gzip, 9}, {Zstd, 1}, {Zstd, DefaultLevel}, {Zstd, 8}} {
		b.Run(fmt.Sprint(c.c, " ", c.level), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				var n counter
				z, err := Compress(&n, c.c, c.level)
				if err != nil {
					b.Fatal(err)
				}
				_, err = z.Write(data)
				if err := errors.Join(err, z.Close()); err != nil {
					b.Fatal(err)
				}
				b.ReportMetric(float64(n)/float64(len(data))*100, "%")
			}
		})
	}
}

type counter int64

func (c *counter) Write(p []byte) (int, error) { *c += counter(len(p)); return len(p), nil }
