package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"time"
)

// wget fetches an address: -q, -O FILE or -, -T SECONDS. Any answer but 2xx
// is a failure with the status 8.
func wget(args []string) error {
	o, err := parse(args, "qO:T:S quiet=q output-document=O timeout=T spider=s")
	if err != nil {
		return err
	}
	if len(o.args) != 1 {
		return errors.New("need one address")
	}
	u, err := url.Parse(o.args[0])
	if err != nil {
		return err
	}
	if u.Scheme == "" {
		if u, err = url.Parse("http://" + o.args[0]); err != nil {
			return err
		}
	}
	timeout, err := time.ParseDuration(o.value('T', "900") + "s")
	if err != nil {
		return fmt.Errorf("-T %s: must be a number of seconds", o.value('T', ""))
	}
	client := &http.Client{Timeout: timeout}
	resp, err := client.Get(u.String())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		complain("wget", fmt.Errorf("%s: %s", u, resp.Status))
		return exit(8)
	}
	if o.has('s') {
		return nil
	}
	name := o.value('O', path.Base(u.Path))
	if name == "." || name == "/" {
		name = "index.html"
	}
	out := os.Stdout
	if name != "-" {
		if out, err = os.Create(name); err != nil {
			return err
		}
	}
	n, err := io.Copy(out, resp.Body)
	if err = errors.Join(err, out.Close()); err == nil && !o.has('q') {
		fmt.Fprintf(os.Stderr, "wget: %s: %d bytes\n", name, n)
	}
	return err
}
