package cache

import (
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// expected are records that were read before anyone asked for them. A chain of
// steps is looked up one after the other, since each key follows from the
// result before; an earlier build of the same tells most of the keys, and the
// next processor has nothing else to do.
//
// What is read ahead is only believed if its file is still the same when it is
// asked for. So nothing changes but when the bytes are read.
type expected struct {
	mu      sync.Mutex
	records map[digest.Digest]expectedRecord
	room    chan struct{} // one for each that is kept
	stop    chan struct{}
	done    sync.WaitGroup
}

type expectedRecord struct {
	r    *Record
	file fileID
}

// expectMax is how many are kept until they are asked for.
const expectMax = 4096

// Expect reads the records of actions that will be looked up soon, most likely
// in the order in which keys returns them. It returns at once, and is called
// at most once, before look-ups.
func (s *Store) Expect(keys func() []digest.Digest) {
	if s.ro || s.expected != nil {
		return
	}
	x := &expected{
		records: map[digest.Digest]expectedRecord{},
		room:    make(chan struct{}, expectMax),
		stop:    make(chan struct{}),
	}
	s.expected = x
	x.done.Go(func() {
		for _, key := range keys() {
			select {
			case x.room <- struct{}{}:
			case <-x.stop:
				return
			}
			if !x.read(s, key) {
				<-x.room
			}
		}
	})
}

// read reads a record unless it was looked up already.
func (x *expected) read(s *Store, key digest.Digest) (kept bool) {
	if valid(key) != nil || s.hasPin(pinned("action", key)) {
		return false
	}
	r, file, err := s.readRecord(key)
	if err != nil {
		return false // whoever asks will see
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, twice := x.records[key]; twice {
		return false
	}
	x.records[key] = expectedRecord{r, file}
	return true
}

// take returns a record if it was read ahead and its file is still the same.
// Nil has none.
func (x *expected) take(key digest.Digest, path string) (*Record, fileID, bool) {
	if x == nil {
		return nil, fileID{}, false
	}
	x.mu.Lock()
	e, ok := x.records[key]
	delete(x.records, key)
	x.mu.Unlock()
	if !ok {
		return nil, fileID{}, false
	}
	<-x.room
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || idOf(&st) != e.file {
		return nil, fileID{}, false
	}
	return e.r, e.file, true
}

// close ends reading ahead.
func (x *expected) close() {
	if x != nil {
		close(x.stop)
		x.done.Wait()
	}
}
