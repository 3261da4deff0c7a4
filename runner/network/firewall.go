package network

import (
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
const firewallVersion = 1

// ensureFirewall makes the table
//
//	table ip kiln {
//		chain postrouting {
//			type nat hook postrouting priority srcnat; policy accept;
//			ip saddr SUBNET oifname != "kiln0" masquerade comment "v1 SUBNET"
//		}
//		chain forward {
//			type filter hook forward priority filter; policy accept;
//			iifname "kiln0" accept
//			oifname "kiln0" ct state established,related accept
//			oifname "kiln0" drop
//		}
//	}
//
// The comment tells whether a table that exists is this one. The kernel
// applies a batch as a whole, so there is never half a table, and replacing
// it does not cut connections.
func (b *Bridge) ensureFirewall(subnet netip.Prefix) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Name: b.table, Family: nftables.TableFamilyIPv4}
	comment := fmt.Sprintf("v%d %s %s", firewallVersion, b.name, subnet)
	// An error means that there is no such chain; if it means more, then
	// making it fails as well.
	rules, err := conn.GetRules(table, &nftables.Chain{Name: "postrouting", Table: table})
	if err == nil && len(rules) == 1 {
		if s, ok := userdata.GetString(rules[0].UserData, userdata.TypeComment); ok && s == comment {
			return nil
		}
	}

	conn.AddTable(table) // deleting what is not there would fail the batch
	conn.DelTable(table)
	conn.AddTable(table)
	postrouting := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	conn.AddRule(&nftables.Rule{
		Table: table, Chain: postrouting,
		Exprs: join(
			fromSubnet(subnet),
			ifname(expr.MetaKeyOIFNAME, expr.CmpOpNeq, b.name),
			[]expr.Any{&expr.Masq{}},
		),
		UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
	})
	forward := conn.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	into := ifname(expr.MetaKeyOIFNAME, expr.CmpOpEq, b.name)
	for _, exprs := range [][]expr.Any{
		join(ifname(expr.MetaKeyIIFNAME, expr.CmpOpEq, b.name), verdict(expr.VerdictAccept)),
		join(into, answers(), verdict(expr.VerdictAccept)),
		// Forwarding would let any neighbour with a route to the subnet reach
		// ports that were never published.
		join(into, verdict(expr.VerdictDrop)),
	} {
		conn.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: exprs})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("make nftables table ip %s: %w", b.table, err)
	}
	return nil
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
