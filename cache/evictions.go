package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// An Eviction tells why and when the result of an action was removed.
type Eviction struct {
	Time time.Time

	// Cap is the bound in bytes that the store was trimmed to, zero where
	// someone asked for the removal.
	Cap int64
}

// evictionsMax is how large the file of evictions may grow, in bytes, before
// its older half is dropped: some ten thousand lines.
const evictionsMax = 1 << 20

// HistoryDir is the directory for what is remembered to explain builds: the
// file "evictions", a line "HEX SECONDS CAP" for each, and whatever package
// cache/history keeps. It is made if it is not there.
func (s *Store) HistoryDir() (string, error) {
	dir := s.path("history")
	if s.ro {
		return dir, nil
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return dir, nil
}

// noteEvictions remembers actions whose results were removed. It runs in the
// gate, so no other process writes.
func (s *Store) noteEvictions(keys []string, limit int64) error {
	if len(keys) == 0 {
		return nil
	}
	if _, err := s.HistoryDir(); err != nil {
		return err
	}
	path := s.path("history", "evictions")
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(old) > evictionsMax {
		old = old[len(old)/2:]
		if i := bytes.IndexByte(old, '\n'); i >= 0 {
			old = old[i+1:]
		}
	}
	b := bytes.NewBuffer(old)
	now := time.Now().Unix()
	for _, k := range keys {
		fmt.Fprintf(b, "%s %d %d\n", digest.Digest(k).Encoded(), now, limit)
	}
	tmp := s.temp("evictions")
	if err := os.WriteFile(tmp, b.Bytes(), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// Evicted tells of the last removal of an action's result that is remembered.
func (s *Store) Evicted(key digest.Digest) (Eviction, bool) {
	b, err := os.ReadFile(s.path("history", "evictions"))
	if err != nil {
		return Eviction{}, false
	}
	i := bytes.LastIndex(b, []byte(key.Encoded()+" "))
	if i < 0 {
		return Eviction{}, false
	}
	line, _, _ := strings.Cut(string(b[i:]), "\n")
	words := strings.Fields(line)
	if len(words) != 3 {
		return Eviction{}, false
	}
	at, err1 := strconv.ParseInt(words[1], 10, 64)
	limit, err2 := strconv.ParseInt(words[2], 10, 64)
	return Eviction{Time: time.Unix(at, 0), Cap: limit}, err1 == nil && err2 == nil
}
