package cache

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

func TestJobs(t *testing.T) {
	root := t.TempDir()
	stores := []*Store{openTest(t, root, Options{}), openTest(t, root, Options{})}
	var now, most atomic.Int64
	var wait sync.WaitGroup
	for i := range 24 {
		wait.Go(func() {
			release, err := stores[i%2].Job(context.Background(), 3)
			if err != nil {
				t.Error(err)
				return
			}
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			now.Add(-1)
			release()
		})
	}
	wait.Wait()
	if most.Load() > 3 {
		t.Errorf("%d jobs at a time, want at most 3", most.Load())
	}

	// One who counts fewer places waits though there are others.
	for range 2 {
		release, err := stores[0].Job(context.Background(), 2)
		if err != nil {
			t.Fatal(err)
		}
		defer release()
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	stop := errors.New("stop")
	cancel(stop)
	if _, err := stores[1].Job(ctx, 2); !errors.Is(err, stop) {
		t.Errorf("with all places taken: %v", err)
	}
	release, err := stores[1].Job(ctx, 3)
	if err != nil {
		t.Fatalf("the third place: %v", err)
	}
	release()
}
