package dockerfile

import (
	"bytes"
	"errors"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// BuildKit's parser takes no line of 64 KiB or more. A longer one, such as a
// RUN with an embedded archive or a line of a heredoc, is therefore handed to
// it in pieces: each ends in seam and a continuation character, which the
// parser removes from an instruction and keeps in a heredoc. Whatever of it
// is left in the parsed text is taken out again, and line numbers are put
// right.
const (
	longLine = 60 << 10 // bytes; pieces are at most so long
	seam     = "\ue000\uf8ff\ue000"
	// seamReach is how far back from the end of a piece a place is looked
	// for where a seam does no harm.
	seamReach = 4 << 10
)

// parseLong is parser.Parse without its limit.
func parseLong(text []byte) (*parser.Result, error) {
	if !slices.ContainsFunc(bytes.SplitAfter(text, []byte("\n")), func(l []byte) bool { return len(l) > longLine }) {
		return parser.Parse(bytes.NewReader(text))
	}
	escape := "\\"
	if e, _, _, ok := parser.ParseDirective("escape", text); ok {
		escape = e
	}
	short, lines := cutLines(text, escape)
	res, err := parser.Parse(bytes.NewReader(short))
	if err != nil {
		mapLocations(err, lines)
		return nil, err
	}
	mend := strings.NewReplacer(seam+escape+"\n#"+seam, "", seam+escape+"\n", "", seam, "")
	mendNode(res.AST, mend, lines)
	for _, w := range res.Warnings {
		if w.Location != nil {
			w.Location.Start.Line = lineOf(lines, w.Location.Start.Line)
			w.Location.End.Line = lineOf(lines, w.Location.End.Line)
		}
	}
	return res, nil
}

// cutLines cuts long lines into pieces; lines gives for each line of the
// result, counted from one, the line that it comes from.
func cutLines(text []byte, escape string) (short []byte, lines []int) {
	lines = []int{0}
	number := 0
	for line := range bytes.Lines(text) {
		number++
		comment := bytes.HasPrefix(bytes.TrimSpace(line), []byte("#"))
		for len(line) > longLine {
			n := seamAt(line)
			if n < 0 {
				break // nowhere to cut: the parser refuses the line
			}
			short = append(short, line[:n]...)
			short = append(short, seam+escape+"\n"...)
			if comment {
				short = append(short, "#"+seam...)
			}
			lines = append(lines, number)
			line = line[n:]
		}
		short = append(short, line...)
		lines = append(lines, number)
	}
	return short, append(lines, number)
}

// seamAt is the last place in a piece at which a line can be cut: inside a
// run of letters or digits, which is one word in every syntax, and not in
// the name of a heredoc or an escape. It is negative where there is none.
func seamAt(line []byte) int {
	alnum := func(c byte) bool {
		return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
	}
	for n := longLine; n > longLine-seamReach; n-- {
		if alnum(line[n-1]) && alnum(line[n]) && !bytes.ContainsAny(line[n-16:n], "<\\`") {
			return n
		}
	}
	return -1
}

func mendNode(n *parser.Node, mend *strings.Replacer, lines []int) {
	for ; n != nil; n = n.Next {
		n.Value, n.Original = mend.Replace(n.Value), mend.Replace(n.Original)
		for _, list := range [][]string{n.Flags, n.PrevComment} {
			for i := range list {
				list[i] = mend.Replace(list[i])
			}
		}
		for i := range n.Heredocs {
			n.Heredocs[i].Content = mend.Replace(n.Heredocs[i].Content)
		}
		n.StartLine, n.EndLine = lineOf(lines, n.StartLine), lineOf(lines, n.EndLine)
		for _, c := range n.Children {
			mendNode(c, mend, lines)
		}
	}
}

func lineOf(lines []int, n int) int {
	if n < 0 || n >= len(lines) {
		return n
	}
	return lines[n]
}

// mapLocations puts the line numbers of a parser's error right.
func mapLocations(err error, lines []int) {
	var at *parser.LocationError
	if !errors.As(err, &at) {
		return
	}
	for _, ranges := range at.Locations {
		for i := range ranges {
			ranges[i].Start.Line = lineOf(lines, ranges[i].Start.Line)
			ranges[i].End.Line = lineOf(lines, ranges[i].End.Line)
		}
	}
}
