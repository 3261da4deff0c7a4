package main

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptWebserver serves a folder over http on the loopback interface.
func scriptWebserver(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: webserver DIR")
	}
	dir := ts.MkAbs(args[0])
	files := http.FileServer(http.Dir(dir))
	git := &cgi.Handler{Path: gitBackend(), Stderr: io.Discard, Env: []string{
		"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_COUNT=2",
		"GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		"GIT_CONFIG_KEY_1=uploadpack.allowAnySHA1InWant", "GIT_CONFIG_VALUE_1=true",
	}}
	var mu sync.Mutex
	logName := filepath.Join(ts.Getenv("WORK"), "web.log")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen := &seenStatus{ResponseWriter: w, status: http.StatusOK}
		switch {
		case strings.HasPrefix(r.URL.Path, "/private") && !letIn(r.Header.Get("Authorization")):
			seen.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(seen, "who are you?", http.StatusUnauthorized)
		case strings.HasPrefix(r.URL.Path, "/moved/"):
			http.Redirect(seen, r, strings.TrimPrefix(r.URL.Path, "/moved"), http.StatusFound)
		case strings.Contains(r.URL.Path, ".git/") && !strings.Contains(r.URL.Path, "/dumb"):
			git.ServeHTTP(seen, r)
		default:
			if fi, err := os.Stat(filepath.Join(dir, filepath.FromSlash(r.URL.Path))); err == nil && !strings.Contains(r.URL.Path, "/plain") {
				seen.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, fi.ModTime().UnixNano(), fi.Size()))
			}
			if strings.Contains(r.URL.Path, "/plain") { // says nothing of the file's age
				r.Header.Del("If-Modified-Since")
				data, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(r.URL.Path)))
				if err != nil {
					http.NotFound(seen, r)
					break
				}
				seen.Write(data)
				break
			}
			files.ServeHTTP(seen, r)
		}
		mu.Lock()
		defer mu.Unlock()
		f, err := os.OpenFile(logName, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err == nil {
			fmt.Fprintf(f, "%s %s %d\n", r.Method, r.URL, seen.status)
			f.Close()
		}
	}))
	ts.Defer(s.Close)
	ts.Setenv("WEB", s.URL)
	ts.Setenv("WEBHOST", strings.TrimPrefix(s.URL, "http://"))
}

// scriptSocket listens on a socket, which is all that an ssh agent need be.
func scriptSocket(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: socket FILE")
	}
	l, err := net.Listen("unix", ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Defer(func() { l.Close() })
}

func letIn(header string) bool {
	token := base64.StdEncoding.EncodeToString([]byte("x-access-token:let-me-in"))
	return header == "Bearer let-me-in" || strings.EqualFold(header, "basic "+token)
}

func gitBackend() string {
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return ""
	}
	return filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
}

// seenStatus notes the status of a response.
type seenStatus struct {
	http.ResponseWriter
	status int
}

func (s *seenStatus) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}
