package registry

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
)

// keychain remembers what another finds, as asking a credential helper means
// starting a program, and words its errors.
type keychain struct {
	inner authn.Keychain

	mu    sync.Mutex
	found map[string]authn.Authenticator
}

func (k *keychain) Resolve(target authn.Resource) (authn.Authenticator, error) {
	return k.ResolveContext(context.Background(), target)
}

func (k *keychain) ResolveContext(ctx context.Context, target authn.Resource) (authn.Authenticator, error) {
	k.mu.Lock()
	auth, ok := k.found[target.String()]
	k.mu.Unlock()
	if ok {
		return auth, nil
	}
	auth, err := authn.Resolve(ctx, k.inner, target)
	if err != nil {
		return nil, credentialsError(target.RegistryStr(), err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.found == nil {
		k.found = map[string]authn.Authenticator{}
	}
	k.found[target.String()] = auth
	return auth, nil
}

var helperName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`docker-credential-[\w.-]+`) })

// credentialsError explains the commonest failure: a config.json from another
// machine names a helper that this one does not have.
func credentialsError(host string, err error) error {
	helper := helperName().FindString(err.Error())
	if helper != "" && strings.Contains(err.Error(), "executable file not found") {
		return fmt.Errorf("credentials for %s: %s names the credential helper %s, which is not in $PATH: install it, or take credsStore or credHelpers out of that file", host, configFile(), helper)
	}
	return fmt.Errorf("credentials for %s: %w", host, err)
}

// configFile is the file that credentials come from, for messages.
func configFile() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json")
	}
	return "~/.docker/config.json"
}
