package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ggcrregistry "github.com/google/go-containerregistry/pkg/registry"
	"github.com/rogpeppe/go-internal/testscript"
	"kiln.build/runner/container"
	"kiln.build/runner/monitor"
	"kiln.build/runner/network"
	"kiln.build/runner/sandbox"
	"kiln.build/runner/sandbox/initbin"
	"kiln.build/runner/sandbox/sandboxtest"
)

func TestMain(m *testing.M) {
	sandbox.MaybeInit() // kiln run by a script starts sandboxes from this program
	if err := testInit(); err != nil {
		log.Fatal(err)
	}
	testscript.Main(tidy{m}, map[string]func(){"kiln": main, monitor.Name: main})
}

// built holds the programs that tests run: a folder of this process, removed
// at its end. The kiln of a script, which is this program too, has none.
var built = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "kiln-test-") })

// tidy runs the tests and then removes what was built for them.
type tidy struct{ m *testing.M }

func (t tidy) Run() int {
	code := t.m.Run()
	if dir, err := built(); err == nil {
		_ = os.RemoveAll(dir)
	}
	return code
}

// testInit gives this program, and the kiln that it is in scripts, the
// sandbox's init as a file: built once, and found by its name afterwards.
func testInit() error {
	if os.Getenv(sandboxtest.File) == "" && len(initbin.Program) == 0 {
		dir, err := built()
		if err != nil {
			return err
		}
		file := filepath.Join(dir, "init")
		if err := sandboxtest.Build(file, "kiln.build/runner/sandbox/init"); err != nil {
			return err
		}
		os.Setenv(sandboxtest.File, file)
	}
	return sandboxtest.Init()
}

// TestScripts runs testdata/script. Each script has a store of its own;
// beside kiln and what testscript has there are the commands
//
//	toolbox [NAME [ARCH]]  imports the tool box's root file system (default "toolbox")
//	registry [USER PW]  starts an empty registry; its address is $REGISTRY
//	webserver DIR       serves the files of a folder over http, with what
//	                    "git http-backend" answers for *.git; $WEB is its
//	                    address, $WEBHOST that without http://; requests are
//	                    noted in web.log. Below /private it wants the header
//	                    "Authorization: Bearer let-me-in", or that of git's
//	                    token "let-me-in"
//	socket FILE         listens on a unix socket
//	touch FILE...       gives files the time that it is now
//	resize FILE TEXT    writes a line of text and keeps the file's time
//	status N kiln ...   runs kiln and wants this exit status
//	eventually kiln ... runs kiln until it prints something
//
// of container_test.go, as well as
//
//	logsizes NAME N MAX  wants a container's log to be N files of MAX bytes
//	killmonitors NAME... kills monitors, as a loss of power would
//
// and the conditions root, fuse, userns, exists:PATH and net, the last for
// scripts that need Debian's mirrors.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("KILN_ROOT", e.WorkDir+"/.store")
			e.Setenv("HOME", e.WorkDir+"/.home")
			e.Setenv(sandboxtest.File, os.Getenv(sandboxtest.File))
			e.Setenv("GORACE", "atexit_sleep_ms=0")
			e.Defer(func() { removeBridges(t, e.WorkDir+"/.store") })
			e.Defer(func() { removeContainers(t, e.WorkDir+"/.store") }) // before their bridges
			return nil
		},
		Condition: func(c string) (bool, error) {
			switch c {
			case "root":
				return os.Geteuid() == 0, nil
			case "fuse":
				_, err := os.Stat("/dev/fuse")
				return err == nil, nil
			case "userns":
				return userNamespace(), nil
			case "net":
				return debianReachable(), nil
			}
			if path, ok := strings.CutPrefix(c, "exists:"); ok {
				_, err := os.Stat(path)
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", c)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"toolbox":   scriptToolbox,
			"registry":  scriptRegistry,
			"webserver": scriptWebserver,
			"socket":    scriptSocket,
			"touch":     scriptTouch,
			"resize":    scriptResize,

			"status":       scriptStatus,
			"eventually":   scriptEventually,
			"logsizes":     scriptLogSizes,
			"killmonitors": scriptKillMonitors,
		},
	})
}

var userNamespace = sync.OnceValue(func() bool {
	c := exec.Command("true")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
	return c.Run() == nil
})

// removeContainers ends what a script that failed has left running.
func removeContainers(t *testing.T, root string) {
	all, err := container.Set{Dir: filepath.Join(root, "containers")}.List()
	if err != nil {
		t.Error(err)
	}
	for _, k := range all {
		if err := k.Remove(context.Background(), container.RemoveOptions{Force: true, Volumes: true}); err != nil {
			t.Error(err)
		}
	}
}

// removeBridges takes away what a script has left of the machine's networks.
func removeBridges(t *testing.T, root string) {
	all, err := network.Set{Dir: filepath.Join(root, "networks")}.List()
	if err != nil {
		t.Error(err)
	}
	for _, n := range all {
		if err := removeBridge(context.Background(), n); err != nil {
			t.Error(err)
		}
	}
}

var debianReachable = sync.OnceValue(func() bool {
	c, err := net.DialTimeout("tcp", "deb.debian.org:80", 3*time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
})

func scriptToolbox(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 2 {
		ts.Fatalf("usage: toolbox [NAME [ARCH]]")
	}
	name := "toolbox"
	if len(args) > 0 {
		name = args[0]
	}
	if len(args) == 2 {
		archive, err := foreignToolbox(args[1])
		ts.Check(err)
		ts.Check(ts.Exec("kiln", "import", "--platform", "linux/"+args[1], archive, name))
		return
	}
	built, err := programs()
	ts.Check(err)
	ts.Check(ts.Exec("kiln", "import", built.toolbox, name))
}

func scriptRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 && len(args) != 2 {
		ts.Fatalf("usage: registry [USER PASSWORD]")
	}
	h := ggcrregistry.New(ggcrregistry.Logger(log.New(io.Discard, "", 0)))
	if open := h; len(args) == 2 {
		h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != args[0] || password != args[1] {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			open.ServeHTTP(w, r)
		})
	}
	s := httptest.NewServer(h)
	ts.Defer(s.Close)
	ts.Setenv("REGISTRY", strings.TrimPrefix(s.URL, "http://"))
}

func scriptTouch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: touch FILE...")
	}
	for _, a := range args {
		path := ts.MkAbs(a)
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
		ts.Check(err)
		ts.Check(f.Close())
		ts.Check(os.Chtimes(path, time.Now(), time.Now()))
	}
}

func scriptResize(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: resize FILE TEXT")
	}
	path := ts.MkAbs(args[0])
	fi, err := os.Stat(path)
	ts.Check(err)
	text := args[1] + "\n"
	if int64(len(text)) != fi.Size() {
		ts.Check(errors.New("the text is not as long as the file"))
	}
	ts.Check(os.WriteFile(path, []byte(text), 0o644))
	ts.Check(os.Chtimes(path, fi.ModTime(), fi.ModTime()))
}
