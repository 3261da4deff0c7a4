package main

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestMain makes this test binary the tool box itself when it is called by
// the name of a command.
func TestMain(m *testing.M) {
	if _, ok := applets()[filepath.Base(os.Args[0])]; ok {
		main()
	}
	os.Exit(m.Run())
}

// bin returns a folder of links to the commands.
func bin(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := install([]string{dir}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// result is what a script gave.
type result struct {
	stdout, stderr string
	status         int
	files          string // names, modes and contents below the folder it ran in
}

// script runs text in a fresh folder by the shell at path.
func script(t *testing.T, shell, path, text string) result {
	t.Helper()
	dir := t.TempDir()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(shell, "-c", text)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &stdout, &stderr
	cmd.Stdin = strings.NewReader("one\ntwo\nthree\n")
	// The race detector makes each program that ends wait for a second.
	cmd.Env = []string{"PATH=" + path, "HOME=/nowhere", "LC_ALL=C", "TZ=UTC", "TMPDIR=" + dir, "GORACE=atexit_sleep_ms=0"}
	cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String(), status: cmd.ProcessState.ExitCode()}
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		content, _ := os.ReadFile(p)
		target, _ := os.Readlink(p)
		b.WriteString(strings.Join([]string{strings.TrimPrefix(p, dir), fi.Mode().String(), target, string(content)}, " ") + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.files = b.String()
	return r
}

// TestAsCoreutils runs scripts with these commands and with those of the
// machine: output, status and files must be the same.
func TestAsCoreutils(t *testing.T) {
	if out, err := exec.Command("cp", "--version").Output(); err != nil || !bytes.Contains(out, []byte("GNU coreutils")) {
		t.Skip("the machine has no GNU coreutils to compare with")
	}
	tools := bin(t)
	for name, text := range map[string]string{
		"cat":          `cat; echo a > a; cat a - a < a; cat none a`,
		"echo":         `env echo -n x; env echo a b`,
		"printf":       `env printf '%s-%d\n' a 1 b 2; env printf 'x\ty\n'`,
		"test":         `touch f; [ -f f ] && echo yes; env [ -d f ] || echo no; env test 3 -gt 2; env test a = b`,
		"cp file":      `echo x > a; chmod 750 a; cp a b; cat b; cp a none/b`,
		"cp tree":      `mkdir -p d/e; echo x > d/e/f; ln -s e/f d/l; chmod 700 d/e; cp -r d c; cp -a d a; cp d g; ls a c`,
		"cp into":      `mkdir d; echo 1 > a; echo 2 > b; cp a b d; cp -t d a; cp a b none`,
		"cp times":     `echo x > a; touch -d @1000000000 a; cp -p a b; stat -c %Y b; cp -a a c; stat -c '%Y %a %s' c`,
		"cp links":     `echo x > a; ln a b; mkdir d; cp -a a b d; stat -c %h d/a; ln -s a l; cp l m; cp -P l n; readlink n`,
		"cp itself":    `echo x > a; cp a a; mkdir d; cp -r d d/e; echo $?; rmdir d/e 2>/dev/null; true`,
		"mv":           `echo x > a; mv a b; mkdir d; mv b d; mv none d; ls d; mv d e; echo y > f; mv -n f e/b; cat e/b`,
		"rm":           `mkdir -p d/e; touch f d/f; rm f; rm d; rm -r d; rm -f none; rm none`,
		"ln":           `echo x > a; ln -s a b; ln -s a b; ln -sf none b; ln a c; stat -c %h a; mkdir d; ln -s ../a d; ln -sfn x d/a; ln -s /x/y`,
		"mkdir":        `mkdir a; mkdir a; mkdir -p a/b/c a; mkdir -m 1777 t; mkdir -m u=rwx,go= p; mkdir x/y`,
		"rmdir":        `mkdir -p a/b c; rmdir c; rmdir a; rmdir -p a/b`,
		"chmod":        `touch f; mkdir d; chmod 640 f; chmod +x f; chmod u+s,g-r f; stat -c %a f; chmod a=r,u+w f; stat -c %a f; chmod -R go-rwx d; chmod 4755 f; stat -c %a f; chmod g=u f; stat -c %a f; chmod -x f; stat -c %a f; chmod u=rwX,o= f d; stat -c %a f d; chmod 99 f; chmod +t d; stat -c %a d; chmod -w f; stat -c %a f`,
		"touch":        `touch -d 2020-01-02T03:04:05Z f; stat -c %Y f; touch -c none; touch -r f g; stat -c %Y g`,
		"head":         `seq 20 > f; head f; head -n 3 f; head -2 f; head -c 5 f; head -n -17 f; head -n 1 f f; head -c -45 f`,
		"tail":         `seq 20 > f; tail f; tail -n 3 f; tail -2 f; tail -c 5 f; tail -n +18 f; tail -n 1 f f; tail -c +48 f; printf x | tail -n 1`,
		"wc":           `seq 20 > f; wc f; wc -l f; wc -l < f; wc -c f f; cat f | wc; printf 'a b' | wc -w`,
		"sort":         `printf 'b 2\na 10\nc 1\na 9\n' > f; sort f; sort -r f; sort -k2n f; sort -k 2 f; sort -t ' ' -k1,1 -k2,2n f; sort -u f f; printf '10\n9\n-1\n1.5\n' | sort -n; printf 'B\na\nA\n' | sort -f; sort -c f; sort -o f f; cat f; printf 'x:3\ny:1\n' | sort -t: -k2,2nr`,
		"uniq":         `printf 'a\na\nb\na\n' > f; uniq f; uniq -c f; uniq -d f; uniq -u < f`,
		"cut":          `printf 'a:b:c\nx\n' > f; cut -d: -f2 f; cut -d: -f1,3- f; cut -c2-3 f; cut -s -d: -f1 f; cut -d: -f 2- --output-delimiter=_ f`,
		"tr":           `echo 'Hello  World' | tr a-z A-Z; echo abc | tr -d b; echo 'a  b' | tr -s ' '; echo a1b2 | tr -cd '[:digit:]'; echo ab | tr ab '\n-'; echo a-b | tr -- - _; echo xyz | tr xyz a`,
		"tee":          `echo x | tee a b; echo y | tee -a a; cat a`,
		"find":         `mkdir -p d/e; touch d/a.c d/e/b.c d/e/z; find d -name '*.c' | sort; find d -type d | sort; find d -maxdepth 1 | sort; find d -type f ! -name '*.c'; find d \( -name z -o -name a.c \) -print | sort; find d -name e -prune -o -print | sort; find d -type f -exec echo {} \; | sort; find d -type f -exec echo {} + | wc -l; find d -name '*.c' -delete; find d | sort; find d -empty | sort; find none`,
		"xargs":        `printf 'a b\nc' | xargs echo x; seq 5 | xargs -n 2; printf 'a\0b c\0' | xargs -0 -n 1 echo; echo "'a b' c\\ d" | xargs -n1; printf 'a\nb\n' | xargs -I{} echo '<{}>'; xargs -r echo none < /dev/null; echo 1 | xargs false`,
		"basename":     `basename /a/b.c .c; basename /; basename a/; basename -a x/y z; dirname /a/b a / a/b/ //x; basename -s .h a.h b.h`,
		"readlink":     `touch a; ln -s a l; readlink l; readlink a; cd /; readlink -f /etc/../etc/none; realpath /etc/../none; realpath -e /none`,
		"seq":          `seq 3; seq 2 4; seq 1 2 6; seq 3 -1 1; seq -s, 3; seq -w 8 10; seq 0 0.5 1; seq 2 1`,
		"sha256":       `echo x > a; sha256sum a > s; cat s; sha256sum -c s; echo y > a; sha256sum -c s`,
		"cmp":          `echo abc > a; echo abd > b; cmp a b; cmp -s a b; cmp a a`,
		"dd":           `dd if=/dev/zero of=f bs=1k count=3 status=none; wc -c f; printf abcdef | dd bs=2 skip=1 count=1 status=none; printf X | dd of=f bs=1 seek=5 conv=notrunc status=none; od -A d -t x1 f`,
		"od":           `printf 'ab\n\001\377' | od -c; printf 'abc' | od; printf abc | od -An -tx1; seq 9 | od -A x -t o1 -N 5`,
		"date":         `date -u -d @0; date -u -d @86399 '+%Y-%m-%dT%H:%M:%S %s %j %u %%'; date -u -d 2024-02-29 +%F; date -u -Iseconds -d @0`,
		"id":           `id -u; id -g; id -un; id -Gn; id; whoami; id -u nosuchuser`,
		"uname":        `uname; uname -m; uname -r; uname -n; uname -sr`,
		"env":          `env -i A=1 B=2 env | sort; env -u HOME env | sort | grep HOME; env A=x printenv A; printenv NONE; env none`,
		"true":         `true; env false`,
		"stat":         `echo abc > f; chmod 4711 f; ln -s f l; mkdir -m 1777 d; stat -c '%n %s %a %A %F' f l d; stat -L -c %F l; stat none`,
		"expr":         `expr 1 + 2 '*' 3; expr \( 1 + 2 \) '*' 3; expr 5 / 2; expr a = a; expr 3 '<' 10; expr abc : 'a\(.*\)'; expr abc : 'ab'; expr 0; expr "" '|' x; expr 1 +`,
		"mktemp":       `f=$(mktemp ./xXXXXXX); test -f $f && rm $f; d=$(mktemp -d); test -d $d && rmdir $d`,
		"truncate":     `truncate -s 1K f; wc -c < f; truncate -s 3 f; wc -c < f`,
		"kill":         `sleep 5 & sleep 0; (exec sleep 5) & env kill -0 $$; env kill -l TERM >/dev/null; env kill -s NOSUCH 1; true`,
		"du":           `mkdir d; truncate -s 100 d/f; du -b d/f; du -s d > /dev/null`,
		"gzip":         `seq 1000 > f; gzip f; test -f f && echo still; gunzip f.gz; wc -l f; gzip -k f; zcat f.gz | tail -n 1; gzip -c f | gzip -d | wc -l; gzip f; rm f.gz; echo bad > g.gz; gunzip g.gz`,
		"tar":          `mkdir -p d/e; echo x > d/e/f; ln -s e/f d/l; ln d/e/f d/h; chmod 2750 d/e; tar -cf a.tar d; tar tf a.tar | sort; mkdir o; tar -xf a.tar -C o; stat -c %h o/d/h; tar czf b.tgz -C d e; tar tzf b.tgz; mkdir p; tar xzf b.tgz -C p --strip-components=1; cat p/f; tar xOf b.tgz e/f; rm a.tar b.tgz`,
		"wildcard pwd": `mkdir -p a/b; cd a/b; pwd | tail -c 5; env pwd -P | tail -c 5`,
		"yes":          `yes | head -n 2; yes a b | head -n 1`,
		"grep":         `printf 'one\ntwo\nThree\na.b\n' > f; grep o f; grep -v o f; grep -c o f; grep -n t f; grep -i THREE f; grep -F . f; grep -E 'o|T' f; grep 'a\.b' f; grep -o 'n.' f; grep -w two f; grep -x one f; grep -l one f f; grep none f; echo $?; grep x none; echo $?; grep -q one f; echo $?; grep 'o\{1\}' f; grep -e one -e two f; grep '^t' f f; grep '[[:upper:]]' f; grep -m 1 o f; grep -h one f f; grep '*' f; grep -r one . ; grep -L one f; grep 'n*e' f`,
		"pwd stdin":    `head -n 1; wc -l`,
		"mkfifo":       `mkfifo -m 600 p; stat -c '%F %a' p; rm p`,
		"ls":           `mkdir d; touch d/b d/a d/.h; ls d; ls -1 d; ls -A d; ls d/a; ls none; ls -d d; ls -r d d/a; ln -s d l; ls l; mkdir -p x/y; ls -R x; ls -F; touch -d 2001-02-03T04:05:06Z d/a; ls -ln d/a; ls -a d; ls -t d | head -n 1; cd d && ls`,
		"which":        `which none; echo $?`,
		"base64":       `echo hello | base64; echo aGVsbG8K | base64 -d`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := script(t, "/bin/sh", tools, text)
			want := script(t, "/bin/sh", "/usr/bin:/bin", text)
			if got.stdout != want.stdout {
				t.Errorf("output:\n%s\nwant:\n%s", got.stdout, want.stdout)
			}
			if got.status != want.status {
				t.Errorf("status %d, want %d", got.status, want.status)
			}
			if got.files != want.files {
				t.Errorf("files:\n%s\nwant:\n%s", got.files, want.files)
			}
			if n, m := complaints(got.stderr), complaints(want.stderr); (n == 0) != (m == 0) {
				t.Errorf("complaints:\n%s\nwant something like:\n%s", got.stderr, want.stderr)
			}
		})
	}
}

