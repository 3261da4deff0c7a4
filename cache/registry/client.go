// Package registry reads images from registries and writes images to them.
//
// A [Client] resolves a [Reference] to an image (Resolve), reads blobs of it
// (Fetch), and moves whole images into and out of an image layout (Pull,
// Push). It tries again after passing failures, resumes transfers that were
// cut, checks every byte against its digest, and knows mirrors and the
// credentials of docker's config.json.
//
// Authentication, the protocol of uploads and the reading of credentials are
// those of go-containerregistry. The package keeps nothing on disk itself.
package registry

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Options configure a Client; the zero value is of use.
type Options struct {
	// Mirrors are asked before a registry itself, in order. Keys are hosts as
	// in references, such as "docker.io"; values are a mirror's host, or its
	// URL, whose path, if any, goes before the names of repositories.
	Mirrors map[string][]string

	// Insecure lists hosts whose certificate need not be valid and that may
	// use plain HTTP. Loopback hosts may use plain HTTP in any case.
	Insecure []string

	// UserAgent is what the client calls itself.
	UserAgent string

	// Keychain finds credentials; nil is docker's config.json, in
	// $DOCKER_CONFIG or ~/.docker, with its credential helpers.
	Keychain authn.Keychain

	// Pause is the time before the second try of something, doubled with
	// each further one; zero is 500 ms.
	Pause time.Duration
}

// ParseMirrors reads the value of KILN_REGISTRY_MIRRORS: HOST=MIRROR pairs
// with commas between them. A host given again has several mirrors.
func ParseMirrors(s string) (map[string][]string, error) {
	mirrors := map[string][]string{}
	for _, pair := range strings.Split(s, ",") {
		pair = strings.TrimSpace(pair)
		if pair == "" {
			continue
		}
		host, mirror, ok := strings.Cut(pair, "=")
		host, mirror = strings.TrimSpace(host), strings.TrimSpace(mirror)
		if !ok || host == "" || mirror == "" {
			return nil, fmt.Errorf("registry mirror %q: want HOST=URL, as in docker.io=http://localhost:5000", pair)
		}
		if _, err := newEndpoint(mirror); err != nil {
			return nil, err
		}
		mirrors[host] = append(mirrors[host], mirror)
	}
	return mirrors, nil
}

// A Client talks to registries. It authenticates once for each repository
// and keeps connections. It may be used by many goroutines at once.
type Client struct {
	o        Options
	mirrors  map[string][]*endpoint
	keychain authn.Keychain
	strict   *http.Transport
	lenient  *http.Transport // checks no certificates

	mu       sync.Mutex
	sessions map[string]*session
	pushers  map[string]*remote.Pusher
	upstream map[string]*endpoint
	down     map[string]time.Time // endpoints that could not be reached
}

// New returns a client.
func New(o Options) (*Client, error) {
	c := &Client{
		o:        o,
		mirrors:  map[string][]*endpoint{},
		keychain: o.Keychain,
		strict:   newTransport(),
		lenient:  newTransport(),
		sessions: map[string]*session{},
		pushers:  map[string]*remote.Pusher{},
		upstream: map[string]*endpoint{},
		down:     map[string]time.Time{},
	}
	c.lenient.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
	if c.o.Pause == 0 {
		c.o.Pause = 500 * time.Millisecond
	}
	if c.keychain == nil {
		c.keychain = &keychain{inner: authn.DefaultKeychain}
	}
	for host, mirrors := range o.Mirrors {
		for _, m := range mirrors {
			e, err := newEndpoint(m)
			if err != nil {
				return nil, err
			}
			e.mirror = true
			e.lenient = slices.Contains(o.Insecure, e.host)
			if !strings.HasPrefix(m, "https://") {
				e.http = e.http || e.lenient || isLoopback(e.host)
			}
			c.mirrors[host] = append(c.mirrors[host], e)
		}
	}
	return c, nil
}

// Close drops idle connections.
func (c *Client) Close() {
	c.strict.CloseIdleConnections()
	c.lenient.CloseIdleConnections()
}

// Limits of waiting. A registry that does not answer must not hold up a build
// for long; one that answers may take its time with the content.
const (
	dialTimeout   = 5 * time.Second
	helloTimeout  = 10 * time.Second // for the first request
	headerTimeout = 30 * time.Second // for any other
	stallTimeout  = 60 * time.Second // without a single byte of a blob
	downFor       = time.Minute      // to ask an unreachable mirror last
)

