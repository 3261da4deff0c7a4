package network

import (
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// firewallVersion changes with the rules, so that those of an older program
// are replaced.
const firewallVersion = 3

// ensureFirewall makes the table of all bridges, with each line that names one
// for each of them:
//
//	table ip kiln {
//		chain postrouting {
//			type nat hook postrouting priority srcnat; policy accept;
//			ip saddr SUBNET oifname != "kiln0" masquerade
//		}
//		chain apart {
//			oifname "kiln0" drop
//		}
//		chain forward {
//			type filter hook forward priority filter; policy accept;
//			iifname "kiln0" oifname "kiln0" accept
//			iifname "kiln0" jump apart
//			oifname "kiln0" ct state established,related accept
//			oifname "kiln0" drop
//			iifname "kiln0" accept
//		}
//	}
//
// An internal bridge has no masquerading and no way in or out: it accepts what
// stays on it and drops the rest. A chain of no hook has a comment that tells
// whether a table that exists is this one. The kernel applies a batch as a
// whole, so there is never half a table, and replacing it does not cut
// connections. The caller holds the lock.
func (b *Bridge) ensureFirewall() error {
	all, err := b.bridges()
	if err != nil {
		return err
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: b.table, Family: nftables.TableFamilyIPv4}
	sum := sha256.Sum256(fmt.Appendf(nil, "%v", all))
	comment := fmt.Sprintf("v%d %x", firewallVersion, sum[:8])
	// An error means that there is no such chain; if it means more, then
	// making it fails as well.
	rules, err := conn.GetRules(table, &nftables.Chain{Name: "version", Table: table})
	if err == nil && len(rules) == 1 {
		if s, ok := userdata.GetString(rules[0].UserData, userdata.TypeComment); ok && s == comment {
			return nil
		}
	}

	conn.AddTable(table) // deleting what is not there would fail the batch
	conn.DelTable(table)
	if len(all) > 0 {
		b.fillTable(conn, conn.AddTable(table), all, comment)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make nftables table ip %s: %w", b.table, err)
	}
	return nil
}

func (b *Bridge) fillTable(conn *nftables.Conn, table *nftables.Table, all []known, comment string) {
	version := conn.AddChain(&nftables.Chain{Name: "version", Table: table})
	conn.AddRule(&nftables.Rule{
		Table: table, Chain: version, Exprs: verdict(expr.VerdictReturn),
		UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
	})
	postrouting := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	forward := conn.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	add := func(chain *nftables.Chain, exprs ...[]expr.Any) {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: join(exprs...)})
	}
	from := func(k known) []expr.Any { return ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, k.name) }
	into := func(k known) []expr.Any { return ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, k.name) }
	// Whatever goes from one bridge to another, since containers can forge
	// packets: one from a server outside that another bridge's container talks
	// to would be taken for its answer.
	apart := conn.AddChain(&nftables.Chain{Name: "apart", Table: table})
	for _, k := range all {
		add(apart, into(k), verdict(expr.VerdictDrop))
		add(forward, from(k), into(k), verdict(expr.VerdictAccept))
		add(forward, from(k), []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: apart.Name}})
	}
	for _, k := range all {
		if !k.Internal {
			add(postrouting, fromSubnet(k.Subnet), ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, k.name), []expr.Any{&expr.Masq{}})
			add(forward, into(k), answers(), verdict(expr.VerdictAccept))
		}
		// Forwarding would let any neighbour with a route to the subnet, and
		// any other bridge, reach ports that were never published.
		add(forward, into(k), verdict(expr.VerdictDrop))
	}
	// What enters no bridge.
	for _, k := range all {
		v := expr.VerdictAccept
		if k.Internal {
			v = expr.VerdictDrop
		}
		add(forward, from(k), verdict(v))
	}
}

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// fromSubnet matches packets by source address.
func fromSubnet(p netip.Prefix) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}, // saddr
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: net.CIDRMask(p.Bits(), 32), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// ifname matches packets by interface.
func ifname(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: padded},
	}
}

// answers matches packets of connections that are under way.
func answers() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4,
			Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED),
			Xor:  make([]byte, 4),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func verdict(k expr.VerdictKind) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: k}}
}
