// Package journal keeps files of lines that only grow at their end and are
// bounded all the same: a [File] that is full is put aside as FILE.1, what
// was there before as FILE.2, and so on, and the last is dropped.
//
// A file has one writer that keeps it open ([File.Open]), or many processes
// that add a line now and then ([File.Append]). Readers need no lock, and
// follow what is added through any number of turns. What the lines mean is
// their writers' business.
package journal

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// File is a bounded file of lines.
type File struct {
	Path string
	Max  int64 // bytes after which it is put aside; zero is never
	Keep int   // files in all, at least 1
}

// at is the path of a part: 0 is the one that grows.
func (j File) at(i int) string {
	if i == 0 {
		return j.Path
	}
	return j.Path + "." + strconv.Itoa(i)
}

// turn puts the file aside. With only one file there is nowhere to.
func (j File) turn() error {
	if j.Keep <= 1 {
		return os.Remove(j.Path)
	}
	for i := j.Keep - 1; i > 0; i-- {
		if err := os.Rename(j.at(i-1), j.at(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Remove deletes the file with all that was put aside.
func (j File) Remove() error {
	var errs []error
	for i := range max(j.Keep, 1) {
		if err := os.Remove(j.at(i)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Append adds a line, which has no newline of its own. Any number of
// processes may do so at the same time.
func (j File) Append(line []byte) error {
	for {
		f, err := os.OpenFile(j.Path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		done, err := j.appendTo(f, line)
		if err = errors.Join(err, f.Close()); err != nil || done {
			return err
		}
	}
}

// appendTo adds a line to an open file, unless that was put aside meanwhile.
func (j File) appendTo(f *os.File, line []byte) (bool, error) {
	// Freed by the kernel with the descriptor, so that no death blocks it.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return false, fmt.Errorf("lock %s: %w", j.Path, err)
	}
	here, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Stat(j.Path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(here, there) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if j.Max > 0 && here.Size() >= j.Max {
		return false, j.turn()
	}
	text := make([]byte, 0, len(line)+2)
	if n := here.Size(); n > 0 {
		// A writer that was killed, or a full disk, may have torn a line.
		var last [1]byte
		if _, err := f.ReadAt(last[:], n-1); err == nil && last[0] != '\n' {
			text = append(text, '\n')
		}
	}
	_, err = f.Write(append(append(text, line...), '\n'))
	return true, err
}

// Writer is the one writer of a file. Its methods are not for several
// goroutines at once.
type Writer struct {
	file File
	f    *os.File
	size int64
	torn bool // the last line has no end, for a full disk
}

// Open opens the file to add lines to it, as its only writer.
func (j File) Open() (*Writer, error) {
	f, err := os.OpenFile(j.Path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &Writer{file: j, f: f, size: size}, nil
}

// Write adds whole lines, with their newlines. A line that is longer than the
// bound has a file of its own.
func (w *Writer) Write(lines []byte) (int, error) {
	written := 0
	if w.torn {
		// Lest the line that comes is torn with it.
		n, err := w.f.Write([]byte{'\n'})
		if w.size += int64(n); err != nil {
			return 0, err
		}
		w.torn = false
	}
	for len(lines) > 0 {
		cut := len(lines)
		if room := w.file.Max - w.size; w.file.Max > 0 && int64(cut) > room {
			cut = bytes.LastIndexByte(lines[:max(room, 0)], '\n') + 1
			if cut == 0 && w.size > 0 {
				if err := w.turn(); err != nil {
					return written, err
				}
				continue
			}
			if cut == 0 {
				cut = bytes.IndexByte(lines, '\n') + 1
			}
			if cut == 0 {
				cut = len(lines)
			}
		}
		n, err := w.f.Write(lines[:cut])
		w.size += int64(n)
		written += n
		if err != nil {
			w.torn = n > 0 && lines[n-1] != '\n'
			return written, err
		}
		lines = lines[cut:]
	}
	return written, nil
}

func (w *Writer) turn() error {
	if err := w.file.turn(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	next, err := w.file.Open()
	if err != nil {
		return err
	}
	err = w.f.Close()
	*w = *next
	return err
}

// Close closes the file.
func (w *Writer) Close() error { return w.f.Close() }

// poll is how often followers look for more.
const poll = 20 * time.Millisecond

// Read calls f for all lines, the oldest first, without their newlines. A
// line without a newline at the end of the file is not there yet.
func (j File) Read(f func(line []byte) error) error {
	return j.Follow(context.Background(), func() bool { return true }, f)
}

// Follow calls f for all lines and for those that are added, until over has
// returned true and the lines that were there then have been read, or ctx
// ends.
func (j File) Follow(ctx context.Context, over func() bool, f func(line []byte) error) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	var at *part
	defer func() { at.close() }()
	for {
		last := over()
		parts, err := j.since(at)
		if err != nil {
			return err
		}
		for i, p := range parts {
			if p != at {
				at.close()
				at = p
			}
			if err := p.lines(f); err != nil {
				for _, q := range parts[i+1:] {
					q.close()
				}
				return err
			}
		}
		if last {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			// Once more, for what was added before.
			over = func() bool { return true }
		}
	}
}

// part is one of the files, open for reading.
type part struct {
	f    *os.File
	info fs.FileInfo
	r    *bufio.Reader
	rest []byte // of a line that has no end yet
}

func (p *part) close() {
	if p != nil {
		_ = p.f.Close()
	}
}

// lines reads on to the end.
func (p *part) lines(f func([]byte) error) error {
	for {
		text, err := p.r.ReadSlice('\n')
		p.rest = append(p.rest, text...)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		line := p.rest[:len(p.rest)-1]
		p.rest = p.rest[:0]
		if err := f(line); err != nil {
			return err
		}
	}
}

// since opens the parts that are newer than the one that is being read, which
// comes first, the oldest first. If the file is put aside meanwhile it looks
// again; should that go on and on, what is new is left for the next time.
func (j File) since(at *part) ([]*part, error) {
	for range 100 {
		newer, whole, err := j.newer(at)
		if err == nil && whole {
			if at != nil {
				newer = append(newer, at)
			}
			slices.Reverse(newer)
			return newer, nil
		}
		for _, p := range newer {
			p.close()
		}
		if err != nil {
			return nil, err
		}
	}
	if at == nil {
		return nil, nil
	}
	return []*part{at}, nil
}

// newer opens the parts newer than at, the newest first. Within one turn each
// file goes up by one name, so going up the names meets them all, some twice.
// whole is false if there was more than one turn.
func (j File) newer(at *part) (newer []*part, whole bool, err error) {
	first, err := os.Stat(j.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, false, err
	}
	for i := range max(j.Keep, 1) + 1 { // one more, which a turn may just have made
		f, err := os.Open(j.at(i))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the end, or a file between two names: there may be older ones
		}
		if err != nil {
			return newer, false, err
		}
		info, err := f.Stat()
		if err != nil {
			return newer, false, errors.Join(err, f.Close())
		}
		if at != nil && os.SameFile(info, at.info) {
			_ = f.Close()
			break
		}
		if n := len(newer); n > 0 && os.SameFile(info, newer[n-1].info) {
			_ = f.Close()
			continue
		}
		newer = append(newer, &part{f: f, info: info, r: bufio.NewReaderSize(f, 32<<10)})
	}
	last, err := os.Stat(j.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return newer, false, err
	}
	whole = first == nil && last == nil || first != nil && last != nil && os.SameFile(first, last)
	return newer, whole, nil
}
