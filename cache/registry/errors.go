package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// NotFoundError says that a registry answered and has no such image or blob.
type NotFoundError struct {
	What  string
	Where string
}

func (e *NotFoundError) Error() string { return fmt.Sprintf("%s has no %s", e.Where, e.What) }

// Is makes the error match [fs.ErrNotExist].
func (e *NotFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// DeniedError says that a registry wants other credentials, or that it does
// not tell those who may not see an image from those who ask for none.
type DeniedError struct {
	Where string
	Host  string
	Err   error
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("%s denies access, or the image does not exist (docker login %s stores credentials): %v", e.Where, e.Host, e.Err)
}

func (e *DeniedError) Unwrap() error { return e.Err }

// UnreachableError says that no registry answered there.
type UnreachableError struct {
	Where string
	Err   error
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("%s cannot be reached: %v", e.Where, e.Err)
}

func (e *UnreachableError) Unwrap() error { return e.Err }

// explain gives an error of an exchange with an endpoint its meaning.
func explain(e *endpoint, what string, err error) error {
	var status *transport.Error
	if errors.As(err, &status) {
		switch status.StatusCode {
		case http.StatusNotFound:
			return &NotFoundError{What: what, Where: e.String()}
		case http.StatusUnauthorized, http.StatusForbidden:
			return &DeniedError{Where: e.String(), Host: e.host, Err: err}
		}
		return fmt.Errorf("%s: %w", e, err)
	}
	if isDial(err) {
		return &UnreachableError{Where: e.String(), Err: dialReason(err)}
	}
	return fmt.Errorf("%s: %w", e, err)
}

// dialReason takes the request's method and URL off an error that says it
// all without.
func dialReason(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op
	}
	return err
}

// endpointErrors are the failures of all endpoints of a host, in order.
type endpointErrors struct {
	host    string
	mirrors bool
	errs    []error
}

func (e *endpointErrors) Error() string {
	texts := make([]string, len(e.errs))
	unreachable := false
	for i, err := range e.errs {
		texts[i] = err.Error()
		var u *UnreachableError
		unreachable = unreachable || errors.As(err, &u)
	}
	text := strings.Join(texts, "; ")
	if unreachable && !e.mirrors {
		text += fmt.Sprintf(" (KILN_REGISTRY_MIRRORS=%s=http://HOST:PORT names a mirror to use)", e.host)
	}
	return text
}

func (e *endpointErrors) Unwrap() []error { return e.errs }

// anywhere asks the endpoints of a host one after the other until one of
// them succeeds.
func (c *Client) anywhere(ctx context.Context, host, what string, ask func(*endpoint) error) error {
	all := &endpointErrors{host: host, mirrors: len(c.mirrors[host]) > 0}
	for _, e := range c.endpoints(host) {
		err := ask(e)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if isDial(err) {
			c.setDown(e)
		}
		all.errs = append(all.errs, explain(e, what, err))
	}
	return all
}
