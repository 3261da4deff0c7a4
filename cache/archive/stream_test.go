package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func TestUnpackBroken(t *testing.T) {
	good := tarOf(t, dir("d"), file("d/f", strings.Repeat("x", 10000)))
	cut := errors.New("cut")
	tests := []struct {
		name string
		r    io.Reader
		o    UnpackOptions
		want error
	}{
		{"truncated content", bytes.NewReader(good[:3000]), UnpackOptions{}, io.ErrUnexpectedEOF},
		{"truncated header", bytes.NewReader(good[:1300]), UnpackOptions{}, io.ErrUnexpectedEOF},
		{"not a tar", strings.NewReader(strings.Repeat("hello ", 1000)), UnpackOptions{}, tar.ErrHeader},
		{"read error", io.MultiReader(bytes.NewReader(good[:3000]), failing{cut}), UnpackOptions{}, cut},
		{"error at the end", io.MultiReader(bytes.NewReader(good), failing{cut}), UnpackOptions{}, cut},
		{"no directory", bytes.NewReader(good), UnpackOptions{}, os.ErrNotExist},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			in, check := cage(t)
			if test.want == os.ErrNotExist {
				in += "/none"
			}
			if _, err := Unpack(t.Context(), test.r, in, test.o); !errors.Is(err, test.want) {
				t.Errorf("got %v, want %v", err, test.want)
			}
			check()
		})
	}
	t.Run("bomb", func(t *testing.T) {
		in, _ := cage(t)
		_, err := Unpack(t.Context(), bytes.NewReader(good), in, UnpackOptions{MaxBytes: 10000})
		if err == nil || !strings.Contains(err.Error(), "more than 10000 bytes") {
			t.Errorf("got %v", err)
		}
		in, _ = cage(t)
		if _, err := Unpack(t.Context(), bytes.NewReader(good), in, UnpackOptions{MaxBytes: 12000}); err != nil {
			t.Error(err)
		}
	})
	t.Run("canceled", func(t *testing.T) {
		in, _ := cage(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		r := io.MultiReader(bytes.NewReader(good[:1024]), readerFunc(func([]byte) (int, error) { cancel(cut); return 0, nil }))
		if _, err := Unpack(ctx, &atMost{r, 4096, good[1024:]}, in, UnpackOptions{}); !errors.Is(err, cut) {
			t.Errorf("got %v", err)
		}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// atMost asks r some times and then reads the rest.
type atMost struct {
	r    io.Reader
	n    int
	rest []byte
}

func (a *atMost) Read(p []byte) (int, error) {
	if a.n--; a.n > 0 {
		return a.r.Read(p)
	}
	if len(a.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

func TestCompressions(t *testing.T) {
	plain := tarOf(t, file("f", strings.Repeat("text ", 100000)))
	streams := map[string][]byte{"none": plain, "padded": append(bytes.Clone(plain), make([]byte, 20480)...)}
	for _, c := range []Compression{Gzip, Zstd, Uncompressed} {
		var b bytes.Buffer
		z, err := Compress(&b, c, DefaultLevel)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		streams[string(c)] = b.Bytes()
	}
	streams["two gzip members"] = append(gzipOf(t, plain[:5000]), gzipOf(t, plain[5000:])...)
	for _, tool := range []string{"bzip2", "xz", "gzip", "zstd"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Logf("%s is not installed", tool)
			continue
		}
		cmd := exec.Command(path, "-c")
		cmd.Stdin = bytes.NewReader(plain)
		if streams[tool+" tool"], err = cmd.Output(); err != nil {
			t.Fatal(err)
		}
	}
	for name, stream := range streams {
		t.Run(name, func(t *testing.T) {
			in, _ := cage(t)
			var diffID digest.Digest
			got, err := Unpack(t.Context(), bytes.NewReader(stream), in, UnpackOptions{DiffID: &diffID})
			if err != nil {
				t.Fatal(err)
			}
			want := digest.FromBytes(plain)
			if name == "padded" {
				want = digest.FromBytes(stream)
			}
			if list(got) != "f 500000" || diffID != want {
				t.Errorf("got %s, diff ID %s, want %s", list(got), diffID, want)
			}
			is, err := IsArchive(t.Context(), bytes.NewReader(stream))
			if !is || err != nil {
				t.Errorf("IsArchive: %v, %v", is, err)
			}
			if name == "none" || name == "gzip" { // the others need a whole block
				if is, err := IsArchive(t.Context(), bytes.NewReader(stream[:len(stream)*2/3])); !is || err != nil {
					t.Errorf("IsArchive of a damaged one: %v, %v", is, err)
				}
			}
			if _, err := Unpack(t.Context(), bytes.NewReader(stream[:len(stream)/2]), in, UnpackOptions{}); err == nil {
				t.Error("half of it unpacks")
			}
		})
	}
}

func gzipOf(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := Compress(&out, Gzip, DefaultLevel)
	if err != nil {
		t.Fatal(err)
	}
	_, err = z.Write(b)
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestIsNoArchive(t *testing.T) {
	unpeeled, _ := hex.DecodeString("1f8b0800")
	for name, b := range map[string][]byte{
		"empty": nil, "zeros": make([]byte, 4096), "text": []byte(strings.Repeat("no tar\n", 200)),
		"gzip of text": gzipOf(t, []byte("hello")), "cut gzip": unpeeled, "gzip of nothing": gzipOf(t, nil),
		"BZh": []byte("BZhello, this only looks like bzip2"), "xz": []byte("\xfd7zXZ\x00 and no more"),
	} {
		if is, err := IsArchive(t.Context(), bytes.NewReader(b)); is || err != nil {
			t.Errorf("%s: %v, %v", name, is, err)
		}
	}
	if _, err := IsArchive(t.Context(), failing{&os.PathError{Op: "read", Err: unix.EIO}}); !errors.Is(err, unix.EIO) {
		t.Errorf("read error: got %v", err)
	}
}
