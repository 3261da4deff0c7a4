package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// maxTries is how often something is tried in all.
const maxTries = 5

// maxRetryAfter is the longest that a registry can make us wait; one that
// wants more gets to say so in the error.
const maxRetryAfter = time.Minute

// wire is the bottom of all HTTP to one endpoint: it decides between HTTP and
// HTTPS and sends requests again where that can help.
type wire struct {
	c     *Client
	e     *endpoint
	inner http.RoundTripper
}

func (c *Client) wire(e *endpoint) http.RoundTripper {
	w := &wire{c: c, e: e, inner: c.strict}
	if e.lenient {
		w.inner = c.lenient
	}
	return transport.NewUserAgent(w, c.o.UserAgent)
}

// schemeError says that a request was not made at all, since it would have
// gone over plain HTTP.
type schemeError struct{ host string }

func (e *schemeError) Error() string {
	return fmt.Sprintf("plain http is not used for %s, which is not on this machine", e.host)
}

// finalError is the failure of a last try. None of the callers' own loops
// shall begin again with it.
type finalError struct{ error }

func (e finalError) Unwrap() error { return e.error }

func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host == w.e.host && req.URL.Scheme == "http" && !w.e.http {
		return nil, &schemeError{req.URL.Host}
	}
	if req.URL.Host == w.e.host && !w.e.https {
		// Those above try HTTPS first, everywhere. Here the user said http.
		plain := *req.URL
		plain.Scheme = "http"
		req = req.Clone(req.Context())
		req.URL = &plain
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return w.send(req)
	}
	for try := 1; ; try++ {
		resp, err := w.ask(req)
		pause, wait := w.c.pause(try, resp)
		if try == maxTries || !wait || !passing(resp, err) || req.Context().Err() != nil {
			if err != nil {
				err = finalError{err}
			}
			return resp, err
		}
		if resp != nil {
			io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // to keep the connection
			resp.Body.Close()
		}
		if err := sleep(req.Context(), pause); err != nil {
			return nil, err
		}
	}
}

// ask gives up when no header arrives; the body may take as long as it does.
func (w *wire) ask(req *http.Request) (*http.Response, error) {
	limit := headerTimeout
	if req.URL.Path == "/v2/" {
		limit = helloTimeout
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(limit, func() {
		cancel(fmt.Errorf("%s did not answer for %v", req.URL.Host, limit))
	})
	resp, err := w.inner.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &cancelBody{resp.Body, cancel}
	resp.Request = req
	return resp, nil
}

type cancelBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *cancelBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}

// send makes a request that changes something. Those who make it try it
// again themselves; but where the registry says how long to wait, that is
// done first.
func (w *wire) send(req *http.Request) (*http.Response, error) {
	resp, err := w.inner.RoundTrip(req)
	if err != nil || !passing(resp, nil) || resp.Header.Get("Retry-After") == "" {
		return resp, err
	}
	if pause, ok := w.c.pause(1, resp); ok {
		if err := sleep(req.Context(), pause); err != nil {
			resp.Body.Close()
			return nil, err
		}
	}
	return resp, nil
}

// pause is how long to wait after the given try; false where that is longer
// than we care to.
func (c *Client) pause(try int, resp *http.Response) (time.Duration, bool) {
	if resp != nil {
		if d, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now()); ok {
			return d, d <= maxRetryAfter
		}
	}
	d := c.o.Pause << (try - 1)
	return d + rand.N(d/4+1), true
}

// retryAfter reads the header: seconds or a date (RFC 9110, section 10.2.3).
func retryAfter(s string, now time.Time) (time.Duration, bool) {
	if n, err := strconv.Atoi(s); err == nil && n >= 0 {
		return time.Duration(n) * time.Second, true
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now)), true
	}
	return 0, false
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// passing reports whether the same request may succeed later.
func passing(resp *http.Response, err error) bool {
	if err != nil {
		return passingError(err)
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// passingError is for failures below HTTP: connections that broke are worth
// another try, servers that are not there or not trusted are not.
func passingError(err error) bool {
	var (
		final  finalError
		scheme *schemeError
		status *transport.Error
		dns    *net.DNSError
		netErr net.Error
	)
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded),
		errors.As(err, &final), errors.As(err, &scheme):
		return false
	case errors.As(err, &status):
		return status.Temporary()
	case errors.As(err, &dns):
		return dns.IsTemporary && !dns.IsTimeout
	case isDial(err):
		return false
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return true
	}
	var op *net.OpError
	return errors.As(err, &op) && (op.Op == "read" || op.Op == "write") && errors.As(err, &netErr)
}

// isDial reports whether no connection was made at all.
func isDial(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// checkRedirect follows redirects to storage servers, but not from TLS to
// plain HTTP, nor from outside to this machine's own networks: a registry
// could otherwise read for its own ends what only we can reach, such as a
// cloud's metadata service.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("too many redirects")
	}
	from, to := via[0].URL, req.URL
	if from.Hostname() == to.Hostname() {
		return nil
	}
	if from.Scheme == "https" && to.Scheme != "https" {
		return fmt.Errorf("redirect from %s to plain %s at %s is refused", from.Host, to.Scheme, to.Host)
	}
	if isPrivate(to.Hostname()) && !isPrivate(from.Hostname()) {
		return fmt.Errorf("redirect from %s to the private address %s is refused", from.Host, to.Host)
	}
	return nil
}

func isPrivate(host string) bool {
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return host == "localhost"
	}
	ip = ip.Unmap()
	return ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()
}
