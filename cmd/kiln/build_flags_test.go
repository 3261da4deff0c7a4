package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"kiln.build/solver/op"
)

func TestArgs(t *testing.T) {
	env := func(name string) (string, bool) { return "from env", name == "SET" }
	got, err := args("--build-arg", []string{"A=1", "B=x=y", "C=", "SET", "UNSET"}, env)
	want := map[string]string{"A": "1", "B": "x=y", "C": "", "SET": "from env"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	if _, err := args("--build-arg", []string{"=x"}, env); err == nil {
		t.Error("an argument without a name was accepted")
	}
}

func TestParseSecrets(t *testing.T) {
	t.Setenv("TOKEN", "s3cret")
	for _, test := range []struct {
		flag string
		want secretSource
		err  string
	}{
		{flag: "id=a,src=/f", want: secretSource{file: "/f"}},
		{flag: "id=a,source=/f,type=file", want: secretSource{file: "/f"}},
		{flag: "id=a,env=TOKEN", want: secretSource{env: "TOKEN"}},
		{flag: "id=a,type=env,src=TOKEN", want: secretSource{env: "TOKEN"}},
		{flag: "id=TOKEN", want: secretSource{env: "TOKEN"}},
		{flag: "id=TOKEN,type=file", want: secretSource{file: "TOKEN"}},
		{flag: "id=other", want: secretSource{file: "other"}},
		{flag: "src=/f", err: "no id"},
		{flag: "id=a,colour=red", err: "unknown key"},
		{flag: "id=a,src=/f,env=X", err: "both"},
		{flag: "id=a,type=vault", err: "must be file or env"},
		{flag: "id", err: "key=value"},
	} {
		t.Run(test.flag, func(t *testing.T) {
			got, err := parseSecrets([]string{test.flag})
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want an error with %q", err, test.err)
				}
				return
			}
			if err != nil || len(got) != 1 {
				t.Fatalf("got %v, %v", got, err)
			}
			for _, s := range got {
				if s != test.want {
					t.Errorf("got %+v, want %+v", s, test.want)
				}
			}
		})
	}
}

func TestReadSecretsNamesWhatIsMissing(t *testing.T) {
	_, err := readSecrets(map[string]secretSource{"npm": {file: filepath.Join(t.TempDir(), "none")}})
	if err == nil || !strings.Contains(err.Error(), `secret "npm"`) || !os.IsNotExist(unwrapAll(err)) {
		t.Errorf("got %v", err)
	}
}

func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok || u.Unwrap() == nil {
			return err
		}
		if _, ok := err.(*os.PathError); ok {
			return err
		}
		err = u.Unwrap()
	}
}

func TestBuildFlagValues(t *testing.T) {
	f := &buildFlags{addHosts: []string{"db:10.0.0.1", "v6=[::1]"}, ulimits: []string{"nofile=10:20"}, memory: "1g", memorySwap: "-1"}
	hosts, err := f.hosts()
	if err != nil || !reflect.DeepEqual(hosts, []op.Host{{Name: "db", IP: "10.0.0.1"}, {Name: "v6", IP: "::1"}}) {
		t.Errorf("hosts: %v, %v", hosts, err)
	}
	limits, err := f.parseUlimits()
	if err != nil || !reflect.DeepEqual(limits, []op.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}) {
		t.Errorf("ulimits: %v, %v", limits, err)
	}
	l, err := f.limits()
	if err != nil || l.Memory != 1<<30 || l.MemorySwap != -1 {
		t.Errorf("limits: %+v, %v", l, err)
	}
	for _, bad := range []func() error{
		func() error { _, err := (&buildFlags{addHosts: []string{"db"}}).hosts(); return err },
		func() error { _, err := (&buildFlags{ulimits: []string{"files=1"}}).parseUlimits(); return err },
		func() error { _, err := (&buildFlags{memory: "lots"}).limits(); return err },
		func() error { _, err := (&buildFlags{network: "host"}).entitlements(); return err },
		func() error { _, err := (&buildFlags{network: "bridge9"}).entitlements(); return err },
		func() error { _, err := (&buildFlags{allow: []string{"all"}}).entitlements(); return err },
		func() error {
			_, err := (&buildFlags{platforms: []string{"no/such/plat/form"}}).targetPlatforms()
			return err
		},
		func() error { _, err := (&buildFlags{contextModes: "some"}).gitModes(); return err },
		func() error { _, err := (&buildFlags{sourceDateTime: "today"}).epoch(); return err },
		func() error { _, err := (&buildFlags{jobs: -1}).jobCount(); return err },
		func() error { _, err := parseContexts([]string{"x=ftp://example.com/a.tar"}); return err },
		func() error { _, err := parseContexts([]string{"x=/no/such/place"}); return err },
		func() error { _, err := parseContexts([]string{"=x"}); return err },
		func() error { _, err := parseSSH([]string{"default=/etc/passwd"}); return err },
	} {
		if err := bad(); err == nil {
			t.Error("bad input was accepted")
		} else {
			t.Log(err)
		}
	}
}

func TestDefaultRoot(t *testing.T) {
	env := func(m map[string]string) func(string) string { return func(k string) string { return m[k] } }
	for _, test := range []struct {
		env  map[string]string
		root bool
		want string
	}{
		{map[string]string{"KILN_ROOT": "/x"}, true, "/x"},
		{nil, true, "/var/lib/kiln"},
		{map[string]string{"HOME": "/home/u"}, false, "/home/u/.local/share/kiln"},
		{map[string]string{"HOME": "/home/u", "XDG_DATA_HOME": "/d"}, false, "/d/kiln"},
		{map[string]string{"HOME": "/home/u", "XDG_DATA_HOME": "relative"}, false, "/home/u/.local/share/kiln"},
	} {
		if got := defaultRoot(env(test.env), test.root); got != test.want {
			t.Errorf("defaultRoot(%v, %t) = %q, want %q", test.env, test.root, got, test.want)
		}
	}
}
