package runner

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/net/http/httpproxy"
	"kiln.build/cache/tree"
	"kiln.build/solver"
	"kiln.build/solver/op"
)

// fetched is what is remembered of a download, besides its layer.
type fetched struct {
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"lastModified,omitempty"`
}

// httpAction is the action under which the newest download of an address is
// kept, for conditional requests.
func httpAction(o op.HTTP) *solver.Action {
	o.Checksum = ""
	description := "kiln download 1\n" + solver.Describe(o)
	return &solver.Action{Key: digest.FromString(description), Description: description}
}

// http makes a layer of the file at an address. Where the server says that
// the file is still the one of an earlier download, that layer is taken.
func (r *Runner) http(ctx context.Context, a *solver.Action, o op.HTTP) (solver.Result, error) {
	act := httpAction(o)
	release, err := r.Store.Lock(ctx, act.Key)
	if err != nil {
		return solver.Result{}, err
	}
	defer release()
	before, err := r.Store.Lookup(ctx, act.Key)
	var have fetched
	known := err == nil && len(before.Layers) == 1 && json.Unmarshal(before.Data, &have) == nil
	if o.Checksum != "" {
		known = false // the file that is known is not the one, or it would be a hit
	}
	d := &download{runner: r, action: a, op: o}
	resp, err := d.get(ctx, have, known)
	if err != nil {
		return solver.Result{}, fmt.Errorf("fetch %s: %w", op.Redacted(o.URL), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified {
		return stack(before.Layers), nil
	}
	l, err := d.layer(ctx, resp)
	if err != nil {
		return solver.Result{}, fmt.Errorf("fetch %s: %w", op.Redacted(o.URL), err)
	}
	if known && before.Layers[0].Digest == l.Digest {
		l = before.Layers[0] // made when it was first seen
	}
	// A server that gives neither is asked for the whole file each time.
	have = fetched{ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified")}
	data, err := json.Marshal(have)
	if err != nil {
		return solver.Result{}, err
	}
	res := stack([]solver.Layer{l})
	keep := res
	keep.Data = data
	return res, r.Store.Save(ctx, act, keep)
}

// download is one HTTP op on its way.
type download struct {
	runner *Runner
	action *solver.Action
	op     op.HTTP
}

// Requests that fail for a reason that passes are made again.
const (
	httpTries = 3
	httpPause = 500 * time.Millisecond
)

// get asks for the file, or whether it has changed. The response's status is
// 200 or 304.
func (d *download) get(ctx context.Context, have fetched, known bool) (*http.Response, error) {
	client, err := d.client()
	if err != nil {
		return nil, err
	}
	for try := 1; ; try++ {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.op.URL, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("User-Agent", "kiln")
		if known && have.ETag != "" {
			req.Header.Set("If-None-Match", have.ETag)
		} else if known && have.LastModified != "" {
			req.Header.Set("If-Modified-Since", have.LastModified)
		}
		d.authorize(req)
		resp, err := client.Do(req)
		again := err != nil && ctx.Err() == nil
		if err == nil {
			switch resp.StatusCode {
			case http.StatusOK:
				return resp, nil
			case http.StatusNotModified:
				if known {
					return resp, nil
				}
			case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
				again = true
			}
			resp.Body.Close()
			err = statusError(resp, d.hasSecret(req.URL.Hostname()))
		}
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // it says the address once more
		}
		if !again || try == httpTries {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Duration(try) * httpPause):
		}
	}
}

// statusError says what a server answered.
func statusError(resp *http.Response, secret bool) error {
	text := "the server answered " + resp.Status
	if resp.Request != nil && resp.Request.Response != nil { // after a redirect
		text += " for " + op.Redacted(resp.Request.URL.String())
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		if secret {
			return errors.New(text + ": it does not take the secret that was given for the host")
		}
		return fmt.Errorf("%s: give a token with --secret id=HTTP_AUTH_TOKEN_%s", text, resp.Request.URL.Hostname())
	}
	return errors.New(text)
}

// authorize adds the secret that is there for the host: HTTP_AUTH_HEADER_host
// is a whole Authorization header, HTTP_AUTH_TOKEN_host a bearer token.
func (d *download) authorize(req *http.Request) {
	if v, ok := d.runner.Secrets["HTTP_AUTH_HEADER_"+req.URL.Hostname()]; ok {
		req.Header.Set("Authorization", strings.TrimSpace(string(v)))
	} else if v, ok := d.runner.Secrets["HTTP_AUTH_TOKEN_"+req.URL.Hostname()]; ok {
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(v)))
	}
}

func (d *download) hasSecret(host string) bool {
	_, header := d.runner.Secrets["HTTP_AUTH_HEADER_"+host]
	_, token := d.runner.Secrets["HTTP_AUTH_TOKEN_"+host]
	return header || token
}

// client goes through the proxies of the build's arguments and of the
// environment.
func (d *download) client() (*http.Client, error) {
	proxies := proxyConfig(d.op.ProxyEnv).ProxyFunc()
	base, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return nil, errors.New("the default transport was replaced")
	}
	t := base.Clone()
	t.Proxy = func(req *http.Request) (*url.URL, error) { return proxies(req.URL) }
	t.ResponseHeaderTimeout = time.Minute
	t.DisableKeepAlives = true // one file each
	return &http.Client{Transport: t}, nil
}

// proxyConfig is the environment's, changed by env.
func proxyConfig(env []string) *httpproxy.Config {
	c := httpproxy.FromEnvironment()
	for _, kv := range env {
		k, v, _ := strings.Cut(kv, "=")
		switch strings.ToUpper(k) {
		case "HTTP_PROXY":
			c.HTTPProxy = v
		case "HTTPS_PROXY":
			c.HTTPSProxy = v
		case "NO_PROXY":
			c.NoProxy = v
		}
	}
	return c
}

// layer writes a response's body as the one file of a layer.
func (d *download) layer(ctx context.Context, resp *http.Response) (solver.Layer, error) {
	draft, err := d.runner.Store.NewLayer()
	if err != nil {
		return solver.Layer{}, err
	}
	defer draft.Discard()
	e := tree.Entry{Path: d.op.Name, Type: tree.File, Mode: 0o600}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil && t.Unix() > 0 {
		e.Mtime = t.UnixNano()
	}
	at := filepath.Join(draft.FS, e.Path)
	body := &counter{r: resp.Body, total: max(0, resp.ContentLength), name: op.Redacted(d.op.URL), a: d.action}
	e.Size, e.Digest, err = writeVerified(at, body, d.op.Checksum)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF) && resp.ContentLength > 0:
		return solver.Layer{}, fmt.Errorf("the transfer ended after %d of %d bytes", body.done, resp.ContentLength)
	case err != nil:
		return solver.Layer{}, err
	}
	if err := setAttributes(at, &e); err != nil {
		return solver.Layer{}, err
	}
	t := &tree.Tree{Entries: []tree.Entry{e}}
	if err := setTime(draft.FS, 0); err != nil {
		return solver.Layer{}, err
	}
	return draft.Commit(ctx, t)
}

// writeVerified writes a new file, and checks that its content is what was
// asked for.
func writeVerified(at string, from io.Reader, want digest.Digest) (int64, digest.Digest, error) {
	f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, "", err
	}
	h := sha256.New()
	to := []io.Writer{f, h}
	var asked digest.Digester
	if want != "" {
		asked = want.Algorithm().Digester()
		to = append(to, asked.Hash())
	}
	n, err := io.Copy(io.MultiWriter(to...), from)
	if err := errors.Join(err, f.Close()); err != nil {
		return 0, "", err
	}
	if want != "" && asked.Digest() != want {
		return 0, "", fmt.Errorf("digest mismatch: the content is %s (expected: %s)", asked.Digest(), want)
	}
	return n, digest.NewDigest(digest.SHA256, h), nil
}
