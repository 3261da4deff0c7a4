package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"time"

	"kiln.build/cache/layout"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fetch reads a blob of the repository that ref is in. Where the connection
// breaks the transfer goes on from there. Reading to the end gives a
// [*layout.CorruptError] instead of io.EOF if the bytes are not those of the
// digest. The reader must be closed and ends with ctx.
func (c *Client) Fetch(ctx context.Context, ref Reference, desc v1.Descriptor) (io.ReadCloser, error) {
	r, err := c.fetch(ctx, ref, desc)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", ref.Familiar(), err)
	}
	return r, nil
}

func (c *Client) fetch(ctx context.Context, ref Reference, desc v1.Descriptor) (*blob, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("blob %q: %w", desc.Digest, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	b := &blob{c: c, ctx: ctx, cancel: cancel, ref: ref, desc: desc, hash: desc.Digest.Algorithm().Hash()}
	if err := b.open(); err != nil {
		cancel(nil)
		return nil, err
	}
	return b, nil
}

// A blob is the reader of Fetch.
type blob struct {
	c      *Client
	ctx    context.Context
	cancel context.CancelCauseFunc
	ref    Reference
	desc   v1.Descriptor

	from   *endpoint
	body   io.ReadCloser // nil where the connection broke
	offset int64         // bytes handed out
	hash   hash.Hash     // of these
	tries  int           // that broke since marked
	marked int64         // offset at the first of them
	err    error         // final
}

// progressed is how much of a blob must arrive for failures before it no
// longer to count.
const progressed = 4 << 20

func (b *blob) Read(p []byte) (int, error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	for {
		if b.body == nil {
			if err := b.open(); err != nil {
				b.err = err
				return 0, err
			}
		}
		n, err := b.read(p)
		b.offset += int64(n)
		b.hash.Write(p[:n])
		if b.desc.Size > 0 && b.offset > b.desc.Size {
			b.err = b.corrupt(fmt.Sprintf("%s sent more than its %d bytes", b.from, b.desc.Size))
			return 0, b.err
		}
		if err == nil {
			return n, nil
		}
		if err == io.EOF && b.offset < b.desc.Size {
			err = io.ErrUnexpectedEOF
		}
		if err == io.EOF {
			b.err = io.EOF
			if got := digest.NewDigest(b.desc.Digest.Algorithm(), b.hash); got != b.desc.Digest {
				b.err = b.corrupt(fmt.Sprintf("%s sent bytes with the digest %s", b.from, got))
			}
			return n, b.err
		}
		if err := b.broken(err); err != nil {
			b.err = err
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

func (b *blob) corrupt(reason string) error {
	return &layout.CorruptError{Digest: b.desc.Digest, Reason: reason}
}

// read is a read that does not wait for ever.
func (b *blob) read(p []byte) (int, error) {
	body := b.body
	stalled := time.AfterFunc(stallTimeout, func() { body.Close() })
	n, err := body.Read(p)
	if !stalled.Stop() && err != nil && err != io.EOF {
		err = fmt.Errorf("nothing was received for %v", stallTimeout)
	}
	return n, err
}

// broken takes note of a connection that broke and returns an error if that
// was once too often.
func (b *blob) broken(err error) error {
	b.body.Close()
	b.body = nil
	if b.ctx.Err() != nil {
		return context.Cause(b.ctx)
	}
	if b.tries == 0 || b.offset-b.marked >= progressed {
		b.tries, b.marked = 0, b.offset
	}
	if b.tries++; b.tries >= maxTries {
		return fmt.Errorf("blob %s from %s: broke off %d times, at last after %d of %d bytes: %w", b.desc.Digest, b.from, b.tries, b.offset, b.desc.Size, err)
	}
	return b.c.again(b.ctx, b.tries)
}

// open asks for the blob from the offset on, at the first endpoint that has
// it, and last at the URLs that a foreign layer names.
func (b *blob) open() error {
	err := b.c.anywhere(b.ctx, b.ref.Host, "blob "+b.desc.Digest.String(), func(e *endpoint) error {
		s, client, err := b.c.session(b.ctx, e, b.ref)
		if err != nil {
			return err
		}
		b.from = e
		return b.get(client, s.url("blobs", b.desc.Digest.String()))
	})
	if err == nil || b.ctx.Err() != nil || !layout.IsForeign(b.desc.MediaType) {
		return err
	}
	for _, u := range b.desc.URLs {
		urlError := b.foreign(u)
		if urlError == nil {
			return nil
		}
		err = fmt.Errorf("%w; %w", err, urlError)
	}
	return err
}

// foreign asks a URL from a manifest, as it would a redirect: without
// credentials, and not inside this machine's networks.
func (b *blob) foreign(address string) error {
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("layer URL: %w", err)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !isLoopback(u.Host)) {
		return fmt.Errorf("layer URL %q: only https is followed", u.Redacted())
	}
	if isPrivate(u.Hostname()) && !isLoopback(b.ref.Host) {
		return fmt.Errorf("layer URL %q: the address is private", u.Redacted())
	}
	e := &endpoint{host: u.Host, http: u.Scheme == "http", https: u.Scheme == "https"}
	b.from = e
	if err := b.get(&http.Client{Transport: b.c.wire(e), CheckRedirect: checkRedirect}, address); err != nil {
		return explain(e, "blob "+b.desc.Digest.String(), err)
	}
	return nil
}

func (b *blob) get(client *http.Client, address string) error {
	req, err := http.NewRequestWithContext(b.ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	// What is compressed already must not be decompressed on the way.
	req.Header.Set("Accept-Encoding", "identity")
	if b.offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", b.offset))
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	if err := statusError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return err
	}
	if resp.StatusCode == http.StatusPartialContent {
		var first int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &first); err != nil || first != b.offset {
			resp.Body.Close()
			return fmt.Errorf("asked for the bytes from %d on, the answer is %q", b.offset, resp.Header.Get("Content-Range"))
		}
	} else if b.offset > 0 {
		// The server does not know ranges: skip what we have.
		if _, err := io.CopyN(io.Discard, resp.Body, b.offset); err != nil {
			resp.Body.Close()
			return err
		}
	}
	if want := b.desc.Size - b.offset; b.desc.Size > 0 && resp.StatusCode == http.StatusPartialContent && resp.ContentLength >= 0 && resp.ContentLength != want {
		resp.Body.Close()
		return b.corrupt(fmt.Sprintf("%d bytes are to come, not %d", resp.ContentLength, want))
	}
	b.body = resp.Body
	return nil
}

func (b *blob) Close() error {
	b.cancel(nil)
	if b.err == nil {
		b.err = errors.New("read of a closed blob")
	}
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}
