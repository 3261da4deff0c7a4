package cdi

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFind(t *testing.T) {
	etc, run := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		etc + "/a.yaml": "cdiVersion: 0.6.0\nkind: v/c\ncontainerEdits: {env: [ALL=1]}\ndevices:\n- {name: b}\n- {name: a, containerEdits: {env: [A=etc]}}\n- {name: twice}\n",
		etc + "/b.json": `{"cdiVersion":"0.6.0","kind":"v/c","devices":[{"name":"twice"}]}`,
		etc + "/c.yml":  "cdiVersion: 0.6.0\nkind: w/c\nannotations: {org.mobyproject.buildkit.device.class: all}\ndevices: [{name: x}, {name: y, annotations: {org.mobyproject.buildkit.device.class: other}}]\n",
		run + "/a.json": `{"cdiVersion":"0.6.0","kind":"v/c","devices":[{"name":"a","containerEdits":{"env":["A=run"],"deviceNodes":[{"path":"/dev/x","fileMode":432}]}}]}`,
		run + "/notes":  "not read",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Read([]string{etc, filepath.Join(etc, "missing"), run})
	if err != nil {
		t.Fatal(err)
	}
	for request, want := range map[string]string{
		"v/c=a": "v/c=a", "v/c": "v/c=a", "w/c=*": "w/c=x w/c=y", "all": "w/c=x", "other": "w/c=y", "v/c=none": "", "v": "", "": "", "u/c": "",
	} {
		found, err := r.Find(request)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, d := range found {
			names = append(names, d.Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%q: got %q, want %q", request, got, want)
		}
	}
	if _, err := r.Find("v/c=twice"); err == nil || !strings.Contains(err.Error(), "a.yaml and in") {
		t.Errorf("a device of two files: %v", err)
	}
	a, err := r.Find("v/c=a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.Find("v/c=b")
	if err != nil {
		t.Fatal(err)
	}
	e := Combine(append(append(a, b...), b...))
	if got := strings.Join(e.Env, " "); got != "A=run ALL=1" {
		t.Errorf("environment %q", got)
	}
	if n := e.DeviceNodes; len(n) != 1 || n[0].Path != "/dev/x" || n[0].FileMode == nil || *n[0].FileMode != 0o660 {
		t.Errorf("nodes %+v", n)
	}
}

func TestReadBad(t *testing.T) {
	for name, text := range map[string]string{
		"not YAML": "{", "no version": "kind: v/c\n", "no kind": "cdiVersion: 0.6.0\n", "kind without class": "cdiVersion: 0.6.0\nkind: v\n",
		"no name": "cdiVersion: 0.6.0\nkind: v/c\ndevices: [{}]\n",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/x.yaml", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Read([]string{dir}); err == nil || !strings.Contains(err.Error(), "x.yaml") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
