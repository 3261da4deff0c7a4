package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"
	"kiln.build/frontend"
	"kiln.build/frontend/dockerfile"
	"kiln.build/solver"
)

// What kiln build --call does instead of a build, with the options, the
// output and the exit status of docker buildx build --call.

const (
	callBuild   = "build"
	callCheck   = "check"
	callOutline = "outline"
	callTargets = "targets"
)

// unusedBuildArg is what a check calls the warning of a build argument that
// no ARG takes, for which BuildKit has no rule.
const unusedBuildArg = "UnusedBuildArg"

// buildCall is a parsed --call.
type buildCall struct {
	name         string
	json         bool
	ignoreStatus bool // exit with 0 whatever a check finds
}

func (f *buildFlags) registerCall(fs *pflag.FlagSet) {
	fs.StringVar(&f.callWord, "call", callBuild, "what to do: build, check, outline or targets[,format=text|json][,ignorestatus=BOOL]")
	fs.VarPF(checkFlag{&f.callWord}, "check", "", "check the Dockerfile and build nothing: --call=check").NoOptDefVal = "true"
}

// checkFlag is --check, which is another way to write --call=check.
type checkFlag struct{ call *string }

func (c checkFlag) String() string { return "" }
func (c checkFlag) Type() string   { return "bool" }
func (c checkFlag) Set(s string) error {
	yes, err := strconv.ParseBool(s)
	if yes {
		*c.call = callCheck
	}
	return err
}

// parseCall parses --call=NAME[,format=FORMAT][,ignorestatus=BOOL].
func (f *buildFlags) parseCall() (call buildCall, err error) {
	bad := func(format string, args ...any) (buildCall, error) {
		return call, fmt.Errorf("--call=%s: %s", f.callWord, fmt.Sprintf(format, args...))
	}
	for field := range strings.SplitSeq(f.callWord, ",") {
		k, v, isOption := strings.Cut(field, "=")
		switch {
		case !isOption && call.name != "":
			return bad("%q and %q: one thing at a time", call.name, field)
		case !isOption:
			call.name = field
		case k == "format" && (v == "json" || v == "text"):
			call.json = v == "json"
		case k == "format":
			return bad("format %q: must be text or json", v)
		case k == "ignorestatus":
			if call.ignoreStatus, err = strconv.ParseBool(v); err != nil {
				return bad("ignorestatus %q: must be true or false", v)
			}
		default:
			return bad("unknown option %q: must be format or ignorestatus", k)
		}
	}
	switch call.name {
	case "":
		call.name = callBuild
	case "lint":
		call.name = callCheck // its name in BuildKit
	case callBuild, callCheck, callOutline, callTargets:
	default:
		return bad("must be build, check, outline or targets")
	}
	return call, nil
}

// call does what --call asks for and prints the result.
func (b *builder) call(ctx context.Context, o dockerfile.Options, call buildCall) error {
	if err := b.fetchInput(ctx, o.BuildArgs); err != nil {
		return err
	}
	if err := b.in.options(&o); err != nil {
		return err
	}
	o.Resolver = resolver{b.runner, b.flags.pull}
	o.Platform = b.platforms[0]
	// Nothing runs, so nothing needs to be allowed.
	o.Allowed = map[string]bool{"network.host": true, "security.insecure": true, "device": true}
	w := b.app.stdout
	switch call.name {
	case callOutline:
		out, err := dockerfile.OutlineOf(ctx, o)
		if err != nil {
			return b.explain(err)
		}
		if call.json {
			return printJSON(w, outlineJSON(out, b.in.dockerfile))
		}
		return printOutline(w, out)
	case callTargets:
		all, err := dockerfile.Targets(o)
		if err != nil {
			return b.explain(err)
		}
		if call.json {
			return printJSON(w, targetsJSON(all, b.in.dockerfile))
		}
		return printTargets(w, all)
	}
	warnings, err := dockerfile.Lint(ctx, o)
	if call.json {
		if err := printJSON(w, checkJSON(o.Name, b.in.dockerfile, warnings, err)); err != nil {
			return err
		}
	} else {
		printCheck(w, warnings, err, b.in.dockerfile)
	}
	if err != nil || len(warnings) > 0 && !call.ignoreStatus {
		return &exitError{code: 1}
	}
	return nil
}

