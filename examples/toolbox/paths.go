package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// basename prints the last element of paths: -a, -s SUFFIX.
func basename(args []string) error {
	o, err := parse(args, "+as: multiple=a suffix=s")
	if err != nil {
		return err
	}
	names, suffix := o.args, o.value('s', "")
	if len(names) == 0 {
		return errors.New("need a path")
	}
	if !o.has('a') && !o.has('s') {
		if len(names) > 2 {
			return fmt.Errorf("unexpected %q", names[2])
		}
		if len(names) == 2 {
			names, suffix = names[:1], names[1]
		}
	}
	for _, n := range names {
		b := filepath.Base(n)
		if n == "" {
			b = ""
		}
		if b != suffix {
			b = strings.TrimSuffix(b, suffix)
		}
		fmt.Println(b)
	}
	return nil
}

// dirname prints paths without their last elements.
func dirname(args []string) error {
	o, err := parse(args, "+")
	if err != nil {
		return err
	}
	if len(o.args) == 0 {
		return errors.New("need a path")
	}
	for _, n := range o.args {
		n = strings.TrimRight(n, "/")
		i := strings.LastIndexByte(n, '/')
		switch dir := strings.TrimRight(n[:max(i, 0)], "/"); {
		case dir != "":
			fmt.Println(dir)
		case i >= 0 || n == "" && o.args[0] != "":
			fmt.Println("/")
		default:
			fmt.Println(".")
		}
	}
	return nil
}

// readlink prints where links lead: -f, -e and -m resolve the whole path,
// the last element (-f) or all (-m) of which need not exist; -n prints no
// newline, -q is the default.
func readlink(args []string) error {
	o, err := parse(args, "femnq canonicalize=f canonicalize-existing=e canonicalize-missing=m no-newline=n")
	if err != nil {
		return err
	}
	how := o.last("fem")
	var result error
	for _, n := range o.args {
		to, err := os.Readlink(n)
		if how != 0 {
			to, err = canonical(n, how)
		}
		if err != nil {
			result = exit(1)
			continue
		}
		fmt.Print(to)
		if !o.has('n') {
			fmt.Println()
		}
	}
	return result
}

// realpath prints paths without links: -e, -m, -s (no resolving).
func realpath(args []string) error {
	o, err := parse(args, "emsq canonicalize-existing=e canonicalize-missing=m no-symlinks=s")
	if err != nil {
		return err
	}
	return each("realpath", o.args, func(n string) error {
		how := o.last("em")
		if how == 0 {
			how = 'f'
		}
		to, err := filepath.Abs(n)
		if !o.has('s') {
			to, err = canonical(n, how)
		}
		if err == nil {
			_, err = fmt.Println(to)
		}
		return err
	})
}

// canonical resolves all links of a path. What must exist is everything for
// how 'e', all but the last element for 'f', nothing for 'm'.
func canonical(path string, how byte) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	to, err := filepath.EvalSymlinks(abs)
	if err == nil || how == 'e' || !errors.Is(err, fs.ErrNotExist) {
		return to, err
	}
	if link, lerr := os.Readlink(abs); lerr == nil { // a dangling link
		if !filepath.IsAbs(link) {
			link = filepath.Join(filepath.Dir(abs), link)
		}
		return canonical(link, how)
	}
	parentHow := how
	if how == 'f' {
		parentHow = 'e'
	}
	dir, err := canonical(filepath.Dir(abs), parentHow)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(abs)), nil
}

// pwd prints the working directory: -L believes PWD if it is right, -P does
// not.
func pwd(args []string) error {
	o, err := parse(args, "LP logical=L physical=P")
	if err != nil {
		return err
	}
	dir, err := os.Getwd() // believes PWD if it is right
	if err == nil && o.last("LP") != 'L' {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Println(dir)
	return err
}

// which prints the files that commands would run.
func which(args []string) error {
	var result error
	for _, n := range args {
		path, err := exec.LookPath(n)
		if err != nil {
			result = exit(1)
			continue
		}
		fmt.Println(path)
	}
	return result
}