func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   dialTimeout,
		ExpectContinueTimeout: time.Second,
	}
}

// An endpoint is a server that has the repositories of a host: the host
// itself or a mirror.
type endpoint struct {
	host    string // with port, as in URLs
	prefix  string // of repository names, with a slash at its end, or empty
	http    bool   // plain HTTP is allowed
	https   bool   // TLS is to be tried, and first
	lenient bool   // certificates are not checked
	mirror  bool
}

// newEndpoint reads a mirror's host or URL.
func newEndpoint(s string) (*endpoint, error) {
	address := s
	if !strings.Contains(s, "://") {
		address = "https://" + s
	}
	u, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("registry mirror %q: %w", s, err)
	}
	e := &endpoint{host: u.Host, https: true}
	switch u.Scheme {
	case "http":
		e.http, e.https = true, false
	case "https":
	default:
		return nil, fmt.Errorf("registry mirror %q: want http or https, not %s", s, u.Scheme)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("registry mirror %q: only host, port and path can be given", u.Redacted())
	}
	if p := strings.Trim(u.Path, "/"); p != "" && p != "v2" {
		e.prefix = p + "/"
	}
	if _, err := name.NewRegistry(e.host, name.StrictValidation); err != nil {
		return nil, fmt.Errorf("registry mirror %q: %w", s, err)
	}
	return e, nil
}

func (e *endpoint) String() string {
	if e.mirror {
		return "mirror " + e.host
	}
	return e.host
}

// repository is where the endpoint has a reference's images.
func (e *endpoint) repository(r Reference) (name.Repository, error) {
	var opts []name.Option
	if e.http && e.https {
		opts = append(opts, name.Insecure) // try both; for one, wire does it
	}
	reg, err := name.NewRegistry(e.host, opts...)
	if err != nil {
		return name.Repository{}, err
	}
	// NewRepository would take a host without a dot for a part of the path.
	return reg.Repo(e.prefix + r.Path), nil
}

// hostEndpoint is that of the host itself.
func (c *Client) hostEndpoint(host string) *endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.upstream[host]; ok {
		return e
	}
	lenient := slices.Contains(c.o.Insecure, host)
	e := &endpoint{host: host, https: true, lenient: lenient, http: lenient || isLoopback(host)}
	c.upstream[host] = e
	return e
}

// endpoints lists where to ask for images of a host, in order. What could
// not be reached a moment ago comes last.
func (c *Client) endpoints(host string) []*endpoint {
	list := append(slices.Clone(c.mirrors[host]), c.hostEndpoint(host))
	c.mu.Lock()
	defer c.mu.Unlock()
	isDown := func(e *endpoint) int {
		if time.Since(c.down[e.host]) < downFor {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(list, func(a, b *endpoint) int { return isDown(a) - isDown(b) })
	return list
}

func (c *Client) setDown(e *endpoint) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down[e.host] = time.Now()
}

// isLoopback reports whether a host is this machine, where plain HTTP is as
// good as TLS. Docker has the same rule.
func isLoopback(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// A session is an HTTP client that is authenticated for reading one
// repository.
type session struct {
	repo name.Repository

	mu     sync.Mutex
	client *http.Client // nil until the first success
}

// session authenticates once for each repository.
func (c *Client) session(ctx context.Context, e *endpoint, ref Reference) (*session, *http.Client, error) {
	repo, err := e.repository(ref)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	s, ok := c.sessions[repo.String()]
	if !ok {
		s = &session{repo: repo}
		c.sessions[repo.String()] = s
	}
	c.mu.Unlock()

	s.mu.Lock() // across the handshake, which others would only repeat
	defer s.mu.Unlock()
	if s.client != nil {
		return s, s.client, nil
	}
	auth, err := authn.Resolve(ctx, c.keychain, repo)
	if err != nil {
		return nil, nil, err
	}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, c.wire(e), []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, nil, err
	}
	s.client = &http.Client{Transport: rt, CheckRedirect: checkRedirect}
	return s, s.client, nil
}

// url is the address of a manifest or blob.
func (s *session) url(kind, id string) string {
	u := url.URL{Scheme: s.repo.Scheme(), Host: s.repo.RegistryStr(), Path: "/v2/" + s.repo.RepositoryStr() + "/" + kind + "/" + id}
	return u.String()
}