func complaints(s string) int { return strings.Count(s, "\n") }

// TestShell runs scripts by this shell and compares with what POSIX says.
func TestShell(t *testing.T) {
	tools := bin(t)
	for _, test := range []struct {
		name, script, stdout string
		status               int
	}{
		{"errexit", "set -eux; echo a; false; echo b", "a\n", 1},
		{"errexit in condition", "set -e; if false; then :; fi; false || true; echo ok", "ok\n", 0},
		{"nounset", "set -u; echo $nothing; echo no", "", 1},
		{"pipe", "echo b a | tr ' ' '\\n' | sort | head -n 1", "a\n", 0},
		{"pipe status", "false | true; echo $?; true | false; echo $?", "0\n1\n", 0},
		{"pipefail", "set -o pipefail; false | true; echo $?", "1\n", 0},
		{"here-document", "x=1; cat <<EOF\na $x\nEOF\ncat <<'EOF'\nb $x\nEOF\n", "a 1\nb $x\n", 0},
		{"here-document alone", "cat <<EOF\na\nEOF\n", "a\n", 0},
		{"loops", "for i in 1 2 3; do [ $i = 2 ] && continue; echo $i; done; n=0; while [ $n -lt 2 ]; do n=$((n+1)); done; echo $n", "1\n3\n2\n", 0},
		{"case", `case abc in a*) echo yes;; *) echo no;; esac`, "yes\n", 0},
		{"function", `f() { local x=$1; echo "<$x>"; return 3; }; f a; echo $?`, "<a>\n3\n", 0},
		{"exit status", "exit 7", "", 7},
		{"status of signal", `sh -c 'env kill -TERM $$'; echo $?`, "143\n", 0},
		{"not found", "nosuchcommand; echo $?", "127\n", 0},
		{"not found alone", "nosuchcommand", "", 127},
		{"not executable", "echo x > f; ./f; echo $?", "126\n", 0},
		{"script without first line", "echo 'echo \"hi $1\"' > f; chmod +x f; ./f you", "hi you\n", 0},
		{"script file", "printf 'echo $0 $1 $#' > f; sh f a b", "f a 2\n", 0},
		{"script on input", "echo 'echo in $((1+1))' | sh", "in 2\n", 0},
		{"arguments after -c", `sh -c 'echo $0 $1' name arg`, "name arg\n", 0},
		{"options before -c", "sh -ec 'false; echo no'; echo $?; sh -euo pipefail -c 'false | true'; echo $?", "1\n1\n", 0},
		{"redirections", "echo a > f; echo b >> f; cat < f; cat none 2> e; wc -l < e; { echo o; echo e >&2; } > all 2>&1; wc -l < all", "a\nb\n1\n2\n", 0},
		{"mode of new files", "umask 027; echo > f; stat -c %a f; umask", "640\n0027\n", 0},
		{"wait", "false & wait $!; echo $?; sleep 0 & wait; echo done", "1\ndone\n", 0},
		{"trap", "trap 'echo bye' EXIT INT TERM; trap 'echo x' HUP; echo hi", "hi\nbye\n", 0},
		{"trap 0", "trap 'echo bye' 0; exit 3", "bye\n", 3},
		{"exec keeps the process", `sh -c 'echo $$; exec sh -c "echo \$\$"' | uniq | wc -l`, "1\n", 0},
		{"one command keeps the process", `sh -c "sh -c 'echo \$PPID'" > a; echo $$ > b; cmp a b && echo same`, "same\n", 0},
		{"exec in subshell", "(exec true); echo still; exec false | true; echo here", "still\nhere\n", 0},
		{"exec of nothing", "exec > f; echo x; exec nosuchcommand", "", 127},
		{"substitution", `x=$(echo a; exit 3); echo $x $?; echo "$(printf 'a\n\n')"`, "a 3\na\n", 0},
		{"parameters", `x=abc.tar.gz; echo ${x%%.*} ${x#*.} ${#x} ${y:-d} ${x%.gz}`, "abc tar.gz 10 d abc.tar\n", 0},
		{"globs", "touch a.c b.c; echo *.c; echo *.x", "a.c b.c\n*.x\n", 0},
		{"export", "export A=1; B=2; env printenv A; env printenv B; C=3 printenv C; sh -c 'echo $A$C'", "1\n3\n1\n", 0},
		{"cd", "mkdir d; cd d; touch f; cd ..; ls d; cd none; echo $?", "f\n1\n", 0},
		{"read", `printf 'a b\nc\n' | while read -r x y; do echo "$y,$x"; done`, "b,a\n,c\n", 0},
		{"command -v", "command -v nosuch; echo $?; command -v ls | wc -l", "1\n1\n", 0},
		{"syntax error", "if; then", "", 2},
		{"printf", `printf '%5s|%-3s|%03d|%x\n' a b 7 255`, "    a|b  |007|ff\n", 0},
		{"arithmetic", "echo $((2*3+1)) $(( 7 % 4 )); i=1; echo $((i+=2))", "7 3\n3\n", 0},
		{"kill", "kill -0 $$; echo $?", "0\n", 0},
		{"ulimit", "ulimit -n 64; sh -c 'ulimit -n'", "64\n", 0},
		{"big pipe", "seq 100000 | cat | tail -n 1", "100000\n", 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := script(t, filepath.Join(tools, "sh"), tools, test.script)
			if got.stdout != test.stdout || got.status != test.status {
				t.Errorf("%s\noutput %q, status %d; want %q, %d\n%s", test.script, got.stdout, got.status, test.stdout, test.status, got.stderr)
			}
		})
	}
}

