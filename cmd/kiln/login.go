package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/moby/term"
	"github.com/spf13/cobra"
)

func (a *app) loginCommand() *cobra.Command {
	var user, password string
	var stdin bool
	c := &cobra.Command{
		Use:   "login [flags] [HOST]",
		Short: "Store credentials for a registry",
		Long: `Store credentials for a registry (default docker.io), after trying them there.
They go where docker login puts them: into the credential helper that docker's
config.json names, else into that file.`,
		Example: "  kiln login registry.example.com\n  echo $TOKEN | kiln login -u me --password-stdin ghcr.io",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			host := "docker.io"
			if len(args) == 1 {
				host = args[0]
			}
			if stdin && password != "" {
				return errors.New("--password and --password-stdin exclude each other")
			}
			user, password, err := a.askCredentials(user, password, stdin)
			if err != nil {
				return err
			}
			return a.login(c.Context(), host, user, password)
		},
	}
	c.Flags().StringVarP(&user, "username", "u", "", "user name")
	c.Flags().StringVarP(&password, "password", "p", "", "password or token; others on this machine can see it, so better use --password-stdin")
	c.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from standard input")
	return c
}

func (a *app) askCredentials(user, password string, stdin bool) (string, string, error) {
	in := bufio.NewReader(a.stdin)
	if stdin {
		if user == "" {
			return "", "", errors.New("--password-stdin needs --username")
		}
		b, err := io.ReadAll(in)
		return user, strings.TrimRight(string(b), "\r\n"), err
	}
	if (user == "" || password == "") && !isTerminal(a.stdin) {
		return "", "", errors.New("standard input is no terminal to ask for credentials: use --username and --password-stdin")
	}
	ask := func(what string) (string, error) {
		fmt.Fprint(a.stderr, what+": ")
		line, err := in.ReadString('\n')
		return strings.TrimSpace(line), err
	}
	var err error
	if user == "" {
		if user, err = ask("Username"); err != nil {
			return "", "", err
		}
	}
	if password == "" {
		f := a.stdin.(*os.File) // a terminal is one
		state, err := term.SaveState(f.Fd())
		if err != nil {
			return "", "", err
		}
		if err := term.DisableEcho(f.Fd(), state); err != nil {
			return "", "", err
		}
		password, err = ask("Password")
		err = errors.Join(err, term.RestoreTerminal(f.Fd(), state))
		fmt.Fprintln(a.stderr)
		if err != nil {
			return "", "", err
		}
	}
	return user, password, nil
}

// parseRegistry reads a registry's host, and returns the name that docker's
// config.json has for it.
func parseRegistry(host string) (name.Registry, string, error) {
	if host == "docker.io" || host == "index.docker.io" {
		r, err := name.NewRegistry(name.DefaultRegistry)
		return r, authn.DefaultAuthKey, err
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "https://"), "/")
	r, err := name.NewRegistry(host, name.StrictValidation)
	return r, host, err
}

func (a *app) login(ctx context.Context, host, user, password string) error {
	r, key, err := parseRegistry(host)
	if err != nil {
		return err
	}
	if err := tryLogin(ctx, r, user, password); err != nil {
		return fmt.Errorf("login to %s: %w", host, err)
	}
	file, err := config.Load(config.Dir())
	if err != nil {
		return err
	}
	err = file.GetCredentialsStore(key).Store(types.AuthConfig{ServerAddress: key, Username: user, Password: password})
	if err != nil {
		return fmt.Errorf("store credentials for %s: %w", host, err)
	}
	return writeLines(a.stdout, "Login Succeeded")
}

// tryLogin asks a registry for its root as a user.
func tryLogin(ctx context.Context, r name.Registry, user, password string) error {
	rt, err := transport.NewWithContext(ctx, r, &authn.Basic{Username: user, Password: password}, http.DefaultTransport, nil)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.Scheme()+"://"+r.RegistryStr()+"/v2/", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return transport.CheckError(resp, http.StatusOK)
}

func (a *app) logoutCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "logout [HOST]",
		Short:   "Remove the credentials for a registry",
		Example: "  kiln logout registry.example.com",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			host := "docker.io"
			if len(args) == 1 {
				host = args[0]
			}
			_, key, err := parseRegistry(host)
			if err != nil {
				return err
			}
			file, err := config.Load(config.Dir())
			if err != nil {
				return err
			}
			if err := file.GetCredentialsStore(key).Erase(key); err != nil {
				return fmt.Errorf("remove credentials for %s: %w", host, err)
			}
			return writeLines(a.stdout, "Removing login credentials for "+host)
		},
	}
}
