package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// A source gives bytes that compress like a mix of programs and texts: words
// and, for every fourth block, noise. Equal seeds give equal bytes.
type source struct {
	r     *rand.Rand
	words [2048][]byte
	block []byte
	rest  []byte
	count int
}

func newSource(seed uint64) *source {
	s := &source{r: rand.New(rand.NewPCG(seed, 1)), block: make([]byte, 0, 4<<10)}
	for i := range s.words {
		w := make([]byte, 3+s.r.IntN(12))
		for j := range w {
			w[j] = 'a' + byte(s.r.IntN(26))
		}
		s.words[i] = append(w, ' ')
	}
	return s
}

func (s *source) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(s.rest) == 0 {
			s.fill()
		}
		m := copy(p[n:], s.rest)
		s.rest = s.rest[m:]
		n += m
	}
	return n, nil
}

func (s *source) fill() {
	s.count++
	s.block = s.block[:0]
	if s.count%4 == 0 {
		for len(s.block) < 4<<10 {
			s.block = binary.LittleEndian.AppendUint64(s.block, s.r.Uint64())
		}
	} else {
		for len(s.block) < 4<<10-16 {
			x := s.r.Uint64()
			for range 5 {
				s.block = append(s.block, s.words[x%uint64(len(s.words))]...)
				x /= uint64(len(s.words))
			}
			if len(s.block) > 4<<10-80 {
				break
			}
		}
	}
	s.rest = s.block
}

// generateFile writes size bytes that depend on what the file seed holds.
func generateFile(to, seed string, size int64) error {
	b, err := os.ReadFile(seed)
	if err != nil {
		return err
	}
	var n uint64
	if _, err := fmt.Sscan(string(b), &n); err != nil {
		return fmt.Errorf("%s: %w", seed, err)
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(newSource(n), size), make([]byte, 1<<20))
	return errors.Join(err, f.Close())
}

// The context of the case of that name.
const (
	contextFiles = 20000
	contextBytes = 200 << 20
)

// generateTree writes the files of a context below dir.
func generateTree(ctx context.Context, dir string, seed uint64) error {
	s := newSource(seed)
	w := bufio.NewWriterSize(nil, 64<<10)
	for i := range contextFiles {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		path := treeFile(dir, i)
		if i%100 == 0 {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		w.Reset(f)
		// From half to one and a half of the mean.
		size := int64(contextBytes/contextFiles)/2 + int64(i*7919%contextFiles)*(contextBytes/contextFiles)/contextFiles
		_, err = io.CopyN(w, s, size)
		if err := errors.Join(err, w.Flush(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// treeFile is the path of one of a context's files.
func treeFile(dir string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("d%02d", i/2000), fmt.Sprintf("e%03d", i/100), fmt.Sprintf("f%05d.txt", i))
}
