package network

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// forge sends a UDP packet with any source from the namespace of a process, as
// containers can.
func forge(t *testing.T, pid int, from, to netip.AddrPort, text string) {
	t.Helper()
	packet := make([]byte, 28, 28+len(text))
	packet[0], packet[8], packet[9] = 0x45, 64, unix.IPPROTO_UDP
	copy(packet[12:], from.Addr().AsSlice())
	copy(packet[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(packet[20:], from.Port())
	binary.BigEndian.PutUint16(packet[22:], to.Port())
	binary.BigEndian.PutUint16(packet[24:], uint16(8+len(text))) // and no checksum
	packet = append(packet, text...)
	err := inside(pid, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.Addr().As4()})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A container cannot pass for a server outside that one of another bridge
// talks to: the machine would take its packets for answers, and hand them on.
func TestForgedAnswers(t *testing.T) {
	one := newBridge(t)
	two := another(t, one, "kilntest1", Plan{})
	a, b := newContainer(t), newContainer(t)
	attach(t, one, a)
	inTwo := attach(t, two, b)
	if err := sysctl("net/ipv4/conf/all/rp_filter", "0"); err != nil {
		t.Fatal(err)
	}
	if err := sysctl("net/ipv4/conf/"+one.name+"/rp_filter", "0"); err != nil {
		t.Fatal(err)
	}
	var server, client *net.UDPConn
	listen := func(pid int, addr string) (c *net.UDPConn) {
		t.Helper()
		err := inside(pid, func() error {
			p, err := net.ListenPacket("udp4", addr)
			if err == nil {
				c = p.(*net.UDPConn)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	server, client = listen(outsidePID, outsideIP+":0"), listen(b.pid, inTwo.IP.String()+":0")
	there := server.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, err := client.WriteToUDPAddrPort([]byte("question"), there); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	_ = server.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, masqueraded, err := server.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	forge(t, a.pid, there, masqueraded, "forged")
	if _, err := server.WriteToUDPAddrPort([]byte("true"), masqueraded); err != nil {
		t.Fatal(err)
	}
	_ = client.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, _, err := client.ReadFromUDPAddrPort(buf); err != nil || string(buf[:n]) != "true" {
		t.Errorf("the answer is %q, %v", buf[:n], err)
	}
}