// printCheck prints the result of a check as buildx does.
func printCheck(w io.Writer, warnings []frontend.Warning, err error, source []byte) {
	switch n := len(warnings); {
	case n == 1:
		fmt.Fprintln(w, "Check complete, 1 warning has been found!")
	case n > 1:
		fmt.Fprintf(w, "Check complete, %d warnings have been found!\n", n)
	}
	for _, x := range warnings {
		fmt.Fprintf(w, "\nWARNING: %s", cmp.Or(x.Rule, unusedBuildArg))
		if x.URL != "" {
			fmt.Fprintf(w, " - %s", x.URL)
		}
		fmt.Fprintf(w, "\n%s\n%s", x.Text, frontend.Snippet(source, x.Location))
	}
	switch {
	case err != nil:
		at, message := placed(err)
		fmt.Fprintf(w, "\n%s\n%s", message, frontend.Snippet(source, at))
	case len(warnings) == 0:
		fmt.Fprintln(w, "Check complete, no warnings found.")
	}
}

// placed splits an error into its place and what it says.
func placed(err error) (solver.Location, string) {
	if at := (*frontend.SourceError)(nil); errors.As(err, &at) && at.Location.Start > 0 {
		return at.Location, at.Err.Error()
	}
	return solver.Location{}, err.Error()
}

// printOutline prints tables of what a target takes.
func printOutline(w io.Writer, o *dockerfile.Outline) error {
	table := func(padding int, rows ...string) error {
		tw := tabwriter.NewWriter(w, 0, 0, padding, ' ', 0)
		for _, r := range rows {
			fmt.Fprintln(tw, r)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		_, err := fmt.Fprintln(w)
		return err
	}
	var tables []error
	if o.Name != "" || o.Description != "" {
		name := o.Name
		if name == "" {
			name = "(default)"
		}
		rows := []string{"TARGET:\t" + name}
		if o.Description != "" {
			rows = append(rows, "DESCRIPTION:\t"+o.Description)
		}
		tables = append(tables, table(1, rows...))
	}
	if len(o.Args) > 0 {
		rows := []string{"BUILD ARG\tVALUE\tDESCRIPTION"}
		for _, a := range o.Args {
			rows = append(rows, a.Name+"\t"+a.Value+"\t"+a.Description)
		}
		tables = append(tables, table(3, rows...))
	}
	tables = append(tables, printMounts(table, "SECRET", o.Secrets), printMounts(table, "SSH", o.SSH))
	return errors.Join(tables...)
}

func printMounts(table func(int, ...string) error, title string, list []dockerfile.OutlineMount) error {
	if len(list) == 0 {
		return nil
	}
	rows := []string{title + "\tREQUIRED"}
	for _, m := range list {
		required := ""
		if m.Required {
			required = "true"
		}
		rows = append(rows, m.ID+"\t"+required)
	}
	return table(3, rows...)
}

// printTargets prints a table of the stages.
func printTargets(w io.Writer, all []dockerfile.Target) error {
	tw := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprint(tw, "TARGET\tDESCRIPTION\n")
	for _, t := range all {
		name := t.Name
		switch {
		case name == "" && t.Default:
			name = "(default)"
		case t.Default:
			name += " (default)"
		}
		fmt.Fprintf(tw, "%s\t%s\n", name, t.Description)
	}
	return tw.Flush()
}

// printWarnings shows the warnings after a build: each with its rule, what
// that is about, where to read more, and the lines that are meant.
func printWarnings(w io.Writer, all []frontend.Warning, source []byte) {
	switch len(all) {
	case 0:
		return
	case 1:
		fmt.Fprint(w, "\n 1 warning found:\n")
	default:
		fmt.Fprintf(w, "\n %d warnings found:\n", len(all))
	}
	for _, x := range all {
		rule, place := "", ""
		if x.Rule != "" {
			rule = x.Rule + ": "
		}
		if x.Location.Start > 0 {
			place = fmt.Sprintf(" (line %d)", x.Location.Start)
		}
		fmt.Fprintf(w, " - %s%s%s\n", rule, x.Text, place)
		if x.Detail != "" {
			fmt.Fprintln(w, x.Detail)
		}
		if x.URL != "" {
			fmt.Fprintf(w, "More info: %s\n", x.URL)
		}
		fmt.Fprintln(w, frontend.Snippet(source, x.Location))
	}
}

func printJSON(w io.Writer, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(data))
	return err
}