func TestUnknownOptionsAreErrors(t *testing.T) {
	tools := bin(t)
	for _, line := range []string{"cp -Z a b", "ls --color=never .", "rm --nonsense x", "sort -V", "tar -J x", "find . -nonsense", "dd conv=ascii=1 x=1", "sh -c 'kill %1'"} {
		if r := script(t, filepath.Join(tools, "sh"), tools, line); r.status == 0 || r.stderr == "" {
			t.Errorf("%s: status %d, %q; want an error", line, r.status, r.stderr)
		}
	}
}

func TestTarStaysInside(t *testing.T) {
	tools := bin(t)
	text := `mkdir in out; ln -s "$PWD/out" in/l; printf x > f; tar cf a.tar f; cd in; tar xf ../a.tar; ls; cat > /dev/null
		cd ..; mkdir l2; tar cf evil.tar -C in l; cd l2; tar xf ../evil.tar; mkdir d; cd d; echo pwned > f; tar cf ../x.tar f; cd ..; tar xf x.tar -C . ; cd ..; ls out`
	if r := script(t, filepath.Join(tools, "sh"), tools, text); strings.Contains(r.files, "/out/f") {
		t.Errorf("a file was written through a link:\n%s", r.files)
	}
}

func TestRootIsTheSameEachTime(t *testing.T) {
	self, err := os.Open(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	var a, b bytes.Buffer
	for _, w := range []io.Writer{&a, &b} {
		if _, err := self.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if err := writeRoot(w, self); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("two archives differ")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "root.tar")
	if err := os.WriteFile(file, a.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	tools := bin(t)
	r := script(t, filepath.Join(tools, "sh"), tools, "tar tf "+file)
	got := strings.Fields(r.stdout)
	for _, want := range []string{"bin/sh", "bin/toolbox", "etc/passwd", "tmp/", "usr/bin/env"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s in the root file system", want)
		}
	}
}

func TestBrokenPipeIsQuiet(t *testing.T) {
	tools := bin(t)
	r := script(t, filepath.Join(tools, "sh"), tools, "yes | head -n 1; seq 1000000 | head -n 1")
	if r.stdout != "y\n1\n" || r.stderr != "" {
		t.Errorf("got %q, %q", r.stdout, r.stderr)
	}
}

func TestStatusOfSignals(t *testing.T) {
	for name, want := range map[string]syscall.Signal{"TERM": syscall.SIGTERM, "sigint": syscall.SIGINT, "9": syscall.SIGKILL, "NONE": 0} {
		if got := signalNumber(name); got != want {
			t.Errorf("signalNumber(%q) = %d, want %d", name, got, want)
		}
	}
}
