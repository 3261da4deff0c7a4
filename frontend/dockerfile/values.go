package dockerfile

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
)

// Values that the image config or a flag takes as text, and what is checked
// of them: ports, signals, modes.

// sizeOfPort is about what a port takes, in the history, the config and on
// the way there.
const sizeOfPort = 256

func (b *build) expose(s *stage, c *command, in *instructions.ExposeCommand) error {
	var ports []string
	for _, text := range in.Ports {
		m := b.meter(text, s.vars)
		words, err := b.lex.ProcessWords(text, m) // one variable may hold several
		if err = m.check(err); err != nil {
			return err
		}
		for _, w := range words {
			p, err := exposed(c, w)
			if err != nil {
				return fmt.Errorf("invalid port: %q: %w", w, err)
			}
			if err := b.spend(len(p) * sizeOfPort); err != nil {
				return err
			}
			ports = append(ports, p...)
		}
	}
	for _, p := range ports {
		setKey(&s.image.Config.ExposedPorts, p, struct{}{})
	}
	b.history(s, fmt.Sprintf("EXPOSE %v", ports), false)
	return nil
}

// exposed are the ports of "80", "80/udp" or "3000-3005/tcp". An address or
// a port of the host before them is checked and means nothing.
func exposed(c *command, word string) ([]string, error) {
	host, rest := "", word
	if i := strings.LastIndexByte(word, ':'); i >= 0 {
		host, rest = word[:i], word[i+1:]
	}
	text, proto, _ := strings.Cut(rest, "/")
	if text == "" {
		return nil, errors.New("no port specified")
	}
	switch strings.ToLower(proto) {
	case "":
		proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return nil, fmt.Errorf("invalid protocol %q: must be tcp, udp or sctp", proto)
	}
	if lower := strings.ToLower(proto); lower != proto {
		c.warn(&linter.RuleExposeProtoCasing, linter.RuleExposeProtoCasing.Format(word))
		proto = lower
	}
	first, last, err := portRange(text)
	if err != nil {
		return nil, err
	}
	if host != "" {
		c.warn(&linter.RuleExposeInvalidFormat, linter.RuleExposeInvalidFormat.Format(word))
		if err := hostPart(host, last-first); err != nil {
			return nil, err
		}
	}
	var ports []string
	for p := first; p <= last; p++ {
		ports = append(ports, fmt.Sprintf("%d/%s", p, proto))
	}
	return ports, nil
}

// hostPart checks "[address:]port" for so many container ports after the
// first.
func hostPart(host string, more int) error {
	port := host
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		ip := host[:i]
		port = host[i+1:]
		if ip != "" && net.ParseIP(strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")) == nil {
			return fmt.Errorf("invalid IP address %q", ip)
		}
	}
	if port == "" {
		return nil
	}
	first, last, err := portRange(port)
	if err != nil {
		return err
	}
	if last-first != more && more != 0 {
		return fmt.Errorf("the range of host ports %s has another length", port)
	}
	return nil
}

func portRange(text string) (first, last int, err error) {
	low, high, ok := strings.Cut(text, "-")
	if !ok {
		high = low
	}
	f, err := strconv.ParseUint(low, 10, 16)
	if err != nil {
		return 0, 0, fmt.Errorf("%q must be a number from 0 to 65535", low)
	}
	l, err := strconv.ParseUint(high, 10, 16)
	if err != nil {
		return 0, 0, fmt.Errorf("%q must be a number from 0 to 65535", high)
	}
	if l < f {
		return 0, 0, fmt.Errorf("the range %s ends before it begins", text)
	}
	return int(f), int(l), nil
}

// checkSignal accepts what docker does: a number, or a name with or without
// SIG.
func checkSignal(s string) error {
	if n, err := strconv.Atoi(s); err == nil && n != 0 {
		return nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	for prefix, most := range map[string]int{"RTMIN+": 15, "RTMAX-": 14} {
		if text, ok := strings.CutPrefix(name, prefix); ok {
			if n, err := strconv.ParseUint(text, 10, 8); err == nil && int(n) >= 1 && int(n) <= most {
				return nil
			}
		}
	}
	if slices.Contains(signals, name) {
		return nil
	}
	return fmt.Errorf("invalid signal: %s%s", s, didYouMean(name, signals))
}

// signals are the names of signal(7).
var signals = strings.Fields("ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT RTMIN RTMAX SEGV STKFLT STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ")

var (
	octalMode    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^0*[0-7]{1,4}$`) })
	symbolicMode = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[ugoa]*[-+=][rwxXstugo]*([-+=][rwxXstugo]*)*(,[ugoa]*[-+=][rwxXstugo]*([-+=][rwxXstugo]*)*)*$`)
	})
)

// checkChmod accepts the octal and symbolic modes of chmod(1).
func checkChmod(mode string) error {
	if mode == "" || octalMode().MatchString(mode) || symbolicMode().MatchString(mode) {
		return nil
	}
	return fmt.Errorf("invalid chmod parameter: %q: it should be octal and between 0 and 07777, or symbolic such as u+x,go=r", mode)
}

// namesOwner reports whether a --chown needs the root's passwd or group file.
func namesOwner(chown string) bool {
	for part := range strings.SplitSeq(chown, ":") {
		if _, err := strconv.ParseUint(part, 10, 32); part != "" && err != nil {
			return true
		}
	}
	return false
}
