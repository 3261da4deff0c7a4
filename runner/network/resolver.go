package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"kiln.build/runner/network/dns"
)

// ResolverAddr is where a container's nameserver answers, as with docker.
const ResolverAddr = "127.0.0.11"

// Resolve serves DNS at [ResolverAddr] inside the network namespace of a
// process, until ctx is done. The sockets have ports of their own, to which port 53 of that address is translated, so
// that the container can have a nameserver at all its addresses. Where the
// kernel cannot translate they have port 53.
func Resolve(ctx context.Context, pid int, s *dns.Server) error {
	ns, err := openNamespace(pid)
	if err != nil {
		return fmt.Errorf("serve names to process %d: %w", pid, err)
	}
	defer ns.Close()
	packets, streams, err := resolverSockets(ctx, ns, 0)
	if err == nil {
		if translate(ns, packets.LocalAddr().(*net.UDPAddr).Port, streams.Addr().(*net.TCPAddr).Port) != nil {
			_ = errors.Join(packets.Close(), streams.Close())
			packets, streams, err = resolverSockets(ctx, ns, 53)
		}
	}
	if err != nil {
		return fmt.Errorf("serve names to process %d: %w", pid, err)
	}
	go func() {
		_ = s.Serve(ctx, packets, streams) // whoever asks sees that nobody answers
	}()
	return nil
}

func resolverSockets(ctx context.Context, ns netns.NsHandle, port int) (packets net.PacketConn, streams net.Listener, err error) {
	// The container's loopback interface may not be up yet.
	early := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1) })
		return errors.Join(err, failed)
	}}
	err = within(ns, func() (err error) {
		addr := net.JoinHostPort(ResolverAddr, fmt.Sprint(port))
		if packets, err = early.ListenPacket(ctx, "udp4", addr); err != nil {
			return err
		}
		if streams, err = early.Listen(ctx, "tcp4", addr); err != nil {
			return errors.Join(err, packets.Close())
		}
		return nil
	})
	return packets, streams, err
}

// within calls f on a thread in a network namespace. What f makes stays there;
// f must not wait for other goroutines.
func within(ns netns.NsHandle, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		own, err := netns.Get()
		if err != nil {
			done <- err
			return // and the thread ends, as it is locked
		}
		defer own.Close()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		err = f()
		if netns.Set(own) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// translate makes, in a network namespace, the table
//
//	table ip kiln-names {
//		chain output {
//			type nat hook output priority dstnat; policy accept;
//			ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:UDP
//			ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:TCP
//		}
//	}
func translate(ns netns.NsHandle, udp, tcp int) error {
	conn, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "kiln-names", Family: nftables.TableFamilyIPv4})
	conn.DelTable(table) // that of another resolver, which has ended
	table = conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	here := net.ParseIP(ResolverAddr).To4()
	for _, p := range []struct {
		proto byte
		port  int
	}{{unix.IPPROTO_UDP, udp}, {unix.IPPROTO_TCP, tcp}} {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}, // daddr
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: here},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p.proto}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, // dport
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(53)},
			&expr.Immediate{Register: 1, Data: here},
			&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(uint16(p.port))},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2},
		}})
	}
	return conn.Flush()
}
