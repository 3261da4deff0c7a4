package dns

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// ttl, in seconds: containers come and go, and asking again is cheap.
	ttl = 5
	// plainSize is how long an answer over UDP may be for a client that does
	// not say more (RFC 1035, 2.3.4).
	plainSize = 512
	// ednsSize is what the server itself takes over UDP; it goes without
	// fragments everywhere.
	ednsSize = 1232
	// maxAnswers bounds the answers to one query.
	maxAnswers = 64

	headerSize = 12
)

// query is what is known of a query.
type query struct {
	header   dnsmessage.Header
	question dnsmessage.Question
	edns     bool
	size     int // that an answer over UDP may have
}

// parseQuery reads a query. If it fails then code tells what is wrong.
func parseQuery(b []byte) (q query, code dnsmessage.RCode) {
	var p dnsmessage.Parser
	var err error
	if q.header, err = p.Start(b); err != nil {
		return q, dnsmessage.RCodeFormatError
	}
	if q.header.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented
	}
	questions, err := p.AllQuestions()
	if err != nil || len(questions) != 1 {
		return q, dnsmessage.RCodeFormatError
	}
	q.question, q.size = questions[0], plainSize
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, dnsmessage.RCodeFormatError
	}
	for {
		h, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			return q, dnsmessage.RCodeSuccess
		}
		if err != nil {
			return q, dnsmessage.RCodeFormatError
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns, q.size = true, max(plainSize, int(h.Class))
		}
		if p.SkipAdditional() != nil {
			return q, dnsmessage.RCodeFormatError
		}
	}
}

// local answers what needs no nameserver; forward tells that it is not up to
// this server. A message that is no query gets no answer.
func (s *Server) local(b []byte, stream bool) (answer []byte, forward bool) {
	if len(b) < headerSize || b[2]&0x80 != 0 {
		return nil, false // two servers that answer answers would never end
	}
	q, code := parseQuery(b)
	if code != dnsmessage.RCodeSuccess {
		return refusal(b, code), false
	}
	records, known := s.records(q.question)
	if !known {
		return nil, true
	}
	limit := q.size
	if stream {
		limit = 1<<16 - 1
	}
	answer, err := q.answer(records)
	if err == nil && len(answer) > limit {
		q.header.Truncated = true
		answer, err = q.answer(nil)
	}
	if err != nil { // a name from Reverse that is none
		return refusal(b, dnsmessage.RCodeServerFailure), false
	}
	return answer, false
}

// records returns the bodies of the answers to a question, and whether it is
// one about a name or address that is known.
func (s *Server) records(q dnsmessage.Question) (records []dnsmessage.ResourceBody, known bool) {
	if q.Class != dnsmessage.ClassINET {
		return nil, false
	}
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if q.Type == dnsmessage.TypePTR && s.Reverse != nil {
		addr, ok := reverseAddr(name)
		if !ok {
			return nil, false
		}
		target, ok := s.Reverse(addr)
		if !ok {
			return nil, false
		}
		n, err := dnsmessage.NewName(strings.TrimSuffix(target, ".") + ".")
		if err != nil {
			return nil, false
		}
		return []dnsmessage.ResourceBody{&dnsmessage.PTRResource{PTR: n}}, true
	}
	if s.Lookup == nil {
		return nil, false
	}
	addrs, ok := s.Lookup(name)
	if !ok {
		return nil, false
	}
	for _, a := range addrs {
		a = a.Unmap()
		switch {
		case len(records) == maxAnswers:
		case a.Is4() && (q.Type == dnsmessage.TypeA || q.Type == dnsmessage.TypeALL):
			records = append(records, &dnsmessage.AResource{A: a.As4()})
		case a.Is6() && (q.Type == dnsmessage.TypeAAAA || q.Type == dnsmessage.TypeALL):
			records = append(records, &dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
	// Clients take the first: containers that share an alias share the load.
	rand.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	return records, true
}

// answer makes an answer of records.
func (q query) answer(records []dnsmessage.ResourceBody) ([]byte, error) {
	m := dnsmessage.Message{
		Header: dnsmessage.Header{
			ID: q.header.ID, Response: true, Authoritative: true, Truncated: q.header.Truncated,
			RecursionDesired: q.header.RecursionDesired, RecursionAvailable: true,
		},
		Questions: []dnsmessage.Question{q.question},
	}
	for _, r := range records {
		h := dnsmessage.ResourceHeader{Name: q.question.Name, Class: dnsmessage.ClassINET, TTL: ttl}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: r})
	}
	if q.edns { // RFC 6891, 6.1.1: an answer has one if the query has
		var h dnsmessage.ResourceHeader
		if err := h.SetEDNS0(ednsSize, dnsmessage.RCodeSuccess, false); err != nil {
			return nil, err
		}
		m.Additionals = append(m.Additionals, dnsmessage.Resource{Header: h, Body: &dnsmessage.OPTResource{}})
	}
	return m.Pack()
}

// reverseAddr reads the name of an address in in-addr.arpa or ip6.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		parts := strings.Split(s, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return a, err == nil && a.Is4()
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	parts := strings.Split(s, ".")
	if !ok || len(parts) != 32 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := range parts {
		if len(parts[31-i]) != 1 {
			return netip.Addr{}, false
		}
		if i > 0 && i%4 == 0 {
			text.WriteByte(':')
		}
		text.WriteString(parts[31-i])
	}
	a, err := netip.ParseAddr(text.String())
	return a, err == nil
}

// failure is the answer to a query that no nameserver answered.
func failure(b []byte) []byte { return refusal(b, dnsmessage.RCodeServerFailure) }

// refusal answers with a code and, where the query has one that can be read,
// the question. It needs no more of the query than its header.
func refusal(b []byte, code dnsmessage.RCode) []byte {
	end := headerSize
	if binary.BigEndian.Uint16(b[4:]) == 1 {
		if n, ok := questionEnd(b); ok {
			end = n
		}
	}
	a := append([]byte(nil), b[:end]...)
	a[2] = 0x80 | b[2]&0x79 // an answer; opcode and RD as asked
	a[3] = 0x80 | byte(code&0xf)
	clear(a[4:headerSize])
	if end > headerSize {
		a[5] = 1
	}
	return a
}

// questionEnd returns where the one question of a message ends.
func questionEnd(b []byte) (int, bool) {
	for i := headerSize; i < len(b); {
		n := int(b[i])
		switch {
		case n == 0:
			i += 1 + 4 // type and class
			return i, i <= len(b)
		case n > 63: // a pointer: there is nothing before it to point to
			return 0, false
		}
		i += 1 + n
	}
	return 0, false
}
