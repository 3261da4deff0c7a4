package archive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"kiln.build/cache/tree"
)

// fedTree is a layer of small files with the text of their names.
func fedTree(t *testing.T, names ...string) (string, *tree.Tree) {
	t.Helper()
	dir, _ := cage(t)
	var members []member
	for _, n := range names {
		members = append(members, file(n, "text of "+n))
	}
	tr, err := Unpack(t.Context(), bytes.NewReader(tarOf(t, members...)), dir, UnpackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return dir, tr
}

func entry(t *testing.T, tr *tree.Tree, name string) *tree.Entry {
	t.Helper()
	e, ok := tr.Lookup(name)
	if !ok {
		t.Fatalf("no %s", name)
	}
	return e
}

// TestFeed fills batches out of order.
func TestFeed(t *testing.T) {
	dir, tr := fedTree(t, "a", "b", "c")
	want := pack(t, dir, tr, PackOptions{})
	f := NewFeed(2)
	first := f.Next([]*tree.Entry{entry(t, tr, "a"), entry(t, tr, "b")})
	second := f.Next([]*tree.Entry{entry(t, tr, "c")})
	go func() {
		second.Data = append(second.Data, "text of c"...)
		second.Next(nil)
		second.Done()
		for _, name := range []string{"a", "b"} {
			first.Data = append(first.Data, "text of "+name...)
			first.Next(nil)
		}
		first.Done()
		f.End(nil)
	}()
	var got bytes.Buffer
	if err := Pack(t.Context(), &got, "", tr, PackOptions{Feed: f}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Error("the archive is another one")
	}
	if f.Next(nil) != nil {
		t.Error("a feed takes more after its end")
	}
}

// TestFeedUnread gives up where nobody reads.
func TestFeedUnread(t *testing.T) {
	_, tr := fedTree(t, "a", "b")
	f := NewFeed(1)
	if f.Next([]*tree.Entry{entry(t, tr, "a")}) == nil {
		t.Fatal("the first batch is not taken")
	}
	if f.Next([]*tree.Entry{entry(t, tr, "b")}) != nil {
		t.Error("a full feed that nobody reads takes more")
	}
}

// TestFeedLacks is fed something else than the files of the tree.
func TestFeedLacks(t *testing.T) {
	_, tr := fedTree(t, "a", "b")
	bad := errors.New("bad file")
	one := func(f *Feed, name, text string, err error) {
		b := f.Next([]*tree.Entry{entry(t, tr, name)})
		b.Data = append(b.Data, text...)
		b.Next(err)
		b.Done()
	}
	for what, fill := range map[string]func(*Feed){
		"nothing":       func(f *Feed) { f.End(bad) },
		"an error":      func(f *Feed) { one(f, "a", "", bad); f.End(nil) },
		"another file":  func(f *Feed) { one(f, "b", "text of b", nil); f.End(bad) },
		"too little":    func(f *Feed) { one(f, "a", "text", nil); f.End(bad) },
		"only one file": func(f *Feed) { one(f, "a", "text of a", nil); f.End(bad) },
		"no content": func(f *Feed) {
			f.Next([]*tree.Entry{entry(t, tr, "a")}).Done()
			f.End(bad)
		},
	} {
		f := NewFeed(4)
		fill(f)
		if err := Pack(t.Context(), io.Discard, "", tr, PackOptions{Feed: f}); err == nil || !errors.Is(err, bad) && !strings.Contains(err.Error(), errUnfed.Error()) {
			t.Errorf("%s: %v", what, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := NewFeed(1)
	if err := Pack(ctx, io.Discard, "", tr, PackOptions{Feed: f}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}
