package main

import (
	"runtime"
	"runtime/debug"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// Set by the linker where a release is built: -X main.version=1.2.3.
var (
	version   = ""
	gitCommit = ""
	buildTime = ""
)

// versionFacts are what kiln version shows, as templates and JSON name them.
type versionFacts struct {
	Version   string
	GoVersion string
	GitCommit string
	BuildTime string `json:",omitempty"`
	Os        string
	Arch      string
}

func readVersion() versionFacts {
	v := versionFacts{
		Version: version, GoVersion: runtime.Version(), GitCommit: gitCommit, BuildTime: buildTime,
		Os: runtime.GOOS, Arch: runtime.GOARCH,
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if v.Version == "" {
		v.Version = info.Main.Version
	}
	modified := false
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && v.GitCommit == "":
			v.GitCommit = s.Value
		case s.Key == "vcs.time" && v.BuildTime == "":
			v.BuildTime = s.Value
		case s.Key == "vcs.modified":
			modified = s.Value == "true"
		}
	}
	if modified && gitCommit == "" && v.GitCommit != "" {
		v.GitCommit += "-dirty"
	}
	return v
}

func (a *app) versionCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:     "version [flags]",
		Short:   "Show the version of this program",
		Example: "  kiln version\n  kiln version --format '{{.Version}}'",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := readVersion()
			if format != "" {
				return printOne(a.stdout, format, v)
			}
			tw := tabwriter.NewWriter(a.stdout, 20, 1, 1, ' ', 0)
			err := writeLines(tw, "Kiln:", " Version:\t"+v.Version, " Go version:\t"+v.GoVersion, " Git commit:\t"+v.GitCommit)
			if err == nil && v.BuildTime != "" {
				err = writeLines(tw, " Built:\t"+v.BuildTime)
			}
			if err == nil {
				err = writeLines(tw, " OS/Arch:\t"+v.Os+"/"+v.Arch)
			}
			if err != nil {
				return err
			}
			return tw.Flush()
		},
	}
	c.Flags().StringVarP(&format, "format", "f", "", "print as: json, or a Go template")
	return c
}
