package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
	"text/template"
	"time"

	"github.com/docker/go-units"
)

// formatHelp is what --format takes in commands that print tables.
const formatHelp = "print as: table, table TEMPLATE, json, or a Go template"

// printRows prints the rows of a list as --format asks: "" and "table" give
// the columns of the default template, "table TEMPLATE" others, "json" an
// object a line, and anything else is a template for each row. Rows are
// structs whose fields are what templates name.
func printRows[T any](w io.Writer, format, columns string, headers map[string]string, rows []T) error {
	w = tamed(w) // rows hold what images and containers say
	if format == "json" {
		for _, r := range rows {
			b, err := json.Marshal(r)
			if err != nil {
				return err
			}
			if _, err := w.Write(append(b, '\n')); err != nil {
				return err
			}
		}
		return nil
	}
	text, table := format, false
	if format == "" || format == "table" {
		text, table = columns, true
	} else if rest, ok := strings.CutPrefix(format, "table "); ok {
		text, table = strings.TrimSpace(rest), true
	}
	// As in docker, \t and \n need no shell that knows them.
	text = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(text)
	t, err := parseFormat(text)
	if err != nil {
		return err
	}
	if !table {
		return printEach(w, t, rows)
	}
	tw := tabwriter.NewWriter(w, 10, 1, 3, ' ', 0)
	if err := header(tw, text, headers); err != nil {
		return err
	}
	if err := printEach(tw, t, rows); err != nil {
		return err
	}
	return tw.Flush()
}

func printEach[T any](w io.Writer, t *template.Template, rows []T) error {
	for _, r := range rows {
		var b bytes.Buffer
		if err := t.Execute(&b, r); err != nil {
			return fmt.Errorf("--format: %w", err)
		}
		b.WriteByte('\n')
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// headerRow are the names of columns, by field.
type headerRow map[string]string

// Label is the name of a label's column: the last part of the label's, as in
// docker.
func (headerRow) Label(name string) string {
	parts := strings.Split(name, ".")
	return strings.NewReplacer("-", " ", "_", " ").Replace(parts[len(parts)-1])
}

// header prints a template with the names of its columns.
func header(w io.Writer, text string, headers map[string]string) error {
	same := func(v string, _ ...any) string { return v }
	t, err := template.New("").Funcs(formatFunctions).Funcs(template.FuncMap{
		"json": same, "split": same, "join": same, "lower": same, "upper": same, "title": same, "truncate": same,
	}).Parse(text)
	if err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, headerRow(headers)); err != nil {
		return fmt.Errorf("--format: %w", err)
	}
	_, err = fmt.Fprintln(w, b.String())
	return err
}

// printOne prints a value as the template of --format says. Names are those
// of the Go fields, or else those of the JSON form.
func printOne(w io.Writer, format string, v any) error {
	if format == "json" {
		format = "{{json .}}"
	}
	t, err := parseFormat(format)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		raw, marshalErr := json.Marshal(v)
		if marshalErr != nil {
			return marshalErr
		}
		var m any
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if decodeErr := d.Decode(&m); decodeErr != nil {
			return decodeErr
		}
		b.Reset()
		if t.Option("missingkey=error").Execute(&b, m) != nil {
			return fmt.Errorf("--format: %w", err)
		}
	}
	b.WriteByte('\n')
	_, err = w.Write(b.Bytes())
	return err
}

func parseFormat(text string) (*template.Template, error) {
	t, err := template.New("").Funcs(formatFunctions).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("--format: %w", err)
	}
	return t, nil
}

// formatFunctions are those that docker's templates have.
var formatFunctions = template.FuncMap{
	"json":     formatJSON,
	"split":    strings.Split,
	"join":     formatJoin,
	"lower":    strings.ToLower,
	"upper":    strings.ToUpper,
	"title":    formatTitle,
	"pad":      formatPad,
	"truncate": func(s string, n int) string { return s[:min(len(s), n)] },
}

func formatJSON(v any) (string, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return strings.TrimSpace(b.String()), err
}

func formatTitle(s string) string {
	words := strings.Fields(s)
	for i, w := range words {
		words[i] = strings.ToUpper(w[:1]) + w[1:]
	}
	return strings.Join(words, " ")
}

func formatPad(s string, before, after int) string {
	if s == "" {
		return s
	}
	return strings.Repeat(" ", before) + s + strings.Repeat(" ", after)
}

// formatJoin joins a list, or the sorted keys of a map.
func formatJoin(list any, sep string) (string, error) {
	if list == nil {
		return "", nil
	}
	v := reflect.ValueOf(list)
	var parts []string
	switch v.Kind() {
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			parts = append(parts, fmt.Sprint(v.Index(i).Interface()))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			parts = append(parts, fmt.Sprint(k.Interface()))
		}
		slices.Sort(parts)
	default:
		return "", fmt.Errorf("join needs a list, not %T", list)
	}
	return strings.Join(parts, sep), nil
}

// ago is how long ago something was, for people; "N/A" if that is unknown or
// was set to the beginning of time for reproducibility.
func ago(t time.Time) string {
	if t.Year() < 2000 {
		return "N/A"
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}

// humanSize is a number of bytes, for people.
func humanSize(n int64) string { return units.HumanSizeWithPrecision(float64(n), 3) }
