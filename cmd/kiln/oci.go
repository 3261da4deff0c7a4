package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"kiln.build/runner/container"
	"kiln.build/runner/oci"
	"kiln.build/runner/rootless"
)

// ociCommand has the command line of an OCI runtime, as runc has it, to try
// the sandbox with programs that test runtimes.
func (a *app) ociCommand() *cobra.Command {
	var r oci.Runtime
	c := &cobra.Command{
		Use: "oci", Short: "Run OCI bundles", Hidden: true,
		Long: `Run OCI bundles (config.json of the runtime-spec, and a root file system) in
the sandbox that RUN steps and containers have.`,
		Example: "  kiln oci create --bundle /tmp/bundle c1 && kiln oci start c1",
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if _, err := rootless.Enter(); err != nil {
				return err
			}
			if r.Root == "" {
				r.Root = ociRoot()
			}
			return nil
		},
	}
	c.PersistentFlags().StringVar(&r.Root, "root", "", "folder of the containers' states (default /run/kiln/oci)")
	c.AddCommand(ociCreate(&r), ociStart(&r), a.ociState(&r), ociKill(&r), ociDelete(&r))
	return c
}

func ociRoot() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && rootless.Current() != rootless.Root {
		return filepath.Join(dir, "kiln", "oci")
	}
	return "/run/kiln/oci"
}

func ociCreate(r *oci.Runtime) *cobra.Command {
	o := oci.CreateOptions{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	c := &cobra.Command{
		Use: "create [flags] ID", Short: "Create a container of a bundle", Args: cobra.ExactArgs(1),
		Example: "  kiln oci create --bundle /tmp/bundle --pid-file /tmp/pid c1",
		RunE:    func(c *cobra.Command, args []string) error { return r.Create(c.Context(), args[0], o) },
	}
	c.Flags().StringVarP(&o.Bundle, "bundle", "b", ".", "folder of the bundle")
	c.Flags().StringVar(&o.PIDFile, "pid-file", "", "file to write the process number to")
	c.Flags().StringVar(&o.ConsoleSocket, "console-socket", "", "unix socket to send the terminal to")
	return c
}

func ociStart(r *oci.Runtime) *cobra.Command {
	return &cobra.Command{
		Use: "start ID", Short: "Start the command of a created container", Args: cobra.ExactArgs(1),
		Example: "  kiln oci start c1",
		RunE:    func(c *cobra.Command, args []string) error { return r.Start(c.Context(), args[0]) },
	}
}

func (a *app) ociState(r *oci.Runtime) *cobra.Command {
	return &cobra.Command{
		Use: "state ID", Short: "Print the state of a container as JSON", Args: cobra.ExactArgs(1),
		Example: "  kiln oci state c1 | jq -r .status",
		RunE: func(_ *cobra.Command, args []string) error {
			s, err := r.State(args[0])
			if err != nil {
				return err
			}
			e := json.NewEncoder(a.stdout)
			e.SetIndent("", "  ")
			return e.Encode(s)
		},
	}
}

func ociKill(r *oci.Runtime) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "kill [flags] ID [SIGNAL]", Short: "Send a signal to a container", Args: cobra.RangeArgs(1, 2),
		Example: "  kiln oci kill c1 KILL",
		RunE: func(_ *cobra.Command, args []string) error {
			s := unix.SIGTERM
			if len(args) == 2 {
				var err error
				if s, err = container.ParseSignal(args[1]); err != nil {
					return err
				}
			}
			return r.Kill(args[0], s, all)
		},
	}
	c.Flags().BoolVarP(&all, "all", "a", false, "send it to all processes of the container")
	return c
}

func ociDelete(r *oci.Runtime) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use: "delete [flags] ID", Short: "Delete a stopped container", Args: cobra.ExactArgs(1),
		Example: "  kiln oci delete --force c1",
		RunE: func(c *cobra.Command, args []string) error {
			err := r.Delete(c.Context(), args[0], force)
			if errors.Is(err, oci.ErrUnknown) && force {
				return nil
			}
			return err
		},
	}
	c.Flags().BoolVarP(&force, "force", "f", false, "kill it if it runs")
	return c
}
